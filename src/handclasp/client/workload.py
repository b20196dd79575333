"""A small client of the SPIFFE Workload API, ours or another's: for looking what a process gets, and for writing it to files.

Programs that follow their certificates are better served by a SPIFFE library of their language (``docs/workload-api.md``), or by
:class:`handclasp.client.TLSContext` over files that an agent delivers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from handclasp.errors import HandclaspError, Kind
from handclasp.proto import workload_pb2 as pb

DEFAULT_SOCKET = "/run/handclasp/workload.sock"
VARIABLE = "SPIFFE_ENDPOINT_SOCKET"
T = TypeVar("T")
_KINDS = {
    Status.PERMISSION_DENIED: Kind.NOT_ALLOWED,
    Status.INVALID_ARGUMENT: Kind.BAD_REQUEST,
    Status.UNIMPLEMENTED: Kind.NOT_FOUND,
    Status.RESOURCE_EXHAUSTED: Kind.RATE_LIMITED,
    Status.DEADLINE_EXCEEDED: Kind.TIMEOUT,
}
_HINTS = {
    Kind.NOT_ALLOWED: "`handclasp workload list -c agent.yaml --pid PID` says what a process lacks",
    Kind.UNAVAILABLE: "is the agent running, with a socket in its configuration?",
}


def socket_path(given: str | None = None) -> Path:
    """Return the socket's path: ``given``, that of ``SPIFFE_ENDPOINT_SOCKET``, or the usual one; ``unix:`` before it is fine.

    Raises ``bad_setting`` for an address that is no Unix socket.
    """
    text = given or os.environ.get(VARIABLE) or DEFAULT_SOCKET
    path = Path(text.removeprefix("unix://").removeprefix("unix:"))
    if not path.is_absolute() and (given is None or "://" in text):
        raise HandclaspError(Kind.BAD_SETTING, f"{text} is not the address of a Unix socket", hint="write it like unix:///run/x.sock")
    return path


def fetch_x509(path: Path, *, timeout: float = 30) -> pb.X509SVIDResponse:
    """Return the first message of FetchX509SVID: every certificate that this process may have.

    Raises ``not_allowed`` for a process that may have none, ``unavailable`` when nobody answers, ``timeout``.
    """

    async def fetch(channel: Channel, metadata: dict[str, str]) -> pb.X509SVIDResponse:
        method = UnaryStreamMethod(channel, "/SpiffeWorkloadAPI/FetchX509SVID", pb.X509SVIDRequest, pb.X509SVIDResponse)
        async with method.open(timeout=timeout, metadata=metadata) as stream:
            await stream.send_message(pb.X509SVIDRequest(), end=True)
            message = await stream.recv_message()
            if message is not None:
                await stream.cancel()
        if message is None:
            raise HandclaspError(Kind.UNAVAILABLE, "the stream ended without a message")
        return message

    return _run(path, fetch)


def fetch_jwt(path: Path, audience: Sequence[str], identity: str = "", *, timeout: float = 30) -> pb.JWTSVIDResponse:
    """Return JWT-SVIDs for ``audience``, of one identity or of all that this process has. Raises as :func:`fetch_x509`."""

    async def fetch(channel: Channel, metadata: dict[str, str]) -> pb.JWTSVIDResponse:
        method = UnaryUnaryMethod(channel, "/SpiffeWorkloadAPI/FetchJWTSVID", pb.JWTSVIDRequest, pb.JWTSVIDResponse)
        answer: pb.JWTSVIDResponse = await method(
            pb.JWTSVIDRequest(audience=audience, spiffe_id=identity), timeout=timeout, metadata=metadata
        )
        return answer

    return _run(path, fetch)


def _run(path: Path, fetch: Callable[[Channel, dict[str, Any]], Awaitable[T]]) -> T:
    async def run() -> T:
        channel = Channel(path=str(path))
        try:
            return await fetch(channel, {"workload.spiffe.io": "true"})
        finally:
            channel.close()

    try:
        return asyncio.run(run())
    except GRPCError as error:
        kind = _KINDS.get(error.status, Kind.UNAVAILABLE)
        raise HandclaspError(kind, error.message or error.status.name, hint=_HINTS.get(kind, "")) from error
    except TimeoutError as error:
        raise HandclaspError(Kind.TIMEOUT, f"the socket {path} did not answer in time") from error
    except (OSError, ProtocolError, StreamTerminatedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise HandclaspError(Kind.UNAVAILABLE, f"the socket {path} cannot be reached: {reason}", hint=_HINTS[Kind.UNAVAILABLE]) from error
