"""One agent with one identity and with five hundred: its memory when everything is delivered, and how long it takes to start."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.results import Result
from bench.server import Server

RESIDENT_MB, START_MS = 45, 300
STARTS = 5


def run() -> Iterator[Result]:
    """Measure against a real server on this machine; the limits are the budgets."""
    for count in (1, 500):
        with Server() as server, tempfile.TemporaryDirectory(prefix="handclasp-bench-") as directory:
            config = _prepare(server, Path(directory), count)
            with _agent(config) as (process, port, _):
                _until(lambda port=port, count=count: b"200 OK" in _ask(port, "/healthz") and _delivered(port) == count)
                fresh = _resident_mb(process.pid)
            starts = []
            for _ in range(STARTS):
                with _agent(config) as (process, port, started):
                    starts.append(started)
                    _until(lambda port=port: b"200 OK" in _ask(port, "/healthz"))
            yield Result(f"agent.{count}.resident_mb", fresh, "MB", RESIDENT_MB, budget=1.0, note="limit: the budget; all just obtained")
            start = min(starts)  # others use this machine too
            yield Result(f"agent.{count}.start_ms", start * 1000, "ms", START_MS, budget=1.0, note="limit: the budget; until it works")


def _prepare(server: Server, root: Path, count: int) -> Path:
    from handclasp.agent import enroll
    from handclasp.client.settings import ClientSettings

    token = server.token(
        name="bench", agent=True, allow=["spiffe://example.org/agent/bench", "spiffe://example.org/**"], profiles=["agent", "workload"]
    )
    enroll(ClientSettings(server.url, server.ca_file), token, root / "state", "bench")
    identities = "".join(f"  - identity: spiffe://example.org/n/{n}\n    targets: [{{directory: t{n}}}]\n" for n in range(count))
    config = root / "agent.yaml"
    config.write_text(f"poll: 5s\nmetrics: 127.0.0.1:{_free_port()}\nidentities:\n{identities}")
    return config


@contextmanager
def _agent(config: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, float]]:
    """Run an agent; yields it, the port of its metrics, and the seconds until it was at work (they are there from then on)."""
    port = int(config.read_text().split("metrics: 127.0.0.1:")[1].split()[0])
    program = "import sys; from handclasp.agent import run; run(sys.argv[1], sys.argv[2])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", program, str(config), str(config.parent / "state")], env=environment)
    try:
        while not _listens(port):
            if process.poll() is not None:
                raise RuntimeError("the agent did not start")
            time.sleep(0.002)
        yield process, port, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(30)


def _resident_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


def _ask(port: int, path: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


def _delivered(port: int) -> int:
    return len(re.findall(rb'handclasp_target_state\{[^}]*state="ok"\} 1\n', _ask(port, "/metrics")))


def _until(condition: object) -> None:
    assert callable(condition)
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
