"""Ways to a cluster's API, and what is refused of a kubeconfig; the parsers against whatever comes."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from handclasp.discovery.kubernetes import access
from handclasp.discovery.kubernetes.access import Access, check_access, find_entry
from handclasp.discovery.kubernetes.around import Around
from handclasp.discovery.kubernetes.content import as_anchors, as_chain, as_found, from_base64
from handclasp.discovery.kubernetes.kind import KUBERNETES, RESOURCES, KubernetesSettings
from handclasp.discovery.kubernetes.lanes import Lane, objects
from handclasp.discovery.source import Failed, Scope
from handclasp.errors import Kind
from support.errors import allowing, refused
from support.fake_server import FakeAuthority, key_pem, pem
from support.kube_api import KubeApi, kube_api
from support.reading import read, tools

AUTHORITY = FakeAuthority()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    with kube_api(tmp_path / "cluster") as one:
        one.put("configmaps", "kube-root-ca.crt", "prod", data={"ca.crt": pem(AUTHORITY.root)})
        yield one


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def kubeconfig(api: KubeApi, user: dict[str, Any], cluster: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "other", "context": {}}, {"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [
            {"name": "c", "cluster": {"server": api.url, "certificate-authority-data": b64(api.ca.read_bytes())} | (cluster or {})}
        ],
        "users": [{"name": "u", "user": user}],
    } | more
    (api.home / "config").write_text(yaml.safe_dump(document))
    return {"cluster": "c1", "kubeconfig": "config", "rate": 1000.0, "cluster_objects": False, "namespaces": ["prod"]}


def reads(api: KubeApi, settings: dict[str, Any]) -> bool:
    found = read(KUBERNETES, settings, api.home)
    return found.keys == ["k8s:c1/prod/configmap/kube-root-ca.crt#ca.crt"]


def test_ways_in(api: KubeApi) -> None:
    own = {"rate": 1000.0, "cluster_objects": False, "namespaces": ["prod"]}
    assert reads(api, api.access(**own))
    api.token_file.write_text("another")
    with refused(Kind.NOT_ALLOWED, "401"):
        reads(api, api.access(**own))
    api.tokens.add("another")
    assert reads(api, api.access(**own)), "the token is read again"
    assert reads(api, kubeconfig(api, {"token": "another"}))
    assert reads(api, kubeconfig(api, {"token": "wrong", "tokenFile": "token"})), "beside the kubeconfig, and before the token in it"
    assert reads(api, kubeconfig(api, {"token": "another"}, {"certificate-authority-data": None, "certificate-authority": "ca.crt"}))


def test_client_certificates(api: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    from support import kube_api as module

    monkeypatch.setattr(module._Handler, "_known", lambda self: bool(self.connection.getpeercert()))
    authority = api.authority
    chain, key = authority.credential(dns=["reader"])
    (api.home / "client.pem").write_bytes(chain)
    (api.home / "client-key.pem").write_bytes(key)
    own = {"rate": 1000.0, "cluster_objects": False, "namespaces": ["prod"]}
    files = {"certificate_file": "client.pem", "key_file": "client-key.pem"}
    assert reads(api, {"cluster": "c1", "api": api.url, "ca_file": "ca.crt", **files, **own})
    assert reads(api, kubeconfig(api, {"client-certificate": "client.pem", "client-key": "client-key.pem"}))
    assert reads(api, kubeconfig(api, {"client-certificate-data": b64(chain), "client-key-data": b64(key)}))
    with refused(Kind.NOT_ALLOWED, "401"):
        reads(api, api.access(**own))
    with refused(Kind.BAD_KEY):
        reads(api, kubeconfig(api, {"client-certificate-data": b64(chain), "client-key-data": b64(key_pem(authority.key))}))


@pytest.mark.parametrize(
    ("user", "cluster", "more", "words"),
    [
        ({"exec": {"command": "aws"}}, {}, {}, "exec: plugins are not run"),
        ({"auth-provider": {"name": "gcp"}}, {}, {}, "auth-provider"),
        ({"username": "a", "password": "b"}, {}, {}, "password"),
        ({"token": "t"}, {"insecure-skip-tls-verify": True}, {}, "does not verify"),
        ({"token": "t"}, {"proxy-url": "http://p"}, {}, "proxy-url"),
        ({"token": "t"}, {"server": "http://x"}, {}, "https"),
        ({"token": "t"}, {"certificate-authority-data": "%%"}, {}, "base64"),
        ({"token": "two\nlines"}, {}, {}, "token"),
        ({"token": "t"}, {}, {"current-context": "gone"}, "no context named 'gone'"),
        ({"token": "t"}, {}, {"users": "none"}, "no user named 'u'"),
    ],
)
def test_kubeconfigs_that_are_refused(
    api: KubeApi, user: dict[str, Any], cluster: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    with refused(Kind.BAD_SETTING, words):
        reads(api, kubeconfig(api, user, cluster, **more))


@pytest.mark.parametrize(
    "settings",
    [
        {"cluster": "a/b"},
        {"cluster": ""},
        {"cluster": "c", "api": "http://x"},
        {"cluster": "c", "api": "https://x", "kubeconfig": "k"},
        {"cluster": "c", "context": "k"},
        {"cluster": "c", "certificate_file": "k"},
        {"cluster": "c", "certificate_file": "k", "key_file": "k", "token_file": "t"},
        {"cluster": "c", "rate": 0.0},
        {"cluster": "c", "watch": "soon"},
        {"cluster": "c", "watch": "2d"},
        {"cluster": "c", "namespaces": ["Prod"]},
        {"cluster": "c", "tls_secrets": ["a/b"]},
        {"cluster": "c", "cluster_objects": False, "namespaces": []},
    ],
    ids=str,
)
def test_settings_that_are_refused(settings: dict[str, Any]) -> None:
    with refused(Kind.BAD_SETTING):
        KUBERNETES.check(msgspec.convert(settings, KubernetesSettings), Scope())


def test_a_pod_finds_its_own_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(Kind.BAD_SETTING, "does not run in a cluster"):
        find_entry(Access(cluster="c"), tools(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    entry = find_entry(Access(cluster="c"), tools(tmp_path))
    assert entry.url == "https://[fd00::1]:6443"
    assert (entry.token_file, entry.ca_file) == (f"{access.ACCOUNT}/token", f"{access.ACCOUNT}/ca.crt")


# --- whatever comes -----------------------------------------------------------------------------------------------------------------------

BLOCKS = st.sampled_from(
    [pem(AUTHORITY.root), pem(AUTHORITY.issuing), "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----", "MIIB", "\n", "-", "é"]
)


@given(st.lists(BLOCKS | st.text(max_size=20), max_size=12).map("".join))
def test_any_text_is_searched_for_certificates(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    for search in (as_chain, as_anchors, as_found):
        for seen in search(data):
            assert seen.der
            assert len(seen.chain) <= 32
    from_base64(data)


def test_a_bundle_that_is_everywhere_is_in_memory_once() -> None:
    text = (pem(AUTHORITY.root) + pem(AUTHORITY.issuing)).encode()
    first, second = as_anchors(text), as_anchors(b"# a comment\n" + text)
    assert [one.der for one in first] == [one.der for one in second]
    assert all(one.der is another.der for one, another in zip(first, second, strict=True))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | BLOCKS | BLOCKS.map(lambda text: b64(text.encode())),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "metadata",
                    "name",
                    "namespace",
                    "labels",
                    "spec",
                    "status",
                    "data",
                    "tls.crt",
                    "ca.crt",
                    "webhooks",
                    "clientConfig",
                    "caBundle",
                    "certificate",
                    "trustBundle",
                    "tls",
                    "listeners",
                    "secretName",
                    "hosts",
                    "conversion",
                    "webhook",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from(sorted(RESOURCES)), st.dictionaries(st.sampled_from(["spec", "status", "data", "webhooks", "type"]), VALUES), VALUES)
def test_any_object_is_read_or_one_failure(name: str, parts: dict[str, Any], metadata: Any) -> None:
    lane = Lane(RESOURCES[name], "", Around("c", "u", lambda: 1))
    for wanted in (metadata, {"name": "n", "namespace": "x"}):
        for one in objects([msgspec.Raw(msgspec.json.encode({"metadata": wanted, **parts}))], lane):
            if not isinstance(one, Failed):
                msgspec.json.decode(msgspec.json.encode(one[1]))


@given(VALUES)
def test_any_kubeconfig_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    home = tmp_path_factory.getbasetemp()
    (home / "fuzz").write_text(yaml.safe_dump(document))
    with allowing(Kind.BAD_SETTING):
        find_entry(Access(cluster="c", kubeconfig="fuzz"), tools(home))


def test_access_is_checked_without_io() -> None:
    check_access(Access(cluster="prod-1", api="https://k:6443", token_file="t"))
