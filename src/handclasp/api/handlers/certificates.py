"""Issue, renew, revoke, list and show certificates; list identities."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, and_, func, or_, select
from sqlalchemy.sql import ColumnElement, Select

from handclasp.access.authorize import Allowed, check_scope
from handclasp.api.paging import page, read_cursor, read_limit, read_sha256, read_text, write_cursor
from handclasp.api.problems import to_problem
from handclasp.api.routes import Call
from handclasp.clock import parse_duration, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.request import IssuanceRequest, IssuedCertificate
from handclasp.pki.chains import to_pem
from handclasp.pki.crl import REASONS
from handclasp.store import tables
from handclasp.wire import (
    BatchItem,
    BatchRequest,
    BatchResponse,
    Certificate,
    CertificateList,
    Identity,
    IdentityList,
    Issued,
    IssueRequest,
    RenewRequest,
    Revoked,
    RevokeRequest,
)

_log = logging.getLogger("handclasp.api")

_TOGETHER = 100
"""Items of a batch that are looked at at once."""

STATES = ("valid", "expired", "revoked", "superseded")


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
        any_certificate=isinstance(check_scope(call.principal, "certificates:revoke"), Allowed),
    )
    return Revoked(
        revoked=[sha256.hex() for sha256 in result.revoked],
        reason=result.reason,
        revoked_at=rfc3339(result.revoked_at),
        log_entry=result.log_entry,
    )


# --- reading ----------------------------------------------------------------------------------------------------------------------------


def _query(*extra: Any) -> Select[Any]:
    certificate, identity, authority = tables.certificate, tables.identity, tables.authority
    columns = [column for column in certificate.c if column.name not in ("der", "identity_id", "authority_id", "crl_shard")]
    return (
        select(*columns, identity.c.name.label("identity"), authority.c.name.label("authority"), *extra)
        .join(identity, identity.c.id == certificate.c.identity_id)
        .join(authority, authority.c.id == certificate.c.authority_id)
    )


async def show(call: Call) -> Certificate:
    """Show one certificate, with its PEM."""
    sha256 = read_sha256(call.path["sha256"])
    row = await call.services.store.row(_query(tables.certificate.c.der).where(tables.certificate.c.sha256 == sha256))
    if row is None:
        raise HandclaspError(Kind.NOT_FOUND, "no certificate with this fingerprint was issued here")
    shown = _to_certificate(row, call.services.clock())
    shown.certificate = to_pem(bytes(row.der))
    return shown


async def list_certificates(call: Call) -> CertificateList:
    """List certificates, those that end last first."""
    certificate = tables.certificate.c
    now, limit = call.services.clock(), read_limit(call.query)
    query = _query().where(*_filters(call, now))
    after = read_cursor(call.query, int, str)
    if after is not None:
        not_after, sha256 = after[0], read_sha256(after[1])
        query = query.where(or_(certificate.not_after < not_after, and_(certificate.not_after == not_after, certificate.sha256 > sha256)))
    rows, more = page(
        await call.services.store.rows(query.order_by(certificate.not_after.desc(), certificate.sha256).limit(limit + 1)), limit
    )
    cursor = write_cursor(rows[-1].not_after, rows[-1].sha256.hex()) if more else None
    return CertificateList(items=[_to_certificate(row, now) for row in rows], next_cursor=cursor)


def _filters(call: Call, now: int) -> list[ColumnElement[bool]]:
    certificate = tables.certificate.c
    found: list[ColumnElement[bool]] = []
    for name, column in (("identity", tables.identity.c.name), ("profile", certificate.profile), ("authority", tables.authority.c.name)):
        value = read_text(call.query, name)
        if value is not None:
            found.append(column == value)
    serial = read_text(call.query, "serial")
    if serial is not None:
        found.append(certificate.serial == _serial_bytes(serial))
    state = read_text(call.query, "state")
    if state is not None:
        found += _state_filter(state, now)
    return found


def _serial_bytes(text: str) -> bytes:
    """Return a serial as the row keeps it: big-endian with a leading zero byte when the top bit is set, as in DER."""
    try:
        value = int(text.replace(":", ""), 16)
    except ValueError:
        value = -1
    if not 0 < value < 1 << 160:
        raise HandclaspError(Kind.BAD_REQUEST, "serial is a hexadecimal number")
    return value.to_bytes((value.bit_length() + 8) // 8, "big")


def _state_filter(state: str, now: int) -> list[ColumnElement[bool]]:
    certificate = tables.certificate.c
    live = [certificate.revoked_at.is_(None), certificate.not_after > now]
    if state == "valid":
        return [*live, certificate.superseded_by.is_(None)]
    if state == "superseded":
        return [*live, certificate.superseded_by.is_not(None)]
    if state == "expired":
        return [certificate.revoked_at.is_(None), certificate.not_after <= now]
    if state == "revoked":
        return [certificate.revoked_at.is_not(None)]
    raise HandclaspError(Kind.BAD_REQUEST, f"{state!r} is not a state", hint=f"one of {', '.join(STATES)}")


def _state(row: Row[Any], now: int) -> str:
    if row.revoked_at is not None:
        return "revoked"
    if row.not_after <= now:
        return "expired"
    return "superseded" if row.superseded_by is not None else "valid"


def _to_certificate(row: Row[Any], now: int) -> Certificate:
    names = json.loads(row.names)
    return Certificate(
        sha256=row.sha256.hex(),
        serial=f"{int.from_bytes(row.serial, 'big'):x}",
        identity=row.identity,
        dns=names.get("dns", []),
        ip=names.get("ip", []),
        email=names.get("email", []),
        profile=row.profile,
        authority=row.authority,
        not_before=rfc3339(row.not_before),
        not_after=rfc3339(row.not_after),
        renew_after=rfc3339(row.renew_after),
        renew_before=rfc3339(row.renew_before),
        state=_state(row, now),
        key_sha256=row.spki_sha256.hex(),
        key_type=row.key_type,
        line=row.line.hex(),
        generation=row.generation,
        predecessor=row.predecessor.hex() if row.predecessor else None,
        superseded_by=row.superseded_by.hex() if row.superseded_by else None,
        revoked_at=rfc3339(row.revoked_at) if row.revoked_at is not None else None,
        revocation_reason=_reason(row.revocation_reason),
        granted_by=row.granted_by,
        obtained_by=row.obtained_by,
        log_entry=row.log_index,
    )


def _reason(code: int | None) -> str | None:
    return next((name for name, value in REASONS.items() if value == code), None) if code is not None else None


async def list_identities(call: Call) -> IdentityList:
    """List identities by name, each with its newest certificate."""
    identity, certificate = tables.identity, tables.certificate
    limit = read_limit(call.query)
    query = select(identity)
    after = read_cursor(call.query, str)
    if after is not None:
        query = query.where(identity.c.name > after[0])
    for name in ("owner", "identity"):
        value = read_text(call.query, name)
        if value is not None:
            query = query.where((identity.c.owner if name == "owner" else identity.c.name) == value)
    wanted = read_text(call.query, "q")
    if wanted is not None:
        query = query.where(func.lower(identity.c.name).contains(wanted.lower(), autoescape=True))
    rows, more = page(await call.services.store.rows(query.order_by(identity.c.name).limit(limit + 1)), limit)
    ids = [row.id for row in rows]
    counts = await call.services.store.rows(
        select(certificate.c.identity_id, func.count().label("number"), func.max(certificate.c.not_after).label("not_after"))
        .where(certificate.c.identity_id.in_(ids))
        .group_by(certificate.c.identity_id)
    )
    newest = {row.identity_id: row for row in counts}
    fingerprints = await _newest(call, {row.identity_id: row.not_after for row in counts})
    items = [
        Identity(
            identity=row.name,
            owner=row.owner,
            tier=row.tier,
            environment=row.environment,
            created_at=rfc3339(row.created_at),
            certificates=newest[row.id].number if row.id in newest else 0,
            newest=fingerprints.get(row.id),
            newest_not_after=rfc3339(newest[row.id].not_after) if row.id in newest else None,
        )
        for row in rows
    ]
    return IdentityList(items=items, next_cursor=write_cursor(rows[-1].name) if more else None)


async def _newest(call: Call, ends: dict[int, int]) -> dict[int, str]:
    """Return the fingerprint of the certificate that ends at the given time, for each identity."""
    certificate = tables.certificate.c
    if not ends:
        return {}
    wanted = or_(*(and_(certificate.identity_id == key, certificate.not_after == value) for key, value in ends.items()))
    rows = await call.services.store.rows(select(certificate.identity_id, certificate.sha256).where(wanted))
    return {row.identity_id: row.sha256.hex() for row in rows}
