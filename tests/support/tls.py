"""A TLS service to connect to, and credentials written the way the agent writes them."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from handclasp.client import peer_identity
from support.fake_server import DOMAIN, FakeAuthority, pem

WEB, API = f"spiffe://{DOMAIN}/prod/web", f"spiffe://{DOMAIN}/prod/api"


def write(directory: Path, authority: FakeAuthority, spiffe: str = WEB, *, trust: list[FakeAuthority] | None = None) -> None:
    """Write a set of files the way the agent does: a directory of its own, and one rename of a link."""
    number = len(list(directory.iterdir())) if directory.exists() else 0
    home = directory / f"g{number}"
    home.mkdir(parents=True)
    certificate, key = authority.credential(spiffe=spiffe, dns=["localhost"])
    (home / "cert.pem").write_bytes(certificate)
    (home / "key.pem").write_bytes(key)
    (home / "bundle.pem").write_text("".join(pem(one.root) for one in trust or [authority]))
    link = directory / "new"
    link.symlink_to(home.name)
    link.rename(directory / "current")


@contextmanager
def echo(context: ssl.SSLContext, port: int = 0) -> Iterator[tuple[int, list[str]]]:
    """A threaded TLS echo server; yields its port and the list of peers that came."""
    listener = socket.create_server(("127.0.0.1", port))
    peers: list[str] = []

    def serve(plain: socket.socket) -> None:
        try:
            with context.wrap_socket(plain, server_side=True) as connection:
                if connection.getpeercert():
                    peers.append(peer_identity(connection))
                while data := connection.recv(100):
                    connection.sendall(data)
        except OSError:
            plain.close()

    def accept() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(plain,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], peers
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@contextmanager
def connected(context: ssl.SSLContext, port: int) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        yield connection


def ask(connection: ssl.SSLSocket) -> bytes | None:
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"
    return connection.getpeercert(binary_form=True)
