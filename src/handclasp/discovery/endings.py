"""How a scan ends: by itself when no part is open any more, or because somebody stops it; and what its source shows of it then."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, delete, exists, func, select, update

from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

OPEN = ("planning", "running")
"""States of a scan that has not ended."""
_scan, _part, _source = tables.scan.c, tables.scan_part.c, tables.source.c


async def finish(store: Store, scan_id: str, now: int) -> bool:
    """End a scan of which no part is open, and return whether it ended now. May be called at any time, by anyone; durable on return.

    It is ``failed`` when not one part could be read, else ``done``. Its source then shows when the last scan that read everything began, or
    why this one did not.
    """
    going_on = _scan.state.in_(OPEN)  # one that could not be planned never got further than planning
    row = await store.row(select(tables.scan).where(_scan.id == scan_id, going_on, ~exists(_open_parts(scan_id))))
    if row is None:
        return False
    counted = await parts_of(store, scan_id)
    failed = row.state == "planning" or (counted.get("failed", 0) > 0 and not counted.get("done", 0))
    ended = update(tables.scan).where(_scan.id == scan_id, going_on).values(state="failed" if failed else "done", ended_at=now)
    changes = [Change(ended)]
    if not row.dry:
        changes.append(_tell_source(row))
    await store.ledger.commit(Write([], changes))
    return True


async def parts_of(store: Store, scan_id: str) -> dict[str, int]:
    """Return how many parts of a scan are in each state; the part that plans the others is not among them."""
    query = select(_part.state, func.count().label("number")).where(_part.scan_id == scan_id, _part.number > 0).group_by(_part.state)
    return {row.state: row.number for row in await store.rows(query)}


def stopping(scan_id: str, now: int) -> Change:
    """Return the change that stops a scan, if it has not ended; whoever reads a part of it finds out within seconds."""
    values = {"state": "stopped", "ended_at": now, "problem": func.coalesce(_scan.problem, "it was stopped")}
    return Change(update(tables.scan).where(_scan.id == scan_id, _scan.state.in_(OPEN)).values(values))


async def drop_parts(store: Store, most: int = 1000) -> int:
    """Forget parts of scans that have ended, except those that failed, and return how many those were: no more than ``most``."""
    ended = (
        select(_part.scan_id, _part.number)
        .join_from(tables.scan_part, tables.scan, _scan.id == _part.scan_id)
        .where(_scan.state.not_in(OPEN), _part.state != "failed")
        .limit(most)
    )
    rows = [{"scan": row.scan_id, "which": row.number} for row in await store.rows(ended)]
    if rows:
        gone = delete(tables.scan_part).where(_part.scan_id == bindparam("scan"), _part.number == bindparam("which"))
        await store.ledger.commit(Write([], [Change(gone, rows=rows)]))
    return len(rows)


def _open_parts(scan_id: str) -> Any:
    return select(_part.number).where(_part.scan_id == scan_id, _part.state.in_(("waiting", "leased")))


def _tell_source(scan: Any) -> Change:
    if scan.failed == 0 and scan.problem is None:
        return Change(update(tables.source).where(_source.id == scan.source_id).values(success_at=scan.created_at, problem=None))
    places = scan.read + scan.failed
    problem = scan.problem or "some of it could not be read"
    if scan.failed and places > 1:
        problem = f"{scan.failed} of {places} could not be read, such as: {problem}"
    return Change(update(tables.source).where(_source.id == scan.source_id).values(problem=problem))
