"""Sources and scans: what discovery reads, when, and how that goes; and the parts that collectors lease."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from sqlalchemy import Row, func, select, tuple_

from handclasp.api.paging import page, read_cursor, read_limit, read_text, write_cursor
from handclasp.api.routes import Call
from handclasp.clock import format_duration, parse_duration, rfc3339
from handclasp.discovery.desk import LocalDesk
from handclasp.discovery.endings import parts_of
from handclasp.discovery.imports.record import check_import
from handclasp.discovery.kinds import KINDS, load_kind
from handclasp.discovery.leases import MAX_PARTS, Leased, Progress, lost
from handclasp.discovery.options import options_of
from handclasp.discovery.scans import problems_of, scans_query
from handclasp.discovery.source import Scope
from handclasp.discovery.sources import Wanted
from handclasp.errors import HandclaspError, Kind
from handclasp.store import tables
from handclasp.wire import Done
from handclasp.wire.discovery import (
    ImportRequest,
    LeaseRequest,
    PartLease,
    PartRecord,
    PartRecorded,
    RunRequest,
    Scan,
    ScanList,
    Source,
    SourceChange,
    SourceKindInfo,
    SourceKindList,
    SourceList,
    SourceRequest,
    SourceScope,
)
from handclasp.wire.observations import Recorded

SCAN_STATES = ("planning", "running", "done", "stopped", "failed")
SOURCE_STATES = ("active", "paused")
_source, _scan = tables.source.c, tables.scan.c


async def list_kinds(_call: Call) -> SourceKindList:
    """List the kinds of sources that can be added here."""
    found = []
    for name in KINDS:
        try:
            kind = load_kind(name)
        except HandclaspError:
            continue
        found.append(
            SourceKindInfo(
                name=kind.name, summary=kind.summary, privilege=kind.privilege, runs=kind.runs, options=options_of(kind.Settings)
            )
        )
    return SourceKindList(items=found)


async def list_sources(call: Call) -> SourceList:
    """List sources by name, each with the scan that goes on or was the last."""
    limit, after = read_limit(call.query), read_cursor(call.query, str)
    query = select(tables.source).where(_source.state != "removed").order_by(_source.name)
    if after is not None:
        query = query.where(_source.name > after[0])
    for name, column, allowed in (("kind", _source.kind, None), ("state", _source.state, SOURCE_STATES)):
        if (wanted := read_text(call.query, name)) is not None:
            query = query.where(column == _one_of(wanted, allowed, name))
    rows, more = page(await call.services.store.rows(query.limit(limit + 1)), limit)
    newest = await _newest_scans(call, [row.id for row in rows])
    items = [_to_source(row, newest.get(row.id)) for row in rows]
    return SourceList(items=items, next_cursor=write_cursor(rows[-1].name) if more else None)


async def add_source(call: Call) -> Source:
    """Add a source."""
    body: SourceRequest = call.body
    wanted = Wanted(
        settings=body.settings, scope=_scope(body.scope), every=_every(body.every), runs=body.runs, facts=body.facts,
        state="paused" if body.paused else "active",
    )  # fmt: skip
    row = await call.services.discovery.sources.add(body.name, body.kind, wanted, call.principal, call.source.to_log())
    return _to_source(row, None)


async def show_source(call: Call) -> Source:
    """Show one source."""
    row = await call.services.discovery.sources.get(call.path["name"])
    source = _to_source(row, (await _newest_scans(call, [row.id])).get(row.id))
    place = tables.location.c
    found = await call.services.store.row(select(func.count().label("number")).where(place.source_id == row.id, place.gone_at.is_(None)))
    source.locations = found.number if found is not None else 0
    return source


async def change_source(call: Call) -> Source:
    """Change a source, from its next scan on."""
    body: SourceChange = call.body
    wanted = Wanted(
        settings=body.settings,
        scope=_scope(body.scope) if body.scope is not None else None,
        every=_every(body.every) if body.every is not None else None,
        runs=body.runs,
        facts=body.facts,
        state=None if body.paused is None else "paused" if body.paused else "active",
    )
    row = await call.services.discovery.sources.change(call.path["name"], wanted, call.principal, call.source.to_log())
    return _to_source(row, (await _newest_scans(call, [row.id])).get(row.id))


async def remove_source(call: Call) -> Done:
    """Remove a source; what it saw is forgotten soon after."""
    return Done(log_entry=await call.services.discovery.sources.remove(call.path["name"], call.principal, call.source.to_log()))


async def run_source(call: Call) -> Scan:
    """Begin a scan of a source now."""
    body: RunRequest = call.body
    room = call.services.discovery
    source = await room.sources.get(call.path["name"])
    scan_id = await room.scans.begin(source, call.principal, call.source.to_log(), dry=body.dry)
    return _to_scan(await room.scans.get(scan_id))


async def list_scans(call: Call) -> ScanList:
    """List scans, newest first."""
    limit, after = read_limit(call.query), read_cursor(call.query, int, str)
    query = scans_query().order_by(_scan.created_at.desc(), _scan.id.desc())
    if (source := read_text(call.query, "source")) is not None:
        query = query.where(_source.name == source)
    if (state := read_text(call.query, "state")) is not None:
        query = query.where(_scan.state == _one_of(state, SCAN_STATES, "state"))
    if after is not None:
        query = query.where(tuple_(_scan.created_at, _scan.id) < tuple_(*after))
    rows, more = page(await call.services.store.rows(query.limit(limit + 1)), limit)
    return ScanList(items=[_to_scan(row) for row in rows], next_cursor=write_cursor(rows[-1].created_at, rows[-1].id) if more else None)


async def show_scan(call: Call) -> Scan:
    """Show how far a scan is, and what could not be read."""
    store, row = call.services.store, await call.services.discovery.scans.get(call.path["id"])
    scan = _to_scan(row)
    scan.parts, scan.problems = await parts_of(store, row.id), await problems_of(store, row.id)
    return scan


async def stop_scan(call: Call) -> Scan:
    """Stop a scan; what was read stays, and nothing is gone for what was not."""
    scans = call.services.discovery.scans
    await scans.stop(call.path["id"], call.principal, call.source.to_log())
    return _to_scan(await scans.get(call.path["id"]))


# --- collectors -----------------------------------------------------------------------------------------------------------------------


async def lease_part(call: Call) -> PartLease:
    """Give a collector a part to read; without one when there is nothing to do."""
    body: LeaseRequest = call.body
    leased = await call.services.discovery.leases.take(body.worker, runs=("collector",), kinds=body.kinds, source=body.source)
    if leased is None:
        if body.source is not None:
            await _check_collected(call, body.source)
        return PartLease()
    return PartLease(
        scan=leased.scan, part=leased.number, lease=leased.lease, source=leased.source, kind=leased.kind, settings=leased.settings,
        scope=msgspec.convert(leased.scope, SourceScope), facts=leased.facts, spec=leased.spec, place=leased.place,
        began_at=leased.began_at, dry=leased.dry, seconds=leased.seconds,
    )  # fmt: skip


async def _check_collected(call: Call, name: str) -> None:
    """Refuse a source that no collector will ever be given: who waits for it would wait for ever."""
    row = await call.services.discovery.sources.get(name)
    if row.runs != "collector":
        raise HandclaspError(
            Kind.CONFLICT, f"{name} is not read by collectors, but by: {row.runs}", hint=f"handclasp source change {name} --runs collector"
        )


async def record_part(call: Call) -> PartRecorded:
    """Record what a collector read of a part. Durable on return; ``held`` is false when the part is not its own any more."""
    body: PartRecord = call.body
    place = body.place or ""
    if body.parts and not (place.isascii() and place.isdigit() and len(place) <= 7 and len(body.parts) <= int(place) <= MAX_PARTS):
        raise HandclaspError(Kind.BAD_REQUEST, "place is how many parts were found in all, where parts are given")
    leased = await _leased(call, body.lease)
    desk = call.services.discovery.desk(body.lease, runs=("collector",))
    progress = Progress(
        total=body.total, read=body.read, failed=body.failed, place=body.place, parts=body.parts,
        problem=None if body.gives_up else body.problem,
    )  # fmt: skip
    try:
        if leased is None:
            raise lost()
        await _take(desk, leased, body, progress)
    except HandclaspError as error:
        if error.kind is not Kind.CONFLICT:
            raise
        return PartRecorded(held=False)
    return PartRecorded(held=True, certificates=progress.certificates, fresh=progress.fresh, gone=progress.gone)


async def _take(desk: LocalDesk, leased: Leased, body: PartRecord, progress: Progress) -> None:
    if body.released:
        await desk.release(leased)
    elif body.gives_up:
        await desk.failed(leased, body.sightings, progress, body.problem or "it could not be read", final=body.final)
    elif body.done:
        await desk.done(leased, body.sightings, progress)
    else:
        await desk.report(leased, body.sightings, progress)


async def _leased(call: Call, lease: str) -> Leased | None:
    """Return the part that a lease is for, if it is one that a collector has."""
    number = call.path["number"]
    if not (number.isascii() and number.isdigit() and len(number) <= 7):
        raise HandclaspError(Kind.BAD_REQUEST, "the number of a part is a number from 0")
    return await call.services.discovery.leases.find(call.path["id"], int(number), lease, "collector")


async def import_sightings(call: Call) -> Recorded:
    """Record certificates that somebody hands in. Durable on return; handing in the same again changes nothing."""
    body: ImportRequest = call.body
    room = call.services.discovery
    source = await room.sources.get(call.path["name"])
    if source.kind != "import":
        raise HandclaspError(Kind.CONFLICT, f"a source of the kind {source.kind} is read, and takes nothing by hand")
    return await room.sink(source.id, check_import(body.sightings, json.loads(source.facts), room.clock()), "")


# --- shapes ---------------------------------------------------------------------------------------------------------------------------


async def _newest_scans(call: Call, source_ids: list[int]) -> dict[int, Row[Any]]:
    """Return the newest scan of each source. One look-up each: the index has the newest at its end, however many there were."""
    found = {}
    for source_id in source_ids:
        row = await call.services.store.row(scans_query().where(_scan.source_id == source_id).order_by(_scan.created_at.desc()))
        if row is not None:
            found[source_id] = row
    return found


def _to_source(row: Row[Any], scan: Row[Any] | None) -> Source:
    return Source(
        name=row.name,
        kind=row.kind,
        state=row.state,
        runs=row.runs,
        settings=json.loads(row.settings),
        scope=msgspec.json.decode(row.scope, type=SourceScope),
        facts=json.loads(row.facts),
        every=format_duration(row.every / 1000) if row.every else "",
        created_at=rfc3339(row.created_at),
        created_by=row.created_by,
        due_at=rfc3339(row.due_at) if row.due_at is not None else None,
        success_at=rfc3339(row.success_at) if row.success_at is not None else None,
        problem=row.problem,
        scan=_to_scan(scan) if scan is not None else None,
    )


def _to_scan(row: Row[Any]) -> Scan:
    return Scan(
        id=row.id,
        source=row.source,
        kind=row.kind,
        state=row.state,
        dry=bool(row.dry),
        asked_by=row.asked_by,
        created_at=rfc3339(row.created_at),
        ended_at=rfc3339(row.ended_at) if row.ended_at is not None else None,
        total=max(row.total, row.read + row.failed),
        read=row.read,
        failed=row.failed,
        certificates=row.certificates,
        fresh=row.fresh,
        gone=row.gone,
        problem=row.problem,
    )


def _scope(scope: SourceScope) -> Scope:
    return msgspec.convert(msgspec.to_builtins(scope), Scope)


def _every(text: str) -> float:
    return parse_duration(text) if text else 0.0


def _one_of(value: str, allowed: tuple[str, ...] | None, name: str) -> str:
    if allowed is not None and value not in allowed:
        raise HandclaspError(Kind.BAD_REQUEST, f"{name} is one of {', '.join(allowed)}")
    return value
