"""Service accounts that an API server vouches for, as a stricter mode: what it says is believed, and its absence is nobody's fault."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from handclasp.access.kubeapi import GOOD_FOR, PAUSE
from handclasp.errors import Kind
from support.clusters import ClusterWorld, with_api
from support.kube import REVIEW_PATH, WEB, ApiServer, Cluster, api_server, cluster_entry


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with api_server() as server:
        yield server


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
        world = ClusterWorld(entry, tokens=api.directory)
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
    world = ClusterWorld(entry, tokens=api.directory)
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
    world = ClusterWorld(entry, tokens=api.directory)
    world.verify(api.cluster.token(WEB))
    assert [path for _, path, _ in api.requests] == ["/openid/v1/jwks"]
    assert world.fetched == []
