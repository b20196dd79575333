"""Small makers for authorization tests: plans without bytes, principals with defaults."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from handclasp.access.authorize import Circumstances
from handclasp.access.grants import Grant
from handclasp.access.patterns import DnsPatterns, EmailPatterns, IdentityPatterns, Networks
from handclasp.access.policy import parse_policy
from handclasp.access.principals import CertificatePrincipal, OidcPrincipal, TokenPrincipal
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.names import Names

NOW = 1_800_000_000_000
WEB = "spiffe://td/prod/web"
POLICY = parse_policy(
    """
version: 1
oidc:
  - {name: ci, issuer: https://oidc.example.org, audience: handclasp}
  - {name: once, issuer: https://once.example.org, audience: handclasp, single_use: true}
grants:
  - name: deploy
    principals: [{certificate: spiffe://td/deployer}, {agent: {role: web, zone: a}}]
    identities: [spiffe://td/prod/*]
    profiles: [workload]
    max_ttl: 2h
    actions: [issue, revoke]
  - name: ci
    principals:
      - {oidc: ci, claims: {repo: acme/web, ref: refs/heads/*}}
      - {oidc: once, claims: {repo: acme/web}}
    identities: ["spiffe://td/ci/{job}"]
    dns: ["{job}.ci.example.org"]
    profiles: [workload]
  - name: by-token
    principals: [{token: bare}]
    identities: [spiffe://td/prod/*]
    profiles: [workload]
  - name: renewers
    principals: [{certificate: spiffe://td/own/*}]
    identities: [spiffe://td/own/*]
    profiles: [workload]
    actions: [renew]
deny:
  - {name: frozen, identities: [spiffe://td/prod/ledger], dns: [admin.example.org], reason: change freeze}
"""
)
BARE = Grant("token:a")
"""The grant of a token that carries none."""


@dataclass(frozen=True)
class FakeProfile:
    name: str = "workload"


@dataclass(frozen=True)
class FakePlan:
    names: Names = field(default_factory=lambda: Names(WEB))
    profile: FakeProfile = field(default_factory=FakeProfile)
    not_after: int = NOW + 3_600_000


def plan(spiffe: str | None = WEB, *, profile: str = "workload", ttl: float = 3600, **names: tuple[str, ...]) -> FakePlan:
    return FakePlan(Names(spiffe, **names), FakeProfile(profile), NOW + round(ttl * 1000))


def circumstances(action: str = "issue", **changes: Any) -> Circumstances:
    known: dict[str, Any] = {"source": "10.0.0.1", "csr_sha256": bytes(32), "origin": None, "now": NOW}
    return Circumstances(action, **(known | changes))


def make_grant(name: str = "token:a", **changes: Any) -> Grant:
    kinds = {"identities": IdentityPatterns, "dns": DnsPatterns, "ip": Networks, "email": EmailPatterns, "sources": Networks}
    known: dict[str, Any] = {"identities": [WEB], "profiles": frozenset({"workload"})}
    known |= changes
    return Grant(name, **{key: kinds[key](value) if key in kinds else value for key, value in known.items()})


def token(grant: Grant | None = None, **changes: Any) -> TokenPrincipal:
    known: dict[str, Any] = {"id": "a", "name": "web", "owner": None, "grant": grant or make_grant(), "expires_at": NOW + 1000}
    return TokenPrincipal(**(known | changes))


def certificate(identity: str = WEB, **changes: Any) -> CertificatePrincipal:
    known: dict[str, Any] = {
        "sha256": bytes(32),
        "identity": identity,
        "names": Names(identity if identity.startswith("spiffe") else None),
        "profile": "workload",
        "line": bytes(32),
        "generation": 1,
        "granted_by": "token:a",
    }
    return CertificatePrincipal(**(known | changes))


def oidc(issuer: str = "https://oidc.example.org", **claims: Any) -> OidcPrincipal:
    return OidcPrincipal(issuer, "job", {"sub": "job"} | claims, "id-1", NOW + 1000)


@contextlib.contextmanager
def or_refused(*kinds: Kind) -> Iterator[None]:
    """Let a refusal of one of these kinds pass, and nothing else."""
    try:
        yield
    except HandclaspError as error:
        if error.kind not in kinds:
            raise
