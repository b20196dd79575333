"""The one choke point: may this principal have this certificate? Pure, default deny, and the only place where that is decided.

What it judges is the **plan**, which holds the final names, profile and dates (GHSA-g892-p242-8g86: another product checked the request's
parameters and not the names in the CSR). Every refusal says which rule was nearest and what it lacked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from handclasp.access.grants import (
    ACTIONS,
    AGENT_PROFILE,
    AgentRule,
    CertificateRule,
    Grant,
    KubernetesRule,
    OidcRule,
    PrincipalRule,
    TokenRule,
    in_agent_space,
    in_server_space,
    is_agent_identity,
    joint_grant,
    server_identity,
    split_grant,
)
from handclasp.access.patterns import ANY_VALUE, NO_CLAIMS, Claims, claim_value
from handclasp.access.policy import Policy
from handclasp.access.principals import (
    CertificatePrincipal,
    EvidencePrincipal,
    KubernetesPrincipal,
    OidcPrincipal,
    Principal,
    ServerPrincipal,
    TokenPrincipal,
)
from handclasp.errors import Kind
from handclasp.pki.names import Names


class PlannedProfile(Protocol):
    """What is asked of a plan's profile."""

    @property
    def name(self) -> str:
        """The profile's name."""


class Planned(Protocol):
    """What is asked of a :class:`handclasp.pki.plan.Plan` (for a revocation: of the certificate to be revoked)."""

    @property
    def names(self) -> Names:
        """The final names."""

    @property
    def profile(self) -> PlannedProfile:
        """The profile it was made from."""

    @property
    def not_after(self) -> int:
        """The certificate's end, in milliseconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is known of a request besides who asks and for what."""

    action: str
    """``issue``, ``renew`` or ``revoke``."""
    source: str | None
    """The caller's IP address; None when unknown, which no grant that names networks accepts."""
    csr_sha256: bytes | None
    """SHA-256 of the CSR's DER."""
    origin: Grant | None
    """The grant that the line of the caller's certificate began with, as it is today; None when it is gone."""
    now: int
    """Milliseconds since the epoch."""
    origin_token: Grant | None = None
    """Where the line began with a policy grant that a token used: that token's limits, as they are today; None when it is gone."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Yes, by this one grant: ``token:ID``, ``policy:NAME``, or ``policy:NAME+token:ID`` for a token that the policy names."""

    grant: str
    single_use: bool = False
    """The OIDC token serves once: its ``jti`` must be spent in the same commit."""


@dataclass(frozen=True, slots=True)
class Refused:
    """No, and why; the reason is shown to the caller and logged."""

    kind: Kind
    reason: str
    longest: float | None = None
    """The lifetime in seconds that would have been allowed, where only the lifetime was too long."""


_Step = tuple[int, Refused]
"""A refusal, and how many checks were passed before it: the highest is the nearest miss."""


_SUPERSEDED = Refused(Kind.SUPERSEDED, "this certificate was renewed, and its successor is to be used in its place")


def authorize(principal: Principal, plan: Planned, circumstances: Circumstances, policy: Policy) -> Allowed | Refused:
    """Decide. Nothing is stored and nothing is spent; the same arguments always give the same answer.

    * A **token** has its own grant and no other. Only one that carries no grant of its own is looked up in the policy, by its name.
    * A **certificate** has the grants of the policy whose certificate or agent rule fits. It may renew itself by the grant that its line
      began with (and by the token, where the policy's grant was a token's), while that is still there and still covers all of it; an
      agent's may also issue by it. A superseded certificate only renews.
    * An **OIDC** token has the grants of the policy whose issuer and claims fit.
    * A **Kubernetes** service account has the grants of the policy whose cluster and names fit.
    * **Evidence** of a machine gives the agent of its enrolment rule its own certificate, and nothing else.
    * One grant must cover everything. A deny rule beats all of them, except that nothing stands in the way of a revocation.
    """
    refused = _refused_to_everyone(principal, plan, circumstances, policy)
    if refused is not None:
        return refused
    if isinstance(principal, TokenPrincipal):
        return _for_token(principal, plan, circumstances, policy)
    if isinstance(principal, CertificatePrincipal):
        return _for_certificate(principal, plan, circumstances, policy)
    if isinstance(principal, OidcPrincipal):
        return _for_oidc(principal, plan, circumstances, policy)
    if isinstance(principal, KubernetesPrincipal):
        return _first(_fitting(policy, principal), principal.placeholders, plan, circumstances)
    if isinstance(principal, EvidencePrincipal):
        return _for_evidence(principal, plan, circumstances, policy)
    if isinstance(principal, ServerPrincipal):
        return _for_server(principal, plan, circumstances)
    return Refused(Kind.NOT_ALLOWED, "this kind of caller may not do anything")  # CVE-2026-30836: a switch without its default case


_CONTAINED_IN = {"certificates:read": "inventory:read"}
"""Scopes that a wider one holds."""


def check_scope(principal: Principal, scope: str) -> Allowed | Refused:
    """Decide whether the principal may use a part of the API; see :data:`handclasp.access.principals.SCOPES`."""
    if isinstance(principal, CertificatePrincipal) and principal.grace_is_over:
        return _SUPERSEDED
    if scope in principal.scopes or "admin" in principal.scopes or _CONTAINED_IN.get(scope) in principal.scopes:
        return Allowed(principal.describe())
    return Refused(Kind.NOT_ALLOWED, f"this needs the scope {scope}, which {principal.describe()} does not have")


def check_source(principal: Principal, address: str | None) -> Allowed | Refused:
    """Decide whether the principal may come from a network address at all: a token that names networks is worth nothing elsewhere."""
    if isinstance(principal, TokenPrincipal) and not principal.may_come_from(address):
        return Refused(Kind.NOT_ALLOWED, f"{principal.grant.name} is not to be used from {address or 'an unknown address'}")
    return Allowed(principal.describe())


# --- what holds for everyone ------------------------------------------------------------------------------------------------------------


def _refused_to_everyone(principal: Principal, plan: Planned, circumstances: Circumstances, policy: Policy) -> Refused | None:
    names, action = plan.names, circumstances.action
    if action not in ACTIONS:
        return Refused(Kind.NOT_ALLOWED, f"nobody may {action!r}: there is no such action")
    if names.is_empty:
        return Refused(Kind.NAME_NOT_ALLOWED, "a certificate without a name would be anybody's")
    if action == "revoke":
        return None
    denied = policy.denied(names)
    if denied is not None:
        rule, name = denied
        why = f": {rule.reason}" if rule.reason else ""
        return Refused(Kind.NAME_NOT_ALLOWED, f"{name} is denied by rule {rule.name}{why}")
    if action == "renew":
        refused = _changed_in_renewal(principal, plan)
        if refused is not None:
            return refused
    if names.spiffe is not None and in_server_space(names.spiffe) and not isinstance(principal, ServerPrincipal):
        return Refused(Kind.NAME_NOT_ALLOWED, f"{names.spiffe} is a name for this server itself")  # whoever has it answers in its place
    return _agent_names(plan)


def _changed_in_renewal(principal: Principal, plan: Planned) -> Refused | None:
    """A renewal is asked for with the certificate itself and changes neither who it is for nor what it is for (CVE-2026-39388)."""
    if not isinstance(principal, CertificatePrincipal):
        return Refused(Kind.NOT_ALLOWED, "a certificate is renewed by who holds it: connect with the certificate that is to be renewed")
    names, before = plan.names, principal.names
    if names.identity != principal.identity or names.spiffe != before.spiffe:
        return Refused(Kind.NAME_NOT_ALLOWED, f"a renewal keeps its identity: {principal.identity} cannot become {names.identity}")
    for new, old in ((names.dns, before.dns), (names.ip, before.ip), (names.email, before.email)):
        for name in new:
            if name not in old:
                return Refused(Kind.NAME_NOT_ALLOWED, f"{name} is not in the certificate being renewed")
    if plan.profile.name != principal.profile:
        return Refused(Kind.PROFILE_NOT_ALLOWED, f"a renewal keeps its profile: {principal.profile} cannot become {plan.profile.name}")
    return None


def _agent_names(plan: Planned) -> Refused | None:
    """Agents are told by profile and name together, so that neither can be had without the other."""
    spiffe = plan.names.spiffe
    if plan.profile.name == AGENT_PROFILE:
        if spiffe is None or not is_agent_identity(spiffe):
            return Refused(Kind.NAME_NOT_ALLOWED, "an agent's identity is spiffe://TRUST-DOMAIN/agent/NAME")
    elif spiffe is not None and in_agent_space(spiffe):
        return Refused(Kind.NAME_NOT_ALLOWED, f"{spiffe} is a name for agents, and the profile is {plan.profile.name}")
    return None


# --- each kind of principal -------------------------------------------------------------------------------------------------------------


def _for_token(principal: TokenPrincipal, plan: Planned, circumstances: Circumstances, policy: Policy) -> Allowed | Refused:
    if principal.expires_at <= circumstances.now:
        return Refused(Kind.TOKEN_EXPIRED, "this token has expired")
    if principal.scopes:
        return Refused(Kind.NOT_ALLOWED, "this token uses the API and obtains no certificates")
    if principal.csr_sha256 is not None and principal.csr_sha256 != circumstances.csr_sha256:
        return Refused(Kind.NOT_ALLOWED, "this token is for one CSR, and this is another")
    grant = principal.grant
    if grant.has_names or principal.agent:
        step = _by_grant(grant, NO_CLAIMS, plan, circumstances, enrolling=principal.agent)
        return Allowed(grant.name) if step is None else step[1]
    step = _within_limits(grant, plan, circumstances)
    if step is not None:
        return step[1]
    answer = _first(_fitting(policy, principal), NO_CLAIMS, plan, circumstances)
    return replace(answer, grant=joint_grant(answer.grant, grant.name)) if isinstance(answer, Allowed) else answer


def _for_certificate(principal: CertificatePrincipal, plan: Planned, circumstances: Circumstances, policy: Policy) -> Allowed | Refused:
    if principal.superseded_at is not None and circumstances.action != "renew":
        return _SUPERSEDED  # whoever has it has also lost it: its owner goes on with the successor
    if principal.grace_is_over:
        return _SUPERSEDED
    answer = _first(_fitting(policy, principal), principal.labels, plan, circumstances)
    origin = circumstances.origin
    if isinstance(answer, Allowed) or circumstances.action == "revoke":
        return answer
    grant, token = split_grant(principal.granted_by)
    limits = circumstances.origin_token
    if origin is None or origin.name != grant or (limits.name if limits is not None else "") != token:
        if circumstances.action == "renew":
            return Refused(Kind.NOT_ALLOWED, f"{principal.granted_by}, by which this certificate was obtained, is no longer there")
        return answer
    if circumstances.action == "renew":
        return _renew_by_origin(origin, principal, plan, circumstances)
    if principal.is_agent and origin.agent and plan.profile.name != AGENT_PROFILE:
        step = _by_grant(origin, NO_CLAIMS, plan, circumstances)
        return Allowed(origin.name) if step is None else step[1]
    return answer


def _renew_by_origin(origin: Grant, principal: CertificatePrincipal, plan: Planned, circumstances: Circumstances) -> Allowed | Refused:
    token = circumstances.origin_token
    for grant in (origin,) if token is None else (origin, token):
        if not grant.renew:
            return Refused(Kind.NOT_ALLOWED, f"certificates obtained by {grant.name} cannot be renewed")
    # The names are those of the predecessor (checked above), whose placeholders were compared with claims that nobody has any more.
    step = _by_grant(origin, ANY_VALUE, plan, circumstances, needs_action=False, enrolling=principal.is_agent)
    if step is None and circumstances.origin_token is not None:
        step = _within_limits(circumstances.origin_token, plan, circumstances)
    return Allowed(principal.granted_by) if step is None else step[1]


def _for_oidc(principal: OidcPrincipal, plan: Planned, circumstances: Circumstances, policy: Policy) -> Allowed | Refused:
    answer = _first(_fitting(policy, principal), principal.claims, plan, circumstances)
    if isinstance(answer, Allowed) and answer.single_use and not principal.jti:
        return Refused(Kind.NOT_AUTHENTICATED, "each identity token serves once here, and this one has no jti to tell it by")
    return answer


def _for_evidence(principal: EvidencePrincipal, plan: Planned, circumstances: Circumstances, policy: Policy) -> Allowed | Refused:
    """The agent's own certificate, under the one name that the rule, as it is now, makes of the facts."""
    if principal.expires_at <= circumstances.now:
        return Refused(Kind.NOT_AUTHENTICATED, "this evidence has ended")
    rule = policy.enrolment_named(principal.rule)
    if rule is None or rule.method != principal.method:
        return Refused(Kind.NOT_ALLOWED, f"no enrolment rule {principal.rule} of the policy takes this evidence")
    grant = rule.grant_for(principal.facts)
    if grant is None:
        return Refused(Kind.NOT_ALLOWED, f"{rule.grant_name} does not take this evidence")
    step = _by_grant(grant, NO_CLAIMS, plan, circumstances)
    return Allowed(grant.name) if step is None else step[1]


def _for_server(principal: ServerPrincipal, plan: Planned, circumstances: Circumstances) -> Allowed | Refused:
    """The server's own certificate, for names of its settings and nothing else.

    With its SPIFFE ID it is from the profile ``workload``, because an X.509-SVID is for servers and clients (X509-SVID 4.4); without one
    from the profile ``server``.
    """
    names = plan.names
    expected = ("server", None) if names.spiffe is None else ("workload", server_identity(principal.trust_domain))
    if circumstances.action != "issue" or (plan.profile.name, names.spiffe) != expected or names.email:
        return Refused(Kind.NOT_ALLOWED, "the server issues itself a server certificate and nothing else")
    if not set(names.dns) <= set(principal.dns) or not set(names.ip) <= set(principal.ip):
        return Refused(Kind.NAME_NOT_ALLOWED, "the server's own certificate has the names of its settings and no others")
    return Allowed("server")


# --- grants -----------------------------------------------------------------------------------------------------------------------------


def _fitting(policy: Policy, principal: Principal) -> Iterable[Grant]:
    """Return the policy's grants of which a rule fits the principal, in the policy's order."""
    return (grant for grant in policy.all_grants if any(_fits(rule, principal) for rule in grant.principals))


def _fits(rule: PrincipalRule, principal: Principal) -> bool:
    if isinstance(rule, CertificateRule):
        return isinstance(principal, CertificatePrincipal) and rule.fits(principal.identity)
    if isinstance(rule, AgentRule):
        if not isinstance(principal, CertificatePrincipal) or not principal.is_agent or not rule.labels:
            return False
        return all(principal.labels.get(label) == value for label, value in rule.labels)
    if isinstance(rule, OidcRule):
        if not isinstance(principal, OidcPrincipal) or principal.issuer != rule.issuer or not rule.claims:
            return False
        return all(pattern.matches(claim_value(principal.claims, claim)) for claim, pattern in rule.claims)
    if isinstance(rule, KubernetesRule):
        return isinstance(principal, KubernetesPrincipal) and rule.fits(principal.cluster, principal.namespace, principal.service_account)
    return isinstance(rule, TokenRule) and isinstance(principal, TokenPrincipal) and principal.name == rule.name


def _first(grants: Iterable[Grant], claims: Claims, plan: Planned, circumstances: Circumstances) -> Allowed | Refused:
    """Return the first grant that allows everything by itself, or the refusal that came nearest."""
    nearest: _Step = (-1, Refused(Kind.NOT_ALLOWED, "no grant of the policy is for this caller"))
    for grant in grants:
        step = _by_grant(grant, claims, plan, circumstances)
        if step is None:
            return Allowed(grant.name, grant.single_use_jwt)
        if step[0] > nearest[0]:
            nearest = step
    return nearest[1]


def _by_grant(
    grant: Grant, claims: Claims, plan: Planned, circumstances: Circumstances, *, needs_action: bool = True, enrolling: bool = False
) -> _Step | None:
    """Return why the grant does not allow this, or None: it allows all of it."""
    profile = plan.profile.name
    if needs_action and circumstances.action not in grant.actions:
        return 0, Refused(Kind.NOT_ALLOWED, f"{grant.name} does not allow to {circumstances.action}")
    for_agent = profile == AGENT_PROFILE and enrolling and grant.agent
    if not for_agent and profile not in grant.profiles:
        return 1, Refused(Kind.PROFILE_NOT_ALLOWED, f"{grant.name} does not allow the profile {profile}")
    missing = grant.uncovered_by_enrolment(plan.names) if for_agent else grant.uncovered(plan.names, claims)
    if missing is not None:
        return 2, Refused(Kind.NAME_NOT_ALLOWED, f"{grant.name} does not cover {missing}")
    return _within_limits(grant, plan, circumstances, profiles=False, lifetime=not for_agent)


def _within_limits(
    grant: Grant, plan: Planned, circumstances: Circumstances, *, profiles: bool = True, lifetime: bool = True
) -> _Step | None:
    """Check what a grant limits besides names.

    The limit of an enrolment token is for what its agents obtain. An agent's own certificate lives as its profile says: it has to outlive
    an outage of the server, in which those that it looks after may end.
    """
    if profiles and grant.profiles and plan.profile.name not in grant.profiles:
        return 1, Refused(Kind.PROFILE_NOT_ALLOWED, f"{grant.name} does not allow the profile {plan.profile.name}")
    if grant.sources:
        source = circumstances.source
        if source is None or not grant.sources.covers_source(source):
            return 3, Refused(Kind.NOT_ALLOWED, f"{grant.name} does not allow this from {source or 'an unknown address'}")
    lasts = plan.not_after - circumstances.now  # of the final dates, not of what was asked for
    if lifetime and grant.max_ttl is not None and circumstances.action != "revoke" and lasts > grant.max_ttl * 1000:
        return 4, Refused(Kind.LIFETIME_NOT_ALLOWED, f"{grant.name} allows {grant.max_ttl:g} seconds at most", grant.max_ttl)
    return None
