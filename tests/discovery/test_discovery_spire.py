"""A SPIRE server, read through its socket and over mutual TLS."""

from __future__ import annotations

import datetime
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpclib.const import Status
from hypothesis import given
from hypothesis import strategies as st

from handclasp.discovery.kinds import load_kind
from handclasp.discovery.source import Failed, Part, Place, Scope
from handclasp.discovery.spire import SPIRE, SpireSettings, _Server
from handclasp.errors import HandclaspError, Kind
from handclasp.proto import spire_pb2 as pb
from handclasp.wire.observations import Observed
from support.certfiles import Maker, der, key_pem, pem
from support.errors import refused
from support.sources import covered, observed, read, tools
from support.spire import FakeSpire

MAKER, OTHER = Maker("SPIRE CA"), Maker("Partner CA")
SETTINGS = SpireSettings(socket="api.sock")


@pytest.fixture
def home() -> Iterator[Path]:
    """A short directory: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


def identity(path: str, trust_domain: str = "example.org") -> pb.SpiffeId:
    return pb.SpiffeId(trust_domain=trust_domain, path=path)


def selector(kind: str, value: str) -> pb.Selector:
    return pb.Selector(type=kind, value=value)


def fill(server: FakeSpire) -> None:
    server.bundle.x509_authorities.add(asn1=der(MAKER.root))
    server.bundle.x509_authorities.add(asn1=der(OTHER.root), tainted=True)
    server.bundle.jwt_authorities.add(key_id="k1")
    server.bundle.sequence_number = 9
    server.federated = [
        pb.Bundle(trust_domain=name, x509_authorities=[pb.X509Authority(asn1=der(OTHER.root))]) for name in ("a.test", "b.test", "c.test")
    ]
    server.agents = [
        pb.Agent(id=identity(f"/spire/agent/k8s_psat/c/{number}"), attestation_type="k8s_psat", x509svid_serial_number="255",
                 x509svid_expires_at=1_800_000_000, banned=number == 1, selectors=[selector("k8s_psat", "cluster:c")])
        for number in range(3)
    ]  # fmt: skip
    server.entries = [
        pb.Entry(id=f"e{number}", spiffe_id=identity(f"/ns/shop/sa/s{number}"), parent_id=identity("/spire/agent/k8s_psat/c/0"),
                 selectors=[selector("k8s", "ns:shop"), selector("k8s", f"sa:s{number}"), selector("k8s", "pod-label:team:payments")],
                 x509_svid_ttl=3600, admin=number == 4, federates_with=["a.test"])
        for number in range(5)
    ]  # fmt: skip


def test_everything(home: Path) -> None:
    with FakeSpire(home / "api.sock") as server:
        fill(server)
        items = read(SPIRE, SETTINGS, tools(secrets=home))
    found = observed(items)
    assert len(found) == 4 + 3 + 5
    bundle = found["spire:example.org/bundle/example.org"]
    assert [(one.role, one.der, one.how) for one in bundle.certificates] == [
        ("anchor", der(MAKER.root), {}), ("anchor", der(OTHER.root), {"tainted": True}),
    ]  # fmt: skip
    assert (bundle.details["jwt_keys"], bundle.details["sequence"]) == (["k1"], 9)
    assert [one.der for one in found["spire:example.org/bundle/b.test"].certificates] == [der(OTHER.root)]
    agent = found["spire:example.org/agent/spiffe://example.org/spire/agent/k8s_psat/c/1"]
    assert agent.certificates == []
    assert agent.details == {
        "mesh": "spire", "spiffe_id": "spiffe://example.org/spire/agent/k8s_psat/c/1", "attestation": "k8s_psat", "serial": "ff",
        "not_after": "2027-01-15T08:00:00Z", "selectors": ["k8s_psat:cluster:c"], "banned": True,
    }  # fmt: skip
    entry = found["spire:example.org/entry/e4"]
    assert (entry.details["spiffe_id"], entry.details["ttl"], entry.details["admin"]) == ("spiffe://example.org/ns/shop/sa/s4", 3600, True)
    assert entry.details["parent_id"] == "spiffe://example.org/spire/agent/k8s_psat/c/0"
    assert entry.facts == {"namespace": "shop", "service_account": "s4", "workload_labels": {"team": "payments"}}
    assert covered(items) == [f"spire:example.org/{what}" for what in ("bundles", "agents", "entries")]


def test_it_asks_for_lists_alone_and_goes_on_at_the_page(home: Path) -> None:
    with FakeSpire(home / "api.sock") as server:
        fill(server)
        with_ = tools(secrets=home)
        assert {name for name, _ in _asked(server, with_, "entries", "")} == {"bundle", "entries"}
        whole = _read(with_, "entries", "")
        places = [one.text for one in whole if isinstance(one, Place)]
        assert places == ["from-2", "from-4"]
        rest = _read(with_, "entries", places[0])
        assert set(observed(rest)) == {f"spire:example.org/entry/e{number}" for number in (2, 3, 4)}
        assert covered(rest) == ["spire:example.org/entries"]
        assert len(observed(_read(with_, "bundles", "from-2"))) == 1

        server.lost_tokens = True  # and the server was started again: it goes on from the beginning
        server.page = 10
        assert len(observed(_read(with_, "entries", "from-2"))) == 5


def _read(with_: Any, what: str, place: str) -> list[Any]:
    import asyncio

    async def run() -> list[Any]:
        return [one async for one in SPIRE.read(SETTINGS, Part({"read": what}), place, with_)]

    return asyncio.run(run())


def _asked(server: FakeSpire, with_: Any, what: str, place: str) -> list[tuple[str, str]]:
    server.asked.clear()
    _read(with_, what, place)
    return list(server.asked)


def test_scope_and_what_is_no_identity(home: Path) -> None:
    with FakeSpire(home / "api.sock", page=10) as server:
        fill(server)
        server.entries.append(pb.Entry(id="bad", spiffe_id=pb.SpiffeId(trust_domain="example.org", path="/../x")))
        server.agents.append(pb.Agent(id=identity("/spire/agent/late"), x509svid_expires_at=2**62))
        items = read(SPIRE, SETTINGS, tools(secrets=home, scope=Scope(deny=["*/s1", "*/agent/k8s_psat/*"])))
    assert {key for key in observed(items) if "/entry/" in key} == {f"spire:example.org/entry/e{number}" for number in (0, 2, 3, 4)}
    assert not any("/agent/" in key for key in observed(items))
    assert covered(items) == ["spire:example.org/bundles"]
    assert {one.unit for key, one in observed(items).items() if "/entry/" in key} != {"spire:example.org/entries"}, "it leaves some out"
    assert [one.what for one in items if isinstance(one, Failed)] == ["agents spiffe://example.org/spire/agent/late", "entries bad"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status.PERMISSION_DENIED, Kind.NOT_ALLOWED),
        (Status.UNAVAILABLE, Kind.UNAVAILABLE),
        (Status.INTERNAL, Kind.UNAVAILABLE),
        (Status.INVALID_ARGUMENT, Kind.BAD_REQUEST),
    ],
)
def test_refusals(home: Path, status: Status, kind: Kind) -> None:
    with FakeSpire(home / "api.sock") as server:
        server.fails["agents"] = status
        with refused(kind, "agent.v1.Agent/ListAgents"):
            read(SPIRE, SETTINGS, tools(secrets=home))


def test_nobody_there_and_a_list_that_does_not_go_on(home: Path) -> None:
    with refused(Kind.UNAVAILABLE):
        read(SPIRE, SETTINGS, tools(secrets=home))
    with refused(Kind.BAD_SETTING, "outside"):
        read(SPIRE, SpireSettings(socket="/etc/passwd"), tools(secrets=home))
    with FakeSpire(home / "api.sock", page=0) as server, refused(Kind.UNAVAILABLE, "does not go on"):
        fill(server)
        read(SPIRE, SETTINGS, tools(secrets=home))
    with FakeSpire(home / "other.sock") as server, refused(Kind.UNAVAILABLE, "no trust domain"):
        server.bundle.trust_domain = ""
        read(SPIRE, SpireSettings(socket="other.sock"), tools(secrets=home))


# --- over TLS ---------------------------------------------------------------------------------------------------------------------------


def svid(maker: Maker, name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "US")]))
        .issuer_name(maker.root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name)]), critical=False)
        .sign(maker.key, hashes.SHA256())
    )
    return certificate, key


def served(home: Path, name: str) -> ssl.SSLContext:
    certificate, key = svid(MAKER, name)
    (home / "server.pem").write_bytes(pem(certificate) + key_pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "server.pem")
    context.load_verify_locations(cadata=pem(MAKER.root).decode())
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    return context


@pytest.mark.parametrize(
    ("server_id", "wanted", "kind"),
    [
        ("spiffe://example.org/spire/server", "", None),
        ("spiffe://example.org/other", "spiffe://example.org/other", None),
        ("spiffe://example.org/evil", "", Kind.VERIFY_FAILED),
        ("spiffe://partner.test/spire/server", "", Kind.VERIFY_FAILED),
    ],
)
def test_over_mutual_tls_the_server_is_known_by_its_name(home: Path, server_id: str, wanted: str, kind: Kind | None) -> None:
    certificate, key = svid(MAKER, "spiffe://example.org/handclasp")
    (home / "svid.pem").write_bytes(pem(certificate))
    (home / "key.pem").write_bytes(key_pem(key))
    (home / "bundle.pem").write_bytes(pem(MAKER.root))
    with FakeSpire(tls=served(home, server_id)) as server:
        fill(server)
        settings = SpireSettings(address=f"127.0.0.1:{server.port}", certificate_file="svid.pem", key_file="key.pem", ca_file="bundle.pem",
                                 server_id=wanted)  # fmt: skip
        if kind is None:
            assert len(observed(read(SPIRE, settings, tools(secrets=home)))) == 12
            return
        with refused(kind, server_id):
            read(SPIRE, settings, tools(secrets=home))
        assert server.asked == []


def test_an_authority_that_is_not_trusted(home: Path) -> None:
    certificate, key = svid(MAKER, "spiffe://example.org/handclasp")
    (home / "svid.pem").write_bytes(pem(certificate))
    (home / "key.pem").write_bytes(key_pem(key))
    (home / "bundle.pem").write_bytes(pem(OTHER.root))
    with FakeSpire(tls=served(home, "spiffe://example.org/spire/server")) as server:
        settings = SpireSettings(address=f"127.0.0.1:{server.port}", certificate_file="svid.pem", key_file="key.pem", ca_file="bundle.pem")
        with refused(Kind.UNAVAILABLE, "not one that is trusted"):
            read(SPIRE, settings, tools(secrets=home))
        assert server.asked == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "one of socket and address"),
        ({"socket": "a", "address": "b:1"}, "one of socket and address"),
        ({"address": "b:1"}, "certificate_file"),
        ({"address": "b", "certificate_file": "a", "key_file": "a", "ca_file": "a"}, "HOST:PORT"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], words: str) -> None:
    with refused(Kind.BAD_SETTING, words):
        SPIRE.check(SpireSettings(**settings), Scope())
    assert load_kind("spire") is SPIRE


@given(st.binary(max_size=300), st.sampled_from([("entries", pb.Entry), ("agents", pb.Agent), ("bundles", pb.Bundle)]))
def test_whatever_a_message_says_it_is_one_reading(data: bytes, sort: tuple[str, Any]) -> None:
    from google.protobuf.message import DecodeError

    what, kind = sort
    server = _Server(None, tools())  # type: ignore[arg-type]
    try:
        message = kind.FromString(data)
    except DecodeError:
        return
    try:
        one = server._item(what, message)
    except HandclaspError as error:
        raise AssertionError from error
    assert not isinstance(one, Observed) or one.key.startswith(("entry", "agent", "bundle"))
