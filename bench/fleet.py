"""A fleet of agents against one server: what they cost, whether their requests are spread, and a rotation in the middle."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from bench.results import Result
from bench.server import Server

AGENTS = int(os.environ.get("FLEET", "5000"))
PACE = float(os.environ.get("PACE", "5"))
"""How many times as fast as in life everything goes: the server has the requests of that many times as many agents. 1 is life."""
POLL = 60.0 / PACE
WITHIN = 300.0 / PACE
"""Seconds of the rotation, one of five minutes: its first quarter is as long as any agent's poll interval."""
START = AGENTS / 125
"""Seconds over which the agents start: each one is a handshake and a certificate."""
TTL = f"{3600 / PACE:.0f}s"
SHORT_TTL, SHORT_EVERY = f"{max(60.0, 300 / PACE):.0f}s", 10
"""One agent in ten has a certificate that ends before the run does, so that there are renewals that no rotation asks for too."""
AFTER = 6.0  # seconds in which the last ones may still answer
DOMAIN = "example.org"


def run() -> Iterator[Result]:
    """Measure a fleet at rest, then while every service's certificate is replaced."""
    _allow_files(AGENTS * 2 + 512)
    with Server() as server:
        token = server.token(
            name="fleet", agent=True, allow=[f"spiffe://{DOMAIN}/agent/*", f"spiffe://{DOMAIN}/fleet/*"], profiles=["agent", "workload"],
            uses=0, expires="1h",
        )  # fmt: skip
        plan = plan_for(server.host, server.port, server.ca_file, token, AGENTS, POLL, TTL, 2 * START + POLL + WITHIN + 120)
        plan |= {"start": START, "short_ttl": SHORT_TTL, "short_every": SHORT_EVERY}
        with simulated(plan, max(1, (os.cpu_count() or 2) - 1)) as simulation:
            wait_for(simulation, "steady")
            cpu, began, starved = server.cpu_seconds(), time.time(), server.starved_seconds()
            time.sleep(POLL)
            at_rest = (server.cpu_seconds() - cpu) / (time.time() - began)
            rotation, told = rotate(server.url, server.ca_file, server.admin_token, f"spiffe://{DOMAIN}/fleet/**", WITHIN)
            cpu = server.cpu_seconds()
            time.sleep(WITHIN + AFTER)
            in_rotation = (server.cpu_seconds() - cpu) / (WITHIN + AFTER)
            starved = (server.starved_seconds() - starved) / (time.time() - began)
            progress, asked = show(server.url, server.ca_file, server.admin_token, rotation)
            memory, looks = server.memory_mib(), look(server.url, server.ca_file, server.admin_token)
            seen = finish(simulation)
    yield from _results(seen, progress, began, at_rest, in_rotation)
    yield Result("fleet.rotation.start_ms", told * 1000, "ms", note=f"{progress['total']:,} certificates, told in the background")
    yield Result("fleet.rotation.show_ms", asked * 1000, "ms", note="one look at its progress")
    for name, (seconds, size) in looks.items():
        yield Result(f"fleet.{name}_ms", seconds * 1000, "ms", note=f"{size / 1024:,.0f} KiB, while the fleet goes on")
    yield Result("fleet.server.starved", starved, "", 1, note="of the time it could have run, the machine was busy")
    yield Result("fleet.server_mib", memory, "MiB", note=f"resident, with {seen['started']:,} connections kept")


def _results(seen: Mapping[str, Any], progress: Mapping[str, Any], began: float, at_rest: float, in_rotation: float) -> Iterator[Result]:
    late, waited = (max((most for second, most in seen[what].items() if float(second) > began), default=0.0) for what in ("late", "waits"))
    note = f"{seen['started']:,} agents, {seen['renewed']:,} renewals, {seen['failed']} failed {seen['first_failure']}".rstrip()
    yield Result("fleet.missed_renewals", seen["missed"] + seen["failed"], "", 1, budget=0.0, note=note)
    left = progress["total"] - progress["replaced"] - progress["gone"]
    yield Result("fleet.rotation.unanswered", left, "", 1, budget=0.0, note=f"of {progress['total']:,} certificates")
    mean, largest = spread(seen["requests"], began, began + POLL + WITHIN)
    yield Result("fleet.requests.largest_second", largest, "1/s", mean, budget=3.0, note="limit: the mean")
    mean, largest = spread(seen["renewals"], began + POLL + WITHIN / 4, began + POLL + WITHIN)
    yield Result("fleet.rotation.largest_second", largest, "1/s", mean, budget=3.0, note="renewals; limit: the mean")
    minute = at_rest / AGENTS / PACE * 60
    yield Result("fleet.agent_minute_cpu_us", minute * 1e6, "us", 60e6, note="server CPU for one agent that asks once a minute")
    yield Result("fleet.rest.core", at_rest, "", 1, budget=1.0, note=f"part of a core, {PACE:g} times as fast as in life")
    yield Result("fleet.rotation.core", in_rotation, "", 1, budget=1.0, note="the same while the fleet is rotated")
    yield Result("fleet.generator.core", seen["core"], "", 1, note="the simulation's own part of a core")
    yield Result("fleet.generator.late_ms", late * 1000, "ms", note="by which agents woke late, at most: the machine, not the server")
    yield Result("fleet.answer.longest_ms", waited * 1000, "ms", note="any answer, with the handshake of a renewal")


def plan_for(host: str, port: int, ca_file: str, token: str, agents: int, poll: float, ttl: str, seconds: float) -> dict[str, Any]:
    """Return what the simulation is told."""
    return {
        "host": host, "port": port, "ca": Path(ca_file).read_text(), "token": token, "agents": agents, "poll": poll, "ttl": ttl,
        "seconds": seconds, "trust_domain": DOMAIN, "agent": f"spiffe://{DOMAIN}/agent/host", "identity": f"spiffe://{DOMAIN}/fleet",
        "first": 0, "start": poll, "short_ttl": ttl, "short_every": 0,
    }  # fmt: skip


Simulation: TypeAlias = "list[subprocess.Popen[str]]"


@contextmanager
def simulated(plan: Mapping[str, Any], processes: int = 1) -> Iterator[Simulation]:
    """Run simulated agents while the block lasts, a part of them in each of several processes."""
    command, place = [sys.executable, "-m", "bench.agents"], Path(__file__).parent.parent
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=place) for _ in range(processes)
    ]  # fmt: skip
    try:
        first = 0
        for number, process in enumerate(running):
            agents = plan["agents"] * (number + 1) // processes - first
            assert process.stdin is not None
            process.stdin.write(json.dumps({**plan, "first": first, "agents": agents}) + "\n")
            process.stdin.flush()
            first += agents
        yield running
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def wait_for(simulation: Simulation, word: str) -> None:
    """Wait until the simulation says that a phase begins."""
    for process in simulation:
        assert process.stdout is not None
        if not any(line.strip() == word for line in process.stdout):
            raise RuntimeError(f"the simulation ended before it was {word}")


def finish(simulation: Simulation) -> dict[str, Any]:
    """End the simulation and return what it saw."""
    for process in simulation:
        assert process.stdin is not None
        process.stdin.close()
    seen: dict[str, Any] = {}
    for process in simulation:
        assert process.stdout is not None
        part = json.loads(process.stdout.read().strip().splitlines()[-1])
        for name, value in part.items():
            seen[name] = value if name not in seen else _joined(name, seen[name], value)
        process.wait(30)
    return seen


def _joined(name: str, one: Any, other: Any) -> Any:
    """Return what two processes saw together: sums, and of lateness the larger."""
    if not isinstance(one, dict):
        return one + other if not isinstance(one, str) else one or other
    both = {key: (one.get(key, 0), other.get(key, 0)) for key in {**one, **other}}
    return {key: max(pair) if name in ("late", "waits") else sum(pair) for key, pair in both.items()}


def rotate(url: str, ca_file: str, token: str, what: str, within: float) -> tuple[str, float]:
    """Start a rotation of everything, or of an identity pattern; return its id and the seconds that the request took."""
    from handclasp.client.api import ApiClient
    from handclasp.wire import Rotation, RotationRequest

    request = RotationRequest(all=what == "all", identity=None if what == "all" else what, within=f"{within:g}s", reason="bench")
    with ApiClient(url, ca=ca_file, token=token) as client:
        began = time.monotonic()
        started = client.call("POST", "/v1/rotations", body=request, response=Rotation)
        return started.id, time.monotonic() - began


def show(url: str, ca_file: str, token: str, rotation: str) -> tuple[dict[str, Any], float]:
    """Return how far a rotation is, and the seconds that the request took."""
    from handclasp.client.api import ApiClient
    from handclasp.wire import Rotation

    with ApiClient(url, ca=ca_file, token=token) as client:
        began = time.monotonic()
        found = client.call("GET", f"/v1/rotations/{rotation}", response=Rotation)
        counts = {"total": found.total, "replaced": found.replaced, "gone": found.gone, "pending": [one.identity for one in found.pending]}
        return counts, time.monotonic() - began


def look(url: str, ca_file: str, token: str) -> dict[str, tuple[float, int]]:
    """Return seconds and bytes of what people and their monitoring ask: a page of 200 agents, all that are overdue, the metrics."""
    from handclasp.client.connections import Connections

    asked = {"agents_page": "/v1/agents?limit=200", "agents_overdue": "/v1/agents?state=overdue", "metrics": "/metrics"}
    asked["healthz"] = "/healthz"
    found, connections = {}, Connections(url, ca=ca_file, credential=None, timeout=60)
    for name, path in asked.items():
        began = time.monotonic()
        reply = connections.exchange("GET", path, None, {"Authorization": f"Bearer {token}"})
        if reply.status != 200:
            raise RuntimeError(f"{path}: {reply.status} {reply.body[:200]!r}")
        found[name] = time.monotonic() - began, len(reply.body)
    connections.close()
    return found


def spread(buckets: Mapping[str, int], begin: float, end: float) -> tuple[float, float]:
    """Return the mean and the largest number in the whole seconds from ``begin`` to ``end``."""
    counts = [int(buckets.get(str(second), 0)) for second in range(int(begin) + 1, int(end))]
    return sum(counts) / max(1, len(counts)), float(max(counts, default=0))


def _allow_files(count: int) -> None:
    """Let this process and those that it starts have a connection for each agent."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else min(count, hard), hard))
