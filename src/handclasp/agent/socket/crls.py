"""Whether revocation lists can be given to Envoy.

Envoy has BoringSSL check every certificate of a chain as soon as there is any list at all: an authority without a list, or with one that
has ended, or one that covers a part only (RFC 5280 section 5.2.5), makes it refuse everybody. So the lists are complete, or none is given.
"""

from __future__ import annotations

import functools

from handclasp.agent.socket.messages import certificates, revocation_lists
from handclasp.clock import from_datetime

_MARGIN = 300_000
"""Milliseconds that a list must still count: the next one has to arrive in time."""


def complete_crl(crl: bytes, bundle: bytes, now: int) -> bytes:
    """Return the CRLs (PEM) when they can be used with these anchors at ``now`` (ms): each anchor has one that counts; else nothing."""
    issuers, ends = _facts(crl)
    if not issuers or now + _MARGIN >= ends:
        return b""
    return crl if _subjects(bundle) <= issuers else b""


@functools.lru_cache(maxsize=16)
def _facts(crl: bytes) -> tuple[frozenset[bytes], int]:
    """Issuers of the lists, and when the first of them ends; none where one of them cannot be used."""
    from cryptography import x509

    issuers, ends = set(), []
    try:
        for der in revocation_lists(crl):
            one = x509.load_der_x509_crl(der)
            if one.next_update_utc is None or any(extension.critical for extension in one.extensions):
                return frozenset(), 0
            issuers.add(one.issuer.public_bytes())
            ends.append(from_datetime(one.next_update_utc))
    except (ValueError, TypeError):
        return frozenset(), 0
    return frozenset(issuers), min(ends, default=0)


@functools.lru_cache(maxsize=16)
def _subjects(bundle: bytes) -> frozenset[bytes]:
    from cryptography import x509

    return frozenset(x509.load_der_x509_certificate(der).subject.public_bytes() for der in certificates(bundle))
