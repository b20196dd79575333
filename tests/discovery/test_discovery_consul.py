"""A Consul mesh, read from a server and proxies that check what they are asked."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from handclasp.discovery.consul.kind import CONSUL
from handclasp.discovery.consul.proxies import _Dump, _inline
from handclasp.discovery.consul.settings import ConsulSettings
from handclasp.discovery.kinds import load_kind
from handclasp.discovery.source import Failed, Scope
from handclasp.errors import HandclaspError, Kind
from support.certfiles import Maker, der, pem
from support.consul import KEY, SECRET, TOKEN, FakeConsul, config_dump
from support.errors import refused
from support.sources import covered, last_place, observed, read, tools

MAKER, OLD = Maker("Consul CA 1"), Maker("Consul CA 0")
WEB = "spiffe://1111.consul/ns/default/dc/dc1/svc/web"


def service(identity: str) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(MAKER.root.subject)
        .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(hours=72))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True)
        .sign(MAKER.key, hashes.SHA256())
    )


LEAF = service(WEB)
ROOTS = pem(MAKER.root, OLD.root).decode()


def bind(home: Path, server: FakeConsul) -> None:
    """Let the token go to this server."""
    (home / "token.hosts").write_text(server.url.removeprefix("http://"))


def fill(server: FakeConsul) -> None:
    server.roots = [
        {"ID": "a", "Name": "Consul CA Root", "SerialNumber": 7, "RootCert": pem(MAKER.root).decode(), "Active": True,
         "IntermediateCerts": [pem(OLD.root).decode()], "PrivateKeyType": "ec", "CreateIndex": 1},
        {"ID": "b", "RootCert": pem(OLD.root).decode(), "Active": False, "IntermediateCerts": None, "RotatedOutAt": "2026-01-01T00:00:00Z"},
        {"ID": "c", "RootCert": "nothing"},
    ]  # fmt: skip


def test_the_server(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    with FakeConsul(token=TOKEN) as server:
        bind(tmp_path, server)
        fill(server)
        settings = ConsulSettings(url=server.url, token_file="token", namespace="team", partition="p", datacenter="dc1", intentions=True)
        items = read(CONSUL, settings, tools(secrets=tmp_path))
        found = observed(items)
        prefix = f"consul:{server.url.removeprefix('http://')}/dc1/p/team/"
        assert set(found) == {prefix + name for name in ("root/a", "root/b", "root/c", "agent-roots", "configuration", "intentions")}
        first = found[prefix + "root/a"]
        assert [(one.role, one.der) for one in first.certificates] == [("anchor", der(MAKER.root)), ("stored", der(OLD.root))]
        assert (first.details["active"], first.details["trust_domain"]) == (True, "1111.consul")
        assert found[prefix + "root/b"].details["rotated_out_at"] == "2026-01-01T00:00:00Z"
        assert found[prefix + "root/c"].problem == "its root is not a certificate"
        assert {one.der for one in found[prefix + "agent-roots"].certificates} == {der(MAKER.root), der(OLD.root)}
        assert found[prefix + "configuration"].details == {
            "mesh": "consul", "provider": "vault", "leaf_cert_ttl": "72h", "intermediate_cert_ttl": "8760h", "csr_max_per_second": "50",
        }  # fmt: skip
        assert found[prefix + "intentions"].details["intentions"] == ["/web -> /api: by request", "default/* -> default/db: deny"]
        assert covered(items) == [prefix + name for name in ("roots", "agent_roots", "configuration", "intentions")]
        told = repr(items)
        assert not any(word in told for word in (SECRET, "PRIVATE KEY", TOKEN))
        assert dict(server.asked)["/v1/connect/intentions"] == {"dc": "dc1", "ns": "team", "partition": "p"}
        assert dict(server.asked)["/v1/connect/ca/roots"] == {"dc": "dc1"}


def test_what_the_token_may_not_read_is_said_and_the_rest_is_read() -> None:
    with FakeConsul() as server:
        fill(server)
        server.instead = {"/v1/connect/ca/configuration": (403, b"Permission denied"), "/v1/agent/connect/ca/roots": (200, b'{"Roots": 7}')}
        items = read(CONSUL, ConsulSettings(url=server.url), tools())
        assert len(observed(items)) == 3
        failed = {one.what.partition(" of ")[0]: one.problem for one in items if isinstance(one, Failed)}
        assert set(failed) == {"configuration", "agent roots"}
        assert "403" in failed["configuration"]
        assert [unit.rpartition("/")[2] for unit in covered(items)] == ["roots"]


def test_proxies() -> None:
    with FakeConsul() as server:
        gateway = service("spiffe://1111.consul/gateway/mesh/dc/dc1")
        server.proxies = {
            "web": config_dump(pem(LEAF).decode(), ROOTS),
            "gw": config_dump("", ROOTS, secret=pem(gateway).decode()),
            "broken": {"configs": 7},
        }
        given = [f"{name}={server.url}/proxy/{name}/config_dump" for name in ("web", "gw", "broken", "gone", "denied")]
        items = read(CONSUL, ConsulSettings(envoys=given), tools(scope=Scope(loopback=True, deny=["denied"])))
        found = observed(items)
        assert set(found) == {"mesh:consul/web#own", "mesh:consul/gw#own", "mesh:consul/gw#gateway"}
        web = found["mesh:consul/web#own"]
        assert [(one.role, one.der) for one in web.certificates] == [
            ("served", der(LEAF)), ("anchor", der(MAKER.root)), ("anchor", der(OLD.root)),
        ]  # fmt: skip
        assert web.facts == {"namespace": "default", "workload": "web", "datacenter": "dc1"}
        assert web.details == {"mesh": "consul"}
        assert [(one.role, one.der) for one in found["mesh:consul/gw#gateway"].certificates] == [("served", der(gateway))]
        assert {one.what for one in items if isinstance(one, Failed)} == {"broken", "gone"}
        assert covered(items) == ["consul:proxy/gw", "consul:proxy/web"]
        assert not any("denied" in path for path, _ in server.asked)


def test_a_proxy_of_which_something_cannot_be_read_is_not_covered() -> None:
    with FakeConsul() as server:
        dump = config_dump("", ROOTS, secret=pem(LEAF).decode())
        for section in dump["configs"]:
            for secrets in (section.get(name) for name in ("static_secrets", "dynamic_active_secrets")):
                if secrets:
                    secrets.append({"name": 7})
        server.proxies = {"gw": dump}
        items = read(CONSUL, ConsulSettings(envoys=[f"gw={server.url}/proxy/gw/config_dump"]), tools(scope=Scope(loopback=True)))
    assert "mesh:consul/gw#gateway" in observed(items)
    assert len([one for one in items if isinstance(one, Failed)]) == 1
    assert covered(items) == []


def test_it_goes_on_after_the_proxy_that_was_read_last() -> None:
    with FakeConsul() as server:
        server.proxies = {name: config_dump(pem(LEAF).decode(), ROOTS) for name in "abc"}
        settings = ConsulSettings(envoys=[f"{name}={server.url}/proxy/{name}/config_dump" for name in "abc"])
        place = last_place(read(CONSUL, settings, tools(), most=5))
        assert place == "a"
        server.asked.clear()
        assert set(observed(read(CONSUL, settings, tools(), place))) == {"mesh:consul/b#own", "mesh:consul/c#own"}
        assert [path for path, _ in server.asked] == ["/proxy/b/config_dump", "/proxy/c/config_dump"]


def test_the_address_that_gives_keys_is_never_asked(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with FakeConsul(token=TOKEN) as server:
        bind(tmp_path, server)
        fill(server)
        server.proxies = {"web": config_dump(pem(LEAF).decode(), ROOTS)}
        settings = ConsulSettings(url=server.url, token_file="token", intentions=True, envoys=[f"web={server.url}/proxy/web/config_dump"])
        assert read(CONSUL, settings, tools(secrets=tmp_path))
        assert {path for path, _ in server.asked} == {
            "/v1/connect/ca/roots", "/v1/agent/connect/ca/roots", "/v1/connect/ca/configuration", "/v1/connect/intentions",
            "/proxy/web/config_dump",
        }  # fmt: skip
    sources = list((Path(__file__).parents[2] / "src/handclasp/discovery/consul").glob("*.py"))
    assert sources
    assert not any("ca/leaf" in source.read_text() for source in sources)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "nothing is to be read"),
        ({"url": "consul.example.org"}, "https://"),
        ({"url": "http://consul.example.org", "token_file": "t"}, "https:// alone"),
        ({"url": "https://x", "key_file": "k"}, "belong together"),
        ({"envoys": ["a=http://x:1", "a=http://y:1"]}, "same name"),
        ({"envoys": ["a=x:1"]}, "NAME=http"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], words: str) -> None:
    with refused(Kind.BAD_SETTING, words):
        CONSUL.check(ConsulSettings(**settings), Scope())


@pytest.mark.parametrize("content", [b"a\nb\xff", b"", b"a\nb"])
def test_a_token_file_that_holds_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with FakeConsul() as server:
        bind(tmp_path, server)
        with refused(Kind.BAD_SETTING, "holds no token"):
            read(CONSUL, ConsulSettings(url=server.url, token_file="token"), tools(secrets=tmp_path))


def test_a_token_goes_to_no_server_that_its_keeper_did_not_name(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with FakeConsul() as server, refused(Kind.BAD_SETTING, "may not be sent to"):
        read(CONSUL, ConsulSettings(url=server.url, token_file="token"), tools(secrets=tmp_path))
    assert not server.asked


def test_it_is_a_kind() -> None:
    assert load_kind("consul") is CONSUL


SHAPES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.just(KEY) | st.just(ROOTS),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["configs", "dynamic_listeners", "active_state", "listener", "filter_chains", "transport_socket", "typed_config",
             "common_tls_context", "tls_certificates", "certificate_chain", "inline_string", "inline_bytes", "validation_context"]
        ),
        inner,
        max_size=3,
    ),
    max_leaves=12,
)  # fmt: skip


@given(SHAPES)
def test_a_dump_of_any_shape_is_read_or_refused(shape: Any) -> None:
    from handclasp.discovery.http import Answer

    try:
        found = list(_inline(Answer(200, {}, json.dumps(shape).encode()).json(_Dump)))
    except HandclaspError as error:
        assert error.kind is Kind.UNAVAILABLE  # noqa: PT017
        return
    assert all(b"PRIVATE" not in (one.der or b"") for one in found)
