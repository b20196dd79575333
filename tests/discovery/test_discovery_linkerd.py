"""Reading a Linkerd mesh: roots, issuer, what events tell, and the anchors that proxies were started with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from handclasp.clock import parse_rfc3339, system_clock
from handclasp.discovery.kubernetes import api as kubernetes_api
from handclasp.discovery.linkerd import ANCHORS, LINKERD, METRICS, parse_issued
from handclasp.discovery.promtext import samples
from handclasp.discovery.source import Scope
from handclasp.errors import Kind
from support.errors import allowing, refused
from support.fake_server import FakeAuthority, key_pem, pem
from support.kube_api import KubeApi, kube_api
from support.kube_rbac import rules_of
from support.reading import read, settings_of

COLLECTOR = Path(__file__).resolve().parents[2] / "packaging/kubernetes/collector"
NEW, OLD = FakeAuthority("Linkerd"), FakeAuthority("Linkerd as it was")
WEB = "web.shop.serviceaccount.identity.linkerd.cluster.local"
SHA = hashlib.sha256(b"leaf").hexdigest()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_api, "BACKOFF", 0.01)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    with kube_api(tmp_path / "cluster") as one:
        one.put("namespaces", "shop", labels={"team": "shop"})
        yield one


def event(api: KubeApi, name: str, message: str, at: str = "2026-01-01T00:00:00Z", component: str = "linkerd-identity") -> None:
    api.put(
        "events",
        name,
        "shop",
        metadata={"creationTimestamp": at},
        reason="IssuedLeafCertificate",
        message=message,
        source={"component": component},
        involvedObject={"kind": "ServiceAccount", "name": "web", "namespace": "shop"},
    )


def issued(sha256: str = SHA, identity: str = WEB, ends: str = "2026-01-02 10:11:12 +0000 UTC") -> str:
    return f"issued certificate for {identity} until {ends}: {sha256}"


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


# --- events -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "identity"),
    [
        (issued(), f"dns:{WEB}"),
        ("(combined from similar events): " + issued(), f"dns:{WEB}"),
        (issued(ends="2026-01-02T10:11:12Z"), f"dns:{WEB}"),
        (issued(identity="spiffe://root.linkerd.cluster.local/proxy-harness"), "spiffe://root.linkerd.cluster.local/proxy-harness"),
    ],
)
def test_messages_of_events(message: str, identity: str) -> None:
    assert parse_issued(message) == (identity, parse_rfc3339("2026-01-02T10:11:12Z"), bytes.fromhex(SHA))


@pytest.mark.parametrize(
    "message",
    [
        "",
        issued()[:-1],
        issued() + "0",
        issued(sha256=SHA.upper()),
        issued(ends="2026-13-02 10:11:12 +0000 UTC"),
        issued(ends="2026-01-02 10:11:12 +0100 CET"),
        issued(identity="two words"),
        issued(identity="a\nb"),
        issued(identity="x" * 5000),
        issued(ends="٢٠٢٦-01-02 10:11:12 +0000 UTC"),
        "note: " + issued(),
    ],
)
def test_messages_that_are_none(message: str) -> None:
    with refused(Kind.BAD_REQUEST):
        parse_issued(message)


@given(
    st.text(max_size=120)
    | st.lists(st.sampled_from(["issued certificate for ", WEB, " until ", "2026-01-02 10:11:12", " +0000 UTC", ": ", SHA, "9999-99"])).map(
        "".join
    )
)
def test_any_message_is_parsed_or_refused(message: str) -> None:
    with allowing(Kind.BAD_REQUEST):
        identity, ends, sha256 = parse_issued(message)
        assert identity.startswith(("dns:", "spiffe://"))
        assert len(sha256) == 32
        assert ends > 0


def test_what_events_tell(api: KubeApi) -> None:
    newer = hashlib.sha256(b"newer").hexdigest()
    event(api, "b", issued(newer), "2026-01-01T02:00:00Z")
    event(api, "a", issued(), "2026-01-01T01:00:00Z")
    event(api, "c", "something else was issued")
    event(api, "forged", issued(hashlib.sha256(b"x").hexdigest()), "2026-01-01T03:00:00Z", component="somebody")
    found = read(LINKERD, api.access(rate=1000.0, pods=False), api.home)
    one = found[f"k8s:c1/shop/issued/{WEB}"]
    (seen,) = one.certificates
    assert (seen.sha256, seen.identity, seen.der) == (bytes.fromhex(newer), f"dns:{WEB}", None)
    assert seen.not_after == parse_rfc3339("2026-01-02T10:11:12Z")
    assert one.facts["service_account"] == "web"
    assert one.facts["namespace_labels"] == {"team": "shop"}
    assert one.kind == "ca"
    assert [failed.what for failed in found.failed] == ["shop/c"]
    assert not any("events" in unit.unit for unit in found.covered), "one of them could not be read"
    api.remove("events", "c", "shop")
    (covered,) = [one for one in read(LINKERD, api.access(rate=1000.0, pods=False), api.home).covered if "events" in one.unit]
    assert system_clock() - covered.began_at > 29 * 86_400_000, "events go, certificates stay"


# --- anchors ------------------------------------------------------------------------------------------------------------------------------


def pod(name: str, anchors: str | None, *, init: bool = False) -> dict[str, Any]:
    env = [{"name": "OTHER", "value": "x"}, {"name": "FROM", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]
    env += [{"name": ANCHORS, "value": anchors}] if anchors is not None else []
    proxy = {"name": "linkerd-proxy", "env": env}
    containers = {"initContainers": [proxy], "containers": [{"name": "web"}]} if init else {"containers": [{"name": "web"}, proxy]}
    return {"labels": {"linkerd.io/control-plane-ns": "linkerd", "app": name}, "spec": containers | {"nodeName": "node-1"}}


def test_stale_anchors_of_running_proxies(api: KubeApi) -> None:
    api.put("configmaps", "linkerd-identity-trust-roots", "linkerd", data={"ca-bundle.crt": pem(NEW.root)})
    for name, anchors in (("stale", pem(OLD.root)), ("both", pem(OLD.root) + pem(NEW.root)), ("none", None), ("garbled", "x")):
        api.put("pods", name, "shop", **pod(name, anchors))
    api.put("pods", "native", "shop", **pod("native", pem(NEW.root), init=True))
    api.put("pods", "bare", "shop", spec={"containers": [{"name": "x", "env": [{"name": ANCHORS, "value": pem(OLD.root)}]}]})
    found = read(LINKERD, api.access(rate=1000.0, events=False), api.home)

    def anchors_of(key: str) -> list[bytes | None]:
        return [seen.der for seen in found[f"k8s:c1/{key}"].certificates if seen.role == "anchor"]

    assert anchors_of("linkerd/configmap/linkerd-identity-trust-roots#ca-bundle.crt") == [der(NEW.root)]
    assert anchors_of("shop/pod/stale#anchors") == [der(OLD.root)]
    assert anchors_of("shop/pod/both#anchors") == [der(OLD.root), der(NEW.root)]
    assert anchors_of("shop/pod/native#anchors") == [der(NEW.root)]
    assert anchors_of("shop/pod/garbled#anchors") == []
    assert found["k8s:c1/shop/pod/stale#anchors"].host == "node-1"
    assert found["k8s:c1/shop/pod/stale#anchors"].facts["workload_labels"]["app"] == "stale"
    assert not any("pod/none" in key or "pod/bare" in key for key in found.keys)
    assert {one.unit for one in found.covered} >= {"c1/*/linkerd-pods", "c1/linkerd/linkerd-roots"}


@pytest.mark.parametrize("names", [("tls.crt", "tls.key"), ("crt.pem", "key.pem")])
def test_the_public_half_of_the_issuer(api: KubeApi, names: tuple[str, str]) -> None:
    key = key_pem(NEW.key)
    data = {names[0]: (pem(NEW.issuing) + pem(NEW.root)).encode(), names[1]: key}
    api.secret("linkerd-identity-issuer", "linkerd", data)
    found = read(LINKERD, api.access(rate=1000.0, issuer=True), api.home)
    one = found["k8s:c1/linkerd/secret/linkerd-identity-issuer"]
    assert [(seen.der, seen.chain) for seen in one.certificates] == [(der(NEW.issuing), [der(NEW.root)])]
    assert one.private_key is not None
    assert key.decode().split("\n")[1] not in repr(found)


def test_the_manifest_allows_what_is_read_and_nothing_more(api: KubeApi) -> None:
    api.rules = rules_of(yaml.safe_load_all((COLLECTOR / "linkerd.yaml").read_text()))
    api.put("configmaps", "linkerd-identity-trust-roots", "linkerd", data={"ca-bundle.crt": pem(NEW.root)})
    found = read(LINKERD, api.access(rate=1000.0, watch="1s"), api.home)
    assert (found.failed, api.refused) == ([], set())
    asked = {(what[0], what[1]) for what in api.allowed}
    assert asked == {(verb, f"{group}/{name}") for r in api.rules for group in r.groups for name in r.resources for verb in r.verbs}
    assert not any("/secrets" in path for path in api.requests)


def test_metrics_under_both_names() -> None:
    text = (
        "identity_cert_expiration_timestamp_seconds 1.7e9\n"
        "control_identity_cert_expiration_timestamp_seconds 1.8e9\n"
        'control_identity_cert_refreshes_total{result="error"} 3\n'
    )
    assert [(one.shown, one.value) for one in samples(text, METRICS)] == [
        ("identity_cert_expiration_timestamp_seconds", 1.7e9),
        ("control_identity_cert_expiration_timestamp_seconds", 1.8e9),
        ("control_identity_cert_refreshes_total{result=error}", 3.0),
    ]


@pytest.mark.parametrize(
    "settings",
    [{"events": False, "pods": False, "control_namespace": "X"}, {"metrics": ["x"]}, {"watch": "1y"}, {"namespaces": ["a b"]}],
    ids=str,
)
def test_settings_that_are_refused(settings: dict[str, Any]) -> None:
    with refused(Kind.BAD_SETTING):
        LINKERD.check(settings_of(LINKERD, {"cluster": "c1", **settings}), Scope())
