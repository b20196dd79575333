"""One certificate, one identity, and where a certificate was seen."""

from __future__ import annotations

from typing import Any

from msgspec import field

from handclasp.wire.base import Response


class Sighting(Response, kw_only=True):
    """Certificate ``sha256`` was at ``location`` from ``first_seen`` to ``last_seen``; it still is while ``ended`` is null."""

    id: int
    sha256: str
    location: int
    shown: str
    kind: str
    host: str | None
    source: str
    role: str
    """``served``, ``stored``, ``listed`` (it exists, and that is all that is known), ``chain`` or ``anchor``."""
    chain: list[str]
    """Fingerprints of what came with it, in its order, without the certificate itself."""
    how: dict[str, Any]
    first_seen: str
    last_seen: str
    ended: str | None
    problem: str | None = None
    """Why its location could not be read the last time."""


class Certificate(Response, kw_only=True):
    """One certificate as the inventory knows it: issued here, or found (``origin``).

    What only an issued one has is null for a found one, and a found one says of itself what its own bytes say.
    """

    sha256: str
    serial: str
    """Hexadecimal; empty where only the fingerprint is known."""
    identity: str | None
    """Null for a CA certificate, and for one without a name of a workload."""
    dns: list[str]
    ip: list[str]
    email: list[str]
    profile: str | None
    authority: str | None
    """The authority of ours that signed it, also where it was never issued here."""
    not_before: str
    not_after: str
    renew_after: str | None
    renew_before: str | None
    state: str
    """``valid``, ``superseded``, ``expired`` or ``revoked``."""
    key_sha256: str | None
    key_type: str
    line: str | None
    generation: int | None
    predecessor: str | None
    superseded_by: str | None
    revoked_at: str | None
    revocation_reason: str | None
    granted_by: str | None
    obtained_by: str | None
    log_entry: int | None
    certificate: str | None = None
    origin: str = "issued"
    """``issued`` or ``found``."""
    standing: str | None = None
    """Where it stands: ``unissued revoked_served expired_served old_served foreign gone seen``; null when it was never seen."""
    standing_since: str | None = None
    issuer: str | None = None
    """Distinguished name (RFC 4514)."""
    subject: str | None = None
    uri: list[str] = field(default_factory=list)
    """URI names of a found one."""
    owner: str | None = None
    tier: str | None = None
    environment: str | None = None
    first_seen: str | None = None
    last_seen: str | None = None
    locations: int = 0
    """At how many places it is served or stored now."""
    is_ca: bool = False
    signature: str | None = None
    """Signature algorithm of a found one."""
    triage: str | None = None
    """Of a found one: ``unmanaged``, ``claimed``, ``dismissed`` or ``investigate``."""
    triage_by: str | None = None
    triage_reason: str | None = None
    problem: str | None = None
    """Why it cannot be read, where it cannot."""
    sightings: list[Sighting] | None = None
    """Where it is and was, newest first, at most 100; only where one certificate is asked for, with ``expand=sightings``."""


class CertificateList(Response, kw_only=True):
    """One page; pass ``next_cursor`` as ``cursor`` for the next, until it is null.

    A page may have fewer items than asked for, or none, and still a ``next_cursor``: the server had looked through enough for one request.
    """

    items: list[Certificate]
    next_cursor: str | None = None


class Identity(Response, kw_only=True):
    """Who a workload is; outlives its certificates."""

    identity: str
    owner: str | None
    tier: str | None
    environment: str | None
    created_at: str
    certificates: int
    """Certificates issued to it so far."""
    newest: str | None
    newest_not_after: str | None
    newest_origin: str | None = None
    """``issued``, or ``found`` where none was ever issued here."""
    newest_renew_before: str | None = None
    state: str = "none"
    """Of its newest certificate: ``ok``, ``overdue`` (not renewed in time), ``expired``, or ``none`` when it has none."""


class IdentityList(Response, kw_only=True):
    """One page of identities."""

    items: list[Identity]
    next_cursor: str | None = None
