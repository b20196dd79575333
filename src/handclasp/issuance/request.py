"""What a door hands to issuance, and what it gets back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from handclasp.access.principals import Principal
from handclasp.pki.csr import Csr


@dataclass(frozen=True, slots=True)
class Source:
    """Where a request came from: the door's name, and the network address when there is one."""

    door: str
    address: str | None = None

    def to_log(self) -> dict[str, str]:
        """Return it as a log entry shows it."""
        return {"door": self.door, "address": self.address} if self.address else {"door": self.door}


@dataclass(slots=True)
class IssuanceRequest:
    """A wish for a certificate, as a door understood it. Names and lifetime are wishes; policy decides on the result."""

    principal: Principal
    csr: str | bytes | Csr
    """PEM or DER; or what a door has read already, to look at it."""
    source: Source
    identity: str | None = None
    dns: Sequence[str] = ()
    ip: Sequence[str] = ()
    email: Sequence[str] = ()
    profile: str | None = None
    ttl: float | None = None
    """Wanted lifetime in seconds."""
    or_shorter: bool = False
    """Whether the nearest lifetime that profile and grant allow will do where ``ttl`` itself is not allowed."""
    predecessor: bytes | None = None
    """SHA-256 of the certificate that this one replaces; set for a renewal and only then."""


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate that is durable in the rows and in the log."""

    der: bytes
    sha256: bytes
    serial: int
    identity: str
    authority: str
    chain_pem: str
    """The issuing authority's certificate, without leaf and root: what a server sends after its own."""
    bundle_pem: str
    """The anchors of the trust domain."""
    not_before: int
    not_after: int
    renew_after: int
    renew_before: int
    log_entry: int
