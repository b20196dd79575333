"""Obtaining, renewing and revoking certificates and JWT-SVIDs."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from handclasp.wire.base import Duration, Name, NameList, Pem, Problem, Request, Response, Sha256


class IssueRequest(Request, kw_only=True):
    """Ask for a certificate over the key in ``csr``; the names come from here or from the CSR, and policy decides on the result."""

    csr: Pem
    identity: Annotated[str, Meta(max_length=2048)] | None = None
    dns: NameList = field(default_factory=list)
    ip: NameList = field(default_factory=list)
    email: NameList = field(default_factory=list)
    profile: Name | None = None
    ttl: Duration | None = None


class BatchRequest(Request, kw_only=True):
    """Up to 1,000 issuances in one request; each succeeds or fails by itself."""

    requests: Annotated[list[IssueRequest], Meta(min_length=1, max_length=1000)]


class RenewRequest(Request, kw_only=True):
    """Renew the certificate named in the path, over the key in ``csr`` (a new one, unless the profile allows the old)."""

    csr: Pem
    ttl: Duration | None = None


class Issued(Response, kw_only=True):
    """A new certificate with everything needed to use and to renew it."""

    certificate: str
    chain: str
    bundle: str
    sha256: str
    serial: str
    identity: str
    not_before: str
    not_after: str
    renew_after: str
    renew_before: str
    authority: str
    log_entry: int


class BatchItem(Response, kw_only=True):
    """Exactly one of ``issued`` and ``problem`` is set."""

    issued: Issued | None = None
    problem: Problem | None = None


class BatchResponse(Response, kw_only=True):
    """Answers in the order of the requests."""

    results: list[BatchItem]


class RevokeRequest(Request, kw_only=True):
    """Revoke a certificate. ``key_compromise`` also blocks its key everywhere and revokes what else carries it."""

    reason: str = "unspecified"
    comment: Annotated[str, Meta(max_length=1000)] = ""


class Revoked(Response, kw_only=True):
    """Certificates that this request revoked: more than one after a key compromise, none when it was revoked before."""

    revoked: list[str]
    reason: str
    revoked_at: str
    log_entry: int | None


class RenewalInfo(Response, kw_only=True):
    """The server's current renewal suggestion for one certificate."""

    sha256: str
    renew_after: str
    renew_before: str
    state: str


class RenewalQuery(Request, kw_only=True):
    """Ask for the renewal suggestions of several certificates at once; ``tag`` is that of the last answer about the same certificates."""

    certificates: Annotated[list[Sha256], Meta(max_length=2000)]
    tag: str = ""


class RenewalList(Response, kw_only=True):
    """Suggestions for those of the certificates that the caller may know of. ``tag`` changes whenever any suggestion anywhere may have;
    while it is the caller's own, ``items`` is empty: nothing has changed.
    """

    tag: str
    items: list[RenewalInfo]


class JwtSvidRequest(Request, kw_only=True):
    """Ask for a JWT-SVID; policy decides whether the caller may have it for this identity."""

    identity: Annotated[str, Meta(max_length=2048)]
    audience: Annotated[list[Annotated[str, Meta(min_length=1, max_length=512)]], Meta(min_length=1, max_length=20)]
    ttl: Duration | None = None


class JwtSvid(Response, kw_only=True):
    """A JWT-SVID (SPIFFE JWT-SVID 1.0), compact."""

    token: str
    identity: str
    expires_at: str
    log_entry: int
