"""The SPIFFE Workload API (SPIFFE_Workload_API.md), for one connection.

A stream gives the full state at once and after each change: what is absent from a message is taken away. Before each one the caller is
looked at again. WIT-SVIDs are not offered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import grpclib.const
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from grpclib.server import Stream

from handclasp.agent.content import Content
from handclasp.agent.socket import messages
from handclasp.agent.socket.calls import guarded, one_message, send, unimplemented
from handclasp.agent.socket.core import Caller, Core, Peer
from handclasp.agent.socket.issued import Key
from handclasp.agent.socket.match import Entitled
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.names import trust_domain_of
from handclasp.proto import workload_pb2 as pb

_MAX_AUDIENCES = 20
_MAX_AUDIENCE = 512


class WorkloadApi:
    """The calls of one connection."""

    def __init__(self, core: Core, peer: Peer) -> None:
        self._core, self._peer = core, peer

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        """Return the calls by their path; the standard's file has no package."""
        unary, stream = grpclib.const.Cardinality.UNARY_UNARY, grpclib.const.Cardinality.UNARY_STREAM
        table: dict[str, tuple[Any, grpclib.const.Cardinality, type[Message], type[Message]]] = {
            "FetchX509SVID": (self.fetch_x509_svid, stream, pb.X509SVIDRequest, pb.X509SVIDResponse),
            "FetchX509Bundles": (self.fetch_x509_bundles, stream, pb.X509BundlesRequest, pb.X509BundlesResponse),
            "FetchJWTSVID": (self.fetch_jwt_svid, unary, pb.JWTSVIDRequest, pb.JWTSVIDResponse),
            "FetchJWTBundles": (self.fetch_jwt_bundles, stream, pb.JWTBundlesRequest, pb.JWTBundlesResponse),
            "ValidateJWTSVID": (self.validate_jwt_svid, unary, pb.ValidateJWTSVIDRequest, pb.ValidateJWTSVIDResponse),
            "FetchWITSVID": (unimplemented, stream, pb.X509SVIDRequest, pb.X509SVIDResponse),
            "FetchWITBundles": (unimplemented, stream, pb.X509BundlesRequest, pb.X509BundlesResponse),
        }
        return {
            f"/SpiffeWorkloadAPI/{name}": grpclib.const.Handler(guarded(call, header=True), cardinality, request, reply)
            for name, (call, cardinality, request, reply) in table.items()
        }

    # --- X.509 ------------------------------------------------------------------------------------------------------------------------

    async def fetch_x509_svid(self, stream: Stream[pb.X509SVIDRequest, pb.X509SVIDResponse]) -> None:
        """Give every X.509-SVID of the caller, with its bundle, those of federated trust domains, and revocation lists."""
        await one_message(stream)
        await self._follow(stream, self._x509_svids, carries=True)

    async def _x509_svids(self, caller: Caller) -> pb.X509SVIDResponse:
        core = self._core
        await core.first(caller.entitled)
        answer = pb.X509SVIDResponse()
        for item in caller.entitled:
            content = core.issued.content(item)
            if content is not None:
                answer.svids.append(self._x509_svid(item, content))
        if not answer.svids:
            raise core.none_yet(caller.entitled)
        for trust_domain in caller.federated:
            if anchors := messages.certificates(core.bundle(trust_domain)):
                answer.federated_bundles[f"spiffe://{trust_domain}"] = b"".join(anchors)
        answer.crl.extend(self._crls(caller))
        return answer

    def _x509_svid(self, item: Entitled, content: Content) -> pb.X509SVID:
        bundle = self._core.bundle(trust_domain_of(item.identity)) or content.bundle
        return pb.X509SVID(
            spiffe_id=item.identity,
            x509_svid=b"".join(messages.certificates(content.certificate + b"\n" + content.chain)),
            x509_svid_key=messages.pkcs8(content.key),
            bundle=b"".join(messages.certificates(bundle)),
            hint=item.hint,
        )

    def _crls(self, caller: Caller) -> list[bytes]:
        lists = (messages.revocation_lists(self._core.trust.crl(td)) for td in (*caller.trust_domains, *caller.federated))
        return [crl for one in lists for crl in one]

    async def fetch_x509_bundles(self, stream: Stream[pb.X509BundlesRequest, pb.X509BundlesResponse]) -> None:
        """Give the anchors of every trust domain that the caller may trust."""
        await one_message(stream)
        await self._follow(stream, self._x509_bundles)

    async def _x509_bundles(self, caller: Caller) -> pb.X509BundlesResponse:
        answer = pb.X509BundlesResponse(crl=self._crls(caller))
        for trust_domain in (*caller.trust_domains, *caller.federated):
            if anchors := messages.certificates(self._core.bundle(trust_domain)):
                answer.bundles[f"spiffe://{trust_domain}"] = b"".join(anchors)
        if not answer.bundles:
            raise HandclaspError(Kind.UNAVAILABLE, "there is no trust bundle yet")
        return answer

    # --- JWT --------------------------------------------------------------------------------------------------------------------------

    async def fetch_jwt_svid(self, stream: Stream[pb.JWTSVIDRequest, pb.JWTSVIDResponse]) -> None:
        """Give a JWT-SVID for each identity that may have one, or for the one that is asked for."""
        request = await one_message(stream)
        audience = list(dict.fromkeys(request.audience))
        if not audience or len(audience) > _MAX_AUDIENCES or not all(0 < len(text) <= _MAX_AUDIENCE for text in audience):
            raise HandclaspError(Kind.BAD_REQUEST, "an audience is needed, or there are too many or too long ones")
        caller = await self._core.caller(self._peer)
        items = [item for item in caller.entitled if item.workload.jwt and request.spiffe_id in ("", item.identity)]
        if not items:
            raise HandclaspError(Kind.NOT_ALLOWED, "no JWT-SVID is issued to the calling process for that identity")
        answer = pb.JWTSVIDResponse()
        for item in {item.identity: item for item in reversed(items)}.values():
            token = await self._core.tokens.get(item.identity, audience)
            answer.svids.append(pb.JWTSVID(spiffe_id=item.identity, svid=token, hint=item.hint))
        first = [item.identity for item in items]
        answer.svids.sort(key=lambda svid: first.index(svid.spiffe_id))
        if self._peer.process is not None:
            self._peer.process.check()  # obtaining them has taken its time
        await send(stream, answer)

    async def fetch_jwt_bundles(self, stream: Stream[pb.JWTBundlesRequest, pb.JWTBundlesResponse]) -> None:
        """Give the JWT keys of every trust domain that the caller may trust."""
        await one_message(stream)
        await self._follow(stream, self._jwt_bundles)

    async def _jwt_bundles(self, caller: Caller) -> pb.JWTBundlesResponse:
        bundles = {td: self._core.trust.jwks(td) for td in (*caller.trust_domains, *caller.federated)}
        if not any(bundles.values()):
            raise HandclaspError(Kind.UNAVAILABLE, "there is no trust bundle yet")
        return pb.JWTBundlesResponse(bundles={f"spiffe://{td}": messages.jwks(bundle) for td, bundle in bundles.items() if bundle})

    async def validate_jwt_svid(self, stream: Stream[pb.ValidateJWTSVIDRequest, pb.ValidateJWTSVIDResponse]) -> None:
        """Check a JWT-SVID for a caller that cannot."""
        from handclasp.pki.bundles import parse_spiffe_bundle  # they take memory, and few callers need them
        from handclasp.pki.jwt_svid import verify_jwt_svid

        request = await one_message(stream)
        caller = await self._core.caller(self._peer)
        if not request.audience:
            raise HandclaspError(Kind.BAD_REQUEST, "an audience is needed")
        keys = {}
        for trust_domain in (*caller.trust_domains, *caller.federated):
            with contextlib.suppress(HandclaspError):  # one that cannot be read vouches for nothing
                keys[trust_domain] = parse_spiffe_bundle(messages.jwks(self._core.trust.jwks(trust_domain)), trust_domain).jwt_keys
        try:
            checked = verify_jwt_svid(request.svid, [request.audience], keys, self._core.clock())
        except HandclaspError as error:
            raise HandclaspError(Kind.NOT_AUTHENTICATED, error.detail) from error
        claims = Struct()
        try:
            claims.update(checked)
        except (ValueError, TypeError, RecursionError) as error:
            raise HandclaspError(Kind.BAD_REQUEST, "the token has claims that cannot be given") from error
        await send(stream, pb.ValidateJWTSVIDResponse(spiffe_id=str(checked["sub"]), claims=claims))

    # --- streams ----------------------------------------------------------------------------------------------------------------------

    async def _follow(self, stream: Stream[Any, Any], state: Callable[[Caller], Awaitable[Message]], *, carries: bool = False) -> None:
        """Send the state now and whenever it has changed, for as long as the caller is what it is."""
        core, sent = self._core, b""
        held: tuple[Key, ...] = ()
        try:
            while True:
                before = core.mark(None)
                caller = await core.caller(self._peer)
                if carries:
                    held = core.issued.hold([item.key for item in caller.entitled], held)
                mark = core.mark(caller)
                message = await state(caller)
                if self._peer.process is not None:
                    self._peer.process.check()
                data = message.SerializeToString(deterministic=True)
                if data != sent:
                    await send(stream, message)
                    sent = data
                if core.mark(None) == before:
                    await core.changed(caller, mark)
        finally:
            core.issued.hold((), held)
