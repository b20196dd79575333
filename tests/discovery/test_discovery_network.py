"""What the network source sees of real servers, and of hostile ones."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from handclasp.clock import system_clock
from handclasp.discovery.network.kind import NETWORK, NetworkSettings
from handclasp.discovery.source import Covered, Failed, Part, Place, Reading, Scope
from handclasp.discovery.tools import Tools
from handclasp.wire.observations import Seen
from support.needs import needs
from support.network import answers, counted, covered, der, here, listening, make, nginx, observed, only, read
from support.programs import free_port, program
from support.waiting import eventually


def test_both_leaves_of_an_nginx_its_chains_and_its_wish_for_a_client_certificate(tmp_path: Path) -> None:
    authority = make(tmp_path, "Clients CA")
    leaves = {kind: make(tmp_path, kind, kind) for kind in ("rsa", "ecdsa")}
    (tmp_path / "rsa.pem").write_bytes((tmp_path / "rsa.pem").read_bytes() + (tmp_path / "Clients CA.pem").read_bytes())
    port = free_port()
    files = "".join(f"ssl_certificate {kind}.pem; ssl_certificate_key {kind}.key;" for kind in leaves)
    with nginx(
        tmp_path,
        f"server {{ listen 127.0.0.1:{port} ssl; {files} ssl_verify_client on; ssl_client_certificate 'Clients CA.pem';"
        " ssl_protocols TLSv1.2 TLSv1.3; return 200; }",
    ):
        scope, settings = here(port)
        items = read(scope, **settings)
        one = only(items)
        single = only(read(scope, both=False, **settings))
    assert (one.key, one.kind, one.shown, one.host, one.problem) == (
        f"tls:127.0.0.1:{port}/",
        "endpoint",
        f"127.0.0.1:{port}",
        "127.0.0.1",
        None,
    )
    seen = {bytes(each.der or b""): each for each in one.certificates}
    assert set(seen) == {der(leaf) for leaf in leaves.values()}
    assert {each.role for each in one.certificates} == {"served"}
    assert [bytes(other) for other in seen[der(leaves["rsa"])].chain] == [der(authority)]
    assert seen[der(leaves["ecdsa"])].chain == []
    assert {each.how["version"] for each in one.certificates} == {"1.2", "1.3"}
    assert one.details == {
        "protocol": "tls", "versions": ["1.2", "1.3"], "client_certificate": "requested", "acceptable_authorities": ["CN=Clients CA"],
        "acceptable_authorities_count": 1,
    }  # fmt: skip
    assert len(single.certificates) == 1
    assert counted(items) == (1, 1, 0)
    assert covered(items) == ["127.0.0.1/32"]


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize(("verify", "wanted"), [("off", "not requested"), ("optional", "requested"), ("on", "requested")])
def test_each_version_and_each_wish_for_a_client_certificate(tmp_path: Path, version: str, verify: str, wanted: str) -> None:
    make(tmp_path, "Clients CA")
    leaf, port = make(tmp_path, "site"), free_port()
    server = f"listen 127.0.0.1:{port} ssl; ssl_certificate site.pem; ssl_certificate_key site.key; ssl_protocols {version};"
    with nginx(tmp_path, f"server {{ {server} ssl_verify_client {verify}; ssl_client_certificate 'Clients CA.pem'; }}"):
        scope, settings = here(port)
        one = only(read(scope, **settings))
    assert [bytes(each.der or b"") for each in one.certificates] == [der(leaf)]
    assert one.details["client_certificate"] == wanted
    assert one.details["versions"] == [version.removeprefix("TLSv")]
    assert one.details.get("acceptable_authorities", ["CN=Clients CA"]) == ["CN=Clients CA"]
    assert ("acceptable_authorities" in one.details) == (verify != "off")


def test_names_are_locations_of_their_own_and_one_that_is_refused_is_nothing(tmp_path: Path) -> None:
    leaves, port = {name: make(tmp_path, name) for name in ("a.example", "b.example")}, free_port()
    servers = "".join(
        f"server {{ listen 127.0.0.1:{port} ssl; server_name {name}; ssl_certificate {name}.pem; ssl_certificate_key {name}.key; }}"
        for name in leaves
    )
    servers += f"server {{ listen 127.0.0.1:{port} ssl default_server; ssl_reject_handshake on; }}"
    with nginx(tmp_path, servers):
        scope, settings = here(port)
        items = read(scope, sni=["a.example", "B.example.", "c.example"], **settings)
        again = read(scope, {f"tls:127.0.0.1:{port}/c.example"}, sni=["c.example"], **settings)
    assert {one.key: [bytes(each.der or b"") for each in one.certificates] for one in observed(items)} == {
        f"tls:127.0.0.1:{port}/{name}": [der(leaf)] for name, leaf in leaves.items()
    }
    assert observed(items)[0].certificates[0].how["sni"] == "a.example"
    assert observed(items)[0].shown == f"a.example at 127.0.0.1:{port}"
    assert counted(items)[2] == 0
    gone = only(again)  # it was seen there before, so it is read, and empty
    assert (gone.key, gone.certificates, gone.problem) == (f"tls:127.0.0.1:{port}/c.example", [], None)


def test_a_host_by_its_name_is_asked_for_its_name_at_its_address(tmp_path: Path) -> None:
    leaf, port = make(tmp_path, "localhost"), free_port()
    server = f"listen 127.0.0.1:{port} ssl; server_name localhost; ssl_certificate localhost.pem; ssl_certificate_key localhost.key;"
    with nginx(tmp_path, f"server {{ {server} }} server {{ listen 127.0.0.1:{port} ssl default_server; ssl_reject_handshake on; }}"):
        one = only(read(Scope(allow=["localhost"]), ports=[str(port)]))
    assert one.key == f"tls:localhost:{port}/localhost"
    assert one.unit.startswith("host localhost~")
    assert [bytes(each.der or b"") for each in one.certificates] == [der(leaf)]


def test_an_openssl_server_that_wants_a_client_certificate(tmp_path: Path) -> None:
    binary = needs("openssl")
    leaf, port = make(tmp_path, "site", "rsa"), free_port()
    command = [binary, "s_server", "-accept", f"127.0.0.1:{port}", "-cert", "site.pem", "-key", "site.key", "-Verify", "1", "-quiet"]
    with program([*command, "-CAfile", "site.pem"], tmp_path / "out", cwd=tmp_path):
        eventually(lambda: answers(port))
        scope, settings = here(port)
        one = only(read(scope, **settings))
    assert [bytes(each.der or b"") for each in one.certificates] == [der(leaf)]
    assert one.details["client_certificate"] == "requested"
    assert one.details["acceptable_authorities"] == ["CN=site"]


def test_a_haproxy_on_ipv6_alone_with_two_kinds_of_certificates_for_each_name(tmp_path: Path) -> None:
    binary, port = needs("haproxy"), free_port()
    leaves = {}
    for name in ("a.example", "b.example"):
        for kind in ("rsa", "ecdsa"):
            leaves[name, kind] = make(tmp_path, f"{name}.{kind}", kind)
            pem = (tmp_path / f"{name}.{kind}.pem").read_bytes() + (tmp_path / f"{name}.{kind}.key").read_bytes()
            (tmp_path / f"{kind}-{name}").write_bytes(pem)
    listed = "".join(f"{tmp_path}/{kind}-{name} {name}\n" for name, kind in leaves)
    (tmp_path / "list").write_text(listed)
    (tmp_path / "haproxy.cfg").write_text(
        "defaults\n  mode http\n  timeout client 20s\n  timeout server 20s\n  timeout connect 5s\n"
        f"frontend web\n  bind [::1]:{port} ssl crt-list {tmp_path}/list strict-sni ssl-min-ver TLSv1.2\n  http-request return status 200\n"
    )
    with program([binary, "-db", "-f", tmp_path / "haproxy.cfg"], tmp_path / "out"):
        eventually(lambda: answers(port, "::1"))
        items = read(Scope(allow=["::1", "127.0.0.1"]), ports=[str(port)], sni=["a.example", "b.example", "c.example"])
    assert {one.key: {bytes(each.der or b"") for each in one.certificates} for one in observed(items)} == {
        f"tls:[::1]:{port}/{name}": {der(leaves[name, kind]) for kind in ("rsa", "ecdsa")} for name in ("a.example", "b.example")
    }
    assert counted(items)[2] == 0
    assert covered(items) == ["127.0.0.1/32", "::1/128"]


# --- absence, silence, and what is never read --------------------------------------------------------------------------------------------


def test_a_closed_port_is_nothing_and_makes_no_location_unless_one_was_there() -> None:
    port = free_port()
    scope, settings = Scope(allow=["127.0.0.0/30"]), {"ports": [str(port)]}
    items = read(scope, **settings)
    assert observed(items) == []
    assert counted(items) == (4, 4, 0)
    assert covered(items) == ["127.0.0.0/30"]
    before = read(scope, {f"tls:127.0.0.2:{port}/"}, **settings)
    assert (only(before).host, only(before).certificates, only(before).problem) == ("127.0.0.2", [], None)
    assert counted(before) == (4, 4, 0)


@contextmanager
def silent() -> Iterator[int]:
    """A port that takes no connection and refuses none: its queue is full."""
    with socket.socket() as server, contextlib.ExitStack() as waiting:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):
            waiting.enter_context(contextlib.closing(client := socket.socket()))
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def test_what_is_no_longer_looked_at_is_not_said_to_be_gone() -> None:
    """Who knows what there was says nothing of the rest; who does not calls another port, name or scope another unit."""
    port, other = free_port(), free_port()
    scope = Scope(allow=["127.0.0.0/30"])
    told = read(scope, {f"tls:127.0.0.2:{port}/"}, ports=[str(other)])
    assert (observed(told), covered(told)) == ([], [])
    ways = [
        read(scope, ports=[str(port)]),
        read(scope, ports=[str(other)]),
        read(scope, ports=[str(port)], sni=["a.example"]),
        read(Scope(allow=["127.0.0.0/30"], deny=["127.0.0.2"]), ports=[str(port)]),
    ]
    assert all(covered(each) == ["127.0.0.0/30"] for each in ways)
    assert len({item.unit for each in ways for item in each if isinstance(item, Covered)}) == len(ways)


def test_silence_is_no_absence() -> None:
    with silent() as port:
        named = read(Scope(allow=["127.0.0.1"]), ports=[str(port)], timeout="100ms")
        assert only(named).problem == "no answer within 0.1 s"
        assert covered(named) == []
        scope = Scope(allow=["127.0.0.0/31"])
        in_range = read(scope, ports=[str(port)], timeout="100ms")
        assert observed(in_range) == []
        assert counted(in_range) == (2, 2, 0)
        assert covered(in_range) == []
        known = read(scope, {f"tls:127.0.0.1:{port}/"}, ports=[str(port)], timeout="100ms")
        assert (only(known).host, only(known).problem) == ("127.0.0.1", "no answer within 0.1 s")


def test_what_is_denied_and_what_is_this_machine_is_not_connected_to() -> None:
    connected: list[str] = []
    with listening(lambda connection: connected.append(connection.getsockname()[0]), address="0.0.0.0") as port:
        for scope in (
            Scope(allow=["127.0.0.0/30"], deny=["127.0.0.0/29"]),
            Scope(allow=["126.255.255.254/31", "127.0.0.0/31"], deny=["127.0.0.1", "127.0.0.0", "126.255.255.254/31"]),
        ):
            items = read(scope, ports=[str(port)], timeout="100ms")
            assert observed(items) == []
        assert connected == []
        assert observed(read(Scope(allow=["127.0.0.2/31"], deny=["127.0.0.3"]), ports=[str(port)], timeout="2s"))[0].host == "127.0.0.2"
        assert set(connected) == {"127.0.0.2"}


def test_a_name_that_points_at_this_machine_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def everywhere(self: Any, host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("192.0.2.1", "127.0.0.1")]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", everywhere)
    items = read(Scope(allow=["rebind.example", "127.0.0.9"]), ports=["1"], timeout="100ms")
    (failed,) = [item for item in items if isinstance(item, Failed)]
    assert failed.what == "rebind.example"
    assert "this machine itself" in failed.problem


def test_a_part_goes_on_where_it_was() -> None:
    port = free_port()

    async def run(place: str) -> list[Reading]:
        scope, settings = Scope(allow=["127.0.0.0/28"]), NetworkSettings(ports=[str(port)], connections=4, rate=5000, host_rate=5000)
        tools = Tools(system_clock, system_clock(), scope)
        return [item async for item in NETWORK.read(settings, Part({"network": "127.0.0.0/28"}), place, tools)]

    whole = asyncio.run(run(""))
    assert [item.text for item in whole if isinstance(item, Place)] == [str(number) for number in range(1, 17)]
    assert counted(whole)[:2] == (16, 16)
    rest = asyncio.run(run("12"))
    assert [item.text for item in rest if isinstance(item, Place)] == ["13", "14", "15", "16"]
    assert counted(rest)[:2] == (0, 4)
    assert covered(rest) == []  # what came before the place may not have answered


# --- hostile servers ---------------------------------------------------------------------------------------------------------------------


def drip(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"\x16")
        if connection.recv(1) == b"":
            return


def endless(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"\x16\x03\x03\x40\x00" + bytes(16384))


def endless_text(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"220-hello\r\n" * 1000)


def reset(connection: socket.socket) -> None:
    connection.recv(10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


HOSTILE: list[tuple[str, str, Callable[[socket.socket], object], str]] = [
    ("closes at once", "tls", lambda c: None, "closed|reset"),
    ("resets", "tls", reset, "reset"),
    ("says nothing", "tls", lambda c: c.recv(100_000) and threading.Event().wait(2), "within 0.5 s"),
    ("drips", "tls", drip, "TLS|within|closed|version"),
    ("garbage", "tls", lambda c: c.sendall(b"\x00\xff" * 5000), "TLS"),
    ("plain HTTP", "tls", lambda c: c.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "does not speak TLS"),
    ("endless records", "tls", endless, "more than any handshake needs|within"),
    ("an alert", "tls", lambda c: c.recv(1000) and c.sendall(bytes.fromhex("15030300020228")), "handshake failure"),
    ("half a server hello", "tls", lambda c: c.recv(1000) and c.sendall(bytes.fromhex("16030300ff020000fb0303")), "closed|reset"),
    ("no mail server", "smtp", lambda c: c.sendall(b"\x00" * 5000), "line that is too long"),
    ("endless greeting", "smtp", endless_text, "does not end"),
    ("no STARTTLS", "smtp", lambda c: (c.sendall(b"220 hi\r\n"), c.recv(100), c.sendall(b"250 nothing\r\n")), "does not offer STARTTLS"),
    ("no database", "postgresql", lambda c: c.sendall(b"HTTP/1.1 400 no\r\n"), "no PostgreSQL"),
    ("an odd packet", "mysql", lambda c: c.sendall(b"\xff\xff\xff\x00" + b"x" * 5000), "more before TLS"),
    ("no directory", "ldap", lambda c: c.sendall(b"\x30\x84\xff\xff\xff\xff"), "more before TLS"),
    ("no mailbox", "imap", lambda c: c.sendall(b"* BYE\r\n"), "no IMAP"),
]


@pytest.mark.parametrize(("what", "protocol", "handle", "words"), HOSTILE, ids=[case[0] for case in HOSTILE])
def test_a_hostile_server_is_one_location_with_a_problem(
    what: str, protocol: str, handle: Callable[[socket.socket], object], words: str
) -> None:
    with listening(handle) as port:
        items = read(Scope(allow=["127.0.0.1"]), ports=[f"{port}/{protocol}"], timeout="500ms")
    one = only(items)
    assert one.problem is not None
    assert any(word in one.problem for word in words.split("|")), one.problem
    assert one.certificates == []
    assert counted(items) == (1, 0, 1)
    assert covered(items) == []


def tls12_server(chain: list[bytes]) -> bytes:
    """Return what a TLS 1.2 server sends up to its certificate: a hello, and a chain of anything."""

    def message(kind: int, body: bytes) -> bytes:
        return bytes([kind]) + len(body).to_bytes(3, "big") + body

    def records(data: bytes) -> bytes:
        pieces = [data[at : at + 16384] for at in range(0, len(data), 16384)]
        return b"".join(b"\x16\x03\x03" + len(piece).to_bytes(2, "big") + piece for piece in pieces)

    hello = b"\x03\x03" + bytes(32) + b"\x00" + b"\xc0\x2f" + b"\x00" + (b"\x00\x05" + b"\xff\x01\x00\x01\x00")
    listed = b"".join(len(one).to_bytes(3, "big") + one for one in chain)
    return records(message(2, hello)) + records(message(11, len(listed).to_bytes(3, "big") + listed))


@pytest.mark.parametrize(
    ("chain", "kept"),
    [
        ([b"this is no certificate"], 1),
        ([b"\x30\x03\x02\x01\x01", b""], 2),
        ([b"certificate %d" % number for number in range(500)], 32),
    ],
)
def test_a_chain_that_nobody_can_read_is_kept_as_it_came(chain: list[bytes], kept: int) -> None:
    with listening(lambda c: (c.recv(4000), c.sendall(tls12_server(chain)), c.recv(100))) as port:
        one = only(read(Scope(allow=["127.0.0.1"]), ports=[str(port)], timeout="2s", both=False))
    assert one.problem is None
    seen: Seen = one.certificates[0]
    assert [bytes(seen.der or b""), *map(bytes, seen.chain)] == chain[:kept]


def test_a_chain_without_end_is_a_problem() -> None:
    with listening(lambda c: (c.recv(4000), c.sendall(tls12_server([bytes(4000)] * 4000)), c.recv(100))) as port:
        one = only(read(Scope(allow=["127.0.0.1"]), ports=[str(port)], timeout="2s"))
    assert one.problem is not None
    assert "size" in one.problem or "closed" in one.problem or "reset" in one.problem or "broken pipe" in one.problem


def test_the_other_leaf_that_does_not_answer_any_more_is_a_problem_and_no_absence(tmp_path: Path) -> None:
    make(tmp_path, "site")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "site.pem", tmp_path / "site.key")
    before: list[int] = []

    def handle(connection: socket.socket) -> None:
        before.append(1)
        if len(before) == 1:
            with context.wrap_socket(connection, server_side=True) as tls:
                tls.recv(1)
        else:
            connection.recv(4000)
            threading.Event().wait(1)

    with listening(handle) as port:
        one = only(read(Scope(allow=["127.0.0.1"]), ports=[str(port)], timeout="300ms"))
    assert one.problem == "no handshake within 0.3 s"
    assert one.certificates == []


def test_many_servers_that_stall_do_not_keep_others_waiting() -> None:
    """All of them are spoken to before the first one answers."""
    hosts, spoken, all_spoken = 60, list[int](), threading.Event()

    def handle(connection: socket.socket) -> None:
        connection.recv(1)
        spoken.append(1)
        if len(spoken) == hosts:
            all_spoken.set()
        all_spoken.wait(10)

    with listening(handle, address="0.0.0.0", at_once=hosts) as port:
        items = read(Scope(allow=["127.0.5.0/26"], deny=["127.0.5.60/30"]), ports=[str(port)], timeout="8s")
    assert len(observed(items)) == hosts
    assert {"closed" in (one.problem or "") or "reset" in (one.problem or "") for one in observed(items)} == {True}


def test_connections_are_spread_over_time() -> None:
    times: list[float] = []
    with listening(lambda c: times.append(time.monotonic()), address="0.0.0.0") as port:
        read(Scope(allow=["127.0.0.0/29"]), ports=[str(port)], rate=50.0, parallel=1, timeout="1s", both=False)
    assert len(times) == 8
    assert max(times) - min(times) >= 7 / 50 * 0.8  # eight connections at fifty a second; never faster, however slow the machine is
