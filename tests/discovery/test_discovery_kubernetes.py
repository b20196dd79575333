"""Reading a cluster, from an API server that behaves as a real one does, also when it does not feel well."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from handclasp.clock import system_clock
from handclasp.discovery.kubernetes import api as kubernetes_api
from handclasp.discovery.kubernetes.kind import KUBERNETES
from handclasp.discovery.source import Scope
from handclasp.pki import keystores
from support.fake_server import FakeAuthority, key_pem, pem
from support.kube_api import KubeApi, kube_api
from support.kube_rbac import rules_of
from support.reading import Read, read

MANIFESTS = Path(__file__).resolve().parents[2] / "packaging/kubernetes"
AUTHORITY = FakeAuthority("Workloads")
OTHER = FakeAuthority("Elsewhere")


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


ROOT, ISSUING = der(AUTHORITY.root), der(AUTHORITY.issuing)


def b64(data: bytes | str) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def credential(*dns: str) -> tuple[bytes, bytes, bytes]:
    """Chain and key as PEM, and the leaf."""
    chain, key = AUTHORITY.credential(dns=list(dns))
    return chain, key, der(x509.load_pem_x509_certificates(chain)[0])


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    with kube_api(tmp_path / "cluster") as one:
        one.put("namespaces", "prod", labels={"team": "payments"})
        one.put("namespaces", "test", labels={"team": "quality"})
        yield one


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in these tests is worth waiting for."""
    monkeypatch.setattr(kubernetes_api, "BACKOFF", 0.01)


def whole(api: KubeApi, **more: Any) -> Read:
    given = api.access(rate=1000.0, **{"tls_secrets": ["*"], "opaque_secrets": ["*"], "config_maps": ["*"]} | more)
    return read(KUBERNETES, given, api.home)


# --- what is read -------------------------------------------------------------------------------------------------------------------------


def test_tls_secrets_without_their_keys(api: KubeApi) -> None:
    chain, key, leaf = credential("web.prod")
    api.secret(
        "web-tls",
        "prod",
        {"tls.crt": chain, "tls.key": key, "ca.crt": pem(AUTHORITY.root).encode()},
        labels={"app": "web"},
        metadata={
            "annotations": {
                "cert-manager.io/certificate-name": "web",
                "cert-manager.io/issuer-name": "ca",
                "kubectl.kubernetes.io/last-applied-configuration": json.dumps({"data": {"tls.key": b64(key)}}),
            },
            "ownerReferences": [{"kind": "Certificate", "name": "web", "controller": True}],
        },
    )
    found = whole(api)
    one = found["k8s:c1/prod/secret/web-tls#tls.crt"]
    assert [(seen.der, seen.role, seen.chain) for seen in one.certificates] == [(leaf, "stored", [ISSUING])]
    assert one.private_key is not None
    assert one.private_key.spki_sha256 is None
    assert (one.unit, one.kind, one.shown) == ("c1/*/tls-secrets", "kubernetes", "c1: prod/secret/web-tls (tls.crt)")
    assert one.facts == {
        "cluster": "c1",
        "namespace": "prod",
        "namespace_labels": {"team": "payments"},
        "workload": "Certificate/web",
        "workload_labels": {"app": "web"},
    }
    assert one.details["cert_manager"] == {"certificate": "web", "issuer": "ca", "issuer_kind": None}
    anchors = found["k8s:c1/prod/secret/web-tls#ca.crt"]
    assert [(seen.der, seen.role) for seen in anchors.certificates] == [(ROOT, "anchor")]
    said = repr(found)
    assert b64(key)[40:80] not in said
    assert key.decode().split("\n")[1] not in said


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"tls.crt": b"", "tls.key": b""}, None),
        ({"tls.crt": b"nothing", "tls.key": b"x"}, "tls.crt holds no certificate"),
        ({"tls.crt": key_pem(AUTHORITY.key), "tls.key": b"x"}, "tls.crt holds no certificate, but a private key"),
    ],
)
def test_tls_secrets_that_hold_none(api: KubeApi, data: dict[str, bytes], problem: str | None) -> None:
    api.secret("odd", "prod", data)
    found = whole(api)
    if problem is None:
        assert [key for key in found.keys if "odd" in key] == []
    else:
        one = found["k8s:c1/prod/secret/odd#tls.crt"]
        assert (one.problem, one.certificates) == (problem, [])
    assert "BEGIN EC" not in repr(found)


def test_a_certificate_that_cannot_be_read_is_kept(api: KubeApi) -> None:
    broken = "-----BEGIN CERTIFICATE-----\nMIIB!!!\n-----END CERTIFICATE-----\n"
    api.secret("broken", "prod", {"tls.crt": broken.encode(), "tls.key": b"x"})
    (seen,) = whole(api)["k8s:c1/prod/secret/broken#tls.crt"].certificates
    assert seen.der == b"MIIB!!!"


def test_certificates_in_opaque_secrets_and_config_maps(api: KubeApi) -> None:
    chain, key, leaf = credential("db.prod")
    for lead in range(3):  # base64 looks different at each of three offsets
        api.secret(f"combined-{lead}", "prod", {"server.pem": b"x" * lead + key + chain, "password": b"hunter2"}, "Opaque")
    api.put("configmaps", "trust", "test", data={"roots.pem": pem(OTHER.root) + pem(AUTHORITY.root), "note": "no CERTIFICATE here"})
    found = whole(api)
    for lead in range(3):
        one = found[f"k8s:c1/prod/secret/combined-{lead}#server.pem"]
        assert [(seen.der, seen.chain) for seen in one.certificates] == [(leaf, [ISSUING])]
        assert one.private_key is not None
    bundle = found["k8s:c1/test/configmap/trust#roots.pem"]
    assert [(seen.role, seen.der) for seen in bundle.certificates] == [("anchor", der(OTHER.root)), ("anchor", ROOT)]
    assert len([key for key in found.keys if "password" in key or "note" in key]) == 0
    assert key.decode().split("\n")[1] not in repr(found)


def test_keystores_in_opaque_secrets_and_config_maps(api: KubeApi) -> None:
    _, key, leaf = credential("java.prod")
    ders = [leaf, ISSUING]
    store = keystores.pkcs12_truststore([ROOT], "changeit")
    jks = keystores.jks_truststore([ROOT], "changeit", now=1)
    locked = keystores.pkcs12_keystore(key, ders, "web", "secret")
    held = keystores.jks_keystore(key, ders, "web", "changeit", now=1, random=lambda size: b"x" * size)
    api.secret(
        "java", "prod", {"locked.p12": locked, "truststore": jks, "web.jks": held, "other.p12": b"MII", "password": b"MIIx"}, "Opaque"
    )
    api.put("configmaps", "java", "prod", binaryData={"roots.jks": b64(jks), "roots.p12": b64(store)})
    found = whole(api)
    for key_ in ("secret/java#truststore", "configmap/java#roots.jks"):
        assert [(seen.role, seen.der) for seen in found[f"k8s:c1/prod/{key_}"].certificates] == [("anchor", ROOT)]
    web = found["k8s:c1/prod/secret/java#web.jks"]
    assert [(seen.der, seen.chain) for seen in web.certificates] == [(leaf, [ISSUING])]
    assert web.private_key is not None
    assert found["k8s:c1/prod/secret/java#locked.p12"].problem
    assert not any(key_.endswith(("password", "other.p12")) for key_ in found.keys)
    assert found.failed == []


def test_anchors_of_the_cluster_itself(api: KubeApi) -> None:
    ca = b64(pem(AUTHORITY.root))
    service = {"service": {"name": "hook", "namespace": "test", "path": "/x"}}
    api.put(
        "mutatingwebhookconfigurations",
        "injector",
        webhooks=[
            {"name": "a.example.org", "clientConfig": {"caBundle": ca, **service}},
            {"name": "b.example.org", "clientConfig": {"caBundle": b64("garbled"), "url": "https://hook.example.org/"}},
            {"name": "c.example.org", "clientConfig": {"url": "https://public.example.org/"}},
        ],
    )
    api.put("validatingwebhookconfigurations", "checks", webhooks=[{"name": "d", "clientConfig": {"caBundle": ca}}])
    api.put("apiservices", "v1.tap", spec={"caBundle": ca, "service": {"name": "tap", "namespace": "linkerd"}})
    api.put("apiservices", "v1.", spec={"groupPriorityMinimum": 1})
    api.put(
        "customresourcedefinitions",
        "things.example.org",
        spec={"conversion": {"strategy": "Webhook", "webhook": {"clientConfig": {"caBundle": ca}}}, "versions": [{"schema": {}}]},
    )
    api.put("clustertrustbundles", "example.org:mesh:v1", spec={"signerName": "example.org/mesh", "trustBundle": pem(AUTHORITY.root) * 2})
    api.put("configmaps", "kube-root-ca.crt", "prod", data={"ca.crt": pem(OTHER.root)})
    api.put(
        "configmaps",
        "extension-apiserver-authentication",
        "kube-system",
        data={"client-ca-file": pem(OTHER.root), "requestheader-client-ca-file": pem(AUTHORITY.root), "requestheader-allowed-names": "[]"},
    )
    found = whole(api)
    for key in (
        "mutatingwebhook/injector#a.example.org",
        "validatingwebhook/checks#d",
        "apiservice/v1.tap",
        "crd/things.example.org#conversion",
        "clustertrustbundle/example.org:mesh:v1",
        "kube-system/configmap/extension-apiserver-authentication#requestheader-client-ca-file",
    ):
        assert [(seen.role, seen.der) for seen in found[f"k8s:c1/{key}"].certificates] == [("anchor", ROOT)], key
    assert found["k8s:c1/mutatingwebhook/injector#a.example.org"].details["service"] == "test/hook"
    (garbled,) = found["k8s:c1/mutatingwebhook/injector#b.example.org"].certificates
    assert (garbled.der, garbled.role) == (b"garbled", "anchor")
    assert found["k8s:c1/prod/configmap/kube-root-ca.crt#ca.crt"].certificates[0].der == der(OTHER.root)
    assert not any("c.example.org" in key or "v1.#" in key for key in found.keys)
    assert sum("kube-root-ca.crt" in key for key in found.keys) == 1, "not once more by the search in all ConfigMaps"


def test_what_was_signed_through_the_api(api: KubeApi) -> None:
    old, _, _ = credential("node")
    new, _, newest = credential("node")
    for name, chain, at in (("csr-a", new, "2026-03-01T00:00:00Z"), ("csr-b", old, "2026-02-01T00:00:00Z")):
        api.put(
            "certificatesigningrequests",
            name,
            metadata={"creationTimestamp": at},
            spec={"signerName": "kubernetes.io/kubelet-serving", "username": "system:node:n1", "request": "…", "usages": ["server auth"]},
            status={"certificate": b64(chain)},
        )
    api.put("certificatesigningrequests", "pending", spec={"signerName": "x/y", "username": "u"}, status={})
    api.put(
        "podcertificaterequests",
        "req-1",
        "prod",
        spec={"signerName": "example.org/mesh", "podName": "web-1", "serviceAccountName": "web", "nodeName": "n1"},
        status={"certificateChain": new.decode(), "beginRefreshAt": "2026-01-01T00:00:00Z"},
    )
    found = whole(api)
    (one,) = [place for place in found.observed if place.key.startswith("k8s:c1/signed/kubernetes.io/kubelet-serving/system:node:n1")]
    assert [(seen.der, seen.role) for seen in one.certificates] == [(newest, "listed")]
    assert one.kind == "ca"
    pod = found["k8s:c1/prod/podcertificate/example.org/mesh/web/web-1"]
    assert [(seen.der, seen.role) for seen in pod.certificates] == [(newest, "listed")]
    assert pod.facts["service_account"] == "web"
    ages = {one.unit: system_clock() - one.began_at for one in found.covered}
    assert ages["c1/*/signingrequests"] > 366 * 86_400_000, "an object that went says nothing"
    assert ages["c1/*/podcertificaterequests"] > 91 * 86_400_000
    assert ages["c1/*/ingresses"] < 86_400_000


def test_who_asks_for_many_certificates_is_told_of_each(api: KubeApi) -> None:
    chains = [credential(f"{name}.example.org") for name in ("one", "other")]
    for number, (chain, _, _) in enumerate(chains):
        spec = {"signerName": "example.org/signer", "username": "admin", "request": "…"}
        api.put("certificatesigningrequests", f"csr-{number}", spec=spec, status={"certificate": b64(chain)})
    found = [one for one in whole(api).observed if "/signed/" in one.key]
    assert {seen.der for one in found for seen in one.certificates} == {leaf for _, _, leaf in chains}
    assert len({one.key for one in found}) == 2


def test_who_uses_a_secret(api: KubeApi) -> None:
    chain, key, _ = credential("shop.example.org")
    api.secret("shop-tls", "prod", {"tls.crt": chain, "tls.key": key})
    api.put("ingresses", "shop", "prod", spec={"tls": [{"hosts": ["shop.example.org"], "secretName": "shop-tls"}, {"hosts": ["x"]}]})
    api.put(
        "gateways",
        "edge",
        "test",
        spec={
            "listeners": [
                {
                    "name": "https",
                    "hostname": "*.shop.example.org",
                    "tls": {"certificateRefs": [{"name": "shop-tls", "namespace": "prod"}]},
                },
                {"name": "http"},
            ]
        },
    )
    api.put(
        "certificates",
        "shop",
        "prod",
        labels={"app.kubernetes.io/part-of": "shop"},
        spec={"secretName": "shop-tls", "issuerRef": {"name": "le", "kind": "ClusterIssuer"}, "dnsNames": ["shop.example.org"]},
        status={
            "conditions": [{"type": "Ready", "status": "False", "reason": "Failed"}],
            "renewalTime": "2026-05-01T00:00:00Z",
            "failedIssuanceAttempts": 3,
        },
    )
    found = whole(api)
    facts = found["k8s:c1/prod/secret/shop-tls#tls.crt"].facts
    assert facts["hosts"] == ["*.shop.example.org", "shop.example.org"]
    assert facts["used_by"] == ["certificate/prod/shop", "gateway/test/edge", "ingress/prod/shop"]
    assert facts["workload_labels"] == {"app.kubernetes.io/part-of": "shop"}
    wanted = found["k8s:c1/prod/certificate/shop"].details
    assert (wanted["issuer"], wanted["renewal_time"], wanted["failed_attempts"]) == ("ClusterIssuer/le", "2026-05-01T00:00:00Z", 3)
    assert (wanted["ready"], wanted["dns"], wanted["secret"]) == (False, ["shop.example.org"], "prod/shop-tls")
    assert found["k8s:c1/test/gateway/edge"].details["tls"] == [{"secret": "prod/shop-tls", "hosts": ["*.shop.example.org"]}]


def test_every_object_of_the_wrong_shape_is_one_failure(api: KubeApi) -> None:
    chain, key, leaf = credential("web.prod")
    api.secret("good", "prod", {"tls.crt": chain, "tls.key": key})
    api.put("secrets", "bad", "prod", type="kubernetes.io/tls", data=["not", "a", "map"])
    api.put("configmaps", "bad", "prod", data={"a": ["CERTIFICATE-----"]})
    found = whole(api)
    assert found["k8s:c1/prod/secret/good#tls.crt"].certificates[0].der == leaf
    assert sorted(one.what for one in found.failed) == ["prod/bad", "prod/bad"]
    assert not any(one.unit in ("c1/*/tls-secrets", "c1/*/configmaps") for one in found.covered), "something in them was not read"


# --- what is covered ----------------------------------------------------------------------------------------------------------------------


def test_a_scope_leaves_namespaces_out_and_makes_other_units(api: KubeApi) -> None:
    for namespace in ("prod", "test"):
        chain, key, _ = credential("web")
        api.secret("web", namespace, {"tls.crt": chain, "tls.key": key})
    given = api.access(rate=1000.0, tls_secrets=["*"], cluster_objects=False)
    found = read(KUBERNETES, given, api.home, scope=Scope(deny=["test"], loopback=True))
    assert [key for key in found.keys if "secret" in key] == ["k8s:c1/prod/secret/web#tls.crt"]
    units = {one.unit for one in found.covered}
    assert "c1/*/tls-secrets" not in units, "what the scope left out would be gone"
    assert {one.unit for one in found.observed} <= units
    named = read(KUBERNETES, given | {"tls_secrets": ["prod", "test"]}, api.home, scope=Scope(deny=["test"], loopback=True))
    assert {one.unit for one in named.covered} >= {"c1/prod/tls-secrets"}
    assert not any("test" in one.unit for one in named.covered)


def test_a_namespace_that_is_forbidden_failed_and_is_not_covered(api: KubeApi) -> None:
    api.rules = rules_of(yaml.safe_load_all(_roles("prod")))
    for namespace in ("prod", "test"):
        chain, key, _ = credential("web")
        api.secret("web", namespace, {"tls.crt": chain, "tls.key": key})
    found = whole(api, tls_secrets=["prod", "test"], opaque_secrets=[], config_maps=[], cluster_objects=False, namespaces=[])
    assert [one.what for one in found.failed] == ["test/tls-secrets"]
    assert "403" in found.failed[0].problem
    assert [one.unit for one in found.covered] == ["c1/prod/tls-secrets"]


def _roles(namespace: str) -> str:
    return f"""
kind: Role
metadata: {{name: r, namespace: {namespace}}}
rules: [{{apiGroups: [""], resources: [secrets], verbs: [list]}}]
---
kind: RoleBinding
metadata: {{name: b, namespace: {namespace}}}
roleRef: {{kind: Role, name: r}}
"""


def test_a_cluster_without_optional_apis_is_read_without_failure(api: KubeApi) -> None:
    from support import kube_api as module

    kinds = {name: kind for name, kind in module.KINDS.items() if name not in ("gateways", "certificates", "podcertificaterequests")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "KINDS", kinds)
        found = whole(api)
    assert found.failed == []
    assert not any("gateways" in one.unit for one in found.covered)
