"""The source ``network``: which endpoints there are, how fast they are looked at, and what is said of them.

What an endpoint's silence means (also in ``docs/discovery.md``):

* A port that is closed, or a server that says it has no certificate for a name, is nothing there: a location that was seen there before is
  read, and empty.
* No answer is not an absence. A location that was seen there before, and everything that was named by itself and not as part of a range,
  has a problem; what was seen there stays open.
* A port that answers and shows no certificate is a location with a problem.
* What is no longer looked at (another port, another name, an address that the scope denies now) is not gone: where the reader is told what
  is known, each known place is read by itself and nothing is said of the rest; where it is not (a collector), an address range that is
  looked at in another way is another unit.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any

from msgspec import Meta, Struct, structs
from msgspec import field as struct_field

from handclasp.access.egress import forms_of
from handclasp.clock import parse_duration
from handclasp.discovery.network.endpoint import Answer, Endpoint, Looker, merged, to_observed
from handclasp.discovery.network.pace import Pace
from handclasp.discovery.network.targets import Network, Port, Targets, parse_name, parse_ports, parse_scope, parts_of
from handclasp.discovery.source import Count, Covered, Failed, Part, Place, Reading, Runs, Scope
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind
from handclasp.wire.observations import unit_mark

_NO_ADDRESS = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
HOSTS_IN_PART = 64
THREADS = 256
"""Handshakes of a part at once, at most. What is connected must be spoken to soon, however many others keep us waiting: a server hangs up
on who says nothing. A thread costs 90 KiB, and is begun when needed."""
ADDRESSES_OF_A_NAME = 4
"""Addresses of one name that are looked at; a name with more is a load balancer, and these show what it shows."""


class NetworkSettings(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What to look at, at each address and name that the scope allows."""

    ports: list[str] = struct_field(default_factory=lambda: ["443"])
    """Ports: 443, 8000-8010, 2525/smtp. Protocols: tls, smtp, imap, ldap, postgresql, mysql; the usual ports of these need no word."""
    sni: list[str] = struct_field(default_factory=list)
    """Names that are asked for at each address, beside none; a host that is allowed by its name is asked for that name too."""
    timeout: str = "5s"
    """How long to wait for a connection, and again for the handshake."""
    rate: Annotated[float, Meta(gt=0, le=10_000)] = 50.0
    """Connections a second, over all workers."""
    host_rate: Annotated[float, Meta(gt=0, le=10_000)] = 5.0
    """Connections a second to one host."""
    connections: Annotated[int, Meta(ge=1, le=2_000)] = 200
    """Connections that one worker has at once."""
    parallel: Annotated[int, Meta(ge=1, le=64)] = 2
    """Parts of 256 addresses that are read at once; they share the rate."""
    both: bool = True
    """Ask for both an RSA and an ECDSA certificate."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """Settings and scope, understood."""

    settings: NetworkSettings
    targets: Targets
    ports: Sequence[Port]
    names: tuple[str, ...]
    timeout: float


@dataclass(frozen=True, slots=True)
class _Target:
    """A host of a part: a name, or one address of a range."""

    host: str
    unit: str
    named: bool


class NetworkKind:
    """Reads certificates where TLS servers show them."""

    name = "network"
    summary = "TLS servers, also behind STARTTLS; the scope's entries are addresses, networks and host names"
    privilege = (
        "None on the servers: it makes TCP connections to the ports that are named, and a TLS handshake without a certificate of its own. "
        "Firewalls between it and them must let that through. Those who watch the network should know of it: it looks like a scan, "
        "because it is one; rate and host_rate bound it."
    )
    Settings = NetworkSettings
    runs: Runs = "server"

    def check(self, settings: NetworkSettings, scope: Scope) -> None:
        """See :class:`handclasp.discovery.source.SourceKind`."""
        _understood(settings, scope)

    async def plan(self, settings: NetworkSettings, scope: Scope, tools: Tools) -> AsyncIterator[Part]:  # noqa: ARG002  (the contract)
        """Yield a part for each 256 addresses, and for each 64 names."""
        plan = _understood(settings, scope)
        targets, ports = plan.targets, len(plan.ports)
        for network in targets.networks:
            for piece, addresses in parts_of(network, targets.denied_networks):
                yield Part({"network": str(piece), "places": addresses * ports}, places=addresses * ports)
        hosts = [host for host in targets.hosts if host not in targets.denied_hosts]
        for first in range(0, len(hosts), HOSTS_IN_PART):
            some = hosts[first : first + HOSTS_IN_PART]
            yield Part({"hosts": some, "places": len(some) * ports}, places=len(some) * ports)

    async def read(self, settings: NetworkSettings, part: Part, place: str, tools: Tools) -> AsyncIterator[Reading]:
        """Look at each endpoint of a part."""
        plan = _understood(settings, tools.scope)
        threads = ThreadPoolExecutor(min(THREADS, settings.connections), thread_name_prefix="look")
        looker = Looker(
            threads, Pace(settings.rate / settings.parallel), plan.timeout, settings.both, asyncio.Semaphore(settings.connections)
        )
        try:
            async with contextlib.aclosing(_PartReading(plan, part, looker, tools).run(int(place or 0))) as items:
                async for item in items:
                    yield item
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


class _PartReading:
    """One part: its hosts, a few of them at a time, in an order that is always the same."""

    def __init__(self, plan: _Plan, part: Part, looker: Looker, tools: Tools) -> None:
        self._plan, self._looker, self._tools = plan, looker, tools
        self._targets = list(_targets_of(part.spec, plan.targets, _mark(plan, tools.scope) if tools.known is None else ""))
        self._planned = int(part.spec.get("places", 0))
        """What the plan took it for; those of its addresses that are never read were not looked for then."""
        self._denied: frozenset[str] = frozenset()
        """Addresses of the names that the scope denies. They are among the targets, so that those have the same numbers each time."""
        self._paces: dict[str, Pace] = {}
        """By address: several names may lead to one host."""
        self._known: dict[str, frozenset[str] | None] = {}
        self._asking = asyncio.Lock()
        """So that hosts that are looked at together ask once what is known of their unit."""
        self._unsure: set[str] = set()
        """Units of which something did not answer: nobody can say that they were listed whole."""

    async def run(self, first: int) -> AsyncGenerator[Reading, None]:
        """Yield what hosts from the one with the number ``first`` on show, in their order, while the next ones are looked at."""
        self._denied = await _addresses_of(self._plan.targets.denied_hosts, self._plan.timeout)
        whole = first == 0  # of a part that another worker began, nobody knows any more what did not answer: the next scan will
        if whole:
            more = len(self._targets) * len(self._plan.ports) - self._planned
            yield Count(total=more) if more >= 0 else Count(read=-more)  # the plan counted what is never read: it is passed over
        ahead = max(1, self._plan.settings.connections // max(1, len(self._plan.ports)))
        waiting, running = iter(self._targets[first:]), deque[asyncio.Task[list[Reading]]]()
        try:
            while not self._tools.stop.is_set():
                running.extend(asyncio.create_task(self._host(target)) for target in islice(waiting, ahead - len(running)))
                if not running:
                    break
                for item in await running[0]:
                    yield item
                running.popleft()
                first += 1
                yield Place(str(first))
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        if whole and first == len(self._targets) and self._tools.known is None:
            for unit in sorted({target.unit for target in self._targets} - self._unsure):
                yield Covered(unit=unit, began_at=self._tools.began_at)

    async def _host(self, target: _Target) -> list[Reading]:
        """Return what one host shows at all of its ports. Nothing that it does is raised."""
        try:
            addresses = await self._addresses(target)
        except HandclaspError as error:
            self._unsure.add(target.unit)
            return await self._unreached(target, error.detail)
        if _is_address(target.host) and self._is_denied(target.host):
            return [Count(read=len(self._plan.ports))]  # passed over
        paces = [self._paces.setdefault(address, Pace(self._plan.settings.host_rate)) for address in addresses]
        names = self._names(target)
        found: list[Reading] = []
        for port in self._plan.ports:
            endpoints = [Endpoint(target.host, address, port, names) for address in addresses]
            answers = [await self._looker.look(endpoint, pace) for endpoint, pace in zip(endpoints, paces, strict=True)]
            found += await self._judge(target, answers)
        return found

    async def _unreached(self, target: _Target, problem: str) -> list[Reading]:
        """Return what is said of a host that has no address to connect to: where something was seen before, the problem is noted there."""
        names, ports, at = self._names(target), self._plan.ports, self._tools.clock()
        answers = [Answer(Endpoint(target.host, "", port, names), name) for port in ports for name in names]
        found = [
            to_observed(answer, unit=target.unit, at=at, problem=problem)
            for answer in answers
            if await self._is_known(target.unit, answer.endpoint.key(answer.name))
        ]
        if found:
            places = len(ports) - len(found)  # further names at a port are further places
            return [*found, Count(read=places) if places > 0 else Count(total=-places)]
        return [Failed(what=target.host, problem=problem), Count(read=len(ports) - 1)]

    async def _addresses(self, target: _Target) -> list[str]:
        if _is_address(target.host):
            return [target.host]  # each of a range was checked when it was chosen
        tools = replace(self._tools, scope=structs.replace(self._tools.scope, loopback=True)) if target.host == "localhost" else self._tools
        addresses = (await tools.resolve(target.host, 0, timeout=self._plan.timeout))[:ADDRESSES_OF_A_NAME]
        parsed = [ipaddress.ip_address(address.partition("%")[0]) for address in addresses]
        if not all(self._plan.targets.admits(address) for address in parsed) or any(map(self._is_denied, map(str, parsed))):
            raise HandclaspError(Kind.NOT_ALLOWED, "the scope denies an address of it")
        return addresses

    def _is_denied(self, address: str) -> bool:
        return bool(self._denied) and any(str(form) in self._denied for form in forms_of(ipaddress.ip_address(address)))

    def _names(self, target: _Target) -> tuple[str | None, ...]:
        """Return what is asked for: nothing at an address, the name of a host that has one, and the names of the settings."""
        own = target.host if not _is_address(target.host) else None
        return tuple(dict.fromkeys((own, *self._plan.names)))

    async def _judge(self, target: _Target, answers: Sequence[Sequence[Answer]]) -> list[Reading]:
        """Return the locations of one port from the answers of each address; a port that is not there, and never was, is only counted."""
        found: list[Reading] = []
        at = self._tools.clock()
        for of_name in zip(*answers, strict=True):
            known = await self._is_known(target.unit, of_name[0].endpoint.key(of_name[0].name))
            silent = any(answer.silent for answer in of_name)
            if silent or any(answer.problem for answer in of_name):
                self._unsure.add(target.unit)
            if silent and (known or target.named):
                problem = f"no answer within {self._plan.timeout:g} s"
                found.append(to_observed(of_name[0], unit=target.unit, at=at, problem=problem))
            elif (silent or all(answer.is_nothing for answer in of_name)) and not known:
                continue
            else:
                found.append(merged([to_observed(answer, unit=target.unit, at=at) for answer in of_name]))
        # The port is the place that was counted; further names at it are further places.
        return [*found, Count(total=len(found) - 1)] if found else [Count(read=1)]

    async def _is_known(self, unit: str, key: str) -> bool:
        async with self._asking:
            if unit not in self._known:
                self._known[unit] = await self._tools.known(unit) if self._tools.known is not None else None
        known = self._known[unit]
        return known is not None and key in known


def _understood(settings: NetworkSettings, scope: Scope) -> _Plan:
    targets = parse_scope(scope)
    try:
        timeout = parse_duration(settings.timeout)
    except HandclaspError as error:
        raise HandclaspError(Kind.BAD_SETTING, f"timeout: {error.detail}", hint=error.hint) from error
    if not 0.1 <= timeout <= 60:
        raise HandclaspError(Kind.BAD_SETTING, "timeout is from 100ms to 1m", hint="5s is usual")
    names = tuple(dict.fromkeys(map(parse_name, settings.sni)))
    return _Plan(settings, targets, parse_ports(settings.ports), names, timeout)


def _mark(plan: _Plan, scope: Scope) -> str:
    """Return what names the way in which a range is looked at."""
    way = (plan.settings.ports, plan.names, scope.deny, scope.loopback)
    return unit_mark(repr(way))


def _targets_of(spec: dict[str, Any], targets: Targets, mark: str) -> Iterator[_Target]:
    if "hosts" in spec:
        for host in spec["hosts"]:
            yield _Target(host, f"host {host}{mark}", named=True)
        return
    network: Network = ipaddress.ip_network(spec["network"])
    single = network.num_addresses == 1
    for address in network:
        if targets.admits(address):
            yield _Target(str(address), f"{network}{mark}", named=single)


async def _addresses_of(names: Collection[str], timeout: float) -> frozenset[str]:
    """Return the addresses of names that are not to be connected to; raise ``unavailable`` when nobody knows whether one has any."""
    found: set[str] = set()
    for name in names:
        try:
            async with asyncio.timeout(timeout):
                infos = await asyncio.get_running_loop().getaddrinfo(name, 0, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError) as error:
            if isinstance(error, socket.gaierror) and error.errno in _NO_ADDRESS:
                continue
            raise HandclaspError(Kind.UNAVAILABLE, f"{name}, which the scope denies, cannot be looked up at the moment") from error
        found |= {str(form) for info in infos for form in forms_of(ipaddress.ip_address(str(info[4][0]).partition("%")[0]))}
    return frozenset(found)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


NETWORK = NetworkKind()
