"""When to renew: the suggestions that agents ask for, one or many at a time, and rotations that pull them forward."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, and_, or_, select

from handclasp.access.authorize import Allowed, check_scope
from handclasp.access.principals import CertificatePrincipal
from handclasp.api.paging import page, read_cursor, read_limit, read_sha256, write_cursor
from handclasp.api.routes import Call, Plain, tagged
from handclasp.clock import parse_duration, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.progress import Pending, Progress
from handclasp.issuance.rotate import Planned
from handclasp.issuance.selection import Selection, select_all, select_authority, select_identities, stored_selection
from handclasp.issuance.suggestions import Suggestion
from handclasp.issuance.window import POLL_SLACK, rotation_span
from handclasp.store import tables
from handclasp.wire import RenewalInfo, RenewalList, RenewalQuery, Rotation, RotationList, RotationPending, RotationRequest, to_json

LISTED = 20
"""Rotations in a page: each one's certificates are counted."""


async def renewal_info(call: Call) -> Plain:
    """Say when one certificate should be renewed, as things are now; its holder, agents and readers of certificates may ask."""
    sha256 = read_sha256(call.path["sha256"])
    if call.client_certificate != sha256 and not _may_know_any(call):
        raise HandclaspError(Kind.NOT_ALLOWED, "only its holder, agents and readers of certificates may ask when to renew this certificate")
    found = await call.services.suggestions.of([sha256])
    if not found:
        raise HandclaspError(Kind.NOT_FOUND, "no certificate with this fingerprint was issued here")
    return tagged(to_json(_to_info(found[0], call.services.clock())), "application/json")


async def renewal_list(call: Call) -> RenewalList:
    """Say when several certificates should be renewed. While the caller's tag is the present one, nothing is looked up."""
    body: RenewalQuery = call.body
    suggestions = call.services.suggestions
    tag = await suggestions.tag()  # before the rows: what changes in between is asked for once more
    asked = [] if tag == body.tag else [bytes.fromhex(text) for text in dict.fromkeys(body.certificates)]
    if not _may_know_any(call):
        asked = [sha256 for sha256 in asked if sha256 == call.client_certificate]
    now = call.services.clock()
    found = await suggestions.of(asked) if asked else []
    return RenewalList(tag=tag, items=[_to_info(one, now) for one in found])


def _may_know_any(call: Call) -> bool:
    """Tell whether the caller may know of every certificate that it can name.

    Agents may: they look after certificates that they renewed as their holders, whose rows do not name them. Who can name a certificate
    by its fingerprint has seen it, and learns no more than revocation lists and its own dates tell (RFC 9773 tells it to anybody).
    """
    principal = call.principal
    if isinstance(principal, CertificatePrincipal):
        return principal.is_agent and not principal.grace_is_over
    return isinstance(check_scope(principal, "certificates:read"), Allowed)


def _to_info(one: Suggestion, now: int) -> RenewalInfo:
    return RenewalInfo(
        sha256=one.sha256.hex(), renew_after=rfc3339(one.renew_after), renew_before=rfc3339(one.renew_before), state=one.state(now)
    )


# --- rotations --------------------------------------------------------------------------------------------------------------------------


async def rotate(call: Call) -> Rotation:
    """Have certificates replaced before their time, or say what that would concern."""
    body: RotationRequest = call.body
    services = call.services
    await services.authorities.refresh()
    selection = _selection(call, body)
    planned = await services.rotations.plan(selection, parse_duration(body.within))
    notes = _short(planned) + await _notes(call, selection, planned.now)
    if body.dry_run:
        return _to_planned(call, planned, body.reason, notes)
    rotation_id = await services.rotations.start(planned, body.reason, call.principal, call.source)
    shown = await _show(call, rotation_id)
    shown.notes = notes
    return shown


async def show_rotation(call: Call) -> Rotation:
    """Show how far a rotation is, with what has not answered."""
    return await _show(call, call.path["id"])


async def list_rotations(call: Call) -> RotationList:
    """List rotations, newest first."""
    table = tables.rotation
    limit = min(read_limit(call.query), LISTED)
    query = select(table)
    after = read_cursor(call.query, int, str)
    if after is not None:
        query = query.where(or_(table.c.created_at < after[0], and_(table.c.created_at == after[0], table.c.id < after[1])))
    rows, more = page(await call.services.store.rows(query.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit + 1)), limit)
    items = [_to_rotation(call, progress, []) for progress in await call.services.progress.of(rows)]
    return RotationList(items=items, next_cursor=write_cursor(rows[-1].created_at, rows[-1].id) if more else None)


async def _show(call: Call, rotation_id: str) -> Rotation:
    row = await call.services.store.row(select(tables.rotation).where(tables.rotation.c.id == rotation_id))
    if row is None:
        raise HandclaspError(Kind.NOT_FOUND, "there is no rotation with this id", hint="handclasp rotation list")
    (progress,) = await call.services.progress.of([row])
    pending = await call.services.progress.pending(rotation_id) if progress.waiting else []
    return _to_rotation(call, progress, pending)


def _selection(call: Call, body: RotationRequest) -> Selection:
    if [body.all, body.identity is not None, body.authority is not None].count(True) != 1:
        raise HandclaspError(Kind.BAD_REQUEST, "say what is to be replaced: all, an identity pattern, or an authority; one of them")
    if body.identity is not None:
        return select_identities(body.identity)
    return select_all() if body.authority is None else select_authority(body.authority, call.services.authorities)


def _short(planned: Planned) -> list[str]:
    """Say so when agents can hardly have asked before the time is over."""
    if planned.ends_at - planned.now >= 2 * POLL_SLACK:
        return []
    return ["agents ask every minute or so: in less than three minutes they renew as they hear of it, not spread, and some are late"]


async def _notes(call: Call, selection: Selection, now: int) -> list[str]:
    """Return what to know about where the new certificates come from."""
    if selection.what != "authority":
        return []
    authorities = call.services.authorities
    old = authorities.find(selection.value)
    if old.state == "active" and old.not_after > now:
        return [
            f"{old.name} still signs, so what is replaced may come from it again: retire it first (handclasp ca retire {old.name})",
        ]
    try:
        new = authorities.get(trust_domain=old.trust_domain)
    except HandclaspError as error:
        return [f"nothing can be renewed: {error.detail}"]
    notes = [f"{old.name} signs no more; renewals come from {new.authority.name}, or from the authority that a profile names"]
    rules = await call.services.rulebook.current()
    longest = max(profile.lifetime for profile in rules.profiles.values())
    if new.authority.not_after < now + longest * 1000:
        notes.append(f"{new.authority.name} ends at {rfc3339(new.authority.not_after)}: certificates end with it at the latest")
    notes += [
        f"profile {profile.name} names {old.name}: what has it cannot be renewed until the profile names another authority"
        for profile in rules.profiles.values()
        if profile.authority == old.name
    ]
    return notes


def _to_planned(call: Call, planned: Planned, reason: str, notes: list[str]) -> Rotation:
    return Rotation(
        id="", what=planned.selection.describe(), reason=reason, by=call.principal.describe(), created_at=rfc3339(planned.now),
        begins_at=rfc3339(planned.first_at), ends_at=rfc3339(planned.ends_at), state="planned", total=planned.total, replaced=0, gone=0,
        late=0, pending=[], notes=notes,
    )  # fmt: skip


def _to_rotation(call: Call, progress: Progress, pending: list[Pending]) -> Rotation:
    row: Row[Any] = progress.row
    state = "late" if progress.late else "waiting"
    return Rotation(
        id=row.id, what=stored_selection(row.what, call.services.authorities).describe(), reason=row.reason, by=row.by,
        created_at=rfc3339(row.created_at), begins_at=rfc3339(rotation_span(row.created_at, row.ends_at)[0]), ends_at=rfc3339(row.ends_at),
        state=progress.state, total=progress.total, replaced=progress.replaced, gone=progress.gone,
        late=progress.waiting if progress.late else 0, pending=[_to_pending(one, state) for one in pending], log_entry=row.log_index,
    )  # fmt: skip


def _to_pending(one: Pending, state: str) -> RotationPending:
    return RotationPending(
        sha256=one.sha256.hex(),
        identity=one.identity,
        not_after=rfc3339(one.not_after),
        renew_before=rfc3339(one.renew_before),
        agent=one.agent,
        agent_last_contact=rfc3339(one.agent_last_contact) if one.agent_last_contact is not None else None,
        state=state,
    )
