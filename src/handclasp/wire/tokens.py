"""Scoped access tokens."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from handclasp.wire.base import Duration, Name, PatternList, Request, Response, Sha256


class TokenRequest(Request, kw_only=True):
    """Make a scoped access token. A token either issues certificates (``allow*``, ``profile``) or uses the API (``scopes``)."""

    name: Name
    owner: Annotated[str, Meta(max_length=256)] | None = None
    allow: PatternList = field(default_factory=list)
    allow_dns: PatternList = field(default_factory=list)
    allow_ip: PatternList = field(default_factory=list)
    allow_email: PatternList = field(default_factory=list)
    profiles: Annotated[list[Name], Meta(max_length=20)] = field(default_factory=list)
    max_ttl: Duration | None = None
    uses: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 1
    """How many certificates it may obtain; 0 is without limit until it expires, as one with ``scopes`` always is."""
    expires: Duration = "10m"
    cidr: PatternList = field(default_factory=list)
    csr_hash: Sha256 | None = None
    """SHA-256 of the DER of the only CSR that may be presented with it."""
    renew: bool = True
    """Whether holders of certificates obtained with it may renew them while the token is not revoked."""
    agent: bool = False
    """An enrolment token: it also issues the agent's own certificate, and that agent may then obtain what the token allows."""
    labels: dict[str, str] = field(default_factory=dict)
    scopes: Annotated[list[str], Meta(max_length=50)] = field(default_factory=list)


class Token(Response, kw_only=True):
    """A token as listed: everything but its secret."""

    id: str
    name: str
    owner: str | None
    allow: list[str]
    allow_dns: list[str]
    allow_ip: list[str]
    allow_email: list[str]
    profiles: list[str]
    max_ttl: str | None
    uses: int
    used: int
    created_at: str
    expires_at: str
    last_used_at: str | None
    revoked_at: str | None
    cidr: list[str]
    csr_hash: str | None
    renew: bool
    agent: bool
    labels: dict[str, str]
    scopes: list[str]
    state: str


class TokenCreated(Response, kw_only=True):
    """The only answer that ever shows the secret."""

    id: str
    name: str
    token: str
    expires_at: str
    uses: int
    log_entry: int


class TokenList(Response, kw_only=True):
    """One page of tokens."""

    items: list[Token]
    next_cursor: str | None = None
