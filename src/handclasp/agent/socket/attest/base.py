"""What attestors have in common: what they return, and the small HTTP client with which two of them ask."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from handclasp.agent.socket.proc import Process
from handclasp.errors import HandclaspError, Kind

MAX_SELECTORS = 500
MAX_SELECTOR = 1024
_TEXT = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


class NotYetError(HandclaspError):
    """What a process is cannot be said yet: the kubelet does not list its pod so far. Ask again."""


class Attestor(Protocol):
    """Says what a process is. ``name`` is the first word of its selectors."""

    name: str

    def selectors(self, process: Process, wanted: frozenset[str] | None) -> list[str]:
        """Return selectors such as ``unix:uid:1000``; blocks, and may be called from several threads.

        ``wanted`` holds the kinds (``unix:sha256``) that somebody asks for, so that costly ones can be left out; None: all of them.
        Raises ``OSError``, :class:`HandclaspError`, or :class:`NotYetError`.
        """


def kind_of(selector: str) -> str:
    """Return the first two words of a selector: ``unix:path`` of ``unix:path:/usr/sbin/nginx``."""
    return ":".join(selector.split(":", 2)[:2])


def clean(selectors: Iterable[str]) -> list[str]:
    """Leave out what no policy can name: too long, too many, or with characters that a line of text does not have."""
    return [text for text in dict.fromkeys(selectors) if len(text) <= MAX_SELECTOR and _TEXT.fullmatch(text)][:MAX_SELECTORS]


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class NamedConnection(http.client.HTTPSConnection):
    """HTTPS to an address whose certificate carries another name than the address."""

    def __init__(self, host: str, port: int, name: str, *, timeout: float, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=timeout)
        self._name, self._ssl = name, context

    def connect(self) -> None:
        """Connect and make the handshake for the certificate's name."""
        bare = socket.create_connection((self.host, self.port), self.timeout)
        try:
            self.sock = self._ssl.wrap_socket(bare, server_hostname=self._name)
        except BaseException:
            bare.close()
            raise


def get_json(connection: http.client.HTTPConnection, target: str, headers: dict[str, str], *, most: int, seconds: float) -> Any:
    """Return the JSON at ``target`` and close the connection. ``most`` bytes and ``seconds`` bound the answer.

    Raises ``unavailable``, ``not_found`` for status 404, ``OSError``.
    """
    deadline = time.monotonic() + seconds
    try:
        connection.request("GET", target, headers={"Accept": "application/json", **headers})
        response = connection.getresponse()
        if response.status != 200:
            kind = Kind.NOT_FOUND if response.status == 404 else Kind.UNAVAILABLE
            raise HandclaspError(kind, f"status {response.status}")
        data = bytearray()
        while chunk := response.read1(262144):
            data += chunk
            if len(data) > most or time.monotonic() > deadline:
                raise HandclaspError(Kind.UNAVAILABLE, "the answer does not end")
        return msgspec.json.decode(bytes(data))
    except (http.client.HTTPException, msgspec.DecodeError, RecursionError, ValueError) as error:
        raise HandclaspError(Kind.UNAVAILABLE, f"the answer is not what it should be: {type(error).__name__}") from error
    finally:
        connection.close()


def inside(value: Any, *path: str) -> Any:
    """Return what is at ``path`` in nested mappings, or None where anything on the way is not one: answers are not to be believed."""
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def items(value: Any) -> list[Any]:
    """Return a list, or an empty one for anything else."""
    return value if isinstance(value, list) else []


def word(value: Any) -> str:
    """Return a text, or an empty one for anything else."""
    return value if isinstance(value, str) else ""
