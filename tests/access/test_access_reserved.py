"""Reserved names, against every kind of caller under a policy that gives everybody everything: the most careless one there can be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.access.authorize import Allowed, authorize
from handclasp.access.authorize_jwt import JwtAsked, authorize_jwt
from handclasp.access.grants import in_agent_space, in_server_space, is_agent_identity
from handclasp.access.policy import parse_policy
from handclasp.access.principals import EvidencePrincipal, KubernetesPrincipal, Principal, ServerPrincipal
from support.access import NOW, certificate, circumstances, make_grant, oidc, plan, token

CARELESS = """
version: 1
oidc: [{name: ci, issuer: "https://oidc.example.org", audience: x}]
clusters: [{name: a, issuer: "https://kubernetes.default.svc", jwks_url: "https://10.0.0.1:6443/keys", profile: agent}]
grants:
  - name: everything
    principals: [{certificate: "spiffe://td/**"}, {agent: {role: web}}, {oidc: ci, claims: {sub: "*"}}, {kubernetes: a}, {token: web}]
    identities: ["spiffe://td/**", "spiffe://td/agent/**", "spiffe://td/handclasp/**"]
    dns: ["*.example.org"]
    profiles: [agent, workload, server, client, mesh]
    actions: [issue, renew, revoke, jwt]
enrolment:
  - name: nodes
    evidence: kubernetes
    cluster: a
    service_accounts: ["*/*"]
    identity: "spiffe://td/agent/{node}"
    labels: {role: web}
workloads:
  - {name: all, agents: {role: web}, selectors: ["unix:uid:1"], identity: "spiffe://td/{k8s:ns}/{k8s:sa}", jwt: true}
"""
PARSED = parse_policy(CARELESS)
SPACES = [
    "spiffe://td/agent", "spiffe://td/agent/n1", "spiffe://td/agent/n1/x", "spiffe://td/handclasp", "spiffe://td/handclasp/server",
    "spiffe://td/handclasp/x/y", "spiffe://td/prod/web", "spiffe://td/agents/n1", "spiffe://td/x/agent", None,
]  # fmt: skip


def everybody(identity: str | None) -> list[Principal]:
    """Each kind of caller; the holders of certificates also as one who has the very name."""
    everything = make_grant(identities=["spiffe://td/**"], profiles=frozenset({"agent", "workload", "server"}))
    known: dict[str, Any] = {"facts": {"cluster": "a", "namespace": "x", "service_account": "y", "node": "n1"}, "expires_at": NOW + 1000}
    found: list[Principal] = [
        token(everything),
        token(make_grant(identities=[], profiles=frozenset())),
        token(make_grant(identities=["spiffe://td/**"], agent=True), agent=True),
        certificate(),
        certificate("spiffe://td/agent/n2", profile="agent", is_agent=True, labels={"role": "web"}),
        oidc(),
        KubernetesPrincipal("a", "handclasp", "server"),
        KubernetesPrincipal("a", "agent", "n1"),
        EvidencePrincipal("kubernetes", "nodes", "a/x/y@n1", **known),
    ]
    if identity is not None:
        found += [certificate(identity, profile=profile, is_agent=profile == "agent", labels={"role": "web"}) for profile in PROFILES]
    return found


PROFILES = ("agent", "workload", "server", "client", "mesh")


@given(st.sampled_from(SPACES), st.sampled_from(PROFILES), st.sampled_from(["issue", "renew"]), st.booleans())
def test_no_policy_gives_reserved_names_away(identity: str | None, profile: str, action: str, host: bool) -> None:
    names: dict[str, Any] = {"dns": ("a.example.org",)} if host or identity is None else {}
    for principal in everybody(identity):
        answer = authorize(principal, plan(identity, profile=profile, **names), circumstances(action), PARSED)
        if not isinstance(answer, Allowed):
            continue
        assert identity is None or not in_server_space(identity)
        assert (profile == "agent") == (identity is not None and in_agent_space(identity))
        assert profile != "agent" or (identity is not None and is_agent_identity(identity))
        if isinstance(principal, EvidencePrincipal):
            assert (identity, profile, action, names) == ("spiffe://td/agent/n1", "agent", "issue", {})


def test_that_policy_does_give_something() -> None:
    given_to = {
        principal.kind
        for identity in SPACES
        for profile in PROFILES
        for principal in everybody(identity)
        if isinstance(authorize(principal, plan(identity, profile=profile), circumstances(), PARSED), Allowed)
    }
    assert given_to == {"token", "certificate", "oidc", "kubernetes", "evidence"}


@pytest.mark.parametrize("identity", [one for one in SPACES if one is not None])
def test_nobody_has_jwt_svids_under_reserved_names(identity: str) -> None:
    reserved = in_agent_space(identity) or in_server_space(identity)
    answers = [
        isinstance(authorize_jwt(principal, JwtAsked(identity, 60, "10.0.0.1"), PARSED), Allowed)
        for principal in [*everybody(identity), ServerPrincipal("td")]
    ]
    assert any(answers) is not reserved
