"""TLSContext: rotation under traffic, half-written files, changed trust, identities of peers."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.client import TLSContext, peer_identity, require_peer
from handclasp.client.api import ApiClient
from handclasp.client.obtain import ApiSource
from handclasp.client.peers import matches
from handclasp.errors import HandclaspError, Kind
from support.errors import allowing
from support.fake_server import DOMAIN, FakeAuthority, FakeServer, Fault, pem
from support.tls import API, WEB, ask, connected, echo, write
from support.waiting import eventually


def test_both_sides_swap_while_connections_stay_open(tmp_path: Path) -> None:
    authority = FakeAuthority()
    write(tmp_path / "s", authority, API)
    write(tmp_path / "c", authority, WEB)
    server, client = TLSContext.from_directory(tmp_path / "s"), TLSContext.from_directory(tmp_path / "c")
    outer = client.client_context()
    with echo(server.server_context()) as (port, peers), connected(outer, port) as kept:
        before, names = ask(kept), set()
        for _ in range(10):
            write(tmp_path / "s", authority, API)
            write(tmp_path / "c", authority, WEB)
            with connected(outer, port) as fresh:
                names.add(ask(fresh))
            assert ask(kept) == before
        assert len(names) == 10
        assert before not in names
        assert peers == [WEB] * 11


def test_an_authority_that_is_removed_is_refused_at_once_and_sessions_do_not_get_around_it(tmp_path: Path) -> None:
    old, new = FakeAuthority("Old"), FakeAuthority("New")
    write(tmp_path / "s", new, API, trust=[old, new])
    write(tmp_path / "c", old, WEB, trust=[new])
    server, client = TLSContext.from_directory(tmp_path / "s"), TLSContext.from_directory(tmp_path / "c").client_context()
    with echo(server.server_context()) as (port, _):
        with connected(client, port) as connection:
            ask(connection)
            assert not (connection.session and connection.session.has_ticket)
        write(tmp_path / "s", new, API, trust=[new])
        with pytest.raises(OSError), connected(client, port) as connection:
            ask(connection)
        write(tmp_path / "c", new, WEB, trust=[new])
        with connected(client, port) as connection:
            ask(connection)


def test_an_issuing_authority_can_be_the_anchor(tmp_path: Path) -> None:
    authority = FakeAuthority()
    write(tmp_path, authority)
    (tmp_path / "current" / "bundle.pem").write_text(pem(authority.issuing))
    tls = TLSContext.from_directory(tmp_path)
    with echo(tls.server_context()) as (port, peers), connected(tls.client_context(), port) as connection:
        ask(connection)
        assert peers == [WEB]


def test_half_a_change_is_never_used(tmp_path: Path) -> None:
    authority = FakeAuthority()
    files = [tmp_path / name for name in ("c", "k", "b")]

    def parts() -> list[bytes]:
        return [*authority.credential(spiffe=WEB, dns=["localhost"]), pem(authority.root).encode()]

    old, new = parts(), parts()
    for file, data in zip(files, old, strict=True):
        file.write_bytes(data)
    tls = TLSContext.from_files(*files)
    first = tls.sha256
    for file, data, broken in [
        (files[0], b"", "an empty file"),
        (files[0], new[0][:300], "half a certificate"),
        (files[0], new[0], "the new certificate beside the old key"),
        (files[2], b"-----BEGIN CERTIFICATE-----\nAAAA", "half a bundle"),
        (files[1], new[1][:50], "half a key"),
    ]:
        file.write_bytes(data)
        assert tls.sha256 == first, broken
        assert tls.problem, broken
    files[1].write_bytes(new[1])
    assert tls.sha256 == first
    files[2].write_bytes(new[2])
    assert tls.sha256 != first
    assert tls.problem == ""
    files[1].unlink()
    assert tls.sha256 != first
    assert "cannot read" in tls.problem


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("nothing there", Kind.BAD_SETTING),
        ("a foreign key", Kind.BAD_KEY),
        ("an empty bundle", Kind.BAD_CERTIFICATE),
        ("an encrypted key", Kind.BAD_KEY),
    ],
)
def test_there_must_be_a_good_set_to_begin_with(tmp_path: Path, case: str, kind: Kind) -> None:
    authority = FakeAuthority()
    if case != "nothing there":
        write(tmp_path, authority)
    if case == "a foreign key":
        (tmp_path / "current" / "key.pem").write_bytes(authority.credential(spiffe=WEB)[1])
    if case == "an empty bundle":
        (tmp_path / "current" / "bundle.pem").write_text("")
    if case == "an encrypted key":
        from handclasp.pki import keys

        (tmp_path / "current" / "key.pem").write_bytes(keys.to_pem(keys.generate("p256"), b"secret"))
    with pytest.raises(HandclaspError) as caught:
        TLSContext.from_directory(tmp_path)
    assert caught.value.kind is kind


@pytest.mark.parametrize("peers", [[API], [f"spiffe://{DOMAIN}/prod/*"], ["spiffe://other.org/**", f"spiffe://{DOMAIN}/**"]])
def test_a_server_is_known_by_its_identity(tmp_path: Path, peers: list[str]) -> None:
    write(tmp_path / "s", FakeAuthority(), API)
    tls = TLSContext.from_directory(tmp_path / "s")
    with echo(tls.server_context()) as (port, _), connected(tls.client_context(peers=peers), port) as connection:
        ask(connection)


@pytest.mark.parametrize("peers", [[WEB], [f"spiffe://{DOMAIN}/*"], ["spiffe://other.org/**"], ["localhost"]])
def test_another_identity_ends_in_the_handshake(tmp_path: Path, peers: list[str]) -> None:
    write(tmp_path, FakeAuthority(), API)
    tls = TLSContext.from_directory(tmp_path)
    with (
        echo(tls.server_context()) as (port, _),
        pytest.raises(ssl.SSLCertVerificationError),
        connected(tls.client_context(peers=peers), port),
    ):
        pass
    with echo(tls.server_context(peers=peers)) as (port, came):
        # In TLS 1.3 a client learns only from its first read that the server did not want it.
        with pytest.raises(OSError), connected(tls.client_context(), port) as connection:
            refuse_silence(connection)
        assert came == []


def refuse_silence(connection: ssl.SSLSocket) -> None:
    if not connection.recv(1):
        raise ConnectionResetError


def test_asyncio_refuses_a_peer_too(tmp_path: Path) -> None:
    write(tmp_path, FakeAuthority(), API)
    tls = TLSContext.from_directory(tmp_path)

    async def main() -> None:
        with echo(tls.server_context()) as (port, _):
            with pytest.raises(ssl.SSLCertVerificationError):
                await asyncio.open_connection("127.0.0.1", port, ssl=tls.client_context(peers=[WEB]), server_hostname="localhost")
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=tls.client_context(peers=[API]), server_hostname="localhost"
            )
            writer.write(b"x")
            assert await reader.read(1) == b"x"
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())


class Peer:
    def __init__(self, certificate: Any) -> None:
        self.certificate = certificate

    def getpeercert(self) -> Any:
        return self.certificate


@pytest.mark.parametrize(
    ("case", "names", "outcome"),
    [
        ("a SPIFFE ID", [("URI", WEB), ("DNS", "x")], WEB),
        ("a DNS name", [("DNS", "WEB.example")], "dns:web.example"),
        ("two URIs", [("URI", WEB), ("URI", API)], Kind.BAD_NAME),
        ("another URI", [("URI", "https://x/")], Kind.BAD_NAME),
        ("a SPIFFE ID that climbs", [("URI", f"spiffe://{DOMAIN}/a/../b")], Kind.BAD_NAME),
        ("nothing", [], Kind.BAD_NAME),
    ],
)
def test_peer_identity(case: str, names: list[tuple[str, str]], outcome: str | Kind) -> None:
    peer = Peer({"subjectAltName": tuple(names), "version": 3})
    if isinstance(outcome, Kind):
        with pytest.raises(HandclaspError) as caught:
            peer_identity(peer)
        assert caught.value.kind is outcome, case
    else:
        assert peer_identity(peer) == outcome, case


@pytest.mark.parametrize("peer", [None, Peer({}), Peer(None)])
def test_an_unverified_peer_has_no_identity(peer: Any) -> None:
    with pytest.raises(HandclaspError) as caught:
        require_peer([f"spiffe://{DOMAIN}/**"])(peer)
    assert caught.value.kind is Kind.NOT_AUTHENTICATED


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "*",
        "spiffe://",
        "spiffe://*/a",
        "spiffe://td/a*",
        "spiffe://td/**/a",
        "spiffe://td//a",
        "spiffe://TD/a",
        "a*.b",
        "https://x",
        "spiffe://td/a/..",
    ],
)
def test_patterns_that_cannot_be_meant(pattern: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        require_peer([pattern])
    assert caught.value.kind is Kind.BAD_SETTING


def test_an_empty_list_lets_nobody_in() -> None:
    with pytest.raises(HandclaspError):
        require_peer([])


@pytest.mark.parametrize(
    ("pattern", "identity", "covered"),
    [
        ("spiffe://td/a/*", "spiffe://td/a/b", True),
        ("spiffe://td/a/*", "spiffe://td/a/b/c", False),
        ("spiffe://td/a/*", "spiffe://td/a", False),
        ("spiffe://td/a/**", "spiffe://td/a/b/c", True),
        ("spiffe://td/a/**", "spiffe://td/a", False),
        ("spiffe://td/a", "spiffe://td.evil/a", False),
        ("spiffe://td/a/*", "spiffe://td/a/%2e", False),
        ("*.example.org", "dns:a.example.org", True),
        ("*.example.org", "dns:a.b.example.org", False),
        ("*.example.org", "dns:*.example.org", False),
        ("*.example.org", "dns:.example.org", False),
        ("example.org", "spiffe://example.org/a", False),
    ],
)
def test_pattern_table(pattern: str, identity: str, covered: bool) -> None:
    assert matches(pattern, identity) is covered


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_pattern_and_no_name_crashes_and_a_foreign_trust_domain_never_matches(pattern: str, name: str) -> None:
    with allowing(Kind.BAD_SETTING):
        require_peer([pattern])
    assert not matches("spiffe://td/**", f"spiffe://other/{name}")
    with allowing(Kind.BAD_NAME):
        peer_identity(Peer({"subjectAltName": (("URI", name),)}))


def test_the_api_source_renews_in_memory_and_survives_an_outage(tmp_path: Path) -> None:
    with FakeServer(ttl=8, window=(0.15, 0.2)) as server:
        with (
            ApiClient(server.url, ca=server.ca_file(tmp_path), token=server.token()) as client,
            TLSContext.from_api(client, identity=WEB, dns=["localhost"]) as tls,
            echo(tls.server_context()) as (port, peers),
        ):
            outer = tls.client_context()
            with connected(outer, port) as connection:
                first = ask(connection)
            server.away = True
            eventually(lambda: tls.problem != "")
            with connected(outer, port) as connection:
                assert ask(connection) == first
            server.away = False
            eventually(lambda: len(server.records) >= 3)
            with connected(outer, port) as connection:
                assert ask(connection) != first
            assert tls.problem == ""
            assert set(peers) == {WEB}
        server.assert_content()


def test_a_lost_answer_leads_to_a_new_certificate_by_the_token(tmp_path: Path) -> None:
    with FakeServer(ttl=8, window=(0.15, 0.2)) as server:
        client = ApiClient(server.url, ca=server.ca_file(tmp_path), token=server.token(uses=5))
        source = ApiSource(client, identity=WEB)
        server.faults.append(Fault(":renew", 1, 0, after_work=True))
        eventually(lambda: server.count("/v1/certificates", "POST") >= 4)
        source.close()
        client.close()
        assert source.current().sha256 == server.newest(WEB)


def test_a_refused_token_is_told_at_once(tmp_path: Path) -> None:
    with (
        FakeServer() as server,
        ApiClient(server.url, ca=server.ca_file(tmp_path), token="nonsense") as client,
        pytest.raises(HandclaspError) as caught,
    ):
        TLSContext.from_api(client, identity=WEB)
    assert caught.value.kind is Kind.TOKEN_UNKNOWN
