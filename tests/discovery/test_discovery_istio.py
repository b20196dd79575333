"""Reading an Istio mesh: dumps of proxies in pieces of any size, roots, modes; and what a proxy that cannot be read must not do."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from handclasp.discovery.istio.dump import Dump
from handclasp.discovery.istio.kind import ISTIO
from handclasp.discovery.istio.stream import Elements
from handclasp.discovery.kubernetes import api as kubernetes_api
from handclasp.discovery.promtext import samples
from handclasp.discovery.source import Failed, Observed, Place, Scope
from handclasp.errors import Kind
from support.answering import answering
from support.errors import allowing, refused
from support.fake_server import FakeAuthority, key_pem, pem
from support.istio_dumps import envoy, ztunnel
from support.kube_api import KubeApi, kube_api
from support.kube_rbac import rules_of
from support.reading import Read, parts, read, settings_of, tools

COLLECTOR = Path(__file__).resolve().parents[2] / "packaging/kubernetes/collector"
AUTHORITY, OTHER = FakeAuthority("Mesh"), FakeAuthority("Older mesh")
ROOT, ISSUING = (one.public_bytes(Encoding.DER) for one in (AUTHORITY.root, AUTHORITY.issuing))
IDENTITIES = [f"spiffe://cluster.local/ns/team-{n}/sa/app-{n}" for n in range(20)]
ZTUNNEL, LEAVES = ztunnel(AUTHORITY, IDENTITIES)
ENVOY, SIDECAR = envoy(AUTHORITY, "spiffe://cluster.local/ns/prod/sa/web")


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_api, "BACKOFF", 0.01)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    with kube_api(tmp_path / "cluster") as one:
        yield one


def dump_of(data: bytes, size: int) -> tuple[Dump, list[Observed | Failed]]:
    dump = Dump("c1", "node-1", "c1/given", lambda: 5)
    found = [one for at in range(0, len(data), size) for one in dump.feed(data[at : at + size])]
    return dump, [*found, *dump.end()]


# --- dumps --------------------------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 5000), st.booleans())
def test_a_ztunnel_dump_in_pieces_of_any_size(size: int, pretty: bool) -> None:
    data = ZTUNNEL if pretty else json.dumps(json.loads(ZTUNNEL)).encode()
    _, found = dump_of(data, max(size, 50))
    by_key = {one.key: one for one in found if isinstance(one, Observed)}
    assert len(by_key) == len(found) == len(IDENTITIES) + 1
    for identity, leaf in LEAVES.items():
        one = by_key[f"mesh:c1/node-1#{identity}"]
        (seen,) = one.certificates
        assert (seen.der, seen.role, seen.chain) == (leaf, "served", [ISSUING])
        assert one.facts["namespace"] == identity.split("/")[4]
        assert one.facts["service_account"] == identity.split("/")[6]
    assert [(seen.role, seen.der) for seen in by_key["mesh:c1/node-1#roots"].certificates] == [("anchor", ROOT)]


@given(st.integers(50, 5000))
def test_an_envoy_dump_in_pieces_of_any_size(size: int) -> None:
    _, found = dump_of(ENVOY, size)
    by_key = {one.key.partition("#")[2]: one for one in found if isinstance(one, Observed)}
    assert sorted(by_key) == ["ROOTCA", "default", "federated"]
    assert [(seen.role, seen.der) for seen in by_key["default"].certificates] == [("served", SIDECAR)]
    assert [seen.der for seen in by_key["ROOTCA"].certificates] == [ROOT]
    assert [seen.der for seen in by_key["federated"].certificates] == [ISSUING]


def test_the_list_that_istioctl_writes() -> None:
    _, found = dump_of(json.dumps(json.loads(ZTUNNEL)["certificates"]).encode(), 1000)
    assert len(found) == len(IDENTITIES) + 1


def test_a_private_key_in_a_dump_is_not_looked_at() -> None:
    document = json.loads(ENVOY)
    secret = document["configs"][2]["dynamic_active_secrets"][0]["secret"]["tls_certificate"]
    secret["private_key"]["inline_bytes"] = base64.b64encode(key_pem(AUTHORITY.key)).decode()
    _, found = dump_of(json.dumps(document).encode(), 700)
    assert base64.b64encode(key_pem(AUTHORITY.key)).decode()[40:80] not in repr(found)
    assert "PRIVATE" not in repr(found)


@pytest.mark.parametrize("part", [0.0, 0.00002, 0.002, 0.5, 0.9999])
def test_a_dump_that_ends_in_the_middle_is_no_dump(part: float) -> None:
    with refused(Kind.UNAVAILABLE):
        dump_of(ZTUNNEL[: int(len(ZTUNNEL) * part)], 1000)


@given(st.binary(max_size=300) | st.lists(st.sampled_from([*list('{}[],:"\\ '), "certificates", "configs", "static_secrets", "1"])).map(
    lambda tokens: "".join(tokens).encode()
), st.integers(1, 50))  # fmt: skip
def test_any_bytes_are_a_dump_or_refused(data: bytes, size: int) -> None:
    with allowing(Kind.UNAVAILABLE):
        dump_of(data, size)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["certificates", "identity", "certChain", "rootCerts", "pem", "configs", "static_secrets", "name", "secret", "tls_certificate",
         "certificate_chain", "inline_bytes", "validation_context", "trusted_ca"]), inner, max_size=4),
    max_leaves=15,
)  # fmt: skip


@given(VALUES, st.integers(1, 40))
def test_any_json_is_split_as_a_parser_would(value: Any, size: int) -> None:
    data = json.dumps(value).encode()
    elements = Elements(frozenset({("certificates",), ("configs", "static_secrets")}))
    found = [one for at in range(0, len(data), size) for one in elements.feed(data[at : at + size])]
    expected: list[Any] = []

    def walk(path: tuple[str, ...], one: Any, in_list: bool) -> None:
        if isinstance(one, dict):
            if in_list and path in (("certificates",), ("configs", "static_secrets")):
                expected.append((path, one))
                return
            for key, inner in one.items():
                walk((*path, key), inner, False)
        elif isinstance(one, list):
            for inner in one:
                walk(path, inner, True)

    walk((), value, False)
    assert [(path, json.loads(element)) for path, element in found] == expected
    assert elements.whole == isinstance(value, dict | list)
    dump = Dump("c", "p", "u", lambda: 1)
    with allowing(Kind.UNAVAILABLE):
        for one in dump.feed(data):
            assert isinstance(one, Observed | Failed)


def test_an_element_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handclasp.discovery.istio.stream.MAX_ELEMENT", 10_000)
    with refused(Kind.UNAVAILABLE, "more than 10000 bytes"):
        dump_of(b'{"certificates": [{"identity": "' + b"x" * 50_000, 1000)
    with refused(Kind.UNAVAILABLE):
        dump_of(b"[" * 300, 10)


# --- proxies ------------------------------------------------------------------------------------------------------------------------------


def test_proxies_by_url_and_by_file(api: KubeApi) -> None:
    (api.home / "node-2.json").write_bytes(ENVOY)
    with answering({"/config_dump": ZTUNNEL}) as url:
        given = api.access(namespaces=[], urls=[f"node-1={url}/config_dump"], dumps=["node-2.json"])
        found = read(ISTIO, given, api.home)
    assert found[f"mesh:c1/node-1#{IDENTITIES[0]}"].host == "node-1"
    assert found["mesh:c1/node-2#default"].certificates[0].der == SIDECAR
    assert [one.unit for one in found.covered] == ["c1/given"] == list({one.unit for one in found.observed})
    assert api.requests == [], "nothing was asked of the cluster"


def test_a_proxy_that_cannot_be_read_failed_and_nothing_is_covered(api: KubeApi) -> None:
    (api.home / "old.json").write_bytes(ZTUNNEL)
    os.utime(api.home / "old.json", (0, 0))
    (api.home / "cut.json").write_bytes(ZTUNNEL[:-100])
    with answering({"/config_dump": ZTUNNEL}) as url:
        urls = [f"a={url}/config_dump", f"b={url}/gone", "c=http://127.0.0.1:1/config_dump"]
        found = read(ISTIO, api.access(namespaces=[], urls=urls, dumps=["old.json", "cut.json", "missing.json"]), api.home)
    assert sorted(one.what for one in found.failed) == ["b", "c", "cut", "missing", "old"]
    assert "minutes old" in next(one.problem for one in found.failed if one.what == "old")
    assert any(key.startswith("mesh:c1/a#") for key in found.keys)
    assert found.covered == []


def test_metadata_services_are_no_proxies(api: KubeApi) -> None:
    with refused(Kind.BAD_SETTING):
        ISTIO.check(settings_of(ISTIO, api.access(urls=["http://169.254.169.254/latest"])), Scope())


def pods(api: KubeApi) -> None:
    for number in range(3):
        spec = {"nodeName": f"node-{number}", "serviceAccountName": "ztunnel"}
        phase = "Running" if number < 2 else "Failed"
        api.put("pods", f"ztunnel-{number}", "istio-system", labels={"app": "ztunnel"}, spec=spec, status={"phase": phase})
        dump, _ = ztunnel(AUTHORITY, IDENTITIES[number * 5 : number * 5 + 5])
        api.proxied["istio-system", f"ztunnel-{number}:15000/config_dump"] = dump
    labels = {"security.istio.io/tlsMode": "istio", "app": "web", "pod-template-hash": "5d4"}
    owner = {"ownerReferences": [{"kind": "ReplicaSet", "name": "web-5d4", "controller": True}]}
    api.put("pods", "web-5d4-x", "prod", labels=labels, metadata=owner, spec={"nodeName": "node-1"}, status={"phase": "Running"})
    api.proxied["prod", "web-5d4-x:15000/config_dump"] = ENVOY


def proxies(**more: Any) -> dict[str, Any]:
    return {"namespaces": [], "rate": 1000.0, "ztunnels": True, "sidecars": ["prod"]} | more


def test_proxies_through_the_api_server(api: KubeApi) -> None:
    pods(api)
    found = read(ISTIO, api.access(**proxies()), api.home)
    assert found.failed == []
    assert found[f"mesh:c1/ztunnel/node-1#{IDENTITIES[5]}"].host == "node-1"
    web = found["mesh:c1/prod/web-5d4-x#default"]
    assert web.facts["workload"] == "Deployment/web"
    assert web.facts["workload_labels"]["app"] == "web"
    assert {one.unit for one in found.covered} == {"c1/ztunnel", "c1/sidecars/prod"}
    del api.proxied["istio-system", "ztunnel-1:15000/config_dump"]
    again = read(ISTIO, api.access(**proxies()), api.home)
    assert [one.what for one in again.failed] == ["ztunnel/node-1"]
    assert {one.unit for one in again.covered} == {"c1/sidecars/prod"}


def test_a_node_whose_proxy_is_not_up_is_not_empty(api: KubeApi) -> None:
    pods(api)
    api.put("pods", "ztunnel-1", "istio-system", labels={"app": "ztunnel"}, spec={"nodeName": "node-1"}, status={"phase": "Pending"})
    api.put("pods", "ztunnel-old", "istio-system", labels={"app": "ztunnel"}, spec={"nodeName": "node-9"}, status={"phase": "Failed"})
    found = read(ISTIO, api.access(**proxies(sidecars=[])), api.home)
    assert [(one.what, one.problem) for one in found.failed] == [("ztunnel/node-1", "its pod is pending")]
    assert found.covered == [], "what is on that node was merely not read"


def test_another_scope_is_another_unit(api: KubeApi) -> None:
    pods(api)
    whole = read(ISTIO, api.access(**proxies(ztunnels=False, sidecars=["*"])), api.home)
    less = read(ISTIO, api.access(**proxies(ztunnels=False, sidecars=["*"])), api.home, scope=Scope(deny=["prod"], loopback=True))
    assert whole.keys
    assert less.keys == []
    assert not {one.unit for one in whole.covered} & {one.unit for one in less.covered}


@pytest.mark.parametrize("broken", [False, True])
def test_a_reader_of_many_nodes_that_dies_is_gone_on_from_its_place(api: KubeApi, broken: bool) -> None:
    pods(api)
    if broken:
        api.proxied["istio-system", "ztunnel-0:15000/config_dump"] = b"{}["
    found, rest = Read(), Read()

    async def run(into: Read, place: str) -> None:
        using, settings = tools(api.home), settings_of(ISTIO, api.access(**proxies(sidecars=[])))
        (part,) = await parts(ISTIO, settings, using)
        readings = ISTIO.read(settings, part, place, using)
        async for one in readings:
            into.add(one)
            if isinstance(one, Place) and not place:
                await readings.aclose()  # type: ignore[attr-defined]
                return

    asyncio.run(run(found, ""))
    asyncio.run(run(rest, found.places[-1]))
    assert {key.split("#")[0] for key in rest.keys} == {"mesh:c1/ztunnel/node-1"}
    assert len(rest.covered) == (0 if broken else 1), "not when the first one was not read whole"


# --- configuration ------------------------------------------------------------------------------------------------------------------------


def test_roots_modes_and_the_public_half_of_the_authority(api: KubeApi) -> None:
    for namespace, authority in (("prod", AUTHORITY), ("test", OTHER)):
        api.put("namespaces", namespace, labels={"team": namespace})
        api.put("configmaps", "istio-ca-root-cert", namespace, data={"root-cert.pem": pem(authority.root)})
    api.put("peerauthentications", "default", "prod", spec={"mtls": {"mode": "PERMISSIVE"}, "portLevelMtls": {"8080": {"mode": "DISABLE"}}})
    api.put("peerauthentications", "inherits", "prod", spec={"selector": {"matchLabels": {"app": "web"}}})
    tls = {
        "tls": {"mode": "SIMPLE", "credentialName": "cred"},
        "portLevelSettings": [{"port": {"number": 443}, "tls": {"mode": "DISABLE"}}],
    }
    subset = {"name": "v1", "trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL"}}}
    api.put("destinationrules", "db", "prod", spec={"host": "db.prod", "trafficPolicy": tls, "subsets": [subset, {"name": "v2"}]})
    api.put("destinationrules", "plain", "prod", spec={"host": "x", "trafficPolicy": {"loadBalancer": {}}})
    data = {
        "ca-cert.pem": pem(AUTHORITY.issuing),
        "cert-chain.pem": pem(AUTHORITY.issuing) + pem(AUTHORITY.root),
        "root-cert.pem": pem(AUTHORITY.root),
    }
    key = key_pem(AUTHORITY.key)
    api.secret("cacerts", "istio-system", {name: text.encode() for name, text in data.items()} | {"ca-key.pem": key}, "Opaque")
    api.rules = rules_of(
        yaml.safe_load_all((COLLECTOR / "istio.yaml").read_text() + "---\n" + (COLLECTOR / "istio-proxies.yaml").read_text())
    )
    pods(api)
    given = api.access(cacerts=True, watch="1s", **proxies(namespaces=["*"], sidecars=[]))
    found = read(ISTIO, given, api.home)
    assert found.failed == []
    roots = [found[f"k8s:c1/{namespace}/configmap/istio-ca-root-cert#root-cert.pem"] for namespace in ("prod", "test")]
    assert [[seen.der for seen in one.certificates] for one in roots] == [[ROOT], [OTHER.root.public_bytes(Encoding.DER)]]
    assert {one.kind for one in roots} == {"mesh"}
    default, inherits = (found[f"k8s:c1/prod/peerauthentication/{name}"] for name in ("default", "inherits"))
    assert (default.details["mode"], default.details["ports"], default.certificates) == ("PERMISSIVE", {"8080": "DISABLE"}, [])
    assert (inherits.details["mode"], inherits.details["selector"]) == ("UNSET", {"app": "web"})
    assert found["k8s:c1/prod/destinationrule/db"].details == {
        "object": "destinationrule", "host": "db.prod", "mode": "SIMPLE", "credential": "cred", "ports": {"443": "DISABLE"},
        "subsets": {"v1": {"mode": "ISTIO_MUTUAL"}},
    }  # fmt: skip
    assert not any("plain" in key for key in found.keys)
    ca = found["k8s:c1/istio-system/secret/cacerts"]
    assert [(seen.role, seen.der, seen.chain) for seen in ca.certificates] == [("stored", ISSUING, [ROOT]), ("anchor", ROOT, [])]
    assert ca.private_key is not None
    assert key.decode().split("\n")[1] not in repr(found)
    # The manifests allow this and nothing more.
    assert api.refused == set()
    asked = {(what[0], what[1]) for what in api.allowed}
    assert asked == {(verb, f"{group}/{name}") for r in api.rules for group in r.groups for name in r.resources for verb in r.verbs}


def test_metrics_are_details(api: KubeApi) -> None:
    text = (
        b"# HELP x\nistio_agent_cert_expiry_seconds{resource_name=\"default\"} 86399.5\n"
        b'istio_agent_cert_expiry_seconds_more 1\ncitadel_server_root_cert_expiry_timestamp 1.9e+09 1700000000000\nother 3\n'
        b'istio_agent_cert_expiry_seconds{resource_name="a\\"b,}"} NaN\nistio_agent_cert_expiry_seconds{ 1\n'
    )  # fmt: skip
    with answering({"/stats/prometheus": text}) as url:
        given = api.access(namespaces=[], metrics=[f"{url}/stats/prometheus", f"{url}/none"])
        found = read(ISTIO, given, api.home)
    good, bad = found.observed
    expected = {"istio_agent_cert_expiry_seconds{resource_name=default}": 86399.5, "citadel_server_root_cert_expiry_timestamp": 1.9e9}
    assert good.details["metrics"] == expected
    assert bad.problem == "it answers 404"


@given(st.text(max_size=200) | st.lists(st.sampled_from(["m", "{", "}", 'a="', '"', ",", " 1", "\\", "\n", "# ", "NaN"])).map("".join))
def test_any_text_is_read_as_metrics(text: str) -> None:
    for sample in samples(text, {"m"}):
        assert sample.name == "m"
        assert isinstance(sample.shown, str)


@pytest.mark.parametrize(
    "settings",
    [
        {"namespaces": []},
        {"urls": ["ftp://x/"]},
        {"urls": ["http://u:p@x/"]},
        {"metrics": ["no address"]},
        {"urls": ["a=http://x/1", "a=http://x/2"]},
        {"sidecars": ["A"]},
    ],
    ids=str,
)
def test_settings_that_are_refused(settings: dict[str, Any]) -> None:
    with refused(Kind.BAD_SETTING):
        ISTIO.check(settings_of(ISTIO, {"cluster": "c1", **settings}), Scope())
