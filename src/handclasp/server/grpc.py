"""The gRPC listener: HTTP/2 over TLS for the doors that speak gRPC, with limits for peers that are slow, many or mad."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from grpclib.config import Configuration
from grpclib.const import Handler as Method
from grpclib.encoding.proto import ProtoCodec
from grpclib.events import _DispatchServerEvents  # grpclib's handler wants one; nothing listens to it here
from grpclib.metadata import decode_metadata
from grpclib.protocol import H2Protocol, Stream
from grpclib.server import Handler
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.events import RequestReceived
from h2.exceptions import H2Error, StreamClosedError

from handclasp.access.limits import network_key
from handclasp.server.tls import OneWrite, SwappableTls

MAX_CONNECTIONS = 4096
MAX_RUNNING = 2048
"""Requests under way in one process; each connection may have 100 of them (the ``h2`` library announces that)."""
MAX_OF_ONE = 512
"""Of these, requests from one network: a few connections that begin requests and never end them must not be the end of it for all."""
MAX_CONTROL = 10_000  # pings, settings and the like after a request: each is answered, read or not (CVE-2019-9512, CVE-2019-9515)
MAX_RESETS = 1000  # requests that one connection may take back (CVE-2023-44487); clients that time out do that now and then
IDLE = 300.0  # seconds without a request, after which a connection is told to go; clients connect again when they need to
HANDSHAKE = 10.0  # seconds a TLS handshake may take

# A connection's window is what it can have us hold; one request has one message of at most 64 KiB.
_CONFIG = Configuration(
    _keepalive_time=60.0,
    _keepalive_timeout=20.0,
    _keepalive_permit_without_calls=True,
    _http2_max_pings_without_data=0,
    _http2_min_sent_ping_interval_without_data=30.0,
    http2_connection_window_size=1024 * 1024,
    http2_stream_window_size=128 * 1024,
).__for_server__()
_H2 = H2Configuration(
    client_side=False,
    header_encoding="ascii",
    validate_inbound_headers=False,  # it would end the whole connection for one odd header of one request; _readable looks
    validate_outbound_headers=False,
    normalize_inbound_headers=False,
    normalize_outbound_headers=False,
)


class _Requests(Handler):
    """The requests of one connection."""

    def __init__(self, listener: GrpcListener) -> None:
        super().__init__(listener.methods, ProtoCodec(), None, _DispatchServerEvents())
        self._listener = listener
        self.network = ""

    def accept(self, stream: Stream, headers: list[tuple[str, str]], release_stream: Callable[[], Any]) -> None:
        """Take one request, or refuse it before anything is done for it: then a client may send it again elsewhere."""
        busy = self._listener.is_busy_for(self.network)
        if busy or not _readable(headers):
            with contextlib.suppress(StreamClosedError):  # taken back by the peer, in the very bytes that brought it
                stream.reset_nowait(ErrorCodes.REFUSED_STREAM if busy else ErrorCodes.PROTOCOL_ERROR)
            release_stream()
            return
        super().accept(stream, headers, release_stream)
        self._listener.started(self._tasks[stream], self.network)

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return all(task.done() for task in (*self._tasks.values(), *self._cancelled))

    def cancel(self, stream: Stream) -> None:
        """End the work for a request that was taken back; of one that was never begun there is none."""
        if stream in self._tasks:
            super().cancel(stream)


class _Connection(H2Protocol):
    """One connection: grpclib's, with an end for peers that take more than their share."""

    def __init__(self, listener: GrpcListener) -> None:
        self._listener = listener
        self.requests = _Requests(listener)
        super().__init__(self.requests, _CONFIG, _H2)
        self.transport: asyncio.Transport | None = None
        self.used_at = 0.0
        self.control = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many."""
        loop = asyncio.get_running_loop()
        self.transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self.requests.network = network_key(peer[0]) if isinstance(peer, tuple) else ""
        self.used_at = loop.time()
        super().connection_made(OneWrite(transport, loop))  # type: ignore[arg-type]
        if not self._listener.opened(self):
            self.abort()

    def data_received(self, data: bytes) -> None:
        """Take bytes. What is not HTTP/2 ends the connection, and what of HTTP/2 is not needed is passed over (RFC 9113, section 5.5)."""
        if self.connection.is_closing():
            return
        try:
            events = self.connection.feed(data)
        except (H2Error, UnicodeError, ValueError, IndexError, KeyError):  # of h2, and of the decoders below it
            self.connection.flush()  # it says why
            self.processor.close("Protocol error")
            return
        self.connection.flush()
        for event in events:
            self.control = 0 if isinstance(event, RequestReceived) else self.control + 1
            if type(event) in getattr(self.processor, "processors", ()):
                self.processor.process(event)
        if self.connection.is_closing():
            return
        self.connection.flush()
        if self.requests._tasks:
            self.used_at = asyncio.get_running_loop().time()
        if self.connection.streams_failed > MAX_RESETS or self.control > MAX_CONTROL:
            self.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        self._listener.lost(self)

    def abort(self) -> None:
        """End it at once."""
        if self.transport is not None:
            self.transport.abort()

    def leave(self) -> None:
        """Say that no more requests are taken (GOAWAY), and close."""
        if not self.connection.is_closing():
            self.connection._connection.close_connection()
            self.connection.flush()
            self.processor.close("Closed by the server")

    def close_if_idle(self, now: float, limit: float) -> None:
        """End it if nothing was asked for so long; ``limit`` is for who never asked anything."""
        if not self.requests.is_idle:
            self.used_at = now
        elif now - self.used_at > (IDLE if self.connection.streams_started else limit):
            self.leave()


class GrpcListener:
    """Serves methods on one listening socket, in the event loop of the process."""

    def __init__(self, methods: Iterable[Mapping[str, Method]], tls: SwappableTls, *, limit: float) -> None:
        """``limit`` is how many seconds a connection may take to ask for anything."""
        # What peers do wrong is no news, and what goes wrong here is logged by the doors.
        logging.getLogger("grpclib").setLevel(logging.CRITICAL)
        self.methods = {path: method for mapping in methods for path, method in mapping.items()}
        self.running = 0
        self._running_of: Counter[str] = Counter()
        self.stopping = False
        self._tls = tls
        self._limit = limit
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self, bound: socket.socket) -> None:
        """Accept connections on a listening socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self),
            sock=bound,
            ssl=self._tls.outer,
            backlog=2048,
            ssl_handshake_timeout=HANDSHAKE,
            ssl_shutdown_timeout=5.0,
        )
        self._watch = loop.create_task(self._keep_watch(), name="grpc")

    async def stop(self, grace: float) -> None:
        """Accept nothing new, let requests under way end for up to ``grace`` seconds, and close every connection."""
        assert self._server is not None
        assert self._watch is not None
        self.stopping = True
        self._server.close()
        self._watch.cancel()
        loop = asyncio.get_running_loop()
        until = loop.time() + grace
        while self.running and loop.time() < until:  # noqa: ASYNC110  (tasks end one by one, and it is a matter of milliseconds)
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.leave()
        until = loop.time() + 1
        while self._connections and loop.time() < until:  # noqa: ASYNC110  (what was answered has to get out first)
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.abort()

    async def _keep_watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(5.0, self._limit))
            for connection in list(self._connections):
                connection.close_if_idle(loop.time(), self._limit)

    def opened(self, connection: _Connection) -> bool:
        """Note a connection; return whether there is room for it."""
        self._connections.add(connection)
        return len(self._connections) <= MAX_CONNECTIONS

    def lost(self, connection: _Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)

    def is_busy_for(self, network: str) -> bool:
        """Return whether a request from a network is one too many."""
        return self.stopping or self.running >= MAX_RUNNING or self._running_of[network] >= MAX_OF_ONE

    def started(self, task: asyncio.Task[None], network: str) -> None:
        """Count a request until it ends."""
        self.running += 1
        self._running_of[network] += 1
        task.add_done_callback(lambda ended: self._ended(ended, network))

    def _ended(self, task: asyncio.Task[None], network: str) -> None:
        self.running -= 1
        self._running_of[network] -= 1
        if not self._running_of[network]:
            del self._running_of[network]
        if not task.cancelled():
            task.exception()  # it is the door that logs; unread, the loop would print it


def _readable(headers: list[tuple[str, str]]) -> bool:
    """Tell whether the headers are ones that grpclib reads without stumbling."""
    names = {name for name, _ in headers}
    if any(name.endswith("-bin") for name in names):
        try:
            decode_metadata(headers)
        except ValueError:  # base64
            return False
    return {":method", ":path"} <= names
