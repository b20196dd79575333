"""JWT-SVIDs, and the federated trust domains."""

from __future__ import annotations

from handclasp.api.routes import Call
from handclasp.clock import parse_duration, rfc3339
from handclasp.errors import HandclaspError
from handclasp.issuance.jwt import JwtRequest
from handclasp.pki.bundles import SpiffeBundle
from handclasp.trust.federation import Peer
from handclasp.wire import Done, Federation, FederationList, FederationRequest, JwtSvid, JwtSvidRequest


async def jwt_svid(call: Call) -> JwtSvid:
    """Issue a JWT-SVID."""
    body: JwtSvidRequest = call.body
    ttl = parse_duration(body.ttl) if body.ttl is not None else None
    issued = await call.services.jwt.issue(JwtRequest(call.principal, body.identity, body.audience, ttl, call.source))
    return JwtSvid(token=issued.token, identity=issued.identity, expires_at=rfc3339(issued.expires_at), log_entry=issued.log_entry)


async def list_federation(call: Call) -> FederationList:
    """List the federated trust domains."""
    now = call.services.clock()
    return FederationList(items=[_to_wire(peer, now) for peer in await call.services.federation.all()])


async def show_federation(call: Call) -> Federation:
    """Show one federated trust domain."""
    return _to_wire(await call.services.federation.find(call.path["trust_domain"]), call.services.clock())


async def put_federation(call: Call) -> Federation:
    """Add a federated trust domain, or change how its bundle is fetched. It is fetched within seconds."""
    body: FederationRequest = call.body
    peer, _ = await call.services.federation.put(
        call.path["trust_domain"],
        url=body.url,
        profile=body.profile,
        endpoint_id=body.endpoint_id,
        bundle=body.bundle,
        by=call.principal.to_log(),
    )
    return _to_wire(peer, call.services.clock())


async def remove_federation(call: Call) -> Done:
    """Trust a trust domain's bundle no more."""
    return Done(log_entry=await call.services.federation.remove(call.path["trust_domain"], by=call.principal.to_log()))


async def refresh_federation(call: Call) -> Federation:
    """Fetch a bundle now; what went wrong is in the answer's ``problem``."""
    return _to_wire(await call.services.federation.refresh(call.path["trust_domain"]), call.services.clock())


def _to_wire(peer: Peer, now: int) -> Federation:
    try:
        read, problem = peer.read(), peer.problem
    except HandclaspError as error:  # an older version took what this one does not
        read, problem = SpiffeBundle(), peer.problem or error.detail
    return Federation(
        trust_domain=peer.trust_domain,
        url=peer.url,
        profile=peer.profile,
        endpoint_id=peer.endpoint_id,
        state=peer.state(now),
        sequence=peer.sequence,
        refresh_hint=peer.refresh_hint,
        anchors=len(read.authorities),
        jwt_keys=len(read.jwt_keys),
        fetched_at=rfc3339(peer.fetched_at) if peer.fetched_at is not None else None,
        tried_at=rfc3339(peer.tried_at) if peer.tried_at is not None else None,
        problem=problem,
        created_at=rfc3339(peer.created_at),
    )
