"""Policy: a file of grants and deny rules, read whole, compared as a whole, and deny by default.

.. code-block:: yaml

    version: 1
    oidc:
      - {name: cluster-a, issuer: https://oidc.example.org, audience: handclasp, single_use: false}
    clusters:                            # Kubernetes clusters: see clusterrules
      - {name: Kubernetes, issuer: https://kubernetes.default.svc.cluster.local, jwks_url: https://10.0.0.1:6443/openid/v1/jwks}
    grants:
      - name: web-prod
        principals:                      # any one of these
          - certificate: spiffe://example.org/deployer
          - agent: {role: web}           # an agent with all of these labels
          - oidc: cluster-a
            claims: {kubernetes.io.namespace: prod}
          - kubernetes: Kubernetes       # a service account of that cluster
            namespace: prod
            service_account: [web, api]
          - token: web-bootstrap         # a token that carries no grant of its own
        identities: [spiffe://example.org/prod/*]
        dns: [web.example.org]
        profiles: [workload]
        max_ttl: 24h
        from: [10.0.0.0/8]
        actions: [issue]
        renew: true
    enrolment: []                        # which evidence makes an agent: see enrolment
    workloads: []                        # which process of an agent's host may be who: see workloads
    deny:
      - {name: frozen, identities: [spiffe://example.org/prod/ledger], reason: change freeze}
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from handclasp.access.clusterrules import PLACEHOLDERS, Cluster, cluster_meaning, kubernetes_rule, parse_clusters
from handclasp.access.enrolment import EnrolmentRule
from handclasp.access.enrolmentrules import read_enrolment
from handclasp.access.grants import GRANT_ACTIONS, AgentRule, CertificateRule, Grant, KubernetesRule, OidcRule, PrincipalRule, TokenRule
from handclasp.access.patterns import ClaimPattern, DnsPatterns, EmailPatterns, IdentityPatterns, Networks, Patterns
from handclasp.access.workloads import Workload, read_workloads
from handclasp.clock import format_duration
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.names import Names
from handclasp.pki.yamlshape import Part, changes_between, document_of, each_once
from handclasp.wire import PolicyChange

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DenyRule:
    """Names that nobody obtains, whatever any grant says."""

    name: str
    identities: IdentityPatterns
    dns: DnsPatterns
    reason: str = ""

    def denied(self, names: Names) -> str | None:
        """Return the first of the names that this rule denies, or None. A wildcard is denied for every host that it would serve."""
        if names.spiffe is not None and self.identities.covers(names.spiffe):
            return names.spiffe
        return next((name for name in names.dns if self.dns.touches(name)), None)


@dataclass(frozen=True, slots=True)
class OidcIssuer:
    """An OIDC issuer whose tokens are taken, and how."""

    name: str
    issuer: str
    audience: str
    jwks_url: str | None = None
    single_use: bool = False
    jwks: str | None = None
    """The key set itself, as JSON text, where it is not fetched."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One whole policy. Immutable: the policy in force is replaced, never edited."""

    grants: tuple[Grant, ...] = ()
    deny: tuple[DenyRule, ...] = ()
    oidc: tuple[OidcIssuer, ...] = ()
    text: str = ""
    sha256: bytes = field(default=hashlib.sha256(b"").digest())
    """Of the text in UTF-8."""
    clusters: tuple[Cluster, ...] = ()
    enrolment: tuple[EnrolmentRule, ...] = ()
    workloads: tuple[Workload, ...] = ()
    all_grants: tuple[Grant, ...] = field(init=False, repr=False, compare=False)
    """Those that are written as grants, and then those that the workloads mean."""
    _denied: DenyRule = field(init=False, repr=False, compare=False)
    """All deny rules as one, so that what none of them denies is told quickly."""

    def __post_init__(self) -> None:
        identities = [text for rule in self.deny for text in rule.identities.texts]
        dns = [text for rule in self.deny for text in rule.dns.texts]
        object.__setattr__(self, "_denied", DenyRule("", IdentityPatterns(identities), DnsPatterns(dns)))
        object.__setattr__(self, "all_grants", (*self.grants, *(workload.grant for workload in self.workloads)))

    def denied(self, names: Names) -> tuple[DenyRule, str] | None:
        """Return the first rule that denies one of the names, and that name; None when no rule does."""
        if not self.deny or self._denied.denied(names) is None:
            return None
        return next((rule, name) for rule in self.deny if (name := rule.denied(names)) is not None)

    def grant_named(self, name: str) -> Grant | None:
        """Return the grant ``policy:NAME`` or ``workload:NAME``, or None when it is not there (any more)."""
        return next((grant for grant in self.all_grants if grant.name == name), None)

    def enrolment_named(self, name: str) -> EnrolmentRule | None:
        """Return the enrolment rule of this name, or None when it is not there (any more)."""
        return next((rule for rule in self.enrolment if rule.name == name), None)


EMPTY = Policy()
"""The policy of a new installation: nobody obtains anything by it, only by tokens."""


def parse_policy(text: str, source: str = "policy.yaml") -> Policy:
    """Return the policy that ``text`` says. Raises one ``bad_policy`` with every mistake as ``source:line: message``."""
    top = document_of(text, source, Kind.BAD_POLICY)
    top.keys("version", "oidc", "clusters", "grants", "deny", "enrolment", "workloads")
    if top.value.get("version") != 1:
        top.problem("version", "the version must be 1")
    issuers = [_oidc_issuer(part) for part in top.parts("oidc")]
    each_once(top.parts("oidc", quiet=True), "name")
    each_once(top.parts("oidc", quiet=True), "issuer")
    by_name = {issuer.name: issuer for issuer in issuers}
    clusters = parse_clusters(top)
    known = frozenset(cluster.name for cluster in clusters)
    grants = [_grant(part, by_name, known) for part in top.parts("grants")]
    each_once(top.parts("grants", quiet=True), "name")
    deny = [_deny(part) for part in top.parts("deny")]
    each_once(top.parts("deny", quiet=True), "name")
    enrolment = read_enrolment(top, {issuer.name: issuer.issuer for issuer in issuers}, known)
    workloads = read_workloads(top)
    top.problems.raise_if_any()
    digest = hashlib.sha256(text.encode()).digest()
    return Policy(tuple(grants), tuple(deny), tuple(issuers), text, digest, clusters=clusters, enrolment=enrolment, workloads=workloads)


_PRINCIPALS: Mapping[str, tuple[str, ...]] = {
    "certificate": (),
    "agent": (),
    "oidc": ("claims",),
    "kubernetes": ("namespace", "service_account"),
    "token": (),
}
"""Every kind of principal in a grant, and what stands beside it."""


def _oidc_issuer(part: Part) -> OidcIssuer:
    part.keys("name", "issuer", "audience", "jwks_url", "single_use")
    for key in ("issuer", "jwks_url"):
        url = part.value.get(key)
        if isinstance(url, str) and not url.startswith(("https://", "http://")):
            part.problem(key, f"{key} must be an https:// URL")
    return OidcIssuer(
        part.name(),
        part.text("issuer"),
        part.text("audience"),
        part.text("jwks_url") if "jwks_url" in part.value else None,
        part.flag("single_use", False),
    )


def _grant(part: Part, issuers: Mapping[str, OidcIssuer], clusters: frozenset[str]) -> Grant:
    part.keys("name", "principals", "identities", "dns", "ip", "email", "profiles", "max_ttl", "from", "actions", "renew")
    name = part.name()
    rules = [_principal(rule, issuers, clusters) for rule in part.parts("principals", required=True)]
    kept = tuple(rule for rule in rules if rule is not None)
    actions = frozenset(part.texts("actions")) or frozenset({"issue"})
    for action in sorted(actions - GRANT_ACTIONS):
        part.problem("actions", f"{action!r} is not one of {', '.join(sorted(GRANT_ACTIONS))}")
    if not any(part.value.get(key) for key in ("identities", "dns", "ip", "email")):
        part.problem("name", "a grant names identities, dns, ip or email: without any it allows nothing")
    grant = Grant(
        name=f"policy:{name}",
        principals=kept,
        identities=_patterns(part, "identities", IdentityPatterns),
        dns=_patterns(part, "dns", DnsPatterns),
        ip=_patterns(part, "ip", Networks),
        email=_patterns(part, "email", EmailPatterns),
        profiles=frozenset(part.texts("profiles", required=True)),
        max_ttl=part.duration("max_ttl"),
        sources=_patterns(part, "from", Networks),
        actions=actions,
        renew=part.flag("renew", True),
        single_use_jwt=any(isinstance(rule, OidcRule) and issuers[rule.provider].single_use for rule in kept),
    )
    if any(isinstance(rule, TokenRule) for rule in kept) and any(
        patterns.has_placeholders for patterns in (grant.identities, grant.dns, grant.email)
    ):
        part.problem("principals", "a token has no claims to fill placeholders with")
    if kept and all(isinstance(rule, KubernetesRule) for rule in kept):
        wanted = grant.identities.placeholders | grant.dns.placeholders | grant.email.placeholders
        for name in sorted(wanted - PLACEHOLDERS):
            part.problem("principals", f"a service account fills {', '.join(sorted(PLACEHOLDERS))}, and not {{{name}}}")
    return grant


def _principal(part: Part, issuers: Mapping[str, OidcIssuer], clusters: frozenset[str]) -> PrincipalRule | None:
    kinds = [key for key in _PRINCIPALS if key in part.value]
    if len(kinds) != 1:
        part.problem("", f"a principal is exactly one of {', '.join(_PRINCIPALS)}")
        return None
    kind = kinds[0]
    part.keys(kind, *_PRINCIPALS[kind])
    if kind == "token":
        return TokenRule(part.text("token"))
    if kind == "agent":
        return _agent_rule(part)
    if kind == "oidc":
        return _oidc_rule(part, issuers)
    if kind == "kubernetes":
        return kubernetes_rule(part, clusters)
    return part.attempt("certificate", lambda: _certificate_rule(part.text("certificate")))


def _certificate_rule(text: str) -> CertificateRule:
    for prefix, patterns in (("dns:", DnsPatterns), ("email:", EmailPatterns)):
        if text.startswith(prefix):
            return CertificateRule(prefix, _no_placeholders(patterns([text.removeprefix(prefix)])))
    return CertificateRule("", _no_placeholders(IdentityPatterns([text] if text else [])))


def _no_placeholders(patterns: Patterns) -> Patterns:
    if patterns.has_placeholders:
        raise HandclaspError(Kind.BAD_POLICY, "there is nothing here to fill placeholders with")
    return patterns


def _agent_rule(part: Part) -> AgentRule | None:
    labels = part.value["agent"]
    if not isinstance(labels, dict) or not labels or not all(isinstance(value, str) and value for value in labels.values()):
        part.problem("agent", "write the labels that an agent must have, as text: {role: web}")
        return None
    return AgentRule(tuple(sorted(labels.items())))


def _oidc_rule(part: Part, issuers: Mapping[str, OidcIssuer]) -> OidcRule | None:
    provider = part.text("oidc")
    if provider not in issuers:
        part.problem("oidc", f"{provider!r} is not under oidc: in this policy")
        return None
    claims = part.value.get("claims")
    if not isinstance(claims, dict) or not claims:
        part.problem("claims", "name at least one claim: without any, everybody with a token of this issuer is meant")
        return None
    compiled = []
    for claim, value in claims.items():
        pattern = part.attempt("claims", lambda value=value: ClaimPattern(value))  # type: ignore[misc]
        if pattern is not None:
            compiled.append((claim, pattern))
    return OidcRule(provider, issuers[provider].issuer, tuple(compiled))


def _deny(part: Part) -> DenyRule:
    part.keys("name", "identities", "dns", "reason")
    if not part.value.get("identities") and not part.value.get("dns"):
        part.problem("name", "a deny rule names identities or dns")
    rule = DenyRule(
        part.name(),
        _patterns(part, "identities", IdentityPatterns),
        _patterns(part, "dns", DnsPatterns),
        part.text("reason") if "reason" in part.value else "",
    )
    if rule.identities.has_placeholders or rule.dns.has_placeholders:
        part.problem("name", "a deny rule holds for everybody: it has no placeholders")
    return rule


def _patterns(part: Part, key: str, make: Callable[[Iterable[str]], T]) -> T:
    """Compile a list of patterns, reporting each bad one at its own line."""
    good = []
    for index, text in enumerate(part.texts(key)):
        if part.attempt((key, index), lambda text=text: make([text])) is not None:  # type: ignore[misc]
            good.append(text)
    return make(good)


# --- comparing --------------------------------------------------------------------------------------------------------------------------


def diff(old: Policy, new: Policy) -> list[PolicyChange]:
    """Return what differs in meaning between two policies: grants, deny rules, issuers. Comments and order are no difference."""
    return changes_between(_meaning(old), _meaning(new))


def _meaning(policy: Policy) -> dict[str, str]:
    """Return every part of a policy as canonical JSON, by what it is."""
    parts: dict[str, Any] = {f"grant {grant.name.removeprefix('policy:')}": _grant_meaning(grant) for grant in policy.grants}
    for rule in policy.deny:
        meaning: dict[str, Any] = {"identities": sorted(rule.identities.texts), "dns": sorted(rule.dns.texts), "reason": rule.reason}
        parts[f"deny {rule.name}"] = _without_empty(meaning)
    for issuer in policy.oidc:
        meaning = {"issuer": issuer.issuer, "audience": issuer.audience, "jwks_url": issuer.jwks_url, "single_use": issuer.single_use}
        parts[f"oidc {issuer.name}"] = _without_empty(meaning)
    for cluster in policy.clusters:
        parts[f"cluster {cluster.name}"] = _without_empty(cluster_meaning(cluster))
    parts |= {f"enrolment {rule.name}": _without_empty(rule.meaning()) for rule in policy.enrolment}
    parts |= {f"workload {workload.name}": _without_empty(workload.meaning()) for workload in policy.workloads}
    return {subject: msgspec.json.encode(meaning, order="sorted").decode() for subject, meaning in parts.items()}


def _grant_meaning(grant: Grant) -> dict[str, Any]:
    principals = sorted((_rule_meaning(rule) for rule in grant.principals), key=lambda rule: msgspec.json.encode(rule, order="sorted"))
    return {
        **_without_empty(
            {
                "principals": principals,
                "identities": sorted(grant.identities.texts),
                "dns": sorted(grant.dns.texts),
                "ip": sorted(grant.ip.texts),
                "email": sorted(grant.email.texts),
                "profiles": sorted(grant.profiles),
                "max_ttl": None if grant.max_ttl is None else format_duration(grant.max_ttl),
                "from": sorted(grant.sources.texts),
                "actions": sorted(grant.actions),
            }
        ),
        "renew": grant.renew,
    }


def _rule_meaning(rule: PrincipalRule) -> dict[str, Any]:
    if isinstance(rule, CertificateRule):
        return {"certificate": rule.prefix + rule.patterns.texts[0]}
    if isinstance(rule, AgentRule):
        return {"agent": dict(rule.labels)}
    if isinstance(rule, OidcRule):
        return {"oidc": rule.provider, "claims": {claim: pattern.value for claim, pattern in rule.claims}}
    if isinstance(rule, KubernetesRule):
        names = (("namespace", rule.namespace), ("service_account", rule.service_account))
        return {"kubernetes": rule.cluster} | {key: pattern.value for key, pattern in names if pattern is not None}
    return {"token": rule.name}


def _without_empty(parts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parts.items() if value not in (None, [], "", False)}
