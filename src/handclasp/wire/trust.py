"""Authorities, what they publish, and the trust domains that are federated with."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from handclasp.wire.base import Request, Response


class Authority(Response, kw_only=True):
    """One authority: root or issuing."""

    name: str
    kind: str
    trust_domain: str
    subject: str
    sha256: str
    not_before: str
    not_after: str
    key_type: str
    state: str
    dns_zones: list[str]
    crl_shards: int
    certificate: str


class AuthorityList(Response, kw_only=True):
    """Every authority."""

    items: list[Authority]


class CrlDocument(Request, kw_only=True):
    """A revocation list that was made where the authority's key is, as PEM."""

    pem: Annotated[str, Meta(max_length=1_000_000)]


class Published(Response, kw_only=True):
    """A CRL is published; ``log_entry`` is null when it was before."""

    log_entry: int | None


class Bundle(Response, kw_only=True):
    """The anchors of one trust domain."""

    trust_domain: str
    pem: str


class BundleList(Response, kw_only=True):
    """Every trust domain served here, with its anchors."""

    items: list[Bundle]


class FederationRequest(Request, kw_only=True):
    """Trust another trust domain's bundle, from its bundle endpoint (SPIFFE Federation section 5)."""

    url: Annotated[str, Meta(max_length=2048)]
    profile: str = "https_web"
    """``https_web`` or ``https_spiffe``."""
    endpoint_id: Annotated[str, Meta(max_length=2048)] | None = None
    """``https_spiffe``: the SPIFFE ID that the endpoint must show."""
    bundle: Annotated[str, Meta(max_length=1_000_000)] | None = None
    """``https_spiffe``: the bundle to begin with, PEM or SPIFFE JWKS."""


class Federation(Response, kw_only=True):
    """One federated trust domain, and how its bundle is kept up to date."""

    trust_domain: str
    url: str
    profile: str
    endpoint_id: str | None
    state: str
    """``waiting`` (no bundle yet), ``ok``, ``stale``: not refreshed for several of its refresh hints."""
    sequence: int | None
    refresh_hint: int
    anchors: int
    jwt_keys: int
    fetched_at: str | None
    tried_at: str | None
    problem: str | None
    created_at: str


class FederationList(Response, kw_only=True):
    """Every federated trust domain."""

    items: list[Federation]
