"""What every call goes through: its header, its one message, our errors as gRPC's, and no call that goes on for ever."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpclib.const
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.server import Stream
from h2.exceptions import H2Error

from handclasp.errors import HandclaspError, Kind

_log = logging.getLogger("handclasp.agent.socket")
HEADER = "workload.spiffe.io"
RECEIVE = 10.0
"""Seconds for a request that was begun to arrive."""
SEND = 30.0
"""Seconds for an answer to be taken by who asked for it."""
MAX_MESSAGE = 65536
"""Bytes of a request: the largest sensible one is a list of audiences or of secrets' names."""

_STATUS = {
    Kind.BAD_REQUEST: Status.INVALID_ARGUMENT,
    Kind.BAD_NAME: Status.INVALID_ARGUMENT,
    Kind.NOT_AUTHENTICATED: Status.INVALID_ARGUMENT,
    Kind.NOT_ALLOWED: Status.PERMISSION_DENIED,
    Kind.NAME_NOT_ALLOWED: Status.PERMISSION_DENIED,
    Kind.UNAVAILABLE: Status.UNAVAILABLE,
    Kind.TIMEOUT: Status.UNAVAILABLE,
    Kind.RATE_LIMITED: Status.RESOURCE_EXHAUSTED,
    Kind.TOO_LARGE: Status.RESOURCE_EXHAUSTED,
}
Call = Callable[[Any], Awaitable[None]]
M = TypeVar("M")


class StuckError(Exception):
    """The other end does not take what it asked for. The connection is ended: a stream that is stuck holds its answer in memory."""


def guarded(call: Call, *, header: bool) -> Call:
    """Return a call that raises nothing but gRPC's errors. With ``header`` it demands that of the Workload Endpoint, section 4.4."""

    @functools.wraps(call)
    async def run(stream: Stream[Any, Any]) -> None:
        if header and (stream.metadata is None or stream.metadata.get(HEADER) != "true"):
            raise GRPCError(Status.INVALID_ARGUMENT, f"the header {HEADER}: true is missing")
        try:
            await call(stream)
        except HandclaspError as error:
            raise GRPCError(_STATUS.get(error.kind, Status.UNAVAILABLE), error.detail) from None
        except (GRPCError, StreamTerminatedError, asyncio.CancelledError):
            raise
        except H2Error:
            # The stream has been ended by the other side, and there is nobody left to hear of it.
            raise StreamTerminatedError("the stream has ended") from None
        except StuckError:
            stream._stream._transport.abort()
        except DecodeError:
            raise GRPCError(Status.INVALID_ARGUMENT, "the request is not the message that this call takes") from None
        except Exception:
            # The caller's bytes are no reason for this one, so it is ours: one call fails, with a trace of it.
            if not stream._stream._transport.is_closing():
                _log.exception("unexpected")
            raise GRPCError(Status.INTERNAL, "something went wrong here") from None

    return run


async def one_message(stream: Stream[M, Any]) -> M:
    """Return the request of a call that has one. Raises ``bad_request`` for none."""
    try:
        message = await asyncio.wait_for(stream.recv_message(), RECEIVE)
    except (TimeoutError, AssertionError, NotImplementedError) as error:
        raise HandclaspError(Kind.BAD_REQUEST, "the request did not come whole") from error
    if message is None:
        raise HandclaspError(Kind.BAD_REQUEST, "the request did not come")
    return message


async def send(stream: Stream[Any, M], message: M) -> None:
    """Send an answer; raises :class:`StuckError` where it is not taken."""
    try:
        await asyncio.wait_for(stream.send_message(message), SEND)
    except TimeoutError:
        raise StuckError from None


class Offered(dict[str, grpclib.const.Handler]):
    """Calls by their path; for any other the one that says so, because grpclib's own answer lacks what gRPC clients look for first."""

    def get(self, key: str, default: object = None) -> grpclib.const.Handler:  # noqa: ARG002
        """Return the call at a path."""
        return super().get(key) or grpclib.const.Handler(unimplemented, grpclib.const.Cardinality.STREAM_STREAM, Empty, Empty)


async def unimplemented(_stream: Stream[Any, Any]) -> None:
    """Answer a call of the protocol that is not offered here (Workload Endpoint section 6)."""
    raise GRPCError(Status.UNIMPLEMENTED, "this call is not offered here")
