"""Issue, renew and revoke certificates."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from handclasp.access.authorize import Allowed, check_scope, check_source
from handclasp.api.paging import read_sha256
from handclasp.api.problems import to_problem
from handclasp.api.routes import Call
from handclasp.clock import parse_duration, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.request import IssuanceRequest, IssuedCertificate
from handclasp.pki.chains import to_pem
from handclasp.wire import (
    BatchItem,
    BatchRequest,
    BatchResponse,
    Issued,
    IssueRequest,
    RenewRequest,
    Revoked,
    RevokeRequest,
)

_log = logging.getLogger("handclasp.api")

_TOGETHER = 100
"""Items of a batch that are looked at at once."""


async def issue(call: Call) -> Issued:
    """Issue one certificate."""
    return to_issued(await call.services.issuance.issue(_request(call, call.body)))


async def issue_batch(call: Call) -> BatchResponse:
    """Issue many; each succeeds or fails by itself, and all that succeed share one commit."""
    body: BatchRequest = call.body
    results: list[BatchItem] = []
    limited: HandclaspError | None = None
    for start in range(0, len(body.requests), _TOGETHER):
        some = body.requests[start : start + _TOGETHER]
        if limited is not None:
            results += [BatchItem(problem=to_problem(limited)) for _ in some]
            continue
        done = await asyncio.gather(*(_issue_item(call, request) for request in some))
        results += done
        limited = _too_many_refused(call, done)
    logged = sum(1 for item in results if item.problem is not None and item.problem.status < 500 and item.problem.status != 429)
    if logged:
        call.services.refused_limit.owe(call.principal.describe(), logged)
    return BatchResponse(results=results)


def _too_many_refused(call: Call, items: Sequence[BatchItem]) -> HandclaspError | None:
    """Count refusals as those of single requests are counted: a batch is no way to fill the log faster."""
    refused = sum(1 for item in items if item.problem is not None and item.problem.status in (401, 403))
    try:
        if refused and call.source.address is not None:
            call.services.refused_limit.check(call.source.address, refused)
    except HandclaspError as limited:
        return limited
    return None


async def _issue_item(call: Call, request: IssueRequest) -> BatchItem:
    try:
        return BatchItem(issued=to_issued(await call.services.issuance.issue(_request(call, request))))
    except HandclaspError as error:
        return BatchItem(problem=to_problem(error))
    except Exception:  # a bug that one item finds must not keep from the others that they were issued
        _log.exception("unexpected error in an item of a batch")
        return BatchItem(problem=to_problem(HandclaspError(Kind.INTERNAL, "unexpected error")))


def _request(call: Call, body: IssueRequest) -> IssuanceRequest:
    return IssuanceRequest(
        principal=call.principal,
        csr=body.csr,
        source=call.source,
        identity=body.identity,
        dns=body.dns,
        ip=body.ip,
        email=body.email,
        profile=body.profile,
        ttl=parse_duration(body.ttl) if body.ttl is not None else None,
    )


async def renew(call: Call) -> Issued:
    """Renew the certificate in the path, which must be the one this connection proved."""
    body: RenewRequest = call.body
    request = IssuanceRequest(
        principal=call.principal,
        csr=body.csr,
        source=call.source,
        ttl=parse_duration(body.ttl) if body.ttl is not None else None,
        predecessor=read_sha256(call.path["sha256"]),
    )
    return to_issued(await call.services.issuance.issue(request))


def to_issued(issued: IssuedCertificate) -> Issued:
    """Return what issuance gave as the wire has it."""
    return Issued(
        certificate=to_pem(issued.der),
        chain=issued.chain_pem,
        bundle=issued.bundle_pem,
        sha256=issued.sha256.hex(),
        serial=f"{issued.serial:x}",
        identity=issued.identity,
        not_before=rfc3339(issued.not_before),
        not_after=rfc3339(issued.not_after),
        renew_after=rfc3339(issued.renew_after),
        renew_before=rfc3339(issued.renew_before),
        authority=issued.authority,
        log_entry=issued.log_entry,
    )


async def revoke(call: Call) -> Revoked:
    """Revoke a certificate: any with the scope, one's own without."""
    body: RevokeRequest = call.body
    result = await call.services.revoker.revoke(
        read_sha256(call.path["sha256"]),
        body.reason,
        body.comment,
        call.principal,
        call.source,
        any_certificate=_may_revoke_any(call),
    )
    return Revoked(
        revoked=[sha256.hex() for sha256 in result.revoked],
        reason=result.reason,
        revoked_at=rfc3339(result.revoked_at),
        log_entry=result.log_entry,
    )


def _may_revoke_any(call: Call) -> bool:
    decisions = check_scope(call.principal, "certificates:revoke"), check_source(call.principal, call.source.address)
    return all(isinstance(decision, Allowed) for decision in decisions)
