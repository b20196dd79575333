"""Certificates in what objects hold: PEM in base64, found without making a value of anything else that lies beside them."""

from __future__ import annotations

import binascii
import re
from functools import lru_cache

from handclasp.pki.contents.model import is_ca
from handclasp.wire.observations import Seen

MAX_VALUE = 2 * 1024 * 1024  # bytes of text: an object has at most 1.5 MiB
MAX_FOUND = 2000  # certificates in one value; the largest trust stores have some 200
MAX_DER = 262_144  # as wire.observations has it
_BLOCK = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([^-]*)-----END (?:X509 |TRUSTED )?CERTIFICATE-----")
_MARK = b"CERTIFICATE-----"


def from_base64(data: bytes | memoryview) -> bytes | None:
    """Return what base64 stands for; None where it is none."""
    try:
        return binascii.a2b_base64(data, strict_mode=True) if len(data) <= MAX_VALUE else None
    except (binascii.Error, ValueError):
        return None


def ders(pem: bytes) -> list[bytes]:
    """Return the certificates of a PEM text in their order; one whose base64 is broken as the text that it is."""
    found = []
    for match in _BLOCK.finditer(pem):
        found.append(_der(b"".join(match[1].split())) or match[0][:MAX_DER])
        if len(found) == MAX_FOUND:
            break
    return found


@lru_cache(maxsize=2048)
def _der(body: bytes) -> bytes:
    """Return the bytes of a block; of equal ones the same object, so that a bundle in each of 5,000 namespaces is in memory once."""
    return (from_base64(body) or body)[:MAX_DER]


def has_certificate(pem: bytes) -> bool:
    """Tell cheaply whether a text may hold a certificate."""
    return _MARK in pem


def as_chain(pem: bytes, role: str = "stored") -> list[Seen]:
    """Return a certificate with the chain that follows it, as files for servers have it; nothing where there is none."""
    found = ders(pem)
    return [Seen(der=found[0], role=role, chain=found[1:33])] if found else []


def as_anchors(pem: bytes) -> list[Seen]:
    """Return every certificate as an anchor, each once."""
    return [Seen(der=der, role="anchor") for der in dict.fromkeys(ders(pem))]


def as_found(pem: bytes) -> list[Seen]:
    """Return certificates of a text that nobody says the purpose of.

    A certificate that is no CA's begins a chain, CA certificates after it are its chain, those before any are anchors.
    """
    seen: dict[bytes, Seen] = {}
    last: Seen | None = None
    for der in ders(pem):
        if not is_ca(der):
            last = seen.setdefault(der, Seen(der=der))
        elif last is None:
            seen.setdefault(der, Seen(der=der, role="anchor"))
        elif len(last.chain) < 32 and der not in last.chain:
            last.chain.append(der)
    return list(seen.values())
