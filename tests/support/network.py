"""The network source read as the engine would, and what it is pointed at: certificates, an nginx, a server that does what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from handclasp.clock import system_clock
from handclasp.discovery.network.kind import NETWORK, NetworkSettings
from handclasp.discovery.source import Count, Covered, Failed, Observed, Reading, Scope
from handclasp.discovery.tools import Tools
from support.needs import needs
from support.programs import program
from support.waiting import eventually


def make(directory: Path, name: str, kind: str = "ecdsa", *, issuer: tuple[x509.Certificate, Any] | None = None) -> x509.Certificate:
    """Write a certificate for a name with its key, ``NAME.pem`` and ``NAME.key``, and return it."""
    key: Any = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    (directory / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (directory / f"{name}.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


NGINX = """\
daemon off; pid {home}/nginx.pid; error_log {home}/nginx.log notice; worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {home}/t1; proxy_temp_path {home}/t2; fastcgi_temp_path {home}/t3;
  uwsgi_temp_path {home}/t4; scgi_temp_path {home}/t5;
  {servers}
}}
"""


@contextmanager
def nginx(home: Path, servers: str) -> Iterator[None]:
    binary = needs("nginx")
    (home / "nginx.conf").write_text(NGINX.format(home=home, servers=servers))
    with program([binary, "-p", home, "-c", home / "nginx.conf"], home / "nginx.out") as process:
        eventually(lambda: (home / "nginx.pid").exists() or process.poll() is not None, what="nginx runs")
        assert process.poll() is None, (home / "nginx.out").read_text()
        yield


def read(scope: Scope, known: set[str] | None = None, place: str = "", **settings: Any) -> list[Reading]:
    """Return everything that a scan yields."""

    async def ask(_unit: str) -> frozenset[str]:
        return frozenset(known or ())

    async def run() -> list[Reading]:
        wanted = NetworkSettings(**{"rate": 5000.0, "host_rate": 5000.0, "timeout": "5s"} | settings)
        NETWORK.check(wanted, scope)
        tools = Tools(system_clock, system_clock(), scope, known=ask if known is not None else None)
        found: list[Reading] = []
        async for part in NETWORK.plan(wanted, scope, tools):
            found.append(Count(total=part.places))  # as the engine does
            reading = NETWORK.read(wanted, part, place, Tools(system_clock, tools.began_at, scope, known=tools.known))
            found += [item async for item in reading]
        return found

    return asyncio.run(run())


def observed(items: list[Reading]) -> list[Observed]:
    return [item for item in items if isinstance(item, Observed)]


def covered(items: list[Reading]) -> list[str]:
    """Return the units that are said to be listed whole, without the mark of the way in which they were looked at."""
    return sorted(item.unit.partition("~")[0] for item in items if isinstance(item, Covered))


def only(items: list[Reading]) -> Observed:
    (one,) = observed(items)
    return one


def counted(items: list[Reading]) -> tuple[int, int, int]:
    """Return total, read and failed as the engine adds them up."""
    total = sum(item.total for item in items if isinstance(item, Count))
    read_ = sum(item.read for item in items if isinstance(item, Count)) + sum(1 for one in observed(items) if one.problem is None)
    failed = sum(1 for one in observed(items) if one.problem) + sum(1 for item in items if isinstance(item, Failed))
    return total, read_, failed


def here(port: int, address: str = "127.0.0.1") -> tuple[Scope, dict[str, Any]]:
    return Scope(allow=[address]), {"ports": [str(port)]}


def answers(port: int, address: str = "127.0.0.1") -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
        return True
    return False


@contextmanager
def listening(handle: Callable[[socket.socket], object], address: str = "127.0.0.1", *, at_once: int = 8) -> Iterator[int]:
    """A server that does with each connection what it is told, in threads."""
    with socket.create_server((address, 0)) as server, ThreadPoolExecutor(at_once) as pool:
        ended = threading.Event()

        def one(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                connection.settimeout(10)
                handle(connection)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while not ended.is_set():
                    pool.submit(one, server.accept()[0])

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            ended.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
