"""The choke point for JWT-SVIDs, as :mod:`handclasp.access.authorize` is for certificates: pure, default deny, deny rules win.

A JWT-SVID is a bearer token: whoever sees it is its subject until it ends. So fewer may have one than may have a certificate: an agent for
a workload that the policy marks ``jwt: true``, and the holder of a certificate for its own identity, where a grant has the action ``jwt``.
"""

from __future__ import annotations

from dataclasses import dataclass

from handclasp.access.authorize import Allowed, Refused
from handclasp.access.grants import CertificateRule, Grant, in_agent_space, in_server_space
from handclasp.access.policy import Policy
from handclasp.access.principals import CertificatePrincipal, Principal
from handclasp.access.workloads import PREFIX, jwt_workload
from handclasp.errors import Kind
from handclasp.pki.names import Names

DEFAULT_LIFETIME = 300.0
"""Seconds that a JWT-SVID lives where nobody wishes for more: it is a bearer token, and lives as short as it can (JWT-SVID section 3)."""
JWT_ACTION = "jwt"
"""The action of a grant that lets the holders of certificates have JWT-SVIDs for their own identity."""


@dataclass(frozen=True, slots=True)
class JwtAsked:
    """What is asked for, complete."""

    identity: str
    """A checked SPIFFE ID."""
    lifetime: float
    """Seconds."""
    source: str | None
    """The caller's IP address; None when unknown, which no grant that names networks accepts."""


def authorize_jwt(principal: Principal, asked: JwtAsked, policy: Policy) -> Allowed | Refused:
    """Decide. Nothing is stored; the same arguments always give the same answer.

    * Only who holds a certificate of ours, proven by the handshake, may have one: a bearer token is not turned into another.
    * An **agent** has them for the workloads with ``jwt: true`` that its labels let it serve, and for nothing else; they live no longer
      than the workload's certificates may.
    * Any **other certificate** has them for its own identity by a grant with the action ``jwt`` that fits it and covers the identity.
    * A superseded certificate has none. Names of agents and of this server are nobody's. A deny rule beats all of it.
    """
    if not isinstance(principal, CertificatePrincipal):
        return Refused(Kind.NOT_ALLOWED, "a JWT-SVID is for who holds a certificate: connect with it")
    if principal.superseded_at is not None or principal.grace_is_over:
        return Refused(Kind.SUPERSEDED, "this certificate was renewed, and its successor is to be used in its place")
    denied = policy.denied(Names(spiffe=asked.identity))
    if denied is not None:
        rule, name = denied
        why = f": {rule.reason}" if rule.reason else ""
        return Refused(Kind.NAME_NOT_ALLOWED, f"{name} is denied by rule {rule.name}{why}")
    if in_agent_space(asked.identity) or in_server_space(asked.identity):
        return Refused(Kind.NAME_NOT_ALLOWED, f"{asked.identity} is a name that has certificates only")
    return _for_agent(principal, asked, policy) if principal.is_agent else _for_holder(principal, asked, policy)


def _for_agent(principal: CertificatePrincipal, asked: JwtAsked, policy: Policy) -> Allowed | Refused:
    workload = jwt_workload(policy.workloads, asked.identity, principal.labels)
    if workload is None:
        return Refused(Kind.NAME_NOT_ALLOWED, f"no workload of the policy lets this agent have JWT-SVIDs for {asked.identity}")
    if workload.ttl is not None and asked.lifetime > workload.ttl:
        why = f"{PREFIX}{workload.name} allows {workload.ttl:g} seconds at most"
        return Refused(Kind.LIFETIME_NOT_ALLOWED, why, workload.ttl)
    return Allowed(PREFIX + workload.name)


def _for_holder(principal: CertificatePrincipal, asked: JwtAsked, policy: Policy) -> Allowed | Refused:
    if asked.identity != principal.identity:
        return Refused(Kind.NAME_NOT_ALLOWED, f"{principal.identity} has JWT-SVIDs for itself at most, and not for {asked.identity}")
    nearest = Refused(Kind.NOT_ALLOWED, "no grant of the policy lets this caller have JWT-SVIDs")
    for grant in policy.grants:
        fits = any(isinstance(rule, CertificateRule) and rule.fits(principal.identity) for rule in grant.principals)
        if not fits or JWT_ACTION not in grant.actions:
            continue
        refused = _by_grant(grant, asked)
        if refused is None:
            return Allowed(grant.name)
        nearest = refused
    return nearest


def _by_grant(grant: Grant, asked: JwtAsked) -> Refused | None:
    if not grant.identities.covers(asked.identity):
        return Refused(Kind.NAME_NOT_ALLOWED, f"{grant.name} does not cover {asked.identity}")
    if grant.sources and (asked.source is None or not grant.sources.covers_source(asked.source)):
        return Refused(Kind.NOT_ALLOWED, f"{grant.name} does not allow this from {asked.source or 'an unknown address'}")
    if grant.max_ttl is not None and asked.lifetime > grant.max_ttl:
        return Refused(Kind.LIFETIME_NOT_ALLOWED, f"{grant.name} allows {grant.max_ttl:g} seconds at most", grant.max_ttl)
    return None
