"""Watching a cluster: what happens is seen as it happens, and no trouble with a watch makes anything look gone. And the rights it needs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from handclasp.discovery.kubernetes import api as kubernetes_api
from handclasp.discovery.kubernetes.kind import KUBERNETES
from support.fake_server import FakeAuthority, pem
from support.kube_api import Fault, KubeApi, kube_api
from support.kube_rbac import rules_of
from support.reading import Read, parts, read, settings_of, tools

COLLECTOR = Path(__file__).resolve().parents[2] / "packaging/kubernetes/collector"
AUTHORITY = FakeAuthority("Workloads")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    with kube_api(tmp_path / "cluster") as one:
        yield one


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_api, "BACKOFF", 0.01)
    monkeypatch.setattr("handclasp.discovery.kubernetes.lanes._SHORTEST", 0.01)
    monkeypatch.setattr("handclasp.discovery.kubernetes.lanes._LONGEST", 0.05)


class Watched:
    """A reading that goes on while the test changes the cluster."""

    def __init__(self, api: KubeApi, given: dict[str, Any], place: str = "") -> None:
        self.api, self.given, self.place, self.read = api, given, place, Read()

    async def until(self, condition: Callable[[], object], what: str = "") -> None:
        async with asyncio.timeout(30):
            while not condition():
                assert not self.task.done() or self.task.exception() is None, self.task
                await asyncio.sleep(0.01)

    async def __aenter__(self) -> Watched:
        self.tools = tools(self.api.home)
        settings = settings_of(KUBERNETES, self.given)
        (part,) = await parts(KUBERNETES, settings, self.tools)

        async def run() -> None:
            async for one in KUBERNETES.read(settings, part, self.place, self.tools):
                self.read.add(one)

        self.task = asyncio.create_task(run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.tools.stop.set()
        async with asyncio.timeout(30):
            await asyncio.wait([self.task])
        self.task.result()

    def holds(self, name: str) -> list[bytes | None] | None:
        """What the newest observation of a TLS Secret holds; None when there is none."""
        with contextlib.suppress(StopIteration):
            return [one.der for one in self.read[f"k8s:c1/prod/secret/{name}#tls.crt"].certificates]
        return None


def put(api: KubeApi, name: str) -> bytes:
    chain, key = AUTHORITY.credential(dns=[name])
    api.secret(name, "prod", {"tls.crt": chain, "tls.key": key})
    return x509.load_pem_x509_certificates(chain)[0].public_bytes(Encoding.DER)


def given(api: KubeApi, **more: Any) -> dict[str, Any]:
    return api.access(rate=1000.0, cluster_objects=False, namespaces=[], tls_secrets=["prod"], watch="1h") | more


def test_what_happens_is_seen_and_gone_on_from(api: KubeApi) -> None:
    first = put(api, "a")

    async def run() -> None:
        async with Watched(api, given(api)) as one:
            await one.until(lambda: one.holds("a") == [first])
            second, third = put(api, "a"), put(api, "b")
            await one.until(lambda: (one.holds("a"), one.holds("b")) == ([second], [third]))
            api.remove("secrets", "b", "prod")
            await one.until(lambda: one.holds("b") == [])
            fourth = put(api, "d")
            await one.until(lambda: one.holds("d") == [fourth])
            before = api.version
            await one.until(lambda: f'"{before}"' in (one.read.places or [""])[-1])
            place = one.read.places[-1]
        # Meanwhile, nobody watches.
        fifth = put(api, "e")
        api.remove("secrets", "a", "prod")
        api.requests.clear()
        async with Watched(api, given(api), place) as again:
            await again.until(lambda: again.holds("e") == [fifth] and again.holds("a") == [])
            assert again.holds("d") is None, "nothing is read twice"
        assert not any("limit=100" in path and "/secrets" in path for path in api.requests), "it went on, and did not list"
        assert [one.unit for one in again.read.covered] == []

    asyncio.run(run())


@pytest.mark.parametrize("in_stream", [True, False], ids=["an ERROR event", "HTTP 410"])
def test_a_watch_that_is_too_old_lists_again(api: KubeApi, in_stream: bool) -> None:
    first = put(api, "a")
    api.in_stream = in_stream

    async def run() -> None:
        async with Watched(api, given(api)) as one:
            await one.until(lambda: len(one.read.covered) == 1)
            place = one.read.places[-1]
        second = put(api, "b")
        api.journal.clear()  # no event will ever tell of it
        api.compact()
        async with Watched(api, given(api), place) as again:
            await again.until(lambda: again.holds("b") == [second])
            assert again.holds("a") == [first], "all of it was listed again"
            await again.until(lambda: again.read.covered)
            third = put(api, "c")
            await again.until(lambda: again.holds("c") == [third])

    asyncio.run(run())


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 429}, {"broken": "reset"}, {"broken": "json"}], ids=str)
def test_a_watch_that_breaks_is_begun_again_where_it_was(api: KubeApi, fault: dict[str, Any]) -> None:
    put(api, "a")
    api.faults.append(Fault("watch=true", count=3, **fault))

    async def run() -> None:
        async with Watched(api, given(api)) as one:
            await one.until(lambda: api.faults[0].count == 0)
            second = put(api, "b")
            await one.until(lambda: one.holds("b") == [second])
            assert len([path for path in api.requests if "limit=100" in path and "/secrets" in path]) == 1
        assert one.read.failed == []

    asyncio.run(run())


def test_a_watch_ends_in_time(api: KubeApi) -> None:
    put(api, "a")

    async def run() -> None:
        async with Watched(api, given(api, watch="1s")) as one:
            await one.until(one.task.done)
        assert len(one.read.covered) == 1

    asyncio.run(run())


def test_requests_that_vanish_are_seen_and_not_gone(api: KubeApi) -> None:
    chain, _ = AUTHORITY.credential(dns=["n1"])

    async def run() -> None:
        async with Watched(api, given(api, namespaces=["prod"], tls_secrets=[])) as one:
            await one.until(lambda: any("watch=true" in path and "podcert" in path for path in api.requests))
            spec = {"signerName": "example.org/mesh", "podName": "web-1", "serviceAccountName": "web"}
            api.put("podcertificaterequests", "r", "prod", spec=spec)
            api.put("podcertificaterequests", "r", "prod", spec=spec, status={"certificateChain": chain.decode()})
            api.remove("podcertificaterequests", "r", "prod")
            marker = api.put("ingresses", "m", "prod", spec={"tls": [{"secretName": "x"}]})["metadata"]["resourceVersion"]
            await one.until(lambda: any("ingress/m" in key for key in one.read.keys) and f'"{marker}"' in one.read.places[-1])
            await one.until(lambda: any("podcertificate/" in key for key in one.read.keys))
        (seen,) = [each for each in one.read.observed if "podcertificate/" in each.key]
        assert len(seen.certificates) == 1, "and no word of its end"

    asyncio.run(run())


# --- the rights that it needs -------------------------------------------------------------------------------------------------------------


def manifests(*names: str) -> list[dict[str, Any]]:
    return [one for name in names for one in yaml.safe_load_all((COLLECTOR / name).read_text())]


def test_the_manifest_allows_what_is_read_and_nothing_more(api: KubeApi) -> None:
    api.rules = rules_of(manifests("account.yaml", "secrets.yaml"))
    settings = given(api, cluster_objects=True, namespaces=["*"], opaque_secrets=["prod"], config_maps=["prod"])
    put(api, "a")

    async def run() -> None:
        async with Watched(api, settings) as one:
            wanted = {verb for rule in api.rules or () for verb in _asked(rule)}
            await one.until(lambda: wanted <= {(what[0], what[1]) for what in api.allowed})
        assert one.read.failed == []
        assert one.holds("a")
        assert api.refused == set()
        assert {(what[0], what[1]) for what in api.allowed} == wanted

    asyncio.run(run())
    assert all(name for verb, what, namespace, name in api.allowed if what == "/configmaps" and namespace != "prod"), "by name"


def _asked(rule: Any) -> Iterator[tuple[str, str]]:
    for group in rule.groups:
        for resource in rule.resources:
            for verb in rule.verbs:
                yield verb, f"{group}/{resource}"


def test_nobody_asks_for_secrets_by_default(api: KubeApi) -> None:
    api.rules = rules_of(manifests("account.yaml"))
    api.put("configmaps", "kube-root-ca.crt", "prod", data={"ca.crt": pem(AUTHORITY.root)})

    found = read(KUBERNETES, api.access(rate=1000.0), api.home)
    assert found.failed == []
    assert found.keys == ["k8s:c1/prod/configmap/kube-root-ca.crt#ca.crt"]
    assert not any("/secrets" in path for path in api.requests)
