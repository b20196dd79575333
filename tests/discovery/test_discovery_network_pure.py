"""The parts of the network source that touch no network: handshake messages, scopes, ports, pace, options."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclasp.client.starttls import STARTTLS, begin
from handclasp.discovery.kinds import KINDS, load_kind
from handclasp.discovery.network.handshake import look
from handclasp.discovery.network.messages import TLS12, TLS13, read_authorities, read_chain
from handclasp.discovery.network.pace import Pace
from handclasp.discovery.network.targets import Port, parse_ports, parse_scope, parts_of
from handclasp.discovery.options import options_of
from handclasp.discovery.source import Scope
from handclasp.errors import Kind
from support.errors import allowing, refused

DER = st.binary(max_size=60)


def message(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def vector(size: int, body: bytes) -> bytes:
    return len(body).to_bytes(size, "big") + body


@given(st.lists(DER, max_size=40), st.sampled_from([TLS12, TLS13]), st.binary(max_size=20))
def test_a_chain_comes_back_as_it_was_sent(chain: list[bytes], version: int, extensions: bytes) -> None:
    if version == TLS13:
        body = vector(1, b"") + vector(3, b"".join(vector(3, one) + vector(2, extensions) for one in chain))
    else:
        body = vector(3, b"".join(vector(3, one) for one in chain))
    assert read_chain(message(11, body), version) == chain[:32]
    with refused(Kind.BAD_CERTIFICATE):
        read_chain(message(11, body + b"x"), version)


@given(st.lists(DER, max_size=10), st.sampled_from([TLS12, TLS13]))
def test_acceptable_authorities_come_back_as_they_were_sent(names: list[bytes], version: int) -> None:
    listed = b"".join(vector(2, one) for one in names)
    if version == TLS13:
        extensions = (13).to_bytes(2, "big") + vector(2, b"\0\0") + (47).to_bytes(2, "big") + vector(2, vector(2, listed))
        body = vector(1, b"") + vector(2, extensions)
    else:
        body = vector(1, b"\x01") + vector(2, b"\x04\x03") + vector(2, listed)
    assert read_authorities(message(13, body), version) == names


@given(st.binary(max_size=400), st.sampled_from([TLS12, TLS13]), st.sampled_from([11, 13]))
@settings(max_examples=400)
def test_no_message_does_more_than_be_refused(data: bytes, version: int, kind: int) -> None:
    for text in (data, message(kind, data)):
        with allowing(Kind.BAD_CERTIFICATE):
            assert len(read_chain(text, version)) <= 32
        with allowing(Kind.BAD_CERTIFICATE):
            read_authorities(text, version)


@given(st.lists(st.binary(max_size=300), max_size=4), st.sampled_from(sorted(STARTTLS)))
@settings(max_examples=150)
def test_starttls_with_anybody_ends_in_tls_or_an_os_error(answers: list[bytes], protocol: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for answer in answers:
            theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            begin(protocol, ours, timeout=1)


@given(st.binary(min_size=1, max_size=2000), st.sampled_from(["tls", *sorted(STARTTLS)]), st.sampled_from(["any", "rsa", "ecdsa"]))
@settings(max_examples=60)
def test_whatever_a_server_says_a_look_says_what_came_of_it(said: bytes, protocol: str, asked: Any) -> None:
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs, contextlib.suppress(OSError):
            theirs.sendall(said)
            theirs.shutdown(socket.SHUT_WR)
            while theirs.recv(4096):
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    shown = look(ours, protocol, "a.example", asked, 2.0)
    thread.join()
    assert shown.chain or shown.problem


PORTS = [
    (["443"], [Port(443, "tls")]),
    (["8001-8003"], [Port(8001, "tls"), Port(8002, "tls"), Port(8003, "tls")]),
    (["5432", "25", "587", "143", "389", "3306"],
     [Port(25, "smtp"), Port(143, "imap"), Port(389, "ldap"), Port(587, "smtp"), Port(3306, "mysql"), Port(5432, "postgresql")]),
    (["2525/smtp", "5432/tls", "443", "443"], [Port(443, "tls"), Port(2525, "smtp"), Port(5432, "tls")]),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "wanted"), PORTS)
def test_ports(entries: list[str], wanted: list[Port]) -> None:
    assert parse_ports(entries) == wanted


@pytest.mark.parametrize("entry", ["", "0", "65536", "443-80", "443/quic", "http", "1-2001", "-1", "٤٤٣"])
def test_what_is_no_port_is_refused(entry: str) -> None:
    with refused(Kind.BAD_SETTING):
        parse_ports([entry])


SCOPES = [
    (Scope(), "allows nothing"),
    (Scope(allow=["10.0.0.0/33"]), "not an address"),
    (Scope(allow=["10.0.0.300"]), "not an address"),
    (Scope(allow=["a b"]), "neither"),
    (Scope(allow=["2001:db8::/64"]), "is the most"),
    (Scope(allow=["0.0.0.0/0"]), "never read"),
    (Scope(allow=["169.254.169.254"]), "never read"),
    (Scope(allow=["169.254.0.0/16"]), "never read"),
    (Scope(allow=["fe80::1"]), "never read"),
    (Scope(allow=["224.0.0.1"]), "never read"),
    (Scope(allow=["10.0.0.1"], deny=["10.0.0.0/999"]), "not an address"),
]


@pytest.mark.parametrize(("scope", "words"), SCOPES)
def test_a_scope_that_means_nothing_or_too_much_is_refused(scope: Scope, words: str) -> None:
    with refused(Kind.BAD_SETTING, words):
        parse_scope(scope)


@pytest.mark.parametrize(
    ("scope", "address", "admitted"),
    [
        (Scope(allow=["10.0.0.0/24"]), "10.0.0.7", True),
        (Scope(allow=["10.0.0.0/24"], deny=["10.0.0.7"]), "10.0.0.7", False),
        (Scope(allow=["10.0.0.0/24"], deny=["10.0.0.0/28"]), "10.0.0.7", False),
        (Scope(allow=["::ffff:10.0.0.7"], deny=["10.0.0.7"]), "::ffff:10.0.0.7", False),
        (Scope(allow=["100.64.0.0/10"]), "100.100.100.200", False),
        (Scope(allow=["127.0.0.1"]), "127.0.0.1", True),
        (Scope(allow=["126.0.0.0/8"]), "127.0.0.1", False),
        (Scope(allow=["10.0.0.1"], loopback=True), "127.0.0.1", True),
        (Scope(allow=["10.0.0.1"], loopback=True), "169.254.169.254", False),
    ],
)
def test_denied_and_dangerous_addresses_are_not_admitted(scope: Scope, address: str, admitted: bool) -> None:
    assert parse_scope(scope).admits(ipaddress.ip_address(address)) is admitted


@given(st.lists(st.text(max_size=30), max_size=4), st.lists(st.text(max_size=30), max_size=4))
def test_no_scope_does_more_than_be_refused(allow: list[str], deny: list[str]) -> None:
    with allowing(Kind.BAD_SETTING):
        parse_scope(Scope(allow=allow, deny=deny))


@given(st.text(max_size=20))
def test_no_port_does_more_than_be_refused(text: str) -> None:
    with allowing(Kind.BAD_SETTING):
        parse_ports([text])


def test_networks_are_cut_into_parts_without_what_is_denied() -> None:
    denied = [ipaddress.ip_network("10.0.1.0/24"), ipaddress.ip_network("10.0.2.0/25")]
    found = [(str(one), addresses) for one, addresses in parts_of(ipaddress.ip_network("10.0.0.0/22"), denied)]
    assert found == [("10.0.0.0/24", 256), ("10.0.2.0/24", 128), ("10.0.3.0/24", 256)]
    found = [(str(one), addresses) for one, addresses in parts_of(ipaddress.ip_network("2001:db8::/119"), denied)]
    assert found == [("2001:db8::/120", 256), ("2001:db8::100/120", 256)]


class Time:
    """A clock that only sleeping moves, and how long a process may stand still on top of that."""

    def __init__(self) -> None:
        self.now, self.stalls = 100.0, iter(())

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds + next(self.stalls, 0.0)


def test_turns_come_evenly_and_what_was_not_used_is_not_saved_up(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    monkeypatch.setattr("handclasp.discovery.network.pace.asyncio.sleep", time.sleep)

    async def run() -> list[float]:
        pace, came = Pace(10, time), []
        for _ in range(3):
            await pace.turn()
            came.append(time.now)
        time.now += 60
        for _ in range(3):
            await pace.turn()
            came.append(time.now)
        await Pace(0, time).turn()
        return [round(one - 100, 3) for one in came]

    assert asyncio.run(run()) == [0.0, 0.09, 0.19, 60.19, 60.28, 60.38]  # within a hundredth of a second of ten a second


def test_who_waited_while_the_process_stood_still_does_not_go_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    time.stalls = iter([30.0])
    monkeypatch.setattr("handclasp.discovery.network.pace.asyncio.sleep", time.sleep)

    async def run() -> list[float]:
        pace, came = Pace(50, time), list[float]()

        async def one() -> None:
            await pace.turn()
            came.append(time.now)

        await asyncio.gather(*(one() for _ in range(20)))
        return came

    came = asyncio.run(run())
    assert all(later - earlier >= 0.01 - 1e-9 for earlier, later in pairwise(came))
    assert came[-1] - came[0] >= 30 + 18 * 0.02 - 0.02


@pytest.mark.parametrize("name", list(KINDS))
def test_every_kind_says_what_it_is_and_what_it_needs(name: str) -> None:
    kind = load_kind(name)
    assert kind.name == name
    assert "the scope" in kind.summary
    assert not kind.summary.endswith(".")
    assert len(kind.summary) < 200
    assert kind.privilege.endswith(".")
    for option in options_of(kind.Settings):
        assert option.help, f"{name}: {option.name} has no words below it"
        assert option.type in ("text", "number", "flag", "list", "json")


@pytest.mark.parametrize(
    ("scope", "name", "admitted"),
    [
        (Scope(), "payments", True),
        (Scope(allow=["pay*"]), "payments", True),
        (Scope(allow=["pay*"]), "web", False),
        (Scope(allow=["pay*"], deny=["payments"]), "Payments", False),
        (Scope(deny=["kube-*"]), "kube-system", False),
    ],
)
def test_a_scope_of_names(scope: Scope, name: str, admitted: bool) -> None:
    assert scope.admits(name) is admitted
