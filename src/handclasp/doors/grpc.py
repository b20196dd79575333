"""Doors that speak gRPC: a unary method from the message to the answer, and each kind of error as a status. The pattern of every such door.

A door gives a method (path, message types, a coroutine) and gets limits, timeouts, log entries and metrics; it raises
:class:`HandclaspError` for whatever it does not do.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError, Message
from grpclib.const import Cardinality, Handler, Status
from grpclib.server import Stream
from h2.exceptions import H2Error
from prometheus_client import Counter, Histogram

from handclasp.access.limits import network_key
from handclasp.access.masking import masked
from handclasp.access.principals import KubernetesPrincipal, Principal
from handclasp.doors.rooms import Rooms
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.request import Source
from handclasp.log.entries import make_entry
from handclasp.store.writes import Write

STATUS: Mapping[Kind, Status] = {
    Kind.BAD_REQUEST: Status.INVALID_ARGUMENT,
    Kind.BAD_CSR: Status.INVALID_ARGUMENT,
    Kind.BAD_PROOF: Status.INVALID_ARGUMENT,
    Kind.BAD_NAME: Status.INVALID_ARGUMENT,
    Kind.BAD_POLICY: Status.INVALID_ARGUMENT,
    Kind.BAD_PROFILE: Status.INVALID_ARGUMENT,
    Kind.BAD_SETTING: Status.INVALID_ARGUMENT,
    Kind.BAD_CERTIFICATE: Status.INVALID_ARGUMENT,
    Kind.BAD_KEY: Status.INVALID_ARGUMENT,
    # Not RESOURCE_EXHAUSTED, as gRPC libraries say themselves: clients send that again, and it would be as large.
    Kind.TOO_LARGE: Status.INVALID_ARGUMENT,
    Kind.UNSUPPORTED_MEDIA_TYPE: Status.INVALID_ARGUMENT,
    Kind.UNKNOWN_PROFILE: Status.INVALID_ARGUMENT,
    Kind.WEAK_KEY: Status.INVALID_ARGUMENT,
    Kind.BLOCKED_KEY: Status.PERMISSION_DENIED,
    Kind.REUSED_KEY: Status.PERMISSION_DENIED,
    Kind.NOT_AUTHENTICATED: Status.UNAUTHENTICATED,
    Kind.TOKEN_UNKNOWN: Status.UNAUTHENTICATED,
    Kind.TOKEN_EXPIRED: Status.UNAUTHENTICATED,
    Kind.TOKEN_SPENT: Status.UNAUTHENTICATED,
    Kind.TOKEN_REVOKED: Status.UNAUTHENTICATED,
    Kind.NOT_ALLOWED: Status.PERMISSION_DENIED,
    Kind.NAME_NOT_ALLOWED: Status.PERMISSION_DENIED,
    Kind.PROFILE_NOT_ALLOWED: Status.PERMISSION_DENIED,
    Kind.LIFETIME_NOT_ALLOWED: Status.PERMISSION_DENIED,
    Kind.SUPERSEDED: Status.PERMISSION_DENIED,
    Kind.REVOKED: Status.PERMISSION_DENIED,
    Kind.REPLAYED: Status.PERMISSION_DENIED,
    Kind.LINT_FAILED: Status.FAILED_PRECONDITION,
    Kind.UNKNOWN_AUTHORITY: Status.FAILED_PRECONDITION,
    Kind.NOT_FOUND: Status.NOT_FOUND,
    Kind.METHOD_NOT_ALLOWED: Status.UNIMPLEMENTED,
    # What clients try again: RESOURCE_EXHAUSTED, ABORTED, UNAVAILABLE, DEADLINE_EXCEEDED, INTERNAL.
    Kind.RATE_LIMITED: Status.RESOURCE_EXHAUSTED,
    Kind.CONFLICT: Status.ABORTED,
    Kind.UNAVAILABLE: Status.UNAVAILABLE,
    Kind.TIMEOUT: Status.DEADLINE_EXCEEDED,
    Kind.VERIFY_FAILED: Status.INTERNAL,
    Kind.TAMPERED: Status.INTERNAL,
    Kind.INTERNAL: Status.INTERNAL,
    Kind.DELIVERY_FAILED: Status.INTERNAL,
}
"""The gRPC status of each kind; a test holds that no kind is missing. Who is not known gets UNAUTHENTICATED and nobody else does."""

REQUESTS = Counter("handclasp_grpc_requests_total", "gRPC requests answered, by method and status.", ["method", "status"])
SECONDS = Histogram(
    "handclasp_grpc_request_seconds", "Time to answer a gRPC request, by method.", ["method"], buckets=(0.005, 0.02, 0.1, 0.5, 2, 10)
)
REFUSED = Counter("handclasp_grpc_refused_total", "gRPC requests refused or failed, by kind.", ["kind"])

MAX_MESSAGE = 64 * 1024
"""Bytes: a certificate request has 16 KiB at most, and the metadata beside it a few hundred."""

_LOGGED = frozenset({Status.UNAUTHENTICATED, Status.PERMISSION_DENIED})
_FAILED = frozenset({Status.INTERNAL, Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED})
_SILENT = frozenset({Kind.INTERNAL, Kind.VERIFY_FAILED, Kind.TAMPERED})
"""Kinds whose detail is about our machinery: it goes to the server's log, not to the caller."""
_log = logging.getLogger("handclasp.grpc")

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)
Report = Callable[[HandclaspError], None]
"""Told of each error that is the server's own, so that the health of the process can show it."""


@dataclass(slots=True)
class Call:
    """One request, besides its message."""

    metadata: Mapping[str, Any]
    """What came with the request; names in lower case."""
    source: Source
    certificate: bytes | None
    """SHA-256 of the client certificate that the handshake proved."""
    caller: Principal | None = None
    """Set by the door as soon as it is known."""
    logs_itself: bool = False
    """Set by the door where from now on a refusal is a log entry already."""

    @property
    def bearer(self) -> str | None:
        """The bearer token; None where nothing is claimed. Raises ``not_authenticated`` for another kind of authorization."""
        value = self.metadata.get("authorization")
        if value is None:
            return None
        scheme, _, token = str(value).partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise HandclaspError(Kind.NOT_AUTHENTICATED, "the authorization metadata must be: Bearer TOKEN")
        return token.strip()


class Unary(Generic[Request, Reply]):
    """One unary method of a door."""

    def __init__(
        self, rooms: Rooms, door: str, path: str, request: type[Request], reply: type[Reply],
        work: Callable[[Call, Request], Awaitable[Reply]], report: Report,
    ) -> None:  # fmt: skip
        self._rooms = rooms
        self._door = door
        self._path = path
        self._request = request
        self._reply = reply
        self._work = work
        self._report = report
        self._seconds = SECONDS.labels(path)

    def mapping(self) -> dict[str, Handler]:
        """Return it as grpclib's server wants it."""
        return {self._path: Handler(self._answer, Cardinality.UNARY_UNARY, self._request, self._reply)}

    async def _answer(self, stream: Stream[Request, Reply]) -> None:
        """Answer one request; whatever goes wrong becomes a status."""
        began = time.perf_counter()
        call = Call(stream.metadata or {}, Source(self._door, _address(stream)), _certificate(stream))
        status = Status.OK
        try:
            async with asyncio.timeout(self._rooms.request_timeout):  # over the receiving and the sending too: peers can be slow
                answer: Reply | HandclaspError
                try:
                    answer = await self._work(call, self._decode(await _receive(stream)))
                except HandclaspError as error:
                    answer = await self._refuse(error, call)
                except Exception as error:  # the last line of defence: a bug must not end the connection or show its inside
                    _log.exception("unexpected error in %s", self._path)
                    answer = await self._refuse(HandclaspError(Kind.INTERNAL, f"unexpected {type(error).__name__}"), call)
                status = await _send(stream, answer)
        except H2Error:  # the peer took its request back, or broke the protocol: there is nobody to answer
            status = Status.CANCELLED
        except TimeoutError:
            status = Status.DEADLINE_EXCEEDED
            with contextlib.suppress(Exception):  # the peer may not take it either
                async with asyncio.timeout(1):
                    await stream.send_trailing_metadata(status=status, status_message="this took too long")
        finally:
            self._seconds.observe(time.perf_counter() - began)
            REQUESTS.labels(self._path, status.name).inc()

    def _decode(self, data: bytes) -> Request:
        message = self._request()
        try:
            message.ParseFromString(data)
        except (DecodeError, RecursionError) as error:
            raise HandclaspError(Kind.BAD_REQUEST, "the message cannot be read") from error
        return message

    async def _refuse(self, error: HandclaspError, call: Call) -> HandclaspError:
        """Log what was a decision and is not in the log yet, slow down who is refused all the time; return what is to be answered."""
        rooms, status = self._rooms, STATUS[error.kind]
        REFUSED.labels(error.kind.value).inc()
        if status in _FAILED:
            self._report(error)
            _log.error("%s: %s", self._path, error)
            return error
        if error.kind is Kind.RATE_LIMITED:
            return error
        if call.caller is not None:
            rooms.refused_limit.owe(limit_key(call.caller))
        if status in _LOGGED and call.source.address is not None:
            try:
                rooms.refused_limit.check(network_key(call.source.address))
            except HandclaspError as limited:
                return limited
            if not call.logs_itself:
                await self._log_refusal(error, call)
        return error

    async def _log_refusal(self, error: HandclaspError, call: Call) -> None:
        detail = masked(error.detail)[:500]  # whoever runs the mesh reads it here: proxies log little of what they are answered
        entry = make_entry(
            "access.refused",
            at=self._rooms.clock(),
            who=call.caller.to_log() if call.caller is not None else {"kind": "unknown"},
            what={"method": "grpc", "path": self._path},
            why={"kind": error.kind.value} | ({} if "@" in detail else {"reason": detail}),
            source=call.source.to_log(),
            personal={"reason": detail} if "@" in detail else None,
        )
        with contextlib.suppress(HandclaspError):  # the database is away: the refusal stands all the same
            await self._rooms.store.ledger.commit(Write([entry]))


def check_limits(rooms: Rooms, caller: Principal) -> None:
    """Count one request of a caller; raise ``rate_limited`` when it is one too many, or too many were refused."""
    key = limit_key(caller)
    rooms.principal_limit.check(key)
    rooms.refused_limit.settle(key)


def limit_key(caller: Principal) -> str:
    """Return what a caller counts as."""
    return caller.caller if isinstance(caller, KubernetesPrincipal) else caller.describe()


async def _receive(stream: Stream[Any, Any]) -> bytes:
    """Return the one message of a unary request.

    grpclib's own way would wait for as many bytes as the peer announces, up to 4 GB.
    """
    incoming = stream._stream  # the framed stream below; it has no public name
    try:
        head = await incoming.recv_data(5)
    except AssertionError as error:  # the stream ended before that; so grpclib says it
        raise HandclaspError(Kind.BAD_REQUEST, "the message is cut short") from error
    if not head:
        raise HandclaspError(Kind.BAD_REQUEST, "the request has no message")
    size = int.from_bytes(head[1:], "big")
    if head[0]:
        raise HandclaspError(Kind.BAD_REQUEST, "compressed messages are not taken")
    if size > MAX_MESSAGE:
        raise HandclaspError(Kind.TOO_LARGE, f"a message has {MAX_MESSAGE} bytes at most")
    try:
        return await incoming.recv_data(size)
    except AssertionError as error:
        raise HandclaspError(Kind.BAD_REQUEST, "the message is cut short") from error


async def _send(stream: Stream[Any, Any], answer: Message | HandclaspError) -> Status:
    if not isinstance(answer, HandclaspError):
        await stream.send_message(answer)
        return Status.OK
    status = STATUS[answer.kind]
    words = "something is wrong inside the server; its log says what" if answer.kind in _SILENT else answer.detail
    if answer.hint and answer.kind not in _SILENT:
        words = f"{words}; {answer.hint}"
    await stream.send_trailing_metadata(status=status, status_message=words[:1000], metadata={"handclasp-kind": answer.kind.value})
    return status


def _address(stream: Stream[Any, Any]) -> str | None:
    peer = stream.peer.addr()
    return peer[0] if isinstance(peer, tuple) else None


def _certificate(stream: Stream[Any, Any]) -> bytes | None:
    connection = stream.peer._transport.get_extra_info("ssl_object")  # grpclib shows only some fields of the certificate
    der = connection.getpeercert(binary_form=True) if connection is not None else None
    return hashlib.sha256(der).digest() if der else None
