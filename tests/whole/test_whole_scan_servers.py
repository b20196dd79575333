"""One scan read by three servers on one database: one killed, one standing still, one stopped, and its numbers are right."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from handclasp.client.api import ApiClient
from handclasp.wire.discovery import RunRequest, Scan, Source, SourceRequest, SourceScope
from support.needs import needs
from support.network import make
from support.postgres import shared_cluster
from support.servers import Server, init
from support.waiting import eventually

PARTS, EACH = 6, 32
ADDRESSES = PARTS * EACH
WORKERS = 2


class Target:
    """One TLS server at every address of 127.0.0.0/8; knows how often each was connected to."""

    def __init__(self, home: Path) -> None:
        make(home, "site")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(home / "site.pem", home / "site.key")
        self.connected: Counter[str] = Counter()
        self.listener = socket.create_server(("0.0.0.0", 0), backlog=1024)
        self.port = self.listener.getsockname()[1]

    @contextmanager
    def running(self) -> Iterator[Target]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_until_complete, args=[self._serve()])
        thread.start()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(self._stop.set)
            thread.join()
            loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connected[writer.get_extra_info("sockname")[0]] += 1
            with contextlib.suppress(OSError):
                await reader.read(1)
                writer.close()
                await writer.wait_closed()

        async with await asyncio.start_server(answer, sock=self.listener, ssl=self._context):
            await self._stop.wait()


class Servers:
    """Servers of one installation, each with files of its own, on one database and one log."""

    def __init__(self, home: Path, url: str) -> None:
        self.url = url
        assert init(home / "data", "--database", url).returncode == 0
        (home / "data/log").mkdir(exist_ok=True)
        self.all: list[Server] = []
        for number in range(3):
            data = home / f"server-{number}"
            shutil.copytree(home / "data", data, ignore=shutil.ignore_patterns("log"))
            (data / "log").symlink_to(home / "data/log")
            self.all.append(Server(data, "--database", url, "--discovery-workers", str(WORKERS), verb="serve"))

    @contextmanager
    def running(self) -> Iterator[list[Server]]:
        with contextlib.ExitStack() as stack:
            for server in self.all:
                stack.enter_context(server)
            yield [server.ready() for server in self.all]

    def query(self, query: str, *values: Any) -> list[Any]:
        async def run() -> list[Any]:
            connection = await asyncpg.connect(self.url)
            try:
                return [tuple(row) for row in await connection.fetch(query, *values)]
            finally:
                await connection.close()

        return asyncio.run(run())

    def reading(self) -> dict[int, list[int]]:
        """Return the parts that each process has, by its id."""
        found: dict[int, list[int]] = {}
        for number, lease in self.query("SELECT number, leased_by FROM scan_part WHERE state = 'leased' AND number > 0"):
            found.setdefault(int(lease.split("/")[-2]), []).append(number)
        return found


def begin(admin: ApiClient) -> str:
    return admin.call("POST", "/v1/sources/lo:run", body=RunRequest(), response=Scan).id


def test_three_servers_one_killed_one_standing_still_one_left(tmp_path: Path) -> None:
    needs("postgresql")
    cluster = shared_cluster()
    name = cluster.create_database()
    try:
        with Target(tmp_path).running() as target:
            servers = Servers(tmp_path, cluster.url(name))
            with servers.running() as running, running[0].client() as admin:
                scanned(servers, running, admin, target)
    finally:
        cluster.drop_database(name)


def scanned(servers: Servers, running: list[Server], admin: ApiClient, target: Target) -> None:
    settings = {"ports": [str(target.port)], "rate": 60.0, "host_rate": 1000.0, "parallel": PARTS, "both": False}
    scope = SourceScope(allow=[f"127.{number}.7.0/27" for number in range(1, PARTS + 1)])
    admin.call("POST", "/v1/sources", body=SourceRequest(name="lo", kind="network", settings=settings, scope=scope), response=Source)
    scan = begin(admin)

    def now() -> Scan:
        return admin.call("GET", f"/v1/scans/{scan}", response=Scan)

    left, killed, still = running
    pids = {server.process.pid for server in running}
    eventually(lambda: set(servers.reading()) == pids and now().read > ADDRESSES / 8, what="all of them read")
    assert now().total == ADDRESSES
    still.process.send_signal(signal.SIGSTOP)
    killed.process.kill()
    killed.process.wait()
    lost = servers.reading()
    assert set(lost) == pids
    gone = f"UPDATE scan_part SET leased_until = 1 WHERE state = 'leased' AND leased_by ~ '/({killed.process.pid}|{still.process.pid})/'"
    servers.query(gone)  # what a minute does
    eventually(lambda: now().state == "done", 60, "the one that is left reads everything")
    os.kill(still.process.pid, signal.SIGCONT)
    for _ in lost[still.process.pid]:
        eventually(lambda: still.log_file.read_text().count("is not ours any more") >= len(lost[still.process.pid]), what="it is told")
    whole(servers, now())
    again = {number for pid in (killed.process.pid, still.process.pid) for number in lost[pid]}
    twice = {address for address, times in target.connected.items() if times > 1}
    assert len(target.connected) == ADDRESSES
    assert {int(address.split(".")[1]) for address in twice} <= again
    assert max(target.connected.values()) <= 3
    scan = begin(admin)
    eventually(lambda: len(servers.reading()) == 2 and now().read > ADDRESSES / 8, what="both of them read")
    assert still.stop() == 0, still.errors()
    eventually(lambda: now().state == "done", 60, "it goes on with what was given back")
    whole(servers, now())
    assert servers.query("SELECT max(attempts) FROM scan_part WHERE scan_id = $1", scan) in ([(1,)], [(None,)])
    assert left.process.poll() is None


def whole(servers: Servers, scan: Scan) -> None:
    assert (scan.state, scan.total, scan.read, scan.failed, scan.gone, scan.problem) == ("done", ADDRESSES, ADDRESSES, 0, 0, None)
    assert servers.query("SELECT count(*), count(gone_at), count(problem) FROM location WHERE kind = 'endpoint'") == [(ADDRESSES, 0, 0)]
    assert servers.query("SELECT count(*) FROM sighting WHERE ended_at IS NOT NULL") == [(0,)]
