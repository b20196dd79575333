"""Scans as rows: begun by people or by the clock, one of a source at a time, stopped by people, forgotten when they are old."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from random import Random, SystemRandom
from typing import Any

from sqlalchemy import Row, delete, exists, insert, literal, null, or_, select, update

from handclasp.access.principals import Principal
from handclasp.clock import Clock
from handclasp.discovery.endings import OPEN, drop_parts, finish, stopping
from handclasp.discovery.leases import PLAN
from handclasp.errors import HandclaspError, Kind
from handclasp.log.entries import make_entry
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

JITTER = 0.1
"""The next scan comes up to this part of the interval later, so that sources that were added together do not stay together."""
KEPT = 90 * 86_400_000
"""Milliseconds for which a scan that ended is remembered."""
TOLD = ("agent", "import")
"""Kinds of sources that read nothing: agents report their targets by themselves, and people hand in files."""
_source, _scan, _part = tables.source.c, tables.scan.c, tables.scan_part.c


class Scans:
    """Begins and ends scans. Any number of tasks and processes at once."""

    def __init__(self, store: Store, clock: Clock, *, random: Random | None = None, new_id: Callable[[int], bytes] = os.urandom) -> None:
        self._store, self._clock, self._random, self._new_id = store, clock, random or SystemRandom(), new_id

    async def get(self, scan_id: str) -> Row[Any]:
        """Return a scan's row, with ``source`` and ``kind``; raise ``not_found``."""
        row = await self._store.row(scans_query().where(_scan.id == scan_id))
        if row is None:
            raise HandclaspError(Kind.NOT_FOUND, "there is no such scan", hint="handclasp source scans")
        return row

    async def begin(self, source: Row[Any], by: Principal, origin: Mapping[str, str], *, dry: bool) -> str:
        """Begin a scan because somebody asks for it, and return its id. Durable and logged on return.

        Raises ``conflict`` while another scan of the source goes on, and for a source that is told things and reads nothing.
        """
        if source.kind in TOLD:
            raise HandclaspError(Kind.CONFLICT, f"a source of the kind {source.kind} is told what is in it: there is nothing to read")
        now, scan_id = self._clock(), self._id()
        entry = make_entry(
            "scan.started", at=now, who=by.to_log(), source=origin, subjects=[f"source:{source.name}", f"scan:{scan_id}"],
            what={"source": source.name, "scan": scan_id, "dry": dry},
        )  # fmt: skip
        await self._store.ledger.commit(Write([entry], _begun(scan_id, source.id, by.describe(), now, dry=dry)))
        return scan_id

    async def stop(self, scan_id: str, by: Principal, origin: Mapping[str, str]) -> None:
        """Stop a scan; what was read stays recorded, and nothing is gone for what was not. Durable and logged on return.

        Raises ``conflict`` when it has ended already.
        """
        row, now = await self.get(scan_id), self._clock()
        if row.state not in OPEN:
            raise HandclaspError(Kind.CONFLICT, "this scan has ended already")
        entry = make_entry(
            "scan.stopped", at=now, who=by.to_log(), source=origin, subjects=[f"source:{row.source}", f"scan:{scan_id}"],
            what={"source": row.source, "scan": scan_id},
        )  # fmt: skip
        change = stopping(scan_id, now)
        change.expect, change.conflict = 1, HandclaspError(Kind.CONFLICT, "this scan has ended already")
        await self._store.ledger.commit(Write([entry], [change]))

    async def step(self) -> list[str]:
        """Begin the scans that are due, end those of which nothing is left to read, and return the names of the sources begun.

        One that was missed, because nobody ran or the last one took long, is made up for once. Several processes at a time do no harm.
        """
        now, begun = self._clock(), []
        farthest = now + _source.every + JITTER * _source.every + 60_000  # what lies farther was written by a clock that was wrong
        is_due = or_(_source.due_at <= now, _source.due_at > farthest)
        due = select(tables.source).where(is_due, _source.state == "active", _source.every > 0, _source.kind.not_in(TOLD))
        due = due.where(~exists(select(_scan.id).where(_scan.source_id == _source.id, _scan.state.in_(OPEN)).correlate(tables.source)))
        for row in await self._store.rows(due):
            next_due = now + row.every + round(self._random.random() * JITTER * row.every)
            ahead = update(tables.source).where(_source.id == row.id, _source.due_at == row.due_at).values(due_at=next_due)
            mine = Change(ahead, expect=1, conflict=HandclaspError(Kind.CONFLICT, "another process begins it"))
            try:
                await self._store.ledger.commit(Write([], [mine, *_begun(self._id(), row.id, "schedule", now, dry=False)]))
            except HandclaspError as error:
                if error.kind is not Kind.CONFLICT:
                    raise
                continue  # the scan before it still goes on: this one comes when that has ended
            begun.append(row.name)
        await self._settle(now)
        return begun

    async def tidy(self) -> None:
        """Forget the parts of scans that ended, and scans that ended long ago."""
        while await drop_parts(self._store):
            pass
        old = select(_scan.id).where(_scan.created_at < self._clock() - KEPT, _scan.state.not_in(OPEN)).limit(500)
        while found := [row.id for row in await self._store.rows(old)]:
            parts = delete(tables.scan_part).where(_part.scan_id.in_(found))
            await self._store.ledger.commit(Write([], [Change(parts), Change(delete(tables.scan).where(_scan.id.in_(found)))]))

    async def _settle(self, now: int) -> None:
        """End scans whose last part ended together with the process that read it."""
        left = exists(select(_part.number).where(_part.scan_id == _scan.id, _part.state.in_(("waiting", "leased"))).correlate(tables.scan))
        for row in await self._store.rows(select(_scan.id).where(_scan.state.in_(OPEN), ~left)):
            await finish(self._store, row.id, now)

    def _id(self) -> str:
        return base64.b32encode(self._new_id(10)).decode().lower()


def scans_query() -> Any:
    """Return the query for scans with the names of their sources, removed ones left out."""
    return (
        select(tables.scan, _source.name.label("source"), _source.kind)
        .join_from(tables.scan, tables.source, _source.id == _scan.source_id)
        .where(_source.state != "removed")
    )


async def problems_of(store: Store, scan_id: str, most: int = 20) -> list[str]:
    """Return why parts of a scan could not be read."""
    query = select(_part.problem).where(_part.scan_id == scan_id, or_(_part.state == "failed", _part.problem.is_not(None)))
    return [row.problem or "" for row in await store.rows(query.order_by(_part.number).limit(most))]


def _begun(scan_id: str, source_id: int, asked_by: str, now: int, *, dry: bool) -> list[Change]:
    """Return the changes that begin a scan, and are refused while another of its source goes on."""
    columns = ("id", "source_id", "state", "dry", "asked_by", "created_at")
    values = (scan_id, source_id, "planning", int(dry), asked_by, now)
    types = [tables.scan.c[name].type for name in columns]
    row = select(*(literal(value, type_).label(name) for name, value, type_ in zip(columns, values, types, strict=True)))
    alone = row.where(~exists(select(_scan.id).where(_scan.source_id == source_id, _scan.state.in_(OPEN))))
    conflict = HandclaspError(Kind.CONFLICT, "a scan of this source goes on", hint="watch it with handclasp source scans, or stop it")
    plan = {"scan_id": scan_id, "number": PLAN, "spec": "{}", "state": "waiting", "place": "", "attempts": 0, "leased_until": null()}
    return [
        Change(insert(tables.scan).from_select(list(columns), alone, include_defaults=False), expect=1, conflict=conflict),
        Change(insert(tables.scan_part).values(plan)),
    ]
