"""Service accounts: each check of a token has a case that would pass without it. The API server speaks HTTPS and checks its client."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclasp.access import clusters
from handclasp.access.clusters import PROVEN, Clusters
from handclasp.access.kubeapi import GOOD_FOR, PAUSE, PODS_AGAIN, PODS_FOR
from handclasp.access.policy import parse_policy
from handclasp.access.principals import KubernetesPrincipal
from handclasp.errors import HandclaspError, Kind
from handclasp.server.kube import ApiConnection
from support.access import or_refused
from support.kube import REVIEW_PATH, WEB, ZTUNNEL, ApiServer, Cluster, Pod, api_server, cluster_entry, mesh_policy


class World:
    """Clusters of a policy, on a clock that the test moves (from the real one: the simulated API server has no other)."""

    def __init__(self, *entries: dict[str, Any], tokens: Path | None = None) -> None:
        self.now = int(time.time() * 1000)
        self.fetched: list[str] = []
        self.pages: dict[str, bytes] = {}
        self.clusters = Clusters(self.fetch, lambda review: ApiConnection(review, tokens or Path("/nowhere")), lambda: self.now)
        self.policy = parse_policy(mesh_policy(*entries))
        self.clusters.use(self.policy)

    async def fetch(self, url: str) -> bytes:
        self.fetched.append(url)
        if url not in self.pages:
            raise OSError("connection refused")
        return self.pages[url]

    def run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Run one thing, and let go of connections: each run has an event loop of its own."""

        async def whole() -> Any:
            try:
                return await work()
            finally:
                for known in self.clusters._known.values():
                    await known.close()

        return asyncio.run(whole())

    def verify(self, token: str, cluster: str = "Kubernetes", **more: Any) -> KubernetesPrincipal:
        found: KubernetesPrincipal = self.run(lambda: self.clusters.verify(cluster, token, **more))
        return found

    def impersonate(self, caller: KubernetesPrincipal, namespace: str = "prod", account: str = "web") -> KubernetesPrincipal:
        found: KubernetesPrincipal = self.run(lambda: self.clusters.impersonate(caller, namespace, account))
        return found

    def refuses(self, work: Callable[[], Any], says: str, kind: Kind = Kind.NOT_AUTHENTICATED) -> HandclaspError:
        with pytest.raises(HandclaspError) as caught:
            work()
        assert caught.value.kind is kind, caught.value
        assert says in caught.value.detail
        return caught.value


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with api_server() as server:
        yield server


CLUSTER = Cluster()


def with_api(api: ApiServer, mode: str = "require", **more: Any) -> World:
    return World(cluster_entry(api.cluster, api=api, mode=mode, **more), tokens=api.directory)


# --- checked here -----------------------------------------------------------------------------------------------------------------------


def test_a_token_proves_its_service_account_with_pod_and_node() -> None:
    world = World(cluster_entry(CLUSTER))
    who = world.verify(CLUSTER.token(WEB))
    assert (who.cluster, who.namespace, who.service_account) == ("Kubernetes", "prod", "web")
    assert (who.pod_name, who.pod_uid, who.node_name, who.node_uid) == ("web-1", "uid-web", "node-1", "uid-node-1")
    assert who.placeholders == {"cluster": "Kubernetes", "namespace": "prod", "service_account": "web"}
    assert who.scopes == frozenset()
    assert world.fetched == []  # the keys are in the policy


def test_a_token_that_is_bound_to_no_pod_is_one_too() -> None:
    who = World(cluster_entry(CLUSTER)).verify(CLUSTER.token(WEB, bound=False))
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
    world = World(cluster_entry(CLUSTER))
    world.refuses(lambda: world.verify(CLUSTER.sign(changed(path, value))), says)


def test_two_clusters_with_one_issuer_are_told_apart_by_their_keys() -> None:
    other = Cluster()
    world = World(cluster_entry(CLUSTER, name="one"), cluster_entry(other, name="two"))
    assert world.verify(CLUSTER.token(WEB), "one").cluster == "one"
    assert world.verify(other.token(WEB), "two").cluster == "two"
    world.refuses(lambda: world.verify(CLUSTER.token(WEB), "two"), "signature is wrong")
    world.refuses(lambda: world.verify(CLUSTER.token(WEB), "three"), "cluster is not in the policy")


def test_a_cluster_need_not_be_named_where_there_is_one() -> None:
    one = World(cluster_entry(CLUSTER)).clusters
    two = World(cluster_entry(CLUSTER, name="one"), cluster_entry(Cluster(), name="two")).clusters
    assert one.find("").name == "Kubernetes"  # type: ignore[union-attr]
    assert two.find("") is None
    assert one.find("other") is None


def test_other_audiences_are_taken_where_the_caller_says_so() -> None:
    world = World(cluster_entry(CLUSTER, audiences=["mesh", "istio-ca"]))
    world.verify(CLUSTER.token(WEB, aud="mesh"))
    world.verify(CLUSTER.token(WEB, aud="enrol"), audiences=("enrol",))
    world.refuses(lambda: world.verify(CLUSTER.token(WEB), audiences=("enrol",)), "another audience")


def test_keys_are_found_through_the_issuer_or_at_their_url() -> None:
    found = World({"name": "Kubernetes", "issuer": CLUSTER.issuer})
    found.pages = {
        f"{CLUSTER.issuer}/.well-known/openid-configuration": json.dumps({"issuer": CLUSTER.issuer, "jwks_uri": "https://k/keys"}).encode(),
        "https://k/keys": CLUSTER.jwks.encode(),
    }
    found.verify(CLUSTER.token(WEB))
    given_ = World({"name": "Kubernetes", "issuer": CLUSTER.issuer, "jwks_url": "https://k/keys"})
    given_.pages = {"https://k/keys": CLUSTER.jwks.encode()}
    given_.verify(CLUSTER.token(WEB))
    assert given_.fetched == ["https://k/keys"]
    nowhere = World({"name": "Kubernetes", "issuer": CLUSTER.issuer, "jwks_url": "https://k/keys"})
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
    world = World(cluster_entry(CLUSTER))
    or_refused(lambda: world.verify(CLUSTER.sign(CLUSTER.claims(WEB) | {key: value})))


# --- the API server, as a stricter mode -------------------------------------------------------------------------------------------------


def test_a_review_is_asked_for_with_the_audiences_and_our_own_token(api: ApiServer) -> None:
    world = with_api(api)
    token = api.cluster.token(WEB)
    assert world.verify(token).service_account == "web"
    assert [(method, path) for method, path, _ in api.requests] == [("POST", REVIEW_PATH)]
    assert api.reviews[0]["spec"] == {"token": token, "audiences": ["istio-ca"]}


def test_without_the_mode_nothing_is_asked(api: ApiServer) -> None:
    with_api(api, "off").verify(api.cluster.token(WEB))
    assert api.requests == []


def test_garbage_costs_the_api_server_nothing(api: ApiServer) -> None:
    world = with_api(api)
    world.refuses(lambda: world.verify(Cluster().token(WEB)), "signature is wrong")
    assert api.requests == []


def test_a_pod_that_was_deleted_is_nobody_at_once_or_some_seconds_later(api: ApiServer) -> None:
    world = with_api(api)
    token = api.cluster.token(WEB)
    world.verify(token)
    api.deleted.add(WEB.uid)
    world.verify(token)  # a yes is remembered
    assert len(api.reviews) == 1
    world.now += GOOD_FOR
    world.refuses(lambda: world.verify(token), "does not take it")
    world.refuses(lambda: world.verify(token), "does not take it")  # a no is not
    assert len(api.reviews) == 3


def test_a_yes_is_not_remembered_beyond_the_end_of_the_token(api: ApiServer) -> None:
    world = with_api(api)
    token = api.cluster.token(WEB, lifetime=4)
    world.verify(token)
    world.now += 4_500  # within the leeway between clocks, so the token itself is still taken
    world.verify(token)
    assert len(api.reviews) == 2


def test_one_token_is_reviewed_once_for_all_who_ask_at_once(api: ApiServer) -> None:
    world = with_api(api)
    token = api.cluster.token(WEB)
    world.run(lambda: asyncio.gather(*(world.clusters.verify("Kubernetes", token) for _ in range(20))))
    assert len(api.reviews) == 1


USER = {"username": "system:serviceaccount:prod:web", "uid": "sa-prod-web", "groups": ["system:serviceaccounts"]}


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (
            {"authenticated": True, "user": USER | {"username": "system:serviceaccount:prod:admin"}, "audiences": ["istio-ca"]},
            "somebody else",
        ),
        ({"authenticated": True, "user": USER | {"groups": ["system:masters"]}, "audiences": ["istio-ca"]}, "somebody else"),
        ({"authenticated": True, "user": USER | {"uid": "another"}, "audiences": ["istio-ca"]}, "another uid"),
        ({"authenticated": True, "user": USER, "audiences": []}, "not for this audience"),
        ({"authenticated": True, "user": USER}, "not for this audience"),
        ({"authenticated": True, "user": USER, "audiences": ["https://kubernetes.default.svc"]}, "not for this audience"),
        (
            {"authenticated": True, "user": USER | {"extra": {"authentication.kubernetes.io/pod-uid": ["x"]}}, "audiences": ["istio-ca"]},
            "another pod",
        ),
        ({"authenticated": True, "audiences": ["istio-ca"]}, "does not take it"),
        ({"user": USER, "audiences": ["istio-ca"]}, "does not take it"),
        ({"error": "cannot say"}, "does not take it"),
    ],
)
def test_an_api_server_that_says_something_else_is_believed(api: ApiServer, status: dict[str, Any], says: str) -> None:
    world = with_api(api)
    api.answer = json.dumps({"kind": "TokenReview", "status": status}).encode()
    world.refuses(lambda: world.verify(api.cluster.token(WEB)), says)


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_an_api_server_that_does_not_answer_the_question_makes_nobody_a_stranger(api: ApiServer, status: int) -> None:
    world = with_api(api)
    api.status = status
    error = world.refuses(lambda: world.verify(api.cluster.token(WEB)), f"with status {status}", Kind.UNAVAILABLE)
    assert error.retry_after is not None
    api.status = None
    world.verify(api.cluster.token(WEB))


@pytest.mark.parametrize("answer", [b"", b"[]", b"{", b'{"status":{"authenticated":"yes"}}', b"\xff\xfe", b'{"status":null}'])
def test_an_answer_that_cannot_be_read_is_no_answer(api: ApiServer, answer: bytes) -> None:
    world = with_api(api)
    api.answer = answer or b" "
    world.refuses(lambda: world.verify(api.cluster.token(WEB)), "cannot be read", Kind.UNAVAILABLE)


def test_an_api_server_that_is_away_is_left_alone_for_a_moment(api: ApiServer) -> None:
    world = with_api(api)
    token = api.cluster.token(WEB)
    api.close()
    world.refuses(lambda: world.verify(token), "cannot be reached", Kind.UNAVAILABLE)
    world.refuses(lambda: world.verify(token), "does not answer", Kind.UNAVAILABLE)
    world.now += PAUSE
    world.refuses(lambda: world.verify(token), "cannot be reached", Kind.UNAVAILABLE)
    api._server.server_close = lambda: None  # type: ignore[method-assign]
    api._server.shutdown = lambda: None  # type: ignore[method-assign]


def test_an_api_server_that_another_authority_vouches_for_gets_no_token(api: ApiServer) -> None:
    with api_server() as other:
        entry = cluster_entry(api.cluster, api=api, mode="require")
        entry["review"]["ca"] = other.ca
        world = World(entry, tokens=api.directory)
        world.refuses(lambda: world.verify(api.cluster.token(WEB)), "cannot be reached", Kind.UNAVAILABLE)
        assert api.requests == []


@pytest.mark.parametrize(
    ("content", "says"), [(None, "cannot be read"), (b"", "holds no token"), (b"a b", "holds no token"), (b"x" * 20_000, "holds no token")]
)
def test_a_token_file_that_is_no_good_is_our_fault(api: ApiServer, content: bytes | None, says: str) -> None:
    world = with_api(api)
    file = api.directory / "a.token"
    file.unlink() if content is None else file.write_bytes(content)
    world.refuses(lambda: world.verify(api.cluster.token(WEB)), says, Kind.UNAVAILABLE)
    assert api.requests == []


def test_the_api_server_is_asked_no_more_often_than_its_rate(api: ApiServer) -> None:
    entry = cluster_entry(api.cluster, api=api, mode="require")
    entry["review"]["rate"] = 2
    world = World(entry, tokens=api.directory)
    tokens = [api.cluster.token(replace(WEB, uid=f"uid-{number}")) for number in range(5)]
    for token in tokens[:4]:
        world.verify(token)
    error = world.refuses(lambda: world.verify(tokens[4]), "as often as its rate allows", Kind.UNAVAILABLE)
    assert error.retry_after == pytest.approx(0.5)
    world.verify(tokens[0])  # what is known needs no question
    world.now += 500
    world.verify(tokens[4])


def test_keys_come_from_the_api_server_where_nothing_else_is_said(api: ApiServer) -> None:
    entry = cluster_entry(api.cluster, api=api)
    del entry["jwks"]
    world = World(entry, tokens=api.directory)
    world.verify(api.cluster.token(WEB))
    assert [path for _, path, _ in api.requests] == ["/openid/v1/jwks"]
    assert world.fetched == []


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
    world = World(entry, tokens=api.directory)
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
    world = World(cluster_entry(CLUSTER))
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
    world = World(cluster_entry(CLUSTER))
    tokens = [CLUSTER.token(WEB, now=world.now / 1000) for _ in range(5)]
    known = [world.verify(token) for token in tokens]
    assert [world.verify(token) is one for token, one in zip(reversed(tokens), reversed(known), strict=True)] == [True] * 3 + [False] * 2
