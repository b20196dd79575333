"""One connection: HTTP/2 by grpclib, with the peer known, and with bounds on everything that the other end can make grow."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import grpclib.const
import grpclib.protocol
import h2.config
from grpclib.config import Configuration
from grpclib.const import Status
from grpclib.encoding.proto import ProtoCodec
from grpclib.events import _DispatchServerEvents
from grpclib.exceptions import GRPCError
from grpclib.server import Handler
from h2.errors import ErrorCodes

from handclasp.agent.socket.calls import MAX_MESSAGE, Offered
from handclasp.agent.socket.core import Core, Peer
from handclasp.agent.socket.limits import Limits
from handclasp.agent.socket.proc import Process
from handclasp.agent.socket.sds import SecretDiscovery
from handclasp.agent.socket.workload import WorkloadApi
from handclasp.errors import HandclaspError

_log = logging.getLogger("handclasp.agent.socket")
_MAX_UNSENT = 1024 * 1024
"""Bytes that wait for somebody who does not read, or only asks for answers to pings."""
FIRST_CALL = 30.0
"""Seconds within which a connection must be used for something."""
STUCK = 60.0
"""Seconds after which one that takes no byte of what waits for it is ended."""
_CONFIG = Configuration(
    _keepalive_time=60.0,
    _keepalive_timeout=20.0,
    _keepalive_permit_without_calls=True,
    _http2_max_pings_without_data=0,
    _http2_min_sent_ping_interval_without_data=30,
    http2_connection_window_size=65535,
    http2_stream_window_size=65535,
).__for_server__()


class _Calls(Handler):
    """Begins the calls of one connection, as far as its user may have more of them."""

    def __init__(self, mapping: dict[str, grpclib.const.Handler], limits: Limits, uid: int) -> None:
        super().__init__(mapping, ProtoCodec(), None, _DispatchServerEvents())
        self._limits, self._uid = limits, uid
        self.began = 0

    def accept(self, stream: grpclib.protocol.Stream, headers: list[tuple[str, str]], release_stream: Callable[[], Any]) -> None:
        """Begin a call, or refuse it: to gRPC that is ``Unavailable``, which clients repeat later."""
        self.began += 1
        if not self._limits.begin(self._uid):
            release_stream()
            stream.reset_nowait(ErrorCodes.REFUSED_STREAM)
            return

        def release() -> None:
            self._limits.end(self._uid)
            release_stream()

        stream.recv_data = _bounded(stream)  # type: ignore[method-assign,assignment]
        super().accept(stream, headers, release)


def _bounded(stream: grpclib.protocol.Stream) -> Callable[[int], Any]:
    """Let a call read messages of a sensible size only: grpclib asks for as many bytes as the other end has said there are."""
    receive = stream.recv_data

    async def recv_data(size: int) -> bytes:
        if size > MAX_MESSAGE:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, f"a request of more than {MAX_MESSAGE} bytes")
        return await receive(size)

    return recv_data


class Connection(grpclib.protocol.H2Protocol):
    """One connection; ``gone`` is called with it when it has ended."""

    def __init__(self, core: Core, limits: Limits, gone: Callable[[Connection], None]) -> None:
        self._core, self._limits, self._gone = core, limits, gone
        self.peer = Peer(None)
        self._transport: asyncio.WriteTransport | None = None
        self._counted = False
        self._made = self._moved = time.monotonic()
        self._waiting = 0
        self._calls = _Calls({}, limits, -1)  # until it is known who it is
        super().__init__(
            self._calls,
            _CONFIG,
            h2.config.H2Configuration(
                client_side=False,
                header_encoding="ascii",
                validate_inbound_headers=True,
                validate_outbound_headers=False,
                normalize_inbound_headers=False,
                normalize_outbound_headers=False,
            ),
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Find out who it is, and begin."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self.peer = _peer(transport, self._core)
        self._counted = self._limits.connect(self.peer.uid)
        if not self._counted:
            _log.warning("user %d has too many connections", self.peer.uid)
        mapping = Offered(WorkloadApi(self._core, self.peer).__mapping__() | SecretDiscovery(self._core, self.peer).__mapping__())
        self.handler = self._calls = _Calls(mapping, self._limits, self.peer.uid)
        super().connection_made(transport)
        if not self._counted:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take bytes in; whatever they are, this connection is all that they can end."""
        try:
            super().data_received(data)
        except Exception as error:
            # h2 and grpclib raise many things for bytes that are no HTTP/2. None of them is worth a trace.
            _log.debug("user %d: %s", self.peer.uid, type(error).__name__)
            self.abort()
        else:
            if self._transport is not None and self._transport.get_write_buffer_size() > _MAX_UNSENT:
                self.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of everything."""
        super().connection_lost(exc)
        if self._counted:
            self._limits.disconnect(self.peer.uid)
        if self.peer.process is not None:
            process, self.peer.process, self.peer.why = self.peer.process, None, "the connection has ended"
            asyncio.get_running_loop().call_soon(process.close)
        self._gone(self)

    def look(self, now: float) -> None:
        """End it when it is of no use: nothing asked in time, or what waits for it not taken."""
        transport = self._transport
        if transport is None:
            return
        waiting = transport.get_write_buffer_size()
        if waiting == 0 or waiting < self._waiting:
            self._moved = now
        self._waiting = waiting
        unused = not self._calls.began and now - self._made > FIRST_CALL
        if unused or now - self._moved > STUCK or (transport.is_closing() and now - self._moved > 5):
            self.abort()

    def abort(self) -> None:
        """End it now, whatever waits to be sent."""
        if self._transport is not None:
            self._transport.abort()

    def end(self) -> None:
        """End every call and, when what was said is on its way, the connection."""
        if self._transport is not None:
            self.processor.close("the agent ends")

    async def ended(self) -> None:
        """Wait until its calls have ended."""
        await self._calls.wait_closed()


def _peer(transport: asyncio.WriteTransport, core: Core) -> Peer:
    connection = transport.get_extra_info("socket")
    try:
        return Peer(Process.of_peer(connection, root=core.settings.proc))
    except HandclaspError as error:
        return Peer(None, error.detail)
