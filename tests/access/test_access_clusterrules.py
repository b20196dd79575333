"""The ``clusters:`` of a policy and the rule ``- kubernetes:``: what is taken or refused, what a change means, who fits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from handclasp.access.authorize import Allowed, Circumstances, Refused, authorize
from handclasp.access.cases import run_cases
from handclasp.access.policy import Policy, diff, parse_policy
from handclasp.access.principals import KubernetesPrincipal, OidcPrincipal
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.names import make_names
from support.access import or_refused
from support.kube import Cluster, self_signed

JWKS = Cluster().jwks
CA = self_signed()[0].public_bytes(Encoding.PEM).decode()
PEM = """-----BEGIN CERTIFICATE-----
MIIBdzCCAR2gAwIBAgIBATAKBggqhkjOPQQDAjAOMQwwCgYDVQQDDANhcGkwHhcN
-----END CERTIFICATE-----
"""


def entry(**changes: Any) -> dict[str, Any]:
    whole = {"name": "a", "issuer": "https://k.example.org", "jwks": JWKS} | changes
    return {key: value for key, value in whole.items() if value is not None}


def policy(*clusters: dict[str, Any], grants: list[dict[str, Any]] | None = None) -> Policy:
    return parse_policy(json.dumps({"version": 1, "clusters": list(clusters), "grants": grants or []}, indent=1))


def review(**changes: Any) -> dict[str, Any]:
    return {"url": "https://10.0.0.1:6443", "ca": CA, "token_file": "a.token"} | changes


def grant(**changes: Any) -> dict[str, Any]:
    return {
        "name": "mesh",
        "principals": [{"kubernetes": "a"}],
        "identities": ["spiffe://example.org/ns/{namespace}/sa/{service_account}"],
        "profiles": ["mesh"],
    } | changes


def test_what_is_left_out_has_its_default() -> None:
    found = policy(entry(), entry(name="b", jwks=None)).clusters
    assert (found[0].audiences, found[0].profile, found[0].review, found[0].trust_domain) == (("istio-ca",), "mesh", None, None)
    assert (found[1].jwks, found[1].jwks_url) == (None, None)
    strict = policy(entry(review=review(), node_accounts=["istio-system/ztunnel"], trust_domain="example.org")).clusters[0]
    assert strict.review is not None
    assert (strict.review.require, strict.review.rate) == (True, 50.0)
    assert strict.node_accounts == {("istio-system", "ztunnel")}


@pytest.mark.parametrize(
    ("clusters", "says"),
    [
        ([entry(name="a/b")], "a name is needed"),
        ([entry(issuer=None)], "issuer must be a text"),
        ([entry(issuer="kubernetes/serviceaccount")], "issuer must be an https:// URL"),
        ([entry(audience="x")], "'audience' is not known here"),
        ([entry(audiences=[])], "audiences must be a list"),
        ([entry(jwks="{}")], "not a key set"),
        ([entry(jwks="nonsense")], "not a key set"),
        ([entry(jwks=7)], "JSON text"),
        ([entry(jwks_url="https://x/keys")], "not both"),
        ([entry(jwks=None, jwks_url="file:///etc/passwd")], "jwks_url must be an https:// URL"),
        ([entry(), entry(issuer="https://other")], "given twice"),
        ([entry(), entry(name="b")], "those of 'a'"),
        ([entry(jwks=None), entry(name="b", jwks=None)], "those of 'a'"),
        ([entry(node_accounts=["istio-system/ztunnel"])], "need review"),
        ([entry(review=review(), node_accounts=["ztunnel"])], "NAMESPACE/SERVICE-ACCOUNT"),
        ([entry(review=review(), node_accounts=["istio-system/*"])], "NAMESPACE/SERVICE-ACCOUNT"),
        ([entry(review=review(url="http://10.0.0.1"))], "url is https://HOST:PORT"),
        ([entry(review=review(url="https://10.0.0.1/x"))], "url is https://HOST:PORT"),
        ([entry(review=review(url="https://who@10.0.0.1"))], "url is https://HOST:PORT"),
        ([entry(review=review(token_file="../passphrase"))], "without a path"),
        ([entry(review=review(token_file="/etc/shadow"))], "without a path"),
        ([entry(review=review(token_file=".."))], "without a path"),
        ([entry(review=review(ca=PEM))], "ca is the PEM"),
        ([entry(review=review(ca=""))], "ca is the PEM"),
        ([entry(review=review(mode="maybe"))], "mode is require or off"),
        ([entry(review=review(rate=0))], "rate is the number"),
        ([entry(review=review(rate=True))], "rate is the number"),
        ([entry(review="https://10.0.0.1")], "review must be a mapping"),
        ([entry(trust_domain="Example.org")], "trust domain"),
    ],
)
def test_a_mistake_is_told_with_its_line(clusters: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        policy(*clusters)
    assert caught.value.kind is Kind.BAD_POLICY
    assert says in caught.value.detail
    assert caught.value.detail.startswith("policy.yaml:")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"principals": [{"kubernetes": "b"}]}, "'b' is not under clusters"),
        ({"principals": [{"kubernetes": "a", "namespace": 7}]}, "namespace is a text"),
        ({"principals": [{"kubernetes": "a", "namespace": []}]}, "compared with a text"),
        ({"principals": [{"kubernetes": "a", "namespace": "prod-*"}]}, "* stands for all"),
        ({"principals": [{"kubernetes": "a", "serviceaccount": "x"}]}, "'serviceaccount' is not known"),
        ({"principals": [{"kubernetes": "a", "claims": {}}]}, "'claims' is not known"),
        ({"principals": [{"kubernetes": "a", "token": "x"}]}, "exactly one of"),
        ({"identities": ["spiffe://example.org/{pod}"]}, "and not {pod}"),
        ({"identities": ["spiffe://example.org/{namespace}-{service_account}"]}, "one placeholder in one segment"),
    ],
)
def test_a_mistake_in_a_grant_is_told_too(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        policy(entry(), grants=[grant(**changes)])
    assert says in caught.value.detail


KEYS = ["name", "issuer", "jwks", "review", "node_accounts", "audiences", "trust_domain", "profile"]
SCALARS = st.none() | st.integers() | st.text()
REVIEWS = st.dictionaries(st.sampled_from(["url", "ca", "token_file", "mode", "rate"]), SCALARS)


@given(st.dictionaries(st.sampled_from(KEYS), SCALARS | st.lists(st.text(), max_size=2) | REVIEWS))
def test_no_cluster_does_more_than_be_refused(cluster: dict[str, Any]) -> None:
    or_refused(lambda: parse_policy(json.dumps({"version": 1, "clusters": [cluster]})))


def test_a_change_is_told_and_long_texts_by_their_hash() -> None:
    before = policy(entry(), grants=[grant()])
    assert diff(before, policy(entry(), grants=[grant()])) == []
    changes = diff(before, policy(entry(review=review()), grants=[grant(principals=[{"kubernetes": "a", "namespace": "prod"}])]))
    assert {change.subject for change in changes} == {"cluster a", "grant mesh"}
    text = " ".join(f"{change.before} {change.after}" for change in changes)
    assert "BEGIN" not in text
    assert '"mode":"require"' in text
    assert '{"kubernetes":"a","namespace":"prod"}' in text
    assert [change.change for change in diff(before, policy())] == ["removed", "removed"]


class Plan:
    """As much of a plan as authorization looks at."""

    def __init__(self, identity: str, profile: str = "mesh") -> None:
        self.names = make_names(identity)
        self.profile = type("P", (), {"name": profile})()
        self.not_after = 3600_000


def answer(who: Any, identity: str, *, profile: str = "mesh", grants: list[dict[str, Any]] | None = None) -> Allowed | Refused:
    rules = policy(entry(), entry(name="b", issuer="https://b"), grants=grants or [grant()])
    return authorize(who, Plan(identity, profile), Circumstances("issue", "10.0.0.1", None, None, 0), rules)


def account(namespace: str = "prod", name: str = "web", cluster: str = "a") -> KubernetesPrincipal:
    return KubernetesPrincipal(cluster, namespace, name)


def test_an_account_has_its_own_name_and_no_other() -> None:
    assert answer(account(), "spiffe://example.org/ns/prod/sa/web") == Allowed("policy:mesh")
    for identity in ("spiffe://example.org/ns/prod/sa/api", "spiffe://example.org/ns/dev/sa/web", "spiffe://example.org/ns/prod/sa/web/x"):
        refused = answer(account(), identity)
        assert isinstance(refused, Refused)
        assert refused.kind is Kind.NAME_NOT_ALLOWED
    assert isinstance(answer(account(cluster="b"), "spiffe://example.org/ns/prod/sa/web"), Refused)
    assert isinstance(answer(account(), "spiffe://example.org/ns/prod/sa/web", profile="workload"), Refused)
    assert isinstance(answer(account("*", "*"), "spiffe://example.org/ns/prod/sa/web"), Refused)


def test_the_rule_narrows_by_namespace_and_account() -> None:
    rule = {"kubernetes": "a", "namespace": ["prod", "stage"], "service_account": "web"}
    grants = [grant(principals=[rule])]
    for who, fits in ((account(), True), (account("stage"), True), (account("dev"), False), (account(name="api"), False)):
        identity = f"spiffe://example.org/ns/{who.namespace}/sa/{who.service_account}"
        assert isinstance(answer(who, identity, grants=grants), Allowed) is fits


def test_clusters_are_told_apart_in_names_and_by_no_claims_of_others() -> None:
    grants = [grant(principals=[{"kubernetes": "a"}, {"kubernetes": "b"}], identities=["spiffe://example.org/{cluster}/{service_account}"])]
    assert isinstance(answer(account(), "spiffe://example.org/a/web", grants=grants), Allowed)
    assert isinstance(answer(account(cluster="b"), "spiffe://example.org/a/web", grants=grants), Refused)
    forged = OidcPrincipal("https://k.example.org", "x", {"namespace": "prod", "service_account": "web", "cluster": "a"}, None, 1 << 53)
    assert isinstance(answer(forged, "spiffe://example.org/a/web", grants=grants), Refused)


def test_a_pod_and_the_proxy_that_asks_for_it_have_the_same_grant() -> None:
    proxy = KubernetesPrincipal("a", "istio-system", "ztunnel", "z", "uid")
    who = KubernetesPrincipal("a", "prod", "web", via=proxy)
    assert answer(who, "spiffe://example.org/ns/prod/sa/web") == Allowed("policy:mesh")
    assert isinstance(answer(who, "spiffe://example.org/ns/istio-system/sa/ztunnel"), Refused)


def test_cases_know_service_accounts() -> None:
    cases = """
version: 1
cases:
  - name: its own
    principal: {kubernetes: {cluster: a, namespace: prod, service_account: web}}
    request: {identity: spiffe://example.org/ns/prod/sa/web, profile: mesh}
    expect: allow
  - name: another's
    principal: {kubernetes: {cluster: a, namespace: prod, service_account: web}}
    request: {identity: spiffe://example.org/ns/prod/sa/api, profile: mesh}
    expect: deny
    reason: name_not_allowed
  - name: another cluster
    principal: {kubernetes: {cluster: b, namespace: prod, service_account: web}}
    request: {identity: spiffe://example.org/ns/prod/sa/web, profile: mesh}
    expect: deny
    reason: not_allowed
"""
    assert [result.ok for result in run_cases(policy(entry(), grants=[grant()]), cases)] == [True, True, True]
    with pytest.raises(HandclaspError, match="'pod' is not known here"):
        run_cases(policy(entry(), grants=[grant()]), cases.replace("service_account: web}}", "service_account: web, pod: x}}", 1))
