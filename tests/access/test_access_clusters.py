"""Service accounts: each check of a token has a case that would pass without it. The API server speaks HTTPS and checks its client."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclasp.access import clusters
from handclasp.access.clusters import PROVEN
from handclasp.access.kubeapi import PODS_AGAIN, PODS_FOR
from handclasp.access.policy import parse_policy
from handclasp.errors import Kind
from support.access import or_refused
from support.clusters import CLUSTER, ClusterWorld, with_api
from support.kube import WEB, ZTUNNEL, ApiServer, Cluster, Pod, api_server, cluster_entry, mesh_policy


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with api_server() as server:
        yield server


# --- checked here -----------------------------------------------------------------------------------------------------------------------


def test_a_token_proves_its_service_account_with_pod_and_node() -> None:
    world = ClusterWorld(cluster_entry(CLUSTER))
    who = world.verify(CLUSTER.token(WEB))
    assert (who.cluster, who.namespace, who.service_account) == ("Kubernetes", "prod", "web")
    assert (who.pod_name, who.pod_uid, who.node_name, who.node_uid) == ("web-1", "uid-web", "node-1", "uid-node-1")
    assert who.placeholders == {"cluster": "Kubernetes", "namespace": "prod", "service_account": "web"}
    assert who.scopes == frozenset()
    assert world.fetched == []  # the keys are in the policy


def test_a_token_that_is_bound_to_no_pod_is_one_too() -> None:
    who = ClusterWorld(cluster_entry(CLUSTER)).verify(CLUSTER.token(WEB, bound=False))
    assert (who.pod_name, who.node_name) == (None, None)


def changed(path: str, value: Any) -> dict[str, Any]:
    claims = copy.deepcopy(CLUSTER.claims(WEB))
    at = claims
    *above, last = path.split("/")
    for key in above:
        at = at[key]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return claims


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("kubernetes.io", None, "no kubernetes.io claims"),
        ("kubernetes.io", ["prod"], "no kubernetes.io claims"),
        ("kubernetes.io/namespace", None, "does not name its namespace"),
        ("kubernetes.io/namespace", "pr*d", "does not name its namespace"),
        ("kubernetes.io/namespace", "prod/x", "does not name its namespace"),
        ("kubernetes.io/namespace", "other", "subject is not the service account"),
        ("kubernetes.io/serviceaccount", None, "does not name its namespace"),
        ("kubernetes.io/serviceaccount/uid", None, "serviceaccount has no uid"),
        ("kubernetes.io/serviceaccount/name", "admin", "subject is not the service account"),
        ("kubernetes.io/serviceaccount/name", {"x": 1}, "serviceaccount has no name"),
        ("kubernetes.io/pod", "web-1", "pod has no name"),
        ("kubernetes.io/pod/uid", None, "pod has no uid"),
        ("kubernetes.io/pod/uid", "a\nb", "pod has no uid"),
        ("kubernetes.io/node/name", "", "node has no name"),
        ("sub", "system:serviceaccount:prod:admin", "subject is not the service account"),
        ("sub", "web", "subject is not the service account"),
        ("aud", ["handclasp"], "another audience"),
        ("aud", "istio-ca-2", "another audience"),
        ("iss", "https://elsewhere.example.org", "issuer is not in the policy"),
        ("exp", 1_000_000_000, "expired"),
        ("exp", None, "when it expires"),
        ("nbf", 4_000_000_000, "not valid yet"),
    ],
)
def test_a_token_that_is_not_quite_right_is_refused(path: str, value: Any, says: str) -> None:
    world = ClusterWorld(cluster_entry(CLUSTER))
    world.refuses(lambda: world.verify(CLUSTER.sign(changed(path, value))), says)


def test_two_clusters_with_one_issuer_are_told_apart_by_their_keys() -> None:
    other = Cluster()
    world = ClusterWorld(cluster_entry(CLUSTER, name="one"), cluster_entry(other, name="two"))
    assert world.verify(CLUSTER.token(WEB), "one").cluster == "one"
    assert world.verify(other.token(WEB), "two").cluster == "two"
    world.refuses(lambda: world.verify(CLUSTER.token(WEB), "two"), "signature is wrong")
    world.refuses(lambda: world.verify(CLUSTER.token(WEB), "three"), "cluster is not in the policy")


def test_a_cluster_need_not_be_named_where_there_is_one() -> None:
    one = ClusterWorld(cluster_entry(CLUSTER)).clusters
    two = ClusterWorld(cluster_entry(CLUSTER, name="one"), cluster_entry(Cluster(), name="two")).clusters
    assert one.find("").name == "Kubernetes"  # type: ignore[union-attr]
    assert two.find("") is None
    assert one.find("other") is None


def test_other_audiences_are_taken_where_the_caller_says_so() -> None:
    world = ClusterWorld(cluster_entry(CLUSTER, audiences=["mesh", "istio-ca"]))
    world.verify(CLUSTER.token(WEB, aud="mesh"))
    world.verify(CLUSTER.token(WEB, aud="enrol"), audiences=("enrol",))
    world.refuses(lambda: world.verify(CLUSTER.token(WEB), audiences=("enrol",)), "another audience")


def test_keys_are_found_through_the_issuer_or_at_their_url() -> None:
    found = ClusterWorld({"name": "Kubernetes", "issuer": CLUSTER.issuer})
    found.pages = {
        f"{CLUSTER.issuer}/.well-known/openid-configuration": json.dumps({"issuer": CLUSTER.issuer, "jwks_uri": "https://k/keys"}).encode(),
        "https://k/keys": CLUSTER.jwks.encode(),
    }
    found.verify(CLUSTER.token(WEB))
    given_ = ClusterWorld({"name": "Kubernetes", "issuer": CLUSTER.issuer, "jwks_url": "https://k/keys"})
    given_.pages = {"https://k/keys": CLUSTER.jwks.encode()}
    given_.verify(CLUSTER.token(WEB))
    assert given_.fetched == ["https://k/keys"]
    nowhere = ClusterWorld({"name": "Kubernetes", "issuer": CLUSTER.issuer, "jwks_url": "https://k/keys"})
    nowhere.refuses(lambda: nowhere.verify(CLUSTER.token(WEB)), "keys of the issuer", Kind.UNAVAILABLE)


@settings(max_examples=150)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["namespace", "serviceaccount", "pod", "name", "uid"]), inner)
        ),
        max_leaves=8,
    ),
    st.sampled_from(["kubernetes.io", "sub", "aud", "exp", "iss"]),
)
def test_nothing_in_a_signed_token_does_more_than_refuse_it(value: Any, key: str) -> None:
    world = ClusterWorld(cluster_entry(CLUSTER))
    or_refused(lambda: world.verify(CLUSTER.sign(CLUSTER.claims(WEB) | {key: value})))


# --- speaking for a pod of the node -----------------------------------------------------------------------------------------------------


def test_a_node_account_speaks_for_the_pods_of_its_node(api: ApiServer) -> None:
    world = with_api(api)
    caller = world.verify(api.cluster.token(ZTUNNEL))
    who = world.impersonate(caller)
    assert (who.namespace, who.service_account, who.node_name) == ("prod", "web", "node-1")
    assert who.via is not None
    assert who.via.service_account == "ztunnel"
    assert who.describe() == "kubernetes:Kubernetes/prod/web via istio-system/ztunnel"
    assert who.to_log() == {
        "kind": "kubernetes", "cluster": "Kubernetes", "namespace": "prod", "service_account": "web", "via": "istio-system/ztunnel",
        "pod": "ztunnel-abcde", "node": "node-1",
    }  # fmt: skip
    assert who.caller == caller.caller  # for limits it is the proxy that asks
    assert len(api.lists) == 1


def test_the_list_of_a_node_is_kept_some_seconds_and_made_again_for_a_pod_that_is_not_in_it(api: ApiServer) -> None:
    world = with_api(api)
    caller = world.verify(api.cluster.token(ZTUNNEL))
    world.impersonate(caller)
    api.pods.append(Pod("prod", "new", "new-1", "uid-new", phase="Pending"))
    world.refuses(lambda: world.impersonate(caller, "prod", "new"), "no pod of prod/new")
    assert len(api.lists) == 1  # a moment old: not again
    world.now += PODS_AGAIN
    world.impersonate(caller, "prod", "new")
    world.impersonate(caller)
    assert len(api.lists) == 2
    world.now += PODS_FOR
    world.impersonate(caller)
    assert len(api.lists) == 3


@pytest.mark.parametrize(
    ("pods", "says"),
    [
        ([ZTUNNEL], "no pod of prod/web"),
        ([ZTUNNEL, replace(WEB, node="node-2")], "no pod of prod/web"),
        ([ZTUNNEL, replace(WEB, phase="Succeeded")], "no pod of prod/web"),
        ([ZTUNNEL, replace(WEB, phase="Failed")], "no pod of prod/web"),
        ([ZTUNNEL, replace(WEB, namespace="dev")], "no pod of prod/web"),
        ([WEB], "its pod does not run on that node"),
        ([WEB, replace(ZTUNNEL, uid="another")], "its pod does not run on that node"),
        ([WEB, replace(ZTUNNEL, node="node-2")], "its pod does not run on that node"),
        ([WEB, replace(ZTUNNEL, account="other")], "its pod does not run on that node"),
    ],
)
def test_nobody_speaks_for_a_pod_elsewhere(api: ApiServer, pods: list[Pod], says: str) -> None:
    world = with_api(api)
    api.pods = pods
    caller = world.verify(api.cluster.token(ZTUNNEL))
    world.refuses(lambda: world.impersonate(caller), says)


def test_only_node_accounts_that_are_bound_to_a_pod_speak_for_others(api: ApiServer) -> None:
    world = with_api(api)
    web, proxy = (world.verify(api.cluster.token(pod)) for pod in (WEB, ZTUNNEL))
    world.refuses(lambda: world.impersonate(web, "istio-system", "ztunnel"), "not among the node_accounts")
    world.refuses(lambda: world.impersonate(world.impersonate(proxy), "prod", "web"), "not among the node_accounts")
    world.refuses(lambda: world.impersonate(replace(proxy, pod_uid=None)), "bound to a pod")
    for namespace, account in (("prod", "web/x"), ("", "web"), ("prod", "*")):
        world.refuses(lambda namespace=namespace, account=account: world.impersonate(proxy, namespace, account), "not a service account")  # type: ignore[misc]


def test_a_token_without_its_node_is_asked_for_through_its_pod(api: ApiServer) -> None:
    world = with_api(api)
    claims = api.cluster.claims(ZTUNNEL)
    del claims["kubernetes.io"]["node"]
    caller = world.verify(api.cluster.sign(claims))
    assert world.impersonate(caller).node_name == "node-1"
    api.pods.remove(ZTUNNEL)
    world.refuses(lambda: world.impersonate(caller), "its pod is not there")


def test_an_outage_in_the_middle_is_an_outage(api: ApiServer) -> None:
    world = with_api(api)
    caller = world.verify(api.cluster.token(ZTUNNEL))
    api.status = 500
    world.refuses(lambda: world.impersonate(caller), "status 500", Kind.UNAVAILABLE)


def test_a_full_node_is_read_page_by_page(api: ApiServer) -> None:
    world = with_api(api)
    api.pods = [ZTUNNEL, *(replace(WEB, account=f"a{number}", uid=f"u{number}", name=f"n{number}") for number in range(600)), WEB]
    caller = world.verify(api.cluster.token(ZTUNNEL))
    world.impersonate(caller)
    world.impersonate(caller, "prod", "a599")
    assert len(api.lists) == 3


# --- the policy -------------------------------------------------------------------------------------------------------------------------


def test_what_is_known_of_a_cluster_stays_while_its_entry_does(api: ApiServer) -> None:
    entry = cluster_entry(api.cluster, api=api, mode="require")
    world = ClusterWorld(entry, tokens=api.directory)
    token = api.cluster.token(WEB)
    world.verify(token)
    world.clusters.use(parse_policy(mesh_policy(entry, max_ttl="1h")))
    world.verify(token)
    assert len(api.reviews) == 1
    world.clusters.use(parse_policy(mesh_policy(entry | {"audiences": ["istio-ca", "other"]})))
    world.verify(token)
    assert len(api.reviews) == 2
    world.clusters.use(parse_policy("version: 1"))
    world.refuses(lambda: world.verify(token), "cluster is not in the policy")


# --- the same token again ---------------------------------------------------------------------------------------------------------------


def test_a_token_that_proved_itself_a_moment_ago_is_judged_by_the_time_and_the_rules_of_now() -> None:
    world = ClusterWorld(cluster_entry(CLUSTER))
    began = world.now
    token = CLUSTER.token(WEB, now=began / 1000, lifetime=60)
    known = world.verify(token)
    assert world.verify(token) is known, "nothing is looked at twice"
    world.refuses(lambda: world.verify(token, audiences=("vault",)), "another audience")
    world.refuses(lambda: world.verify(f"{token}x"), "signature")
    world.now = began + PROVEN
    again = world.verify(token)
    assert again == known
    assert again is not known, "but not for long"
    world.now = known.expires_at - 1
    world.verify(token)
    world.now += 1
    world.refuses(lambda: world.verify(token), "expired")
    world.now = began - 3_600_000
    world.refuses(lambda: world.verify(token), "future")
    world.now = began
    world.verify(token)
    world.clusters.use(parse_policy(mesh_policy(cluster_entry(Cluster()))))
    world.refuses(lambda: world.verify(token), "signature")
    world.clusters.use(parse_policy(mesh_policy(cluster_entry(CLUSTER, name="other"))))
    world.refuses(lambda: world.verify(token), "not in the policy")


def test_only_so_many_tokens_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "MAX_PROVEN", 3)
    world = ClusterWorld(cluster_entry(CLUSTER))
    tokens = [CLUSTER.token(WEB, now=world.now / 1000) for _ in range(5)]
    known = [world.verify(token) for token in tokens]
    assert [world.verify(token) is one for token, one in zip(reversed(tokens), reversed(known), strict=True)] == [True] * 3 + [False] * 2
