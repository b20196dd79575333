"""``istio.v1.auth.IstioCertificateService/CreateCertificate``, in numbered steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from grpclib.const import Handler

from handclasp.access.clusterrules import Cluster
from handclasp.access.principals import CertificatePrincipal, KubernetesPrincipal
from handclasp.doors.grpc import Call, Unary, check_limits
from handclasp.doors.istio.shapes import account_of, chain_of, check_asks_only_for, identity_of
from handclasp.doors.rooms import Rooms
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.holders import holder_of
from handclasp.issuance.repeat import issued_before
from handclasp.issuance.request import IssuanceRequest, IssuedCertificate
from handclasp.pki.chains import to_pem
from handclasp.pki.csr import Csr, parse_csr
from handclasp.proto.istio_pb2 import IstioCertificateRequest, IstioCertificateResponse

DOOR = "istio"
PATH = "/istio.v1.auth.IstioCertificateService/CreateCertificate"


class IstioDoor:
    """Istio's certificate service. For one event loop; any number of requests at once."""

    def __init__(self, rooms: Rooms, report: Callable[[HandclaspError], None]) -> None:
        """``report`` is told of each error that is the server's own."""
        self._rooms = rooms
        self._unary = Unary(rooms, DOOR, PATH, IstioCertificateRequest, IstioCertificateResponse, self.create, report)
        self._running: dict[bytes, asyncio.Future[IssuedCertificate]] = {}

    def mapping(self) -> dict[str, Handler]:
        """Return its methods for the listener."""
        return self._unary.mapping()

    async def create(self, call: Call, message: IstioCertificateRequest) -> IstioCertificateResponse:
        """Issue a certificate to the caller, or raise why not."""
        # 1 Who calls: a service account by its token, or the holder of a certificate of ours.
        holder, cluster = await self._authenticate(call)
        # 2 For whom: itself, or (a node's proxy) a pod of its node. Never what the certificate request says.
        principal = await self._impersonate(call, holder, cluster, _text(message, "ImpersonatedIdentity"))
        identity = self._identity(principal, cluster)
        # 3 The certificate request may ask for exactly that, or for nothing.
        csr = parse_csr(message.csr)
        check_asks_only_for(csr, identity)
        # 4 Issue, or give again what was issued a moment ago.
        request = self._request(call, principal, cluster, csr, identity, message)
        issued = await self._once(call, request, csr, identity)
        # 5 Answer, in the form that both clients read.
        return IstioCertificateResponse(cert_chain=chain_of(to_pem(issued.der), issued.chain_pem, issued.bundle_pem))

    # --- 1 ------------------------------------------------------------------------------------------------------------------------------

    async def _authenticate(self, call: Call) -> tuple[KubernetesPrincipal | CertificatePrincipal, Cluster | None]:
        rooms, bearer = self._rooms, call.bearer
        if bearer is None and call.certificate is not None:
            holder = await holder_of(rooms, call.certificate)
            call.caller = holder
            check_limits(rooms, holder)
            return holder, None
        if bearer is None:
            raise HandclaspError(Kind.NOT_AUTHENTICATED, "this needs a service account token or a client certificate")
        rooms.clusters.use((await rooms.rulebook.current()).policy)
        name = str(call.metadata.get("clusterid", ""))
        cluster = rooms.clusters.find(name)
        if cluster is None:
            raise HandclaspError(
                Kind.NOT_AUTHENTICATED, "clusterid is not a cluster of the policy", hint="the name of a cluster is what its proxies send"
            )
        caller = await rooms.clusters.verify(cluster.name, bearer)
        call.caller = caller
        check_limits(rooms, caller)
        return caller, cluster

    # --- 2 ------------------------------------------------------------------------------------------------------------------------------

    async def _impersonate(
        self, call: Call, caller: KubernetesPrincipal | CertificatePrincipal, cluster: Cluster | None, wanted: str
    ) -> KubernetesPrincipal | CertificatePrincipal:
        if not wanted:
            return caller
        if cluster is None or not isinstance(caller, KubernetesPrincipal):
            raise HandclaspError(Kind.NOT_AUTHENTICATED, "only a node's proxy speaks for others, by its service account token")
        account = account_of(wanted, self._trust_domain(cluster))
        if account is None:
            raise HandclaspError(
                Kind.NOT_AUTHENTICATED,
                "ImpersonatedIdentity is not spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/NAME of this cluster's trust domain",
            )
        call.caller = principal = await self._rooms.clusters.impersonate(caller, *account)
        return principal

    def _trust_domain(self, cluster: Cluster) -> str:
        domain = cluster.trust_domain or next(iter(self._rooms.authorities.trust_domains), None)
        if domain is None:
            raise HandclaspError(Kind.UNKNOWN_AUTHORITY, "there is no trust domain yet", hint="handclasp init")
        return domain

    def _identity(self, principal: KubernetesPrincipal | CertificatePrincipal, cluster: Cluster | None) -> str:
        if isinstance(principal, KubernetesPrincipal) and cluster is not None:
            return identity_of(self._trust_domain(cluster), principal.namespace, principal.service_account)
        if not isinstance(principal, CertificatePrincipal) or principal.names.spiffe is None or principal.is_agent:
            raise HandclaspError(Kind.NOT_ALLOWED, "a workload's certificate with a SPIFFE ID is needed here")
        return principal.names.spiffe

    # --- 4 ------------------------------------------------------------------------------------------------------------------------------

    def _request(
        self, call: Call, principal: KubernetesPrincipal | CertificatePrincipal, cluster: Cluster | None, csr: Csr, identity: str,
        message: IstioCertificateRequest,
    ) -> IssuanceRequest:  # fmt: skip
        seconds = message.validity_duration
        return IssuanceRequest(
            principal=principal,
            csr=csr,
            source=call.source,
            identity=identity,
            profile=_text(message, "CertSigner") or (cluster.profile if cluster is not None else None),
            ttl=float(seconds) if seconds > 0 else None,
            or_shorter=True,
            predecessor=principal.sha256 if isinstance(principal, CertificatePrincipal) else None,
        )

    async def _once(self, call: Call, request: IssuanceRequest, csr: Csr, identity: str) -> IssuedCertificate:
        """Issue, unless this caller got a certificate for this very key a moment ago: its answer was lost, or it asks twice at once."""
        profile = request.profile or (request.principal.profile if isinstance(request.principal, CertificatePrincipal) else "")
        found = (await self._rooms.rulebook.current()).profiles.get(profile)
        while (running := self._running.get(csr.spki_sha256)) is not None:
            await asyncio.wait([running])
        if found is not None:
            earlier = await issued_before(self._rooms.store, self._rooms.authorities, self._rooms.clock, request, csr, identity, found)
            if earlier is not None:
                return earlier
        call.logs_itself = True
        work = asyncio.ensure_future(self._rooms.issuance.issue(request))
        self._running[csr.spki_sha256] = work
        try:
            return await work
        finally:
            if self._running.get(csr.spki_sha256) is work:
                del self._running[csr.spki_sha256]


def _text(message: IstioCertificateRequest, key: str) -> str:
    """Return a text of the request's metadata; "" where it is not there. Raises ``bad_request`` for anything but a text."""
    if key not in message.metadata.fields:
        return ""
    value = message.metadata.fields[key]
    if value.WhichOneof("kind") not in ("string_value", None) or len(value.string_value) > 2048:
        raise HandclaspError(Kind.BAD_REQUEST, f"{key} in the metadata is not a text")
    return value.string_value
