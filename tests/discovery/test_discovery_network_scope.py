"""What the scope denies is never connected to, whatever name or form of an address leads there; and what is read is counted before."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclasp.discovery.network import endpoint
from handclasp.discovery.network.kind import NETWORK, NetworkSettings
from handclasp.discovery.source import Count, Failed, Part, Reading, Scope
from handclasp.discovery.tools import Tools
from handclasp.errors import Kind
from support.errors import refused
from support.network import counted, observed

BEGAN = 1_700_000_000_000
HOSTS = [10, 11, 12, 13]
"""Last bytes of 10.0.0.0/28 that things are about; each has the forms below, of which the last is a way to it and not the host itself."""
FORMS = ["10.0.0.{}", "::ffff:10.0.0.{}", "64:ff9b::10.0.0.{}", "2002:a00:{:x}::1"]
NEVER = ["127.0.0.1", "169.254.169.254", "fe80::1", "::1", "::ffff:127.0.0.1", "64:ff9b::169.254.169.254", "0.0.0.0"]
NAMES = ["a.example", "b.example", "c.example"]


def host_of(address: str) -> int:
    """Return the last byte of the IPv4 address behind one of :data:`FORMS`; -1 for any other."""
    for form in FORMS:
        for host in HOSTS:
            if ipaddress.ip_address(form.format(host)) == ipaddress.ip_address(address):
                return host
    return -1


class World:
    """Names that resolve to something else each time, and nothing that is connected to in earnest."""

    def __init__(self, answers: Mapping[str, Sequence[Sequence[str]]]) -> None:
        self.answers = {name: list(each) for name, each in answers.items()}
        self.looked_up: list[tuple[str, list[str]]] = []
        self.dialled: list[str] = []

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        try:
            found = [str(ipaddress.ip_address(host))]
        except ValueError:
            left = self.answers.get(host, [])
            found = list(left.pop(0) if len(left) > 1 else left[0]) if left else []
            self.looked_up.append((host, found))
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no such name") from None
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    async def connect(self, address: str, port: int, timeout: float) -> socket.socket:
        self.dialled.append(address)
        raise ConnectionRefusedError

    def read(self, scope: Scope, known: Sequence[str] = (), **wanted: Any) -> list[Reading]:
        """Scan in this world."""

        async def run() -> list[Reading]:
            asked = NetworkSettings(**{"rate": 10_000.0, "host_rate": 10_000.0, "timeout": "100ms"} | wanted)
            NETWORK.check(asked, scope)

            async def ask(_unit: str) -> frozenset[str]:
                return frozenset(known)

            tools = Tools(lambda: BEGAN, BEGAN, scope, known=ask)
            found: list[Reading] = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(asyncio.get_running_loop(), "getaddrinfo", self.getaddrinfo)
                patch.setattr(endpoint, "_connect", self.connect)
                async for part in NETWORK.plan(asked, scope, tools):
                    found.append(Count(total=part.places))
                    found += [item async for item in NETWORK.read(asked, part, "", tools)]
            return found

        return asyncio.run(run())


def addresses(forms: Sequence[str]) -> st.SearchStrategy[str]:
    return st.builds(str.format, st.sampled_from(forms), st.sampled_from(HOSTS)).map(lambda text: str(ipaddress.ip_address(text)))


ADDRESSES = addresses(FORMS)
RANGES = st.sampled_from(["10.0.0.8/29", "10.0.0.12/31", "::ffff:10.0.0.8/125", "64:ff9b::10.0.0.8/125"])
ANSWERS = st.lists(st.one_of(ADDRESSES, st.sampled_from(NEVER)), max_size=3)


@given(
    allow=st.lists(st.one_of(ADDRESSES, RANGES, st.sampled_from(NAMES)), min_size=1, max_size=4),
    deny=st.lists(st.one_of(addresses(FORMS[:-1]), RANGES, st.sampled_from(NAMES)), max_size=3),
    answers=st.dictionaries(st.sampled_from(NAMES), st.lists(ANSWERS, min_size=1, max_size=3)),
)
@settings(max_examples=100, deadline=None)
def test_what_is_denied_is_never_connected_to(allow: list[str], deny: list[str], answers: dict[str, list[list[str]]]) -> None:
    world = World({name: each[:1] if name in deny else each for name, each in answers.items()})
    world.read(Scope(allow=allow, deny=deny), ports=["443", "25"])
    networks = [ipaddress.ip_network(entry) for entry in deny if entry not in NAMES]
    denied = {host for form in FORMS for host in HOSTS for each in networks if ipaddress.ip_address(form.format(host)) in each}
    denied |= {host_of(address) for name, found in world.looked_up if name in deny for address in found} - {-1}
    may = {address for name, found in world.looked_up if name in allow and name not in deny for address in found}
    inside = [ipaddress.ip_network(entry) for entry in allow if entry not in NAMES]
    for address in set(world.dialled):
        assert host_of(address) not in denied
        assert address not in NEVER
        assert address in may or any(ipaddress.ip_address(address) in each for each in inside)
    for name in set(NAMES) - set(deny):  # looked up once: what is checked is what is connected to
        assert sum(one == name for one, _ in world.looked_up) <= 1


def test_a_name_that_points_elsewhere_the_second_time_is_not_asked_twice() -> None:
    world = World({"a.example": [["10.0.0.10"], ["169.254.169.254"]]})
    world.read(Scope(allow=["a.example"]), ports=["443", "8443"], sni=["other.example"])
    assert world.dialled == ["10.0.0.10", "10.0.0.10"]


def test_a_denied_name_takes_its_addresses_out_of_a_range() -> None:
    world = World({"secret.example": [["10.0.0.10", "64:ff9b::a00:b"]], "alias.example": [["::ffff:10.0.0.10"]]})
    items = world.read(Scope(allow=["10.0.0.8/29", "2002:a00:a::1", "alias.example"], deny=["secret.example"]))
    assert sorted(set(world.dialled)) == ["10.0.0.12", "10.0.0.13", "10.0.0.14", "10.0.0.15", "10.0.0.8", "10.0.0.9"]
    assert counted(items) == (10, 9, 1)
    assert [item.problem for item in items if isinstance(item, Failed)] == ["the scope denies an address of it"]


def test_a_denied_name_that_cannot_be_looked_up_stops_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World({})

    async def away(host: str, port: int, **_: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(world, "getaddrinfo", away)
    with refused(Kind.UNAVAILABLE, "secret.example"):
        world.read(Scope(allow=["10.0.0.8/29"], deny=["secret.example"]))
    assert world.dialled == []


def test_a_name_that_does_not_resolve_is_a_problem_where_something_was_seen() -> None:
    world = World({})
    known = ["tls:a.example:443/a.example", "tls:a.example:443/x.example"]
    items = world.read(Scope(allow=["a.example", "b.example"]), known, ports=["443", "8443"], sni=["x.example"])
    assert [(one.key, one.problem) for one in observed(items)] == [(key, "a.example does not resolve") for key in known]
    assert [(item.what, item.problem) for item in items if isinstance(item, Failed)] == [("b.example", "b.example does not resolve")]
    assert counted(items) == (4, 1, 3)


def test_names_of_one_host_share_its_pace() -> None:
    world = World({name: [["10.0.0.10"]] for name in NAMES})
    times: list[float] = []

    async def connect(address: str, port: int, timeout: float) -> socket.socket:
        times.append(asyncio.get_running_loop().time())
        raise ConnectionRefusedError

    world.connect = connect  # type: ignore[method-assign]
    world.read(Scope(allow=NAMES), ports=["443", "444"], host_rate=50.0)
    assert len(times) == 6
    assert times[-1] - times[0] >= 5 / 50 - 0.02


@pytest.mark.parametrize(
    ("allow", "deny", "ports", "total"),
    [
        (["10.0.0.0/12"], [], ["443"], 1 << 20),
        (["10.0.0.0/16"], ["10.0.128.0/17", "10.0.0.7"], ["443", "8443"], 2 * ((1 << 15) - 1)),
        (["10.0.0.0/30", "a.example", "b.example"], ["b.example"], ["443"], 5),
    ],
)  # fmt: skip
def test_a_plan_says_how_much_there_is_without_looking(allow: list[str], deny: list[str], ports: list[str], total: int) -> None:
    async def run() -> int:
        scope, asked = Scope(allow=allow, deny=deny), NetworkSettings(ports=ports)
        return sum([part.places async for part in NETWORK.plan(asked, scope, Tools(lambda: BEGAN, BEGAN, scope))])

    assert asyncio.run(run()) == total


def test_what_is_never_read_is_passed_over() -> None:
    world = World({})
    items = world.read(Scope(allow=["100.100.100.0/24"]))  # with a cloud's metadata service in it
    assert (len(world.dialled), counted(items)[:2]) == (255, (256, 256))


@pytest.mark.parametrize("allow", ["100.100.100.0/24", "10.0.0.8/29", "a.example"])
def test_numbers_only_rise(allow: str) -> None:
    """A collector cannot say that there is less than it said."""
    known = [f"tls:a.example:{port}/a.example" for port in (1, 2)]
    items = World({"b.example": [["10.0.0.10"]]}).read(Scope(allow=[allow], deny=["b.example"]), known, ports=["1", "2", "3"])
    assert all(min(item.total, item.read, item.failed) >= 0 for item in items if isinstance(item, Count))


def test_a_part_that_an_older_version_planned_is_counted_when_it_is_read() -> None:
    async def run() -> list[Reading]:
        scope = Scope(allow=["127.0.0.0/30"])
        asked = NetworkSettings(ports=["1"], rate=5000, host_rate=5000)
        return [item async for item in NETWORK.read(asked, Part({"network": "127.0.0.0/30"}), "", Tools(lambda: BEGAN, BEGAN, scope))]

    assert counted(asyncio.run(run()))[:2] == (4, 4)


def test_what_is_known_of_a_unit_is_asked_once() -> None:
    asked: list[str] = []

    async def ask(unit: str) -> frozenset[str]:
        asked.append(unit)
        await asyncio.sleep(0.05)
        return frozenset()

    async def run() -> None:
        scope, part = Scope(allow=["127.0.0.0/28"]), Part({"network": "127.0.0.0/28"})
        wanted = NetworkSettings(ports=["1"], rate=5000, host_rate=5000)
        async for _ in NETWORK.read(wanted, part, "", Tools(lambda: BEGAN, BEGAN, scope, known=ask)):
            pass

    asyncio.run(run())
    assert asked == ["127.0.0.0/28"]
