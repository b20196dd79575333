"""Reading the secrets of a cluster whose API server does not feel well, and readers that die on the way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from handclasp.discovery.kubernetes import api as kubernetes_api
from handclasp.discovery.kubernetes.kind import KUBERNETES
from handclasp.discovery.source import Observed, Place
from handclasp.errors import Kind
from support.errors import refused
from support.kube_api import Fault, KubeApi, fill, kube_api
from support.reading import parts, read, settings_of, tools


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    with kube_api(tmp_path / "cluster") as one:
        one.put("namespaces", "prod")
        yield one


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in these tests is worth waiting for."""
    monkeypatch.setattr(kubernetes_api, "BACKOFF", 0.01)


@contextlib.contextmanager
def small_pages(number: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        real = kubernetes_api.Api.page

        async def page(self: Any, path: str, params: Any, more: str = "", *, limit: int = 100, metadata: bool = False) -> Any:
            return await real(self, path, params, more, limit=min(limit, number), metadata=metadata)

        patch.setattr(kubernetes_api.Api, "page", page)
        yield


def secrets_only(api: KubeApi, **more: Any) -> dict[str, Any]:
    return api.access(rate=1000.0, cluster_objects=False, namespaces=[], tls_secrets=["*"], **more)


def test_pages_of_a_list_that_is_forgotten_in_the_middle_are_read_again_and_nothing_is_gone(api: KubeApi) -> None:
    leaves = fill(api, 25, "prod")
    pages: list[int] = []

    def compact(path: str, status: int) -> None:
        pages.append(status)
        if len(pages) == 3:
            api.compact()

    with small_pages(5):
        api.on_page = lambda path, status: compact(path, status) if "secrets" in path else None
        found = read(KUBERNETES, secrets_only(api), api.home)
    assert pages == [200, 200, 200, 410, 200, 200, 200, 200, 200]
    assert {one.certificates[0].der for one in found.observed if one.key.endswith("tls.crt")} == set(leaves)
    assert [one.unit for one in found.covered] == ["c1/*/tls-secrets"]


def test_a_list_that_is_always_forgotten_is_given_up_and_covers_nothing(api: KubeApi) -> None:
    fill(api, 25, "prod")
    found: list[Any] = []
    with small_pages(5):
        api.on_page = lambda path, status: api.compact()
        with refused(Kind.UNAVAILABLE, "faster"):
            collect(api, secrets_only(api), found.append)
    assert not any(type(one).__name__ == "Covered" for one in found)


def collect(api: KubeApi, given: dict[str, Any], take: Callable[[Any], object], place: str = "") -> None:
    """Read the one part that there is, from a place on; ``take`` may stop it by an exception."""

    async def run() -> None:
        using, settings = tools(api.home), settings_of(KUBERNETES, given)
        (part,) = await parts(KUBERNETES, settings, using)
        async with contextlib.aclosing(KUBERNETES.read(settings, part, place, using)) as readings:  # type: ignore[type-var]
            async for one in readings:
                take(one)

    asyncio.run(asyncio.wait_for(run(), 60))


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_reader_that_dies_is_gone_on_from_its_place(api: KubeApi, forgotten: bool) -> None:
    leaves, seen, places = fill(api, 25, "prod"), list[Any](), list[str]()

    def until_half(one: Any) -> None:
        seen.append(one)
        if isinstance(one, Place):
            places.append(one.text)
            if len(places) == 3:
                raise _KilledError

    with small_pages(5):
        with pytest.raises(_KilledError):
            collect(api, secrets_only(api), until_half)
        if forgotten:
            api.compact()
        api.requests.clear()
        rest: list[Any] = []
        collect(api, secrets_only(api), rest.append, places[-1])
    lists = [path for path in api.requests if "/secrets" in path]
    assert len(lists) == (6 if forgotten else 2), "what was read before is read again only when it must be"
    ders = {one.certificates[0].der for one in seen + rest if isinstance(one, Observed) and one.key.endswith("tls.crt")}
    assert ders == set(leaves)
    assert [one.unit for one in rest if type(one).__name__ == "Covered"] == ["c1/*/tls-secrets"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("/secrets", status=429, retry_after="0"),
        Fault("/secrets", status=500, count=2),
        Fault("/secrets", status=503),
        Fault("/secrets", broken="json"),
        Fault("/secrets", broken="reset"),
        Fault("/secrets", status=504, after=1),
    ],
    ids=lambda fault: fault.broken or str(fault.status),
)
def test_what_passes_is_tried_again(api: KubeApi, fault: Fault) -> None:
    leaves = fill(api, 12, "prod")
    api.faults.append(fault)
    with small_pages(5):
        found = read(KUBERNETES, secrets_only(api), api.home)
    assert fault.count == 0
    assert {one.certificates[0].der for one in found.observed if one.key.endswith("tls.crt")} == set(leaves)
    assert len(found.covered) == 1


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault("/secrets", status=500, count=99), Kind.UNAVAILABLE),
        (Fault("/secrets", broken="json", count=99), Kind.UNAVAILABLE),
        (Fault("/secrets", broken="reset", count=99), Kind.UNAVAILABLE),
        (Fault("/secrets", status=401, count=99), Kind.NOT_ALLOWED),
    ],
    ids=["500", "json", "reset", "401"],
)
def test_what_does_not_pass_fails_the_part_and_covers_nothing(api: KubeApi, fault: Fault, kind: Kind) -> None:
    fill(api, 3, "prod")
    api.faults.append(fault)
    found: list[Any] = []
    with refused(kind):
        collect(api, secrets_only(api), found.append)
    assert found == []


def test_an_answer_that_does_not_come_is_not_waited_for_for_ever(api: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handclasp.discovery.kubernetes.access.TIMEOUT", 0.2)
    fill(api, 3, "prod")
    api.faults.append(Fault("/secrets", broken="silence"))
    found = read(KUBERNETES, secrets_only(api), api.home)
    assert len(found.covered) == 1


def test_pages_that_are_too_large_are_asked_for_in_smaller_ones(api: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handclasp.discovery.kubernetes.access.MAX_ANSWER", 60_000)
    leaves = fill(api, 40, "prod")
    found = read(KUBERNETES, secrets_only(api), api.home)
    assert {one.certificates[0].der for one in found.observed if one.key.endswith("tls.crt")} == set(leaves)


def test_the_rate_is_kept(api: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    fill(api, 40, "prod")

    async def pause(self: Any, seconds: float) -> bool:
        waits.append(seconds)
        return False

    monkeypatch.setattr("handclasp.discovery.tools.Tools.pause", pause)
    with small_pages(5):
        read(KUBERNETES, secrets_only(api) | {"rate": 0.5}, api.home)
    assert len(api.requests) > 8
    assert sum(wait > 1 for wait in waits) >= len(api.requests) - 2, "a request every two seconds"
