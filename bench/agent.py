"""One agent, with one identity, with five hundred, and with its socket: what it keeps in memory, and how long it takes to start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.results import Result
from bench.server import Server

RESIDENT_MB, START_MS = 45, 300
STARTS = 9
_REST = 12.0
"""Seconds that an agent has, with a poll of two, to come to rest after its last delivery: what it keeps is measured, not what it needs."""
_POLICY = """\
version: 1
workloads:
  - name: bench
    agents: {role: bench}
    selectors: ["unix:uid:UID"]
    identity: spiffe://example.org/socket/bench
    profile: workload
"""


@dataclass(frozen=True, slots=True)
class Running:
    """An agent at work: its process, and what it took to get there (milliseconds; ``cpu_ms``: user and system, of all its threads)."""

    pid: int
    port: int
    wall_ms: float
    cpu_ms: float


def run() -> Iterator[Result]:
    """Measure against a real server on this machine; the limits are the budgets."""
    for count, name in ((1, "agent"), (500, "agent.500")):
        with Server() as server, tempfile.TemporaryDirectory(prefix="handclasp-bench-") as directory:
            config = _prepare(server, Path(directory), count)
            yield from _measure(config, name, count)
    with Server() as server, tempfile.TemporaryDirectory(prefix="handclasp-bench-") as directory:
        server.apply_policy(_POLICY.replace("UID", str(os.getuid())))
        yield _measure_socket(_prepare(server, Path(directory), 1, with_socket=True), "agent.socket")


def _measure(config: Path, name: str, count: int) -> Iterator[Result]:
    with _agent(config) as running:
        _until(lambda: _well(running.port) and _delivered(running.port) == count)
        resident = _at_rest_mb(running)
        yield Result(f"{name}.rss_mb", resident, "MB", RESIDENT_MB, budget=1.0, note="limit: the budget; all just obtained")
    starts = []
    for _ in range(STARTS):
        with _agent(config) as running:
            starts.append(running)
            _until(lambda: _well(running.port))
    wall, cpu = (min(getattr(one, field) for one in starts) for field in ("wall_ms", "cpu_ms"))  # others use this machine too
    note = f"limit: the budget; best of {STARTS}, of which {cpu:.0f} ms of CPU"
    yield Result(f"{name}.start_ms", wall, "ms", START_MS, budget=1.0, note=note)


def _measure_socket(config: Path, name: str) -> Result:
    path = config.parent / "workload.sock"
    with _agent(config) as running:
        _until(lambda: _well(running.port) and path.exists())
        _use(path)
        return Result(f"{name}.rss_mb", _at_rest_mb(running), "MB", RESIDENT_MB, budget=1.0, note="limit: the budget; both services asked")


def _use(path: Path) -> None:
    """Ask for certificates once by the Workload API and once by SDS."""
    from grpclib.client import Channel, UnaryUnaryMethod

    from handclasp.client.workload import fetch_x509
    from handclasp.proto import sds_pb2

    assert fetch_x509(path).svids

    async def secrets() -> None:
        channel = Channel(path=str(path))
        with contextlib.closing(channel):
            method = UnaryUnaryMethod(
                channel, "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets", sds_pb2.DiscoveryRequest, sds_pb2.DiscoveryResponse
            )
            assert (await method(sds_pb2.DiscoveryRequest(resource_names=["default", "ROOTCA"]))).resources

    asyncio.run(secrets())


def _prepare(server: Server, root: Path, count: int, *, with_socket: bool = False) -> Path:
    from handclasp.agent import enroll
    from handclasp.client.settings import ClientSettings

    allow = ["spiffe://example.org/agent/bench", "spiffe://example.org/**"]
    token = server.token(name="bench", agent=True, allow=allow, profiles=["agent", "workload"], labels={"role": "bench"})
    enroll(ClientSettings(server.url, server.ca_file), token, root / "state", "bench")
    identities = "".join(f"  - identity: spiffe://example.org/n/{n}\n    targets: [{{directory: t{n}}}]\n" for n in range(count))
    parts = f"socket: {{path: {root / 'workload.sock'}}}\n" if with_socket else ""
    config = root / "agent.yaml"
    config.write_text(f"poll: 2s\nmetrics: 127.0.0.1:{_free_port()}\n{parts}identities:\n{identities}")
    return config


@contextmanager
def _agent(config: Path) -> Iterator[Running]:
    """Run an agent as ``handclasp agent run`` does, and yield it when its metrics are there: from then on it is at work."""
    port = int(config.read_text().split("metrics: 127.0.0.1:")[1].split()[0])
    command = [sys.executable, "-m", "handclasp", "agent", "run", "-c", str(config), "--state-dir", str(config.parent / "state")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with (config.parent / "agent.log").open("a") as log:
        began = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        while not _listens(port):
            if process.poll() is not None:
                raise RuntimeError("the agent did not start:\n" + (config.parent / "agent.log").read_text())
            time.sleep(0.002)
        yield Running(process.pid, port, (time.perf_counter() - began) * 1000, _cpu_ms(process.pid))
    finally:
        process.terminate()
        process.wait(30)


def _cpu_ms(pid: int) -> float:
    """Time on a processor so far, by the scheduler's count, which is finer than ticks."""
    return sum(int(task.joinpath("schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e6


def _at_rest_mb(running: Running) -> float:
    time.sleep(_REST)
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{running.pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


def _ask(port: int, path: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


def _well(port: int) -> bool:
    return b"200 OK" in _ask(port, "/healthz")


def _delivered(port: int) -> int:
    return len(re.findall(rb'handclasp_target_state\{[^}]*state="ok"\} 1\n', _ask(port, "/metrics")))


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("the agent did not come to rest")
        time.sleep(0.1)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
