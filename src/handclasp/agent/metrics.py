"""What a collector on this host can fetch: ``/metrics`` (Prometheus text format 0.0.4) and ``/healthz``, over plain HTTP on loopback.

A few lines of HTTP instead of a library: the answers are two texts, and an agent has 45 MB for everything.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator

from handclasp import __version__
from handclasp.agent.keeper import Keeper
from handclasp.agent.part import Whole
from handclasp.agent.state import target_condition
from handclasp.errors import HandclaspError, Kind

_log = logging.getLogger("handclasp.agent")
_STATES = ("ok", "renewing", "overdue", "failed")
_TARGET_STATES = ("ok", "pending", "failed")
_PATIENCE = 5.0
_MOST = 8192
"""Bytes of a request; nobody who means well sends more."""


class Metrics:
    """The endpoint. Serves one request at a time: there is one collector, and an answer takes milliseconds."""

    def __init__(self, agent: Whole, address: tuple[str, int]) -> None:
        self._agent, self._address = agent, address
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)

    def start(self) -> None:
        """Listen; raises ``bad_setting`` when the address cannot be had."""
        host, port = self._address
        try:
            self._socket = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            raise HandclaspError(Kind.BAD_SETTING, f"metrics: cannot listen on {host}:{port}: {error.strerror}") from error
        self._thread.start()

    def stop(self) -> None:
        """Listen no longer."""
        assert self._socket is not None
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._socket.close()
        self._thread.join()

    def problems(self) -> list[str]:
        """It has none of its own while it runs."""
        return []

    def _serve(self) -> None:
        assert self._socket is not None
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                try:
                    answer, until = self._answer(_request_line(connection)), time.monotonic() + _PATIENCE
                    for part in answer:
                        connection.settimeout(max(until - time.monotonic(), 0.001))
                        connection.sendall(part)
                except OSError as error:
                    _log.debug("metrics: %s", error)
                except Exception:  # a fault of ours must not end the endpoint
                    _log.exception("metrics")

    def _answer(self, line: bytes) -> Iterator[bytes]:
        """Yield the answer in pieces: whole, that of five hundred identities would be megabytes at once, and stay with the process."""
        method, path = [*line.split(b" "), b"", b""][:2]
        if method not in (b"GET", b"HEAD"):
            status, texts = "405 Method Not Allowed", iter(("only GET\n",))
        elif path.partition(b"?")[0] == b"/metrics":
            status, texts = "200 OK", exposition(self._agent)
        elif path.partition(b"?")[0] == b"/healthz":
            problems = unhealthy(self._agent)
            status = "503 Service Unavailable" if problems else "200 OK"
            texts = (f"{problem}\n" for problem in problems or ["ok"])
        else:
            status, texts = "404 Not Found", iter(("/metrics and /healthz are here\n",))
        yield f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nConnection: close\r\n\r\n".encode()
        if method != b"HEAD":
            for text in texts:
                yield text.encode()


def _request_line(connection: socket.socket) -> bytes:
    """Return the first line; all of the request has to come within ``_PATIENCE``, or one who drips would keep the others out for hours."""
    data, until = b"", time.monotonic() + _PATIENCE
    while b"\r\n\r\n" not in data and len(data) < _MOST:
        connection.settimeout(max(until - time.monotonic(), 0.001))
        part = connection.recv(4096)
        if not part:
            break
        data += part
    return data.partition(b"\r\n")[0]


def unhealthy(agent: Whole) -> list[str]:
    """Return what needs a person, in words: one line for each identity that is overdue or failed, and what else there is."""
    told = ((keeper.managed.name, keeper.told.state) for keeper in agent.roster.everyone())
    bad = [f"{name}: {state}" for name, state in told if state not in ("ok", "renewing")]
    return [*bad, *agent.problems()]


def exposition(agent: Whole) -> Iterator[str]:
    """Return the metrics, a family at a time."""
    keepers = agent.roster.everyone()
    yield from _family("agent_info", "gauge", "The agent and its version.", [(_labels(identity=agent.identity, version=__version__), 1)])
    yield from _family("agent_problems", "gauge", "What needs a person, besides identities.", [("", len(agent.problems()))])
    ahead = "By how much the clock of this host is ahead of the server's."
    yield from _family("agent_clock_ahead_seconds", "gauge", ahead, [("", agent.clock.ahead / 1000)])
    names = {id(keeper): _labels(identity=keeper.managed.name, slot=keeper.managed.slot) for keeper in keepers}
    held = [(names[id(keeper)], keeper.obtained, keeper) for keeper in keepers if keeper.obtained is not None]
    ends = ((name, one.not_after / 1000) for name, one, _ in held)
    yield from _family("identity_not_after_seconds", "gauge", "When the certificate ends (Unix time).", ends)
    renews = [(name, keeper.renew_at() / 1000) for name, _, keeper in held]
    yield from _family("identity_renew_at_seconds", "gauge", "When it is renewed (Unix time).", renews)
    told = [(names[id(keeper)], keeper.told.state) for keeper in keepers]
    states = [(_and(name, state=state), int(now == state)) for name, now in told for state in _STATES]
    yield from _family("identity_state", "gauge", "1 for the state that the identity is in.", states)
    for field, kind, text in (
        ("rotations_total", "counter", "Renewals so far."),
        ("failures", "gauge", "Failures in a row."),
        ("last_success_seconds", "gauge", "When a certificate was last obtained (Unix time)."),
        ("last_failure_seconds", "gauge", "When obtaining one last failed (Unix time)."),
    ):
        yield from _family(f"identity_{field}", kind, text, [(names[id(keeper)], _of(keeper, field)) for keeper in keepers])
    yield from _targets(keepers, names)


def _targets(keepers: list[Keeper], names: dict[int, str]) -> Iterator[str]:
    found = [
        (_and(names[id(keeper)], target=name), state, keeper.obtained.sha256 if keeper.obtained else None)
        for keeper in keepers
        for name, state in keeper.state.targets.items()
    ]
    states = [
        (_and(labels, state=word), int(target_condition(state, sha256) == word))
        for labels, state, sha256 in found
        for word in _TARGET_STATES
    ]
    yield from _family("target_state", "gauge", "1 for the state that the target is in.", states)
    yield from _family("target_failures", "gauge", "Failed deliveries in a row.", [(labels, state.failures) for labels, state, _ in found])
    success = [(labels, state.last_success / 1000) for labels, state, _ in found]
    yield from _family("target_last_success_seconds", "gauge", "When a delivery last succeeded (Unix time).", success)
    failure = [(labels, state.last_failure_at / 1000) for labels, state, _ in found]
    yield from _family("target_last_failure_seconds", "gauge", "When a delivery last failed (Unix time).", failure)


def _of(keeper: Keeper, field: str) -> float:
    state = keeper.state
    if field == "rotations_total":
        return state.rotations
    if field == "failures":
        return state.failures
    return (state.last_success if field == "last_success_seconds" else state.last_failure_at) / 1000


def _family(name: str, kind: str, text: str, values: Iterable[tuple[str, float]]) -> Iterator[str]:
    full = f"handclasp_{name}"
    yield f"# HELP {full} {text}\n# TYPE {full} {kind}\n"
    lines = [f"{full}{{{labels}}} {value}\n" if labels else f"{full} {value}\n" for labels, value in values]
    for start in range(0, len(lines), 100):
        yield "".join(lines[start : start + 100])


def _labels(**values: str) -> str:
    return ",".join(f'{name}="{_escape(value)}"' for name, value in values.items() if value)


def _and(labels: str, **more: str) -> str:
    return f"{labels},{_labels(**more)}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
