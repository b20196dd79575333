"""One endpoint: the handshakes that show everything it has, and what they come to as locations."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from handclasp.discovery.network.handshake import Asked, Shown, look
from handclasp.discovery.network.pace import Pace
from handclasp.discovery.network.targets import Port
from handclasp.pki.reading import name_text, read_certificate
from handclasp.wire.observations import Observed, Seen

SHOWN_AUTHORITIES = 50
"""Acceptable authorities that a location's details name; their number is told in any case."""
ONE_CERTIFICATE = frozenset({"mysql"})
"""Protocols whose servers have one certificate and no more. MySQL and MariaDB count each look as a connection that was broken off, and shut
out an address that made 100 of them without a login (``max_connect_errors``): they are not asked twice for nothing."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host's port, under one address that was checked; connections go to that address and to no other."""

    host: str
    """A name, or the address itself."""
    address: str
    port: Port
    names: tuple[str | None, ...]
    """What is asked for by SNI, each in handshakes of its own; None is nothing."""

    def key(self, name: str | None) -> str:
        """Return the key of the location for one name."""
        return f"tls:{bracketed(self.host)}:{self.port.number}/{name or ''}"

    def shown(self, name: str | None) -> str:
        """Return what people call it."""
        where = f"{bracketed(self.host)}:{self.port.number}"
        return f"{name} at {where}" if name and name != self.host else where


@dataclass(slots=True)
class Answer:
    """What came of one name at one endpoint."""

    endpoint: Endpoint
    name: str | None
    shown: list[tuple[Asked, Shown]] = field(default_factory=list)
    problem: str = ""
    silent: bool = False
    """Nothing answered at all: it says nothing about what is there."""
    closed: bool = False
    """The port is closed."""

    @property
    def is_nothing(self) -> bool:
        """Whether it is certain that there is no certificate."""
        return not self.problem and not self.silent and not any(shown.chain for _, shown in self.shown)


@dataclass(slots=True)
class Looker:
    """Looks at endpoints; ``timeout`` in seconds bounds the connection, what comes before TLS, and the handshake, each."""

    threads: Executor
    pace: Pace
    timeout: float
    both: bool
    """Whether the other kind of leaf is asked for too."""
    connections: asyncio.Semaphore

    async def look(self, endpoint: Endpoint, host: Pace) -> list[Answer]:
        """Return what an endpoint shows, one answer for each name. Raises nothing that a server can cause."""
        answers = []
        for name in endpoint.names:
            answer = Answer(endpoint, name)
            answers.append(answer)
            await self._ask(answer, host)
            if answer.closed or answer.silent:
                answers += [Answer(endpoint, other, closed=answer.closed, silent=answer.silent) for other in endpoint.names[len(answers) :]]
                break
        return answers

    async def _ask(self, answer: Answer, host: Pace) -> None:
        first = await self._once(answer, "any", host)
        if first is None:
            return
        if not first.chain:
            answer.problem = "" if first.nothing else first.problem
            return
        answer.shown.append(("any", first))
        for other in other_kinds(first.chain[0]) if self.both and answer.endpoint.port.protocol not in ONE_CERTIFICATE else ():
            again = await self._once(answer, other, host)
            if again is not None and again.chain:
                answer.shown.append((other, again))
            elif answer.silent or answer.closed or (again is not None and not again.nothing):
                # It answered a moment ago: whether it has this leaf is not known, and one that was seen before is not gone.
                answer.silent = answer.closed = False
                answer.problem = again.problem if again is not None else "it does not answer any more"
                return

    async def _once(self, answer: Answer, asked: Asked, host: Pace) -> Shown | None:
        """Connect and look; None, with ``closed`` or ``silent`` set, when there is no connection."""
        await host.turn()
        await self.pace.turn()
        endpoint = answer.endpoint
        async with self.connections:
            try:
                connection = await _connect(endpoint.address, endpoint.port.number, self.timeout)
            except ConnectionRefusedError:
                answer.closed = True
                return None
            except OSError:  # TimeoutError is one
                answer.silent = True
                return None
            work = asyncio.get_running_loop().run_in_executor(
                self.threads, look, connection, endpoint.port.protocol, answer.name, asked, self.timeout
            )
            try:
                return await work
            except asyncio.CancelledError:
                connection.close()
                raise


async def _connect(address: str, port: int, timeout: float) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        async with asyncio.timeout(timeout):
            await asyncio.get_running_loop().sock_connect(connection, (address, port))
    except BaseException as error:  # also when it is cancelled: the socket is closed, and what happened is raised on
        connection.close()
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            raise RuntimeError("there are no more file descriptors") from error
        raise
    return connection


def other_kinds(leaf: bytes) -> Sequence[Asked]:
    """Return which leaves to ask for beside this one; one that cannot be read may be of any kind."""
    key = read_certificate(leaf).key_type
    if key.startswith("rsa"):
        return ("ecdsa",)
    return ("rsa",) if key.startswith(("p", "ed", "k")) else ("rsa", "ecdsa")


def to_observed(answer: Answer, *, unit: str, at: int, problem: str | None = None) -> Observed:
    """Return an answer as a location."""
    endpoint = answer.endpoint
    observed = Observed(
        key=endpoint.key(answer.name), kind="endpoint", shown=endpoint.shown(answer.name), unit=unit, host=endpoint.host, at=at,
        problem=problem if problem is not None else answer.problem or None,
    )  # fmt: skip
    if observed.problem is not None:
        return observed
    details: dict[str, Any] = {"protocol": endpoint.port.protocol}
    if answer.shown:
        details |= _details([shown for _, shown in answer.shown])
    observed.details = details
    for asked, shown in _distinct(answer.shown):
        how: dict[str, Any] = {"version": shown.version}
        if answer.name:
            how["sni"] = answer.name
        if asked != "any":
            how["asked"] = asked
        observed.certificates.append(Seen(der=shown.chain[0], role="served", chain=shown.chain[1:], how=how))
    return observed


def merged(observed: Sequence[Observed]) -> Observed:
    """Return what the addresses of one name show as one location: all certificates, and a problem when one of them could not be read."""
    first = observed[0]
    for other in observed[1:]:
        known = {one.der for one in first.certificates}
        first.certificates += [one for one in other.certificates if one.der not in known]
        first.problem = first.problem or other.problem
        first.details = first.details if len(first.details) >= len(other.details) else other.details
    if first.problem is not None:
        first.certificates = []
    return first


def _distinct(shown: Sequence[tuple[Asked, Shown]]) -> list[tuple[Asked, Shown]]:
    leaves: dict[bytes, tuple[Asked, Shown]] = {}
    for asked, one in shown:
        leaves.setdefault(one.chain[0], (asked, one))
    return list(leaves.values())


def _details(shown: Sequence[Shown]) -> dict[str, Any]:
    details: dict[str, Any] = {
        "versions": sorted({one.version for one in shown if one.version}),
        "client_certificate": "requested" if any(one.requested for one in shown) else "not requested",
    }
    authorities = next((one.authorities for one in shown if one.authorities), [])
    if authorities:
        details["acceptable_authorities"] = [_name(der) for der in authorities[:SHOWN_AUTHORITIES]]
        details["acceptable_authorities_count"] = len(authorities)
    return details


def _name(der: bytes) -> str:
    """Return a distinguished name in RFC 4514 form, or its first bytes in hex where it cannot be read."""
    try:
        return name_text(der)
    except ValueError:
        return "#" + der[:64].hex()


def bracketed(host: str) -> str:
    """Return a host as it stands before a colon and a port."""
    return f"[{host}]" if ":" in host else host
