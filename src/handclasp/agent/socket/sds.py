"""Envoy's Secret Discovery Service on the same socket (xDS, state of the world), for one connection.

    first request          answered at once (after the first certificate has come)
    same nonce, no error   ACK: nothing is sent until something changes
    same nonce and error   NACK: Envoy keeps what it has; said in the log and to the server, and sent again only when it is something else
    other names            answered at once
    old nonce              left alone: the answer to it is on its way

Names are those of SPIRE, so that its Envoy configurations work unchanged. Delta requests are not offered; Envoy does without.
"""

from __future__ import annotations

import asyncio
import secrets as random
from dataclasses import dataclass, field
from typing import Any

import grpclib.const
from grpclib.server import Stream

from handclasp.agent.socket.calls import guarded, one_message, send, unimplemented
from handclasp.agent.socket.core import Caller, Core, Peer
from handclasp.agent.socket.crls import complete_crl
from handclasp.agent.socket.issued import Key
from handclasp.agent.socket.secrets import SECRET, Known, response
from handclasp.errors import HandclaspError, Kind
from handclasp.proto import sds_pb2 as pb

_MAX_NAMES = 100
_MAX_NAME = 2060


@dataclass
class _State:
    """One stream: what was asked for last, and what was sent last."""

    names: tuple[str, ...] | None = None
    version: str = ""
    nonce: str = ""
    held: tuple[Key, ...] = ()
    again: bool = field(default=False)
    """Whether an answer is due although nothing has changed."""


class SecretDiscovery:
    """The calls of one connection."""

    def __init__(self, core: Core, peer: Peer) -> None:
        self._core, self._peer = core, peer

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        """Return the calls by their path."""
        unary, stream = grpclib.const.Cardinality.UNARY_UNARY, grpclib.const.Cardinality.STREAM_STREAM
        table = {
            "StreamSecrets": (self.stream_secrets, stream),
            "DeltaSecrets": (unimplemented, stream),
            "FetchSecrets": (self.fetch_secrets, unary),
        }
        return {
            f"/envoy.service.secret.v3.SecretDiscoveryService/{name}": grpclib.const.Handler(
                guarded(call, header=False), cardinality, pb.DiscoveryRequest, pb.DiscoveryResponse
            )
            for name, (call, cardinality) in table.items()
        }

    async def fetch_secrets(self, stream: Stream[pb.DiscoveryRequest, pb.DiscoveryResponse]) -> None:
        """Give secrets once."""
        request = await one_message(stream)
        names = _names(request)
        caller = await self._core.caller(self._peer)
        answer = await self._answer(caller, names)
        await send(stream, answer)

    async def stream_secrets(self, stream: Stream[pb.DiscoveryRequest, pb.DiscoveryResponse]) -> None:
        """Give secrets now and whenever they change."""
        inbox: asyncio.Queue[pb.DiscoveryRequest | None] = asyncio.Queue(8)
        failure: list[Exception] = []
        reader = asyncio.create_task(_read(stream, inbox, failure))
        state = _State()
        try:
            first = await inbox.get()
            while first is not None and not self._take(state, first):
                first = await inbox.get()
            if first is not None:
                await self._serve(stream, state, inbox)
            if failure:
                raise failure[0]
        finally:
            reader.cancel()
            self._core.issued.hold((), state.held)

    async def _serve(
        self, stream: Stream[pb.DiscoveryRequest, pb.DiscoveryResponse], state: _State, inbox: asyncio.Queue[pb.DiscoveryRequest | None]
    ) -> None:
        core = self._core
        while True:
            before = core.mark(None)
            caller = await core.caller(self._peer)
            mark = core.mark(caller)
            await self._push(stream, state, caller)
            if core.mark(None) != before:
                continue
            if not await self._next(state, inbox, caller, mark):
                return

    async def _push(self, stream: Stream[pb.DiscoveryRequest, pb.DiscoveryResponse], state: _State, caller: Caller) -> None:
        known, names = self._known(caller), state.names or ()
        keys = [item.key for name in (names or known.all()) if (item := known.certificate(name)) is not None]
        state.held = self._core.issued.hold(keys, state.held)
        answer = await self._answer(caller, names)
        if answer.version_info == state.version and not state.again:
            return
        state.again, state.version, state.nonce = False, answer.version_info, random.token_hex(8)
        answer.nonce = state.nonce
        if self._peer.process is not None:
            self._peer.process.check()
        await send(stream, answer)

    async def _next(self, state: _State, inbox: asyncio.Queue[pb.DiscoveryRequest | None], caller: Caller, mark: tuple[int, ...]) -> bool:
        """Wait until an answer may be due; False when the stream has ended."""
        changed = asyncio.create_task(self._core.changed(caller, mark))
        asked = asyncio.create_task(inbox.get())
        try:
            while True:
                await asyncio.wait((changed, asked), return_when=asyncio.FIRST_COMPLETED)
                if asked.done():
                    request = asked.result()
                    if request is None:
                        return False
                    if self._take(state, request):
                        return True
                    asked = asyncio.create_task(inbox.get())
                if changed.done():
                    return True
        finally:
            # A request that was taken out of the queue and not looked at would be lost.
            if not asked.cancel() and not asked.cancelled() and (late := asked.result()) is not None:
                self._take(state, late)
            changed.cancel()

    def _take(self, state: _State, request: pb.DiscoveryRequest) -> bool:
        """Take in a request, and return whether an answer is due."""
        names = _names(request)
        if request.response_nonce and request.response_nonce != state.nonce:
            return False
        if request.response_nonce and request.HasField("error_detail"):
            who = request.node.id[:100] or f"process {self._peer.process.pid if self._peer.process else 0}"
            words = " ".join(request.error_detail.message.split())[:300]
            self._core.problem(f"sds {self._peer.uid} {names}", f"Envoy ({who}) does not take the secret {', '.join(names)[:200]}: {words}")
        elif request.response_nonce:
            self._core.well(f"sds {self._peer.uid} {names}")
        again = names != state.names or not request.response_nonce
        state.names, state.again = names, state.again or again
        return again

    async def _answer(self, caller: Caller, names: tuple[str, ...]) -> pb.DiscoveryResponse:
        known = self._known(caller)
        unknown = [name for name in names if not known.knows(name)]
        if unknown:
            raise HandclaspError(
                Kind.BAD_REQUEST, f"the workload is not authorized for the requested identities: {', '.join(unknown)[:500]}"
            )
        wanted = names or known.all()
        certificates = [item for name in wanted if (item := known.certificate(name)) is not None]
        await self._core.first(certificates)
        found = [secret for name in wanted if (secret := known.secret(name)) is not None]
        if len(found) < len(wanted) and (names or not found):
            raise self._core.none_yet(certificates)
        return response(found)

    def _known(self, caller: Caller) -> Known:
        core = self._core

        def crl(trust_domain: str) -> bytes:
            if not core.settings.sds.crl:
                return b""
            return complete_crl(core.trust.crl(trust_domain), core.bundle(trust_domain), core.clock())

        return Known(
            entitled=caller.entitled,
            trust_domains=tuple(caller.trust_domains),
            federated=tuple(caller.federated),
            content=core.issued.content,
            bundle=core.bundle,
            crl=crl,
            names=core.settings.sds,
        )


async def _read(
    stream: Stream[pb.DiscoveryRequest, Any], inbox: asyncio.Queue[pb.DiscoveryRequest | None], failure: list[Exception]
) -> None:
    """Put requests into the queue as they come; None at the end, and what ended them."""
    try:
        while (request := await stream.recv_message()) is not None:
            await inbox.put(request)
    except (AssertionError, NotImplementedError):
        failure.append(HandclaspError(Kind.BAD_REQUEST, "the request did not come whole"))
    except Exception as error:  # handed to the task that answers, which raises it
        failure.append(error)
    await inbox.put(None)


def _names(request: pb.DiscoveryRequest) -> tuple[str, ...]:
    """Return the names asked for, each once. Raises ``bad_request``."""
    if request.type_url not in ("", SECRET):
        raise HandclaspError(Kind.BAD_REQUEST, f"only {SECRET} is served here")
    names = tuple(dict.fromkeys(name for name in request.resource_names if name))
    if len(names) > _MAX_NAMES or any(len(name) > _MAX_NAME for name in names):
        raise HandclaspError(Kind.BAD_REQUEST, "too many names, or too long ones")
    return names
