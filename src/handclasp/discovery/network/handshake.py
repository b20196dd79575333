"""One look at a server: STARTTLS where there is one, a handshake, and what the server showed in it.

Blocking; runs in threads, of which each has its own contexts. The messages are taken from OpenSSL as they come, so that a chain which
cannot be parsed, a handshake that a missing client certificate ends, or one that breaks off half-way still show what was sent.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from handclasp.client.connections import unverified_context
from handclasp.client.starttls import NoTLS, begin
from handclasp.discovery.network.messages import (
    CERTIFICATE,
    CERTIFICATE_REQUEST,
    TLS12,
    TLS13,
    read_authorities,
    read_chain,
)
from handclasp.errors import HandclaspError

Asked: TypeAlias = Literal["any", "rsa", "ecdsa"]
"""Which key the server's certificate may have: the one that it prefers, or one of these two."""
VERSIONS = {TLS12: "1.2", TLS13: "1.3"}
_CIPHERS = {
    # Level 0: a key or a signature that is too weak to be trusted is what we are here to find.
    "any": "DEFAULT:@SECLEVEL=0",
    # TLS 1.2 chooses the certificate by the cipher; TLS 1.3 has no such ciphers, so the other certificate is asked for with 1.2.
    "rsa": "aRSA:!aNULL:!eNULL@SECLEVEL=0",
    "ecdsa": "aECDSA:!aNULL:!eNULL@SECLEVEL=0",
}
MAX_HANDSHAKE = 512 * 1024
"""Bytes that a server may send: OpenSSL takes chains of 100 KiB at most."""
PATIENCE = {"smtp": 3.0}
"""Times the timeout for what comes before TLS: a mail server may let its guests wait before it greets them (Postfix's postscreen: 6 s)."""
_HANDSHAKE = 22  # content type, RFC 8446 section 5.1
_OTHER_NAME = frozenset({"TLSV1_UNRECOGNIZED_NAME", "TLSV1_ALERT_UNRECOGNIZED_NAME"})
_local = threading.local()


@dataclass(slots=True)
class Shown:
    """What a server showed."""

    chain: list[bytes] = field(default_factory=list)
    """As it came, leaf first, DER that nobody has parsed; empty where there is none."""
    version: str = ""
    """``1.2`` or ``1.3``."""
    requested: bool = False
    """Whether it asked for a client certificate."""
    authorities: list[bytes] = field(default_factory=list)
    """Names (DER) of the authorities that it says it takes."""
    problem: str = ""
    """Why there is no chain; empty where there is one."""
    nothing: bool = False
    """There is no certificate for what was asked, and the server said so: an absence, and no problem."""


def look(connection: socket.socket, protocol: str, server_name: str | None, asked: Asked, timeout: float) -> Shown:
    """Return what the server at the other end of ``connection`` shows, and close the connection; raises nothing.

    ``protocol`` is ``tls`` or one of :data:`handclasp.client.starttls.STARTTLS`; ``timeout`` (seconds) bounds what comes before TLS (three
    times as long for mail servers), and the handshake.
    """
    shown, limit = Shown(), timeout * PATIENCE.get(protocol, 1.0)
    try:
        begin("none" if protocol == "tls" else protocol, connection, timeout=limit)
        limit = timeout
        _handshake(connection, server_name, asked, shown, timeout)
    except NoTLS as error:
        shown.problem = str(error)
    except ssl.SSLError as error:
        shown.nothing = _is_absence(error, asked)
        shown.problem = f"no handshake: {_words(error)}"
    except TimeoutError:
        shown.problem = f"no handshake within {limit:g} s"
    except OSError as error:
        shown.nothing = asked != "any"  # some servers hang up where they have nothing in common with us
        shown.problem = f"no handshake: {(error.strerror or type(error).__name__).lower()}"
    except ValueError:  # a name that cannot be sent
        shown.problem = "the name that is asked for cannot be sent"
    finally:
        connection.close()
    if shown.chain:  # whatever came after it: a client certificate that it misses, a signature that is wrong
        shown.problem, shown.nothing = "", False
    elif not shown.problem:
        shown.problem = "it showed no certificate"
    return shown


def _handshake(connection: socket.socket, server_name: str | None, asked: Asked, shown: Shown, timeout: float) -> None:
    """Do the handshake over buffers, so that its length and its time are ours to bound.

    OpenSSL reads on for as long as there is something to read: a server that sends empty HelloRequests without end would keep it for ever,
    whatever the socket's timeout.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    deadline, received = time.monotonic() + timeout, 0
    _local.shown = shown
    try:
        tls = _context(asked).wrap_bio(incoming, outgoing, server_hostname=server_name)
        while not _is_through(tls):
            _send(connection, outgoing, deadline)
            data = _receive(connection, deadline)
            received += len(data)
            if received > MAX_HANDSHAKE:
                raise NoTLS("it sends more than any handshake needs")
            if data:
                incoming.write(data)
            else:
                incoming.write_eof()
        _send(connection, outgoing, deadline)
    finally:
        _local.shown = None


def _is_through(tls: ssl.SSLObject) -> bool:
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _send(connection: socket.socket, outgoing: ssl.MemoryBIO, deadline: float) -> None:
    if data := outgoing.read():
        connection.settimeout(_left(deadline))
        connection.sendall(data)


def _receive(connection: socket.socket, deadline: float) -> bytes:
    connection.settimeout(_left(deadline))
    return connection.recv(16_384)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _context(asked: Asked) -> ssl.SSLContext:
    contexts: dict[str, ssl.SSLContext] = _local.__dict__.setdefault("contexts", {})
    if asked not in contexts:
        context = unverified_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if asked != "any":
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(_CIPHERS[asked])
        context.options |= getattr(ssl, "OP_LEGACY_SERVER_CONNECT", 0x4)  # a server without RFC 5746 has certificates all the same
        # There in CPython from 3.8 on, for debugging; it alone shows the messages of a handshake that does not come to its end.
        context._msg_callback = _hear  # type: ignore[attr-defined]
        contexts[asked] = context
    return contexts[asked]


def _hear(_connection: Any, direction: str, version: int, content_type: int, _kind: int, data: bytes) -> None:
    """Take what the server sends; called by OpenSSL, inside the handshake of this very thread."""
    shown: Shown | None = getattr(_local, "shown", None)
    if shown is None or direction != "read" or int(content_type) != _HANDSHAKE or not data:
        return
    number = int(version)
    try:
        if data[0] == CERTIFICATE:
            shown.chain = read_chain(bytes(data), number)
            shown.version = VERSIONS.get(number, "")
        elif data[0] == CERTIFICATE_REQUEST:
            shown.requested = True
            shown.authorities = read_authorities(bytes(data), number)
    except HandclaspError:
        pass  # OpenSSL ends such a handshake by itself, and says why


def _is_absence(error: ssl.SSLError, asked: Asked) -> bool:
    """Tell whether the server says that it has no such certificate."""
    if asked == "any":
        return (error.reason or "") in _OTHER_NAME
    return "ALERT" in (error.reason or "") or isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError))


def _words(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLEOFError) or (error.reason or "") == "UNEXPECTED_EOF_WHILE_READING":
        return "it closed the connection"
    reason = (error.reason or "").replace("_", " ").lower()
    if reason in ("wrong version number", "http request", "record layer failure", "packet length too long", "unknown protocol"):
        return "it does not speak TLS"
    return reason or "TLS failed"
