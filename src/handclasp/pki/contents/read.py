"""Look at bytes, and choose who reads them."""

from __future__ import annotations

from collections.abc import Sequence

from handclasp.pki.contents.jks import JCEKS, JKS, read_jks
from handclasp.pki.contents.kubeconfig import looks_like_kubeconfig, read_kubeconfig
from handclasp.pki.contents.model import Contents, bounded, group
from handclasp.pki.contents.pem import read_der, read_pem, read_pkcs7
from handclasp.pki.contents.pkcs12 import looks_like_pkcs12, read_open_pkcs12, read_pkcs12

SUFFIXES = frozenset(
    "pem crt cer cert der p12 pfx pkcs12 jks jceks ks keystore truststore p7b p7c key bundle ca-bundle kubeconfig".split()  # noqa: SIM905
)
"""Endings of names by which certificates and keystores go."""
_MARKS = (b"-----BEGIN ", b"client-certificate", b"certificate-authority")
_SIGNED_DATA = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02"  # 1.2.840.113549.1.7.2


def named_so(name: str) -> bool:
    """Tell whether a file's name is one that certificates and keystores go by."""
    base = name.lower()
    return base.rpartition(".")[2] in SUFFIXES or base in ("cacerts", "kubeconfig", "truststore", "keystore")


def interesting(name: str, head: bytes | bytearray) -> bool:
    """Tell whether a file is worth reading whole, by its name and how it begins (some 64 KB of it)."""
    return named_so(name) or head[:4] in (JKS, JCEKS) or any(mark in head for mark in _MARKS)


def read_contents(data: bytes | bytearray, name: str = "", passwords: Sequence[str] | None = None) -> Contents | None:
    """Return what a file holds; None where it has nothing to do with certificates.

    ``name`` helps where the bytes alone do not tell. ``passwords`` are tried on PKCS#12 files, after none and
    the empty one; who gives them may have to wait as long as such a file wants. Without them only what needs none is read. Raises nothing.
    """
    if data[:4] in (JKS, JCEKS):
        return read_jks(data)
    if looks_like_pkcs12(data):
        return read_open_pkcs12(data) if passwords is None else read_pkcs12(data, passwords)
    if data[:1] == b"\x30":
        return _der(bytes(data), name)
    if looks_like_kubeconfig(data):
        found = read_kubeconfig(data)
        if not found.empty:
            return found
    if b"-----BEGIN " in data:
        found = read_pem(data)
        return found if not found.empty or found.problem else None
    return None


def _der(data: bytes, name: str) -> Contents | None:
    if _SIGNED_DATA in data[:32]:
        contents = Contents("pkcs7")
        contents.entries = group(bounded(read_pkcs7(data, contents), contents), with_key=False)
        if contents.empty and contents.notes:
            contents.problem = contents.notes[0]
        return contents
    contents = read_der(data)
    if contents.problem and name.lower().rpartition(".")[2] not in ("der", "cer", "crt", "cert"):
        return None  # other things are DER too, and much begins with a 0
    return contents
