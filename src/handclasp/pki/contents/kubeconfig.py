"""Kubeconfigs, in YAML or JSON: certificates in them, keys in them, and the files that they name.

They are looked through by their keys and not parsed as YAML: who only looks needs no anchors, merges and tags, nor what these can do.
"""

from __future__ import annotations

import binascii
import re

from handclasp.pki.contents.model import Contents, Entry, PrivateKey
from handclasp.pki.contents.pem import read_pem

_DATA = re.compile(rb'["\']?(client-certificate|certificate-authority|client-key)-data["\']?[ \t]*:[ \t]*["\']?([A-Za-z0-9+/=]{16,})')
_FILE = re.compile(rb'["\']?(client-certificate|certificate-authority|client-key)["\']?[ \t]*:[ \t]*(["\']?)([^"\'\r\n,{}]{1,1024})')
_MARK = re.compile(rb"client-certificate(-data)?[\"']?[ \t]*:|certificate-authority(-data)?[\"']?[ \t]*:")
_MOST = 200


def looks_like_kubeconfig(data: bytes | bytearray) -> bool:
    """Tell whether a text has what only a kubeconfig has."""
    return _MARK.search(data) is not None


def read_kubeconfig(data: bytes | bytearray) -> Contents:
    """Return the client certificates, the anchors and the keys of a kubeconfig."""
    contents = Contents("kubeconfig")
    anchors: dict[bytes, None] = {}
    for match in list(_DATA.finditer(data))[:_MOST]:
        what = match[1].decode()
        try:
            inside = bytearray(binascii.a2b_base64(match[2]))
        except binascii.Error:
            contents.notes.append(f"a {what}-data is not base64")
            continue
        found = read_pem(inside)
        inside[:] = bytes(len(inside))
        if what == "client-key":
            contents.keys += [PrivateKey(key.spki_sha256, key.encrypted, what) for key in found.keys]
        elif what == "client-certificate":
            contents.entries += [Entry(entry.der, entry.chain, what) for entry in found.entries]
        else:
            anchors |= dict.fromkeys(entry.der for entry in found.entries)
        if found.empty:
            contents.notes.append(f"a {what}-data holds nothing that is known")
    contents.entries += [Entry(anchor, alias="certificate-authority", anchor=True) for anchor in anchors]
    contents.entries = list(dict.fromkeys(contents.entries))
    names = (match[3].strip().decode("utf-8", "replace") for match in list(_FILE.finditer(data))[:_MOST])
    contents.references = list(dict.fromkeys(name for name in names if name))
    return contents
