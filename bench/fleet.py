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
from typing import Any

from bench.results import Result
from bench.server import Server

AGENTS = int(os.environ.get("FLEET", "5000"))
"""Fewer where the machine has something else to do: the simulation needs most of a core."""
POLL = 10.0  # seconds, for the 60 of real agents: six times as fast
WITHIN = 50.0  # seconds of the rotation: its first quarter is longer than any agent's poll
TTL = "120s"
AFTER = 6.0  # seconds in which the last ones may still answer
LONGEST = 150.0
DOMAIN = "example.org"


def run() -> Iterator[Result]:
    """Measure a fleet at rest, then while every service's certificate is replaced."""
    _allow_files(AGENTS * 2 + 512)
    with Server(core=0) as server:
        token = server.token(
            name="fleet", agent=True, allow=[f"spiffe://{DOMAIN}/agent/*", f"spiffe://{DOMAIN}/fleet/*"], profiles=["agent", "workload"],
            uses=0, expires="1h",
        )  # fmt: skip
        plan = plan_for(server.host, server.port, server.ca_file, token, AGENTS, POLL, TTL, LONGEST)
        with simulated(plan) as simulation:
            wait_for(simulation, "steady")
            cpu, began = server.cpu_seconds(), time.time()
            time.sleep(POLL)
            polls = AGENTS * (time.time() - began) / POLL
            at_rest = (server.cpu_seconds() - cpu) / polls
            rotation, told = rotate(server.url, server.ca_file, server.admin_token, f"spiffe://{DOMAIN}/fleet/**", WITHIN)
            cpu = server.cpu_seconds()
            time.sleep(WITHIN + AFTER)
            in_rotation = (server.cpu_seconds() - cpu) / (WITHIN + AFTER)
            progress, asked = show(server.url, server.ca_file, server.admin_token, rotation)
            seen = finish(simulation)
    yield from _results(seen, progress, began, at_rest, in_rotation)
    yield Result("fleet.rotation.start_ms", told * 1000, "ms", note=f"{progress['total']:,} certificates told")
    yield Result("fleet.rotation.show_ms", asked * 1000, "ms", note="one look at its progress")


def _results(seen: Mapping[str, Any], progress: Mapping[str, Any], began: float, at_rest: float, in_rotation: float) -> Iterator[Result]:
    note = f"{seen['started']:,} agents, {seen['renewed']:,} renewals, {seen['failed']} failed {seen['first_failure']}".rstrip()
    yield Result("fleet.missed_renewals", seen["missed"] + seen["failed"], "", 1, budget=0.0, note=note)
    left = progress["total"] - progress["replaced"] - progress["gone"]
    yield Result("fleet.rotation.unanswered", left, "", 1, budget=0.0, note=f"of {progress['total']:,} certificates")
    mean, largest = spread(seen["requests"], began, began + POLL + WITHIN)
    yield Result("fleet.requests.largest_second", largest, "1/s", mean, budget=3.0, note="limit: the mean")
    mean, largest = spread(seen["renewals"], began + POLL + WITHIN / 4, began + POLL + WITHIN)
    yield Result("fleet.rotation.largest_second", largest, "1/s", mean, budget=3.0, note="renewals; limit: the mean")
    yield Result("fleet.agent_minute_cpu_us", at_rest * 1e6, "us", 60e6, note="server CPU for one agent that asks once a minute")
    yield Result("fleet.rotation.core", in_rotation, "", 1, budget=1.0, note="part of a core while the fleet is rotated")


def plan_for(host: str, port: int, ca_file: str, token: str, agents: int, poll: float, ttl: str, seconds: float) -> dict[str, Any]:
    """Return what the simulation is told."""
    return {
        "host": host, "port": port, "ca": Path(ca_file).read_text(), "token": token, "agents": agents, "poll": poll, "ttl": ttl,
        "seconds": seconds, "trust_domain": DOMAIN, "agent": f"spiffe://{DOMAIN}/agent/host", "identity": f"spiffe://{DOMAIN}/fleet",
    }  # fmt: skip


@contextmanager
def simulated(plan: Mapping[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """Run simulated agents while the block lasts."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.agents"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(plan) + "\n")
        process.stdin.flush()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def wait_for(simulation: subprocess.Popen[str], word: str) -> None:
    """Wait until the simulation says that a phase begins."""
    assert simulation.stdout is not None
    for line in simulation.stdout:
        if line.strip() == word:
            return
    raise RuntimeError(f"the simulation ended before it was {word}")


def finish(simulation: subprocess.Popen[str]) -> dict[str, Any]:
    """End the simulation and return what it saw."""
    assert simulation.stdin is not None
    assert simulation.stdout is not None
    simulation.stdin.close()
    seen: dict[str, Any] = json.loads(simulation.stdout.read().strip().splitlines()[-1])
    simulation.wait(30)
    return seen


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


def spread(buckets: Mapping[str, int], begin: float, end: float) -> tuple[float, float]:
    """Return the mean and the largest number in the whole seconds from ``begin`` to ``end``."""
    counts = [int(buckets.get(str(second), 0)) for second in range(int(begin) + 1, int(end))]
    return sum(counts) / max(1, len(counts)), float(max(counts, default=0))


def _allow_files(count: int) -> None:
    """Let this process and those that it starts have a connection for each agent."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else min(count, hard), hard))
