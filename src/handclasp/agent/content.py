"""What an agent hands to a service: key, certificate, chain, trust bundle and revocation lists of one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from handclasp.client.material import Credential


@dataclass(frozen=True, slots=True)
class Content:
    """What a target is to hold. ``certificate`` is the leaf alone, ``chain`` what stands above it without the root; all PEM.

    ``sha256`` is the leaf's fingerprint (hex). ``bundle`` holds every anchor that counts now, old and new ones side by side as the server
    gave them.
    """

    sha256: str
    key: bytes = field(repr=False)
    certificate: bytes
    chain: bytes
    bundle: bytes
    crl: bytes = b""

    @property
    def credential(self) -> Credential:
        """Key and chain as one."""
        return Credential(join_pem(self.certificate, self.chain), self.key)

    def digest(self, place: _Digests) -> str:
        """Digest of what ``place`` is to hold: another one means another delivery."""
        return place.digest(self)


class _Digests(Protocol):
    def digest(self, content: Content, /) -> str: ...


def join_pem(*parts: bytes) -> bytes:
    """Put PEM texts one after the other, each ending its line."""
    return b"".join(part if part.endswith(b"\n") else part + b"\n" for part in parts if part)
