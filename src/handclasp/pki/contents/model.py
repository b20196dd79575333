"""What is found in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import serialization

from handclasp.pki import der
from handclasp.pki.chains import UNREADABLE

MAX_CERTIFICATES = 10_000
"""In one file; a system's trust store has 150, and what has more than this is no place that certificates are used from."""
MAX_DER = 262_144
"""Bytes of one certificate, as much as an observation may hold."""
MAX_CHAIN = 32
_BASIC_CONSTRAINTS = der.oid("2.5.29.19")


@dataclass(frozen=True, slots=True)
class Entry:
    """A certificate with what came below it, in the order of the file. ``alias`` is its name in a keystore."""

    der: bytes
    chain: tuple[bytes, ...] = ()
    alias: str = ""
    anchor: bool = False
    """A CA certificate that is there to be trusted."""


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """That a private key is there. ``spki_sha256`` is None where that cannot be told without a passphrase."""

    spki_sha256: bytes | None = None
    encrypted: bool = False
    alias: str = ""


@dataclass(slots=True)
class Contents:
    """What one file holds."""

    format: str
    """``pem``, ``der``, ``pkcs12``, ``pkcs7``, ``jks``, ``jceks``, ``kubeconfig``."""
    entries: list[Entry] = field(default_factory=list)
    keys: list[PrivateKey] = field(default_factory=list)
    locked: bool = False
    """No password that is known opens it."""
    references: list[str] = field(default_factory=list)
    """Other files that it names."""
    notes: list[str] = field(default_factory=list)
    """Parts that could not be read."""
    problem: str = ""
    """Why nothing of it can be relied on."""

    @property
    def empty(self) -> bool:
        """Whether it holds nothing that concerns certificates."""
        return not (self.entries or self.keys or self.locked or self.references)


def is_ca(certificate: bytes) -> bool:
    """Tell whether a DER certificate is one of a CA: basic constraints say so, or it is a self-signed one of version 1.

    It is read here and not by a full parser: system trust stores have certificates that those complain about.
    """
    try:
        parts = _signed_parts(certificate)
        extensions = next((part for part in parts if part[0] == 0xA3), None)
        if extensions is None:
            return parts[0][0] != 0xA0 and parts[2] == parts[4]
        for extension in der.children(der.children(extensions)[0]):
            kind, *_, value = der.children(extension)
            if kind == _BASIC_CONSTRAINTS:
                _, start, end = der.read(value)
                return der.TRUE in der.children(value[start:end])
    except (ValueError, IndexError):
        pass
    return False


def _signed_parts(certificate: bytes) -> list[bytes]:
    """Return the parts of a TBSCertificate (RFC 5280 4.1); raise ``ValueError`` or ``IndexError``."""
    return der.children(der.children(certificate)[0])


def group(certificates: Sequence[bytes], *, with_key: bool) -> list[Entry]:
    """Return certificates that stand one after the other as entries: each leaf with the CA certificates that follow it.

    Where there is neither a leaf nor a private key, all of them are anchors: that is what a bundle is.
    """
    kinds = [(certificate, is_ca(certificate)) for certificate in certificates]
    if not with_key and all(ca for _, ca in kinds):
        return [Entry(certificate, anchor=True) for certificate in dict.fromkeys(certificates)]
    leaves: list[tuple[bytes, list[bytes]]] = []
    for certificate, ca in kinds:
        if ca and leaves:
            leaves[-1][1].append(certificate)
        else:
            leaves.append((certificate, []))
    return list(dict.fromkeys(Entry(leaf, tuple(above[:MAX_CHAIN])) for leaf, above in leaves))


def spki_of_certificate(certificate: bytes) -> bytes | None:
    """Return the SHA-256 of the public key's SPKI as it stands in a certificate, or None."""
    try:
        parts = _signed_parts(certificate)
        return hashlib.sha256(parts[6 if parts[0][0] == 0xA0 else 5]).digest()
    except (ValueError, IndexError):
        return None


def spki_of_key(key: Any) -> bytes | None:
    """Return the SHA-256 of the SPKI of a private key's public half, or None for one that has no such form."""
    try:
        public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    except (*UNREADABLE, AttributeError):
        return None
    return hashlib.sha256(public).digest()


def bounded(certificates: Iterable[bytes], contents: Contents) -> list[bytes]:
    """Return the certificates that are not too large, and not too many; note the others."""
    kept: list[bytes] = []
    for certificate in certificates:
        if len(certificate) > MAX_DER:
            contents.notes.append(f"a certificate of {len(certificate)} bytes is left out")
        elif len(kept) == MAX_CERTIFICATES:
            contents.notes.append(f"only the first {MAX_CERTIFICATES} certificates are taken")
            break
        else:
            kept.append(certificate)
    return kept
