"""A server to measure: started on free loopback ports with temporary data, pinned to a core, ended afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """A ``handclasp`` server process (or several) with its own data directory."""

    def __init__(
        self, *flags: str, workers: int = 1, database: str = "", core: int | None = None, home: Path | None = None, patience: float = 60
    ) -> None:
        """Start it, with the data directory in ``home`` where one is given (it stays there), and wait ``patience`` seconds at most."""
        self.directory = tempfile.TemporaryDirectory(prefix="handclasp-bench-")
        data = Path(self.directory.name)
        ready = data / "ready.json"
        arguments = [sys.executable, "-m", "handclasp", "up", "--data", str((home or data) / "data"), "--trust-domain", "example.org"]
        arguments += ["--https", "127.0.0.1:0", "--http", "127.0.0.1:0", "--ready-file", str(ready), "--name", "127.0.0.1"]
        arguments += ["--rate-principal", "1000000", "--log-level", "warning", *flags]
        if database:
            arguments += ["--database", database, "--workers", str(workers)]
        pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
        self.log = (data / "server.log").open("w+")
        began = time.monotonic()
        self.process = subprocess.Popen(arguments, stderr=self.log, preexec_fn=pin)
        deadline = began + patience
        while not ready.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                raise RuntimeError(f"the server did not start:\n{self.log.read()}")
            time.sleep(0.02)
        self.start_seconds = time.monotonic() - began
        """From nothing until it listens."""
        facts = json.loads(ready.read_text())
        self.url: str = facts["https"]
        self.host, port = self.url.removeprefix("https://").split(":")
        self.port = int(port)
        self.ca_file: str = facts["ca_file"]
        self.grpc: str | None = facts["grpc"]
        self.admin_token = Path(facts["admin_token_file"]).read_text().strip()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.directory.cleanup()

    def cpu_seconds(self) -> float:
        """User and system time so far, of the process and its workers."""
        return sum(_cpu(pid) for pid in [self.process.pid, *_children(self.process.pid)])

    def starved_seconds(self) -> float:
        """How long the event loop's thread could have run so far, and the machine ran something else."""
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[1]) / 1e9

    def memory_mib(self) -> float:
        """Resident memory now, of the process and its workers."""
        pids = [self.process.pid, *_children(self.process.pid)]
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def token(self, **fields: Any) -> str:
        """Create a token."""
        from handclasp.client.api import ApiClient
        from handclasp.wire import TokenCreated, TokenRequest

        with ApiClient(self.url, ca=self.ca_file, token=self.admin_token) as client:
            return client.call("POST", "/v1/tokens", body=TokenRequest(**fields), response=TokenCreated).token

    def apply_policy(self, text: str) -> None:
        """Put a policy in force."""
        from handclasp.client.api import ApiClient
        from handclasp.wire import PolicyDiff, PolicyDocument

        with ApiClient(self.url, ca=self.ca_file, token=self.admin_token) as client:
            client.call("PUT", "/v1/policy", body=PolicyDocument(text=text), response=PolicyDiff)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
