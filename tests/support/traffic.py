"""A client that makes handshakes all the time, verifies, and keeps count of what was lost."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading


class Traffic:
    """Handshakes and echoes, one after the other, as a client that verifies."""

    def __init__(self, port: int, trust: str) -> None:
        """``trust``: anchors, PEM."""
        self.port, self.done = port, 0
        self.lost: list[str] = []
        self.seen: list[str] = []
        self._context = ssl.create_default_context(cadata=trust)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            self.done += 1
            try:
                with (
                    socket.create_connection(("127.0.0.1", self.port), 20) as plain,
                    self._context.wrap_socket(plain, server_hostname="localhost") as connection,
                ):
                    connection.sendall(b"x")
                    if connection.recv(1) != b"x":
                        self.lost.append("no echo")
                    served = hashlib.sha256(connection.getpeercert(binary_form=True) or b"").hexdigest()
            except (OSError, ValueError, AttributeError) as error:  # ssl's own, when a server goes away between connect and handshake
                self.lost.append(repr(error))
                continue
            if served not in self.seen:
                self.seen.append(served)
