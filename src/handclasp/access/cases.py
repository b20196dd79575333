"""``handclasp policy test``: example requests, and whether a policy answers them as expected. For people who keep a policy in git.

.. code-block:: yaml

    version: 1
    cases:
      - name: web may have its name
        principal: {oidc: {issuer: cluster-a, claims: {sub: "system:serviceaccount:prod:web"}}}
        request: {identity: spiffe://example.org/prod/web, profile: workload, ttl: 1h, source: 10.0.0.1}
        expect: allow
      - name: nobody has the root's name
        principal: {token: {allow: ["spiffe://example.org/**"], profiles: [workload]}}
        request: {identity: spiffe://example.org/root}
        expect: deny
        reason: name_not_allowed

A principal is ``certificate: IDENTITY`` (with ``profile`` and ``granted_by: policy:NAME`` beside it where a renewal needs them),
``agent: {labels}`` (also for workloads), ``evidence: {rule, facts}`` (what a machine proved to an enrolment rule),
``oidc: {issuer, claims}``, ``kubernetes: {cluster, namespace, service_account}`` or
``token: {name, allow, allow_dns, allow_ip, allow_email, profiles, max_ttl, cidr, agent}``.
A request with ``action: jwt`` is for a JWT-SVID.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from handclasp.access.authorize import Allowed, Circumstances, Refused, authorize
from handclasp.access.authorize_jwt import DEFAULT_LIFETIME, JWT_ACTION, JwtAsked, authorize_jwt
from handclasp.access.grants import Grant
from handclasp.access.patterns import DnsPatterns, EmailPatterns, IdentityPatterns, Networks
from handclasp.access.policy import Policy
from handclasp.access.principals import (
    CertificatePrincipal,
    EvidencePrincipal,
    KubernetesPrincipal,
    OidcPrincipal,
    Principal,
    TokenPrincipal,
)
from handclasp.clock import format_duration
from handclasp.errors import Kind
from handclasp.pki.names import Names, make_names
from handclasp.pki.profiles import BUILT_IN, Profile
from handclasp.pki.yamlshape import Part, document_of

_PRINCIPALS = ("certificate", "agent", "oidc", "kubernetes", "evidence", "token")
_TOKEN_KEYS = ("name", "allow", "allow_dns", "allow_ip", "allow_email", "profiles", "max_ttl", "cidr", "agent")


@dataclass(frozen=True, slots=True)
class CaseResult:
    """How one case came out."""

    name: str
    ok: bool
    expected: str
    """``allow`` or ``deny``, with the kind of refusal where the case names one: ``deny (name_not_allowed)``."""
    got: str
    reason: str
    """The grant that allowed it, or why it was refused."""


@dataclass(frozen=True, slots=True)
class _Profile:
    name: str


@dataclass(frozen=True, slots=True)
class _Request:
    """What a case asks for; serves as a plan whose certificate would begin at 0."""

    names: Names
    profile: _Profile
    not_after: int
    source: str | None
    action: str
    ttl: float | None
    """Seconds; None where the case wishes for none."""


def run_cases(policy: Policy, text: str, source: str = "cases.yaml", profiles: Mapping[str, Profile] = BUILT_IN) -> list[CaseResult]:
    """Return how each case comes out under the policy and the profiles, of which a server that has them would refuse the same.

    Raises one ``bad_policy`` with every mistake in the cases file and its line.
    """
    top = document_of(text, source, Kind.BAD_POLICY)
    top.keys("version", "cases")
    if top.value.get("version") != 1:
        top.problem("version", "the version must be 1")
    results = [_run(policy, profiles, part) for part in top.parts("cases", required=True)]
    top.problems.raise_if_any()
    return results


def _run(policy: Policy, profiles: Mapping[str, Profile], part: Part) -> CaseResult:
    part.keys("name", "principal", "request", "expect", "reason")
    expect = part.text("expect")
    if expect not in ("allow", "deny"):
        part.problem("expect", "expect is allow or deny")
    kind = part.text("reason") if "reason" in part.value else ""
    if kind and (kind not in {known.value for known in Kind} or expect != "deny"):
        part.problem("reason", "reason is the kind of refusal that a denied case expects, such as name_not_allowed")
    request = _request(part.part("request"))
    principal, origin = _principal(part.part("principal"), request, policy)
    answer = _answer(principal, request, origin, policy, profiles)
    expected = f"deny ({kind})" if kind else expect
    if isinstance(answer, Allowed):
        return CaseResult(part.text("name"), expect == "allow", expected, "allow", answer.grant)
    ok = expect == "deny" and kind in ("", answer.kind.value)
    return CaseResult(part.text("name"), ok, expected, f"deny ({answer.kind.value})", answer.reason)


def _answer(
    principal: Principal, request: _Request, origin: Grant | None, policy: Policy, profiles: Mapping[str, Profile]
) -> Allowed | Refused:
    """Return what a server answers: its profile first, then the policy. Nobody's wish is the profile's lifetime, or the grant's longest."""
    circumstances = Circumstances(request.action, request.source, None, origin, 0)
    if request.action == "revoke":
        return authorize(principal, request, circumstances, policy)
    if request.action == JWT_ACTION:
        asked = JwtAsked(request.names.identity, DEFAULT_LIFETIME if request.ttl is None else request.ttl, request.source)
        return authorize_jwt(principal, asked, policy)
    profile = profiles.get(request.profile.name)
    if profile is None:
        return Refused(Kind.UNKNOWN_PROFILE, f"there is no profile {request.profile.name!r} (custom ones: --profiles FILE)")
    answer = _refused_lifetime(request, profile)
    if answer is not None:
        return answer
    if request.ttl is not None:
        return authorize(principal, replace(request, not_after=round(request.ttl * 1000)), circumstances, policy)
    decision = authorize(principal, replace(request, not_after=round(profile.lifetime * 1000)), circumstances, policy)
    if isinstance(decision, Refused) and decision.longest is not None and decision.longest >= profile.min_lifetime:
        return authorize(principal, replace(request, not_after=round(decision.longest * 1000)), circumstances, policy)
    return decision


def _refused_lifetime(request: _Request, profile: Profile) -> Refused | None:
    if request.ttl is None or profile.min_lifetime <= request.ttl <= profile.max_lifetime:
        return None
    between = f"{format_duration(profile.min_lifetime)} to {format_duration(profile.max_lifetime)}"
    return Refused(Kind.LIFETIME_NOT_ALLOWED, f"the profile {profile.name} allows {between}, and this is {format_duration(request.ttl)}")


def _request(part: Part) -> _Request:
    part.keys("identity", "dns", "ip", "email", "profile", "ttl", "source", "action")
    identity = part.text("identity") if "identity" in part.value else None
    names = part.attempt("", lambda: make_names(identity, part.texts("dns"), part.texts("ip"), part.texts("email")))
    ttl = part.duration("ttl")
    return _Request(
        names or Names(),
        _Profile(part.text("profile") if "profile" in part.value else "workload"),
        0,
        part.text("source") if "source" in part.value else None,
        part.text("action") if "action" in part.value else "issue",
        ttl,
    )


def _principal(part: Part, request: _Request, policy: Policy) -> tuple[Principal, Grant | None]:
    kinds = [key for key in _PRINCIPALS if key in part.value]
    if len(kinds) != 1:
        part.problem("", f"a principal is exactly one of {', '.join(_PRINCIPALS)}")
        return _token(Part(part.document, part.problems, part.path, {})), None
    kind = kinds[0]
    part.keys(kind, *(["profile", "granted_by"] if kind == "certificate" else []))
    if kind == "token":
        return _token(part.part("token")), None
    if kind == "oidc":
        return _oidc(part.part("oidc"), policy), None
    if kind == "kubernetes":
        return _kubernetes(part.part("kubernetes")), None
    if kind == "evidence":
        return _evidence(part.part("evidence"), policy), None
    if kind == "agent":
        return _certificate("", request, labels=_labels(part.part("agent"))), None
    granted_by = part.text("granted_by") if "granted_by" in part.value else ""
    profile = part.text("profile") if "profile" in part.value else ""
    return _certificate(part.text("certificate"), request, profile=profile, granted_by=granted_by), policy.grant_named(granted_by)


def _certificate(
    identity: str, request: _Request, *, profile: str = "", granted_by: str = "", labels: dict[str, str] | None = None
) -> CertificatePrincipal:
    return CertificatePrincipal(
        sha256=bytes(32),
        identity=identity,
        names=request.names,
        profile=profile or request.profile.name,
        line=bytes(32),
        generation=1,
        granted_by=granted_by,
        labels=labels or {},
        is_agent=labels is not None,
    )


def _labels(part: Part) -> dict[str, str]:
    return {key: part.text(key) for key in part.value}


def _oidc(part: Part, policy: Policy) -> OidcPrincipal:
    part.keys("issuer", "claims")
    named = part.text("issuer")
    issuer = next((known.issuer for known in policy.oidc if known.name == named), named)
    claims = part.part("claims").value
    return OidcPrincipal(issuer, str(claims.get("sub", "")), claims, "case", 1 << 53)


def _kubernetes(part: Part) -> KubernetesPrincipal:
    part.keys("cluster", "namespace", "service_account")
    return KubernetesPrincipal(part.text("cluster"), part.text("namespace"), part.text("service_account"), expires_at=1 << 53)


def _evidence(part: Part, policy: Policy) -> EvidencePrincipal:
    part.keys("rule", "facts")
    name = part.text("rule")
    rule = policy.enrolment_named(name)
    facts = part.part("facts").value if "facts" in part.value else {}
    if rule is not None and rule.method == "oidc":
        facts = {"iss": getattr(rule.takes, "issuer", ""), **facts}
    return EvidencePrincipal(rule.method if rule is not None else "", name, "case", facts, 1 << 53)


def _token(part: Part) -> TokenPrincipal:
    part.keys(*_TOKEN_KEYS)
    empty = Grant("token:case")
    agent = part.flag("agent", False)
    grant = part.attempt(
        "",
        lambda: Grant(
            "token:case",
            identities=IdentityPatterns(part.texts("allow")),
            dns=DnsPatterns(part.texts("allow_dns")),
            ip=Networks(part.texts("allow_ip")),
            email=EmailPatterns(part.texts("allow_email")),
            profiles=frozenset(part.texts("profiles")),
            max_ttl=part.duration("max_ttl"),
            sources=Networks(part.texts("cidr")),
            agent=agent,
        ),
    )
    name = part.text("name") if "name" in part.value else "case"
    return TokenPrincipal("case", name, None, grant or empty, agent=agent, expires_at=1 << 53)
