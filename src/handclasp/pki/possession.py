"""What the holder of a key signs to show that it has it, for one use and one request: the same words on both sides."""

from __future__ import annotations

_ENROLMENT = b"handclasp agent enrolment v1"


def enrolment_text(challenge: str, csr_sha256: bytes) -> bytes:
    """Return what the key of a certificate signs when that certificate is the evidence for an enrolment.

    It binds the signature to this use, to the server's challenge (ASCII), and to the request that is to be certified (SHA-256 of its DER).
    The first line is in no other signature of ours, nor in one of TLS.
    """
    return b"\n".join((_ENROLMENT, challenge.encode("ascii", "replace"), csr_sha256.hex().encode()))
