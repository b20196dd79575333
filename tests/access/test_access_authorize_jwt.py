"""Who may have JWT-SVIDs: agents for workloads that say so, holders for themselves where a grant says so, and nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.access.authorize import Allowed, Refused
from handclasp.access.authorize_jwt import JwtAsked, authorize_jwt
from handclasp.access.cases import run_cases
from handclasp.access.policy import EMPTY, parse_policy
from handclasp.access.principals import Principal, ServerPrincipal
from handclasp.errors import Kind
from support.access import NOW, certificate, make_grant, oidc, token
from support.errors import refused

POLICY = parse_policy(
    """
version: 1
grants:
  - name: jwt
    principals: [{certificate: spiffe://td/prod/*}, {agent: {role: web}}]
    identities: [spiffe://td/prod/*]
    profiles: [workload]
    max_ttl: 10m
    from: [10.0.0.0/8]
    actions: [jwt]
  - name: no-jwt
    principals: [{certificate: spiffe://td/**}]
    identities: [spiffe://td/**]
    profiles: [workload]
    actions: [issue, renew, revoke]
workloads:
  - name: web
    agents: {role: web}
    selectors: ["unix:uid:33"]
    identity: spiffe://td/app/web
    jwt: true
  - name: pods
    agents: {role: node}
    selectors: ["k8s:pod-label:handclasp:on"]
    identity: "spiffe://td/k8s/{cluster}/{k8s:ns}/{k8s:sa}"
    jwt: true
  - name: quiet
    agents: {role: web}
    selectors: ["unix:uid:34"]
    identity: spiffe://td/app/quiet
  - name: taken
    agents: {role: web}
    selectors: ["unix:uid:35"]
    identity: spiffe://td/handclasp/server
    jwt: true
  - name: brief
    agents: {role: web}
    selectors: ["unix:uid:37"]
    identity: spiffe://td/app/brief
    ttl: 1m
    jwt: true
  - name: brief-too
    agents: {role: web}
    selectors: ["unix:uid:38"]
    identity: spiffe://td/app/brief
    ttl: 2m
    jwt: true
  - name: frozen
    agents: {role: web}
    selectors: ["unix:uid:36"]
    identity: spiffe://td/app/frozen
    jwt: true
deny:
  - {name: freeze, identities: [spiffe://td/app/frozen, spiffe://td/prod/frozen], reason: change freeze}
"""
)
WEB = "spiffe://td/prod/web"


def agent(**labels: str) -> Principal:
    return certificate("spiffe://td/agent/a", profile="agent", is_agent=True, labels=labels)


def ask(principal: Principal, identity: str = WEB, *, ttl: float = 300, source: str | None = "10.1.2.3", policy: Any = POLICY) -> str:
    answer = authorize_jwt(principal, JwtAsked(identity, ttl, source), policy)
    return answer.grant if isinstance(answer, Allowed) else answer.kind.value


CASES: list[tuple[str, Principal, dict[str, Any], str]] = [
    ("its own workload", agent(role="web"), {"identity": "spiffe://td/app/web"}, "workload:web"),
    ("as long as its certificates", agent(role="web"), {"identity": "spiffe://td/app/brief", "ttl": 120}, "workload:brief-too"),
    ("longer than its certificates", agent(role="web"), {"identity": "spiffe://td/app/brief", "ttl": 121}, "lifetime_not_allowed"),
    ("an agent with other labels", agent(role="db"), {"identity": "spiffe://td/app/web"}, "name_not_allowed"),
    ("an agent without labels", agent(), {"identity": "spiffe://td/app/web"}, "name_not_allowed"),
    ("a workload without jwt", agent(role="web"), {"identity": "spiffe://td/app/quiet"}, "name_not_allowed"),
    ("what no workload has", agent(role="web"), {"identity": "spiffe://td/app/db"}, "name_not_allowed"),
    ("a pod of its cluster", agent(role="node", cluster="a"), {"identity": "spiffe://td/k8s/a/ns/sa"}, "workload:pods"),
    ("a pod of another", agent(role="node", cluster="a"), {"identity": "spiffe://td/k8s/b/ns/sa"}, "name_not_allowed"),
    ("more segments", agent(role="node", cluster="a"), {"identity": "spiffe://td/k8s/a/ns/sa/x"}, "name_not_allowed"),
    ("a denied workload", agent(role="web"), {"identity": "spiffe://td/app/frozen"}, "name_not_allowed"),
    ("the server's name", agent(role="web"), {"identity": "spiffe://td/handclasp/server"}, "name_not_allowed"),
    ("its own name", agent(role="web"), {"identity": "spiffe://td/agent/a"}, "name_not_allowed"),
    ("an agent by a grant for its labels", agent(role="web"), {}, "name_not_allowed"),
    ("oneself by a grant", certificate(WEB), {}, "policy:jwt"),
    ("another by the same grant", certificate(WEB), {"identity": "spiffe://td/prod/db"}, "name_not_allowed"),
    ("for longer than the grant", certificate(WEB), {"ttl": 601}, "lifetime_not_allowed"),
    ("from elsewhere", certificate(WEB), {"source": "192.0.2.1"}, "not_allowed"),
    ("from nowhere known", certificate(WEB), {"source": None}, "not_allowed"),
    ("denied, with a grant", certificate("spiffe://td/prod/frozen"), {"identity": "spiffe://td/prod/frozen"}, "name_not_allowed"),
    ("a grant to issue is none", certificate("spiffe://td/x/y"), {"identity": "spiffe://td/x/y"}, "not_allowed"),
    ("by default", certificate(WEB), {"policy": EMPTY}, "not_allowed"),
    ("an agent by default", agent(role="web"), {"policy": EMPTY, "identity": "spiffe://td/app/web"}, "name_not_allowed"),
    ("a superseded certificate", certificate(WEB, superseded_at=NOW), {}, "superseded"),
    ("one whose grace is over", certificate(WEB, grace_is_over=True), {}, "superseded"),
    ("a token that could issue it", token(make_grant(identities=[WEB])), {}, "not_allowed"),
    ("a token of the API", token(scopes=frozenset({"admin"})), {}, "not_allowed"),
    ("an OIDC token", oidc(), {}, "not_allowed"),
    ("the server", ServerPrincipal("td"), {"identity": "spiffe://td/handclasp/server"}, "not_allowed"),
]


@pytest.mark.parametrize(("principal", "asked", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_who_may_have_one(principal: Principal, asked: dict[str, Any], expected: str) -> None:
    assert ask(principal, **asked) == expected


def test_a_lifetime_that_is_too_long_says_what_would_do() -> None:
    answer = authorize_jwt(certificate(WEB), JwtAsked(WEB, 3600, "10.0.0.1"), POLICY)
    assert isinstance(answer, Refused)
    assert answer.longest == 600


def test_an_action_that_is_none_is_still_refused_in_a_policy() -> None:
    with refused(Kind.BAD_POLICY, "'jwts'"):
        parse_policy(
            "version: 1\ngrants:\n  - {name: a, principals: [{certificate: spiffe://td/a}], identities: [spiffe://td/a],"
            " profiles: [workload], actions: [jwts]}\n"
        )


SEGMENTS = st.sampled_from(["app", "prod", "web", "k8s", "a", "b", "agent", "handclasp", "server", "frozen", "ns"])
IDENTITIES = st.lists(SEGMENTS, min_size=1, max_size=5).map(lambda path: "spiffe://td/" + "/".join(path))


@given(IDENTITIES, st.dictionaries(st.sampled_from(["role", "cluster"]), st.sampled_from(["web", "node", "a", "b"])), st.booleans())
def test_nobody_has_what_is_not_theirs(identity: str, labels: dict[str, str], holder: bool) -> None:
    principal = certificate(WEB) if holder else agent(**labels)
    granted = ask(principal, identity)
    if granted == "policy:jwt":
        assert holder
        assert identity == WEB
    elif granted.startswith("workload:"):
        assert not holder
        assert identity == "spiffe://td/app/web" or identity.startswith(f"spiffe://td/k8s/{labels.get('cluster')}/")
    else:
        assert granted in {kind.value for kind in Kind}


def test_a_policys_cases_can_be_about_jwt_svids() -> None:
    cases = """
version: 1
cases:
  - {name: a workload, principal: {agent: {role: web}}, request: {identity: spiffe://td/app/web, action: jwt}, expect: allow}
  - {name: another, principal: {agent: {role: web}}, request: {identity: spiffe://td/app/quiet, action: jwt}, expect: deny}
  - name: oneself
    principal: {certificate: spiffe://td/prod/web}
    request: {identity: spiffe://td/prod/web, action: jwt, ttl: 10m, source: 10.0.0.1}
    expect: allow
"""
    assert [result.ok for result in run_cases(POLICY, cases)] == [True, True, True]
