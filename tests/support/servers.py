"""Real ``handclasp`` server processes: started, killed, started again; and clients that remember every answer they got."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import asyncpg

from handclasp import wire
from handclasp.client.api import ApiClient
from handclasp.errors import HandclaspError
from handclasp.log.notes import parse_vkey
from handclasp.log.verify import verify_directory
from handclasp.pki import keys
from handclasp.pki.chains import to_pem
from support.authorities import make_csr
from support.postgres import byte_code
from support.waiting import eventually

WEB = "spiffe://example.org/prod/web"


def environment(fault: str = "") -> dict[str, str]:
    """Return what a process of ours is started with. Byte code is kept for the run: compiling it costs more than the rest of a start."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("HANDCLASP_") and name != "PYTHONDONTWRITEBYTECODE"}
    known |= byte_code() | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return known | ({"HANDCLASP_FAULT": fault} if fault else {})


def command(verb: str, data: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "handclasp", verb, "--data", str(data), *options]


def init(data: Path, *options: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    """Run ``handclasp init``."""
    arguments = command("init", data, "--trust-domain", "example.org", "--crl-shards", "2", *options)
    return subprocess.run(arguments, env=environment(fault), capture_output=True, text=True, timeout=60)


class Server:
    """One run of ``handclasp up`` (or ``serve``) on free loopback ports."""

    def __init__(self, data: Path, *options: str, verb: str = "up", fault: str = "") -> None:
        self.data = data
        self.ready_file = data.with_name(f"{data.name}.ready.json")
        self.ready_file.unlink(missing_ok=True)
        self.log_file = data.with_name(f"{data.name}.stderr")
        listeners = ["--https", "127.0.0.1:0", "--http", "127.0.0.1:0", "--name", "127.0.0.1", "--ready-file", str(self.ready_file)]
        arguments = command(verb, data, *listeners, "--rate-refused", "100000", "--log-format", "json", *options)
        with self.log_file.open("ab") as output:
            self.process = subprocess.Popen(arguments, env=environment(fault), stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        self.facts: dict[str, Any] = {}

    def ready(self) -> Server:
        """Wait until everything listens."""
        eventually(lambda: self.ready_file.exists() or self.process.poll() is not None, 60, "the server is ready")
        assert self.ready_file.exists(), self.errors()
        self.facts = json.loads(self.ready_file.read_text())
        return self

    def errors(self) -> str:
        return self.log_file.read_text(errors="replace")[-6000:]

    @property
    def url(self) -> str:
        return str(self.facts["https"])

    @property
    def ca(self) -> str:
        return str(self.data / "ca.pem")

    def client(self, token: str | None = None, **more: Any) -> ApiClient:
        """Return a client with a token, by default the admin's."""
        return ApiClient(self.url, ca=self.ca, token=token or (self.data / "admin.token").read_text().strip(), attempts=1, **more)

    def token(self, **wanted: Any) -> str:
        """Make a token."""
        known: dict[str, Any] = {"name": "web", "allow": [WEB], "profiles": ["workload"], "uses": 0, "expires": "1h"}
        with self.client() as client:
            return client.call("POST", "/v1/tokens", body=wire.TokenRequest(**(known | wanted)), response=wire.TokenCreated).token

    def stop(self) -> int:
        """Ask it to end, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def workers(self) -> list[int]:
        """Return the process ids of its workers."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]


@dataclass
class Load:
    """Clients that issue (and now and then revoke) until they are told to stop or the server is gone; each its own key and connection."""

    server: Server
    token: str
    clients: int = 3
    revoke_every: int = 0
    fresh_connections: bool = False
    on_connection: Callable[[ssl.SSLSocket], None] | None = None
    answered: list[wire.Issued] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)
    failures: list[HandclaspError] = field(default_factory=list)
    stop_at_failure: bool = True
    _stopping: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._run) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        csr = to_csr_pem(make_csr(keys.generate("p256")))
        done = 0
        while not self._stopping.is_set():
            try:
                with self.server.client(self.token, timeout=15) as client, self.server.client(timeout=15) as admin:
                    while not self._stopping.is_set():
                        issued = client.issue(wire.IssueRequest(csr=csr))
                        self.answered.append(issued)
                        done += 1
                        if self.revoke_every and done % self.revoke_every == 0:
                            admin.revoke(issued.sha256, wire.RevokeRequest(reason="superseded"))
                            self.revoked.append(issued.sha256)
                        if self.fresh_connections:
                            break
            except HandclaspError as error:
                self.failures.append(error)
                if self.stop_at_failure:
                    return
                time.sleep(0.02)


def to_csr_pem(der: bytes) -> str:
    return to_pem(der).replace("CERTIFICATE-", "CERTIFICATE REQUEST-")


@dataclass
class Stored:
    """What a database holds."""

    certificates: dict[str, int]
    entries: dict[int, dict[str, Any]]
    raw: dict[int, bytes]
    head: int


def read_sqlite(data: Path) -> Stored:
    """Read the database of a server on SQLite, which may be running."""
    connection = sqlite3.connect(f"file:{data / 'handclasp.db'}?mode=ro", uri=True)
    try:
        connection.execute("BEGIN")
        return _stored(*(connection.execute(query).fetchall() for query in _QUERIES))
    finally:
        connection.close()


def read_postgresql(url: str) -> Stored:
    async def run() -> list[list[Any]]:
        connection = await asyncpg.connect(url)
        try:
            async with connection.transaction(isolation="repeatable_read"):
                return [await connection.fetch(query) for query in _QUERIES]
        finally:
            await connection.close()

    return _stored(*asyncio.run(run()))


_QUERIES = ["SELECT sha256, log_index FROM certificate", 'SELECT "index", entry FROM log_entry', "SELECT size FROM log_head"]


def _stored(certificates: list[Any], entries: list[Any], head: list[Any]) -> Stored:
    raw = {index: bytes(data) for index, data in entries}
    parsed = {index: json.loads(data) for index, data in raw.items()}
    return Stored({bytes(sha256).hex(): index for sha256, index in certificates}, parsed, raw, head[0][0])


def check_stored(stored: Stored, answered: list[wire.Issued], revoked: list[str]) -> None:
    """Fail unless every answer is there, rows and entries are one to one, and the log has no gap."""
    assert sorted(stored.entries) == list(range(stored.head))
    issued = {
        entry["what"]["sha256"]: index
        for index, entry in stored.entries.items()
        if entry["type"] in ("certificate.issued", "certificate.renewed")
    }
    assert issued == stored.certificates
    for one in answered:
        assert stored.certificates[one.sha256] == one.log_entry
    logged = {entry["what"]["sha256"] for entry in stored.entries.values() if entry["type"] == "certificate.revoked"}
    assert set(revoked) <= logged


def check_log(data: Path, read: Callable[[], Stored], aside: Path) -> int:
    """Copy the log as anybody may, verify the copy offline against the log's key, and compare it with the rows; return its size.

    The rows are read after the copy: a server that runs adds both all the time, and the rows are there first.
    """
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    shutil.copy(data / "log" / "checkpoint", aside / "checkpoint")  # first: the log only ever adds to what it speaks of
    _copy_tree(data / "log" / "tile", aside / "tile")
    report = verify_directory(aside, [parse_vkey((data / "log.vkey").read_text().strip())])
    assert report.ok, [str(problem) for problem in report.problems]
    assert report.entries <= read().head
    return report.entries


def _copy_tree(source: Path, target: Path) -> None:
    """Copy what is there; partial tiles that are replaced by the full one meanwhile are left out, and the full one is there then."""
    for _ in range(20):
        try:
            shutil.copytree(source, target, dirs_exist_ok=True)
        except (shutil.Error, FileNotFoundError):
            continue
        return
    raise AssertionError("the log cannot be copied")


def wait_for_log(data: Path, size: int) -> None:
    """Wait until the checkpoint speaks for ``size`` entries."""
    checkpoint = data / "log" / "checkpoint"
    eventually(lambda: checkpoint.exists() and int(checkpoint.read_text().splitlines()[1]) >= size, 30, f"a checkpoint of {size}")
