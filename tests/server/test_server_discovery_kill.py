"""kill -9 in the middle of a scan: the next start goes on with it, reads everything, and nothing is gone that was merely not read."""

from __future__ import annotations

import contextlib
import signal
import socket
import sqlite3
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import handclasp.server.run  # noqa: F401  (declares every point of the server)
from handclasp.client.api import ApiClient
from handclasp.errors import HandclaspError
from handclasp.faults import POINTS
from handclasp.wire.discovery import RunRequest, Scan, Source, SourceRequest, SourceScope
from support.fake_server import FakeAuthority
from support.servers import Server
from support.waiting import eventually

STRIKES = {"scan.placed": 2, "scan.recorded": 1}
"""Points and the passing at which they strike: one part of two is read, and then the other is recorded and not yet known to be read."""
THERE = "SELECT key FROM location WHERE gone_at IS NULL ORDER BY key"
HOSTS = 96  # addresses of loopback, of which a few are looked at at a time
SERVED = (3, 40, 90)
"""Those of them that have a server; any other port of theirs is closed."""


def test_every_point_of_a_scan_is_struck() -> None:
    assert {point for point in POINTS if point.startswith("scan.")} == set(STRIKES)


@contextmanager
def served(home: Path, hosts: tuple[int, ...]) -> Iterator[int]:
    """TLS servers at some addresses, on one port."""
    certificate, key = FakeAuthority().credential(dns=["app.example"])
    (home / "cert.pem").write_bytes(certificate)
    (home / "key.pem").write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "cert.pem", home / "key.pem")

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(1)

    def accept(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                pool.submit(answer, server.accept()[0])

    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(8))
        first = stack.enter_context(socket.create_server((f"127.0.9.{hosts[0]}", 0)))
        port = first.getsockname()[1]
        servers = [first, *(stack.enter_context(socket.create_server((f"127.0.9.{host}", port))) for host in hosts[1:])]
        threads = [threading.Thread(target=accept, args=[server]) for server in servers]
        for thread in threads:
            thread.start()
        yield port
        for server in servers:
            server.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def rows(data: Path, query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(f"file:{data / 'handclasp.db'}?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_killed_while_a_scan_goes_on(tmp_path: Path) -> None:
    """Each start goes on with the scan that the one before was killed in; the last one is left alone."""
    data = tmp_path / "data"
    with served(tmp_path, SERVED) as port:
        with Server(data, "--trust-domain", "example.org") as server, server.ready().client() as admin:
            settings = {"ports": [str(port)], "connections": 8, "rate": 1000.0, "host_rate": 1000.0, "parallel": 1}
            request = SourceRequest(
                name="lo", kind="network", settings=settings, scope=SourceScope(allow=["127.0.9.0/26", "127.0.9.64/27"])
            )
            admin.call("POST", "/v1/sources", body=request, response=Source)
            admin.call("POST", "/v1/sources/lo:run", body=RunRequest(), response=Scan)
            eventually(lambda: admin.call("GET", "/v1/sources/lo", response=Source).success_at is not None, what="the first scan")
            assert server.stop() == 0, server.errors()
        everything = rows(data, THERE)
        assert len(everything) == len(SERVED)
        for point, passing in STRIKES.items():
            with Server(data, fault=f"{point}:{passing}:kill") as server:
                eventually(lambda: server.ready_file.exists() or server.process.poll() is not None, 60)
                with contextlib.suppress(HandclaspError), server.ready().client() as admin:  # it goes on with a scan as soon as it is up
                    admin.call("POST", "/v1/sources/lo:run", body=RunRequest(), response=Scan)
                assert server.process.wait(60) == -signal.SIGKILL, server.errors()
            assert rows(data, THERE) == everything
            assert rows(data, "SELECT count(*) FROM scan WHERE state IN ('planning', 'running')") == [(1,)]
        with Server(data) as server, server.ready().client() as admin:
            eventually(lambda: last_scan(admin).state == "done", 60, "the scan ends")
            source = admin.call("GET", "/v1/sources/lo", response=Source)
            assert server.stop() == 0, server.errors()
    assert source.scan is not None
    assert (source.scan.read, source.scan.failed, source.scan.gone, source.problem) == (HOSTS, 0, 0, None)
    assert source.success_at == source.scan.created_at
    assert rows(data, THERE) == everything
    assert rows(data, "SELECT count(*) FROM sighting WHERE ended_at IS NOT NULL") == [(0,)]
    assert rows(data, "SELECT count(*) FROM scan") == [(2,)]


def last_scan(admin: ApiClient) -> Scan:
    scan = admin.call("GET", "/v1/sources/lo", response=Source).scan
    assert scan is not None
    return scan
