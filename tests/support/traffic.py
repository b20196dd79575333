"""Clients that never stop: they visit a service all the time while something happens to it, and keep count of what was lost."""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
import threading
import time
from typing import Self


class Busy:
    """Does one thing after the other in a thread while the block runs, each on a connection of its own, and keeps count."""

    pause = 0.01
    """Seconds between two."""

    def __init__(self) -> None:
        self.requests = 0
        self.failures: list[str] = []
        self.served: list[str] = []
        """Fingerprints of the certificates that it met, in the order in which it met them."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self.pause):
            self.requests += 1
            try:
                self.once()
            except Exception as error:  # ssl has its own, when a server goes away between connect and handshake
                self.failures.append(f"{time.time():.3f} {type(error).__name__}: {error}")

    def once(self) -> None:
        """Do it; raise when it fails."""
        raise NotImplementedError

    def met(self, certificate: bytes | None) -> None:
        """Note the certificate (DER) that was served."""
        served = hashlib.sha256(certificate or b"").hexdigest()
        if served not in self.served:
            self.served.append(served)


class Caller(Busy):
    """Makes requests of a service that lets in who has a client certificate."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        super().__init__()
        self._port, self._context = port, context

    def once(self) -> None:
        """Ask for the page, and demand that it says so."""
        connection = http.client.HTTPSConnection("localhost", self._port, timeout=20, context=self._context)
        try:
            connection.request("GET", "/")
            certificate = connection.sock.getpeercert(binary_form=True)
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b"SUCCESS\n")
        finally:
            connection.close()
        self.met(certificate)


class Echo(Busy):
    """Handshakes and echoes, as a client that verifies."""

    pause = 0.002

    def __init__(self, port: int, trust: str) -> None:
        """``trust``: anchors, PEM."""
        super().__init__()
        self._port, self._context = port, ssl.create_default_context(cadata=trust)

    def once(self) -> None:
        """Send a byte and get it back."""
        with (
            socket.create_connection(("127.0.0.1", self._port), 20) as plain,
            self._context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            certificate = connection.getpeercert(binary_form=True)
        self.met(certificate)
