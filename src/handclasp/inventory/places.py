"""Locations and sightings, as the API shows them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, or_, select
from sqlalchemy.sql import Select

from handclasp.clock import rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.inventory.conditions import Condition, holds
from handclasp.inventory.filters import Filters
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.wire import Sighting
from handclasp.wire.inventory import Location

WALK_SECONDS = 0.03
_STRETCH = 5_000
AT_ONE_PLACE = 500
"""Sightings shown with one location, of those that are and of those that were."""


@dataclass(frozen=True, slots=True)
class LocationPage:
    """One page, and the number after which the next one begins."""

    items: list[Location]
    next: int | None


@dataclass(frozen=True, slots=True)
class SightingPage:
    """One page, and the number before which the next one begins."""

    items: list[Sighting]
    next: int | None


class Places:
    """Reads locations and sightings. Raises ``unavailable`` when the database is away."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def locations(self, filters: Filters, limit: int, after: int | None = None) -> LocationPage:
        """Return up to ``limit`` locations that fit, by their number; fewer, and where to go on, when that would take too long."""
        location = tables.location.c
        fixed, conditions = await self._conditions(filters)
        if fixed is None:
            return LocationPage([], None)
        began, place = time.monotonic(), after or 0
        rows: list[Row[Any]] = []
        while True:
            walk = select(location.id).where(*fixed, location.id > place).order_by(location.id)
            end = await self._store.row(walk.offset(_STRETCH - 1))
            query = _locations().where(*fixed, *conditions, location.id > place)
            if end is not None:
                query = query.where(location.id <= end.id)
            rows += await self._store.rows(query.order_by(location.id).limit(limit + 1 - len(rows)))
            if len(rows) > limit:
                return LocationPage([show_location(row) for row in rows[:limit]], rows[limit - 1].id)
            if end is None or time.monotonic() - began > WALK_SECONDS:
                return LocationPage([show_location(row) for row in rows], None if end is None else end.id)
            place = end.id

    async def _conditions(self, filters: Filters) -> tuple[list[Condition] | None, list[Condition]]:
        location = tables.location.c
        fixed: list[Condition] = []
        if filters.source is not None:
            row = await self._store.row(select(tables.source.c.id).where(tables.source.c.name == filters.source))
            if row is None:
                return None, []
            fixed.append(location.source_id == row.id)
        if filters.host is not None:
            fixed.append(location.host == filters.host)
        if filters.key is not None:
            fixed.append(location.key_sha256 == filters.key)
        conditions: list[Condition] = []
        if filters.kind is not None:
            conditions.append(location.kind == filters.kind)
        if filters.state is not None:
            conditions += _state_conditions(filters.state)
        if filters.q is not None:
            texts = (location.key, location.shown, func.coalesce(location.host, ""))
            conditions.append(or_(*(holds(func.lower(text), filters.q, self._store.is_sqlite) for text in texts)))
        return fixed, conditions

    async def location(self, number: int) -> Location:
        """Return one location with what is there and what was; raise ``not_found``."""
        row = await self._store.row(_locations().where(tables.location.c.id == number))
        if row is None:
            raise HandclaspError(Kind.NOT_FOUND, "there is no location with this number", hint="handclasp location list")
        shown = show_location(row)
        sighting = tables.sighting.c
        shown.sightings = []
        for which in (sighting.ended_at.is_(None), sighting.ended_at.is_not(None)):
            query = _sightings().where(sighting.location_id == number, which).order_by(sighting.id.desc()).limit(AT_ONE_PLACE)
            shown.sightings += [show_sighting(one) for one in await self._store.rows(query)]
        return shown

    async def sightings(
        self, limit: int, before: int | None = None, *, sha256: bytes | None = None, location: int | None = None, now: bool | None = None
    ) -> SightingPage:
        """Return up to ``limit`` sightings, newest first: of a certificate, at a location; ``now``: only those that are, or that were."""
        if location is not None and sha256 is None and now is None:  # each has its own index
            parts = [await self.sightings(limit, before, location=location, now=which) for which in (True, False)]
            items = sorted((one for part in parts for one in part.items), key=lambda one: -one.id)
            more = len(items) > limit or any(part.next is not None for part in parts)
            return SightingPage(items[:limit], items[:limit][-1].id if more and items else None)
        sighting = tables.sighting.c
        query = _sightings()
        if sha256 is not None:
            query = query.where(sighting.sha256 == sha256)
        if location is not None:
            query = query.where(sighting.location_id == location)
        if now is not None:
            query = query.where(sighting.ended_at.is_(None) if now else sighting.ended_at.is_not(None))
        if before is not None:
            query = query.where(sighting.id < before)
        rows = await self._store.rows(query.order_by(sighting.id.desc()).limit(limit + 1))
        return SightingPage([show_sighting(row) for row in rows[:limit]], rows[limit - 1].id if len(rows) > limit else None)

    async def of_each(self, fingerprints: Sequence[bytes], limit: int) -> list[Sighting]:
        """Return up to ``limit`` sightings of each of these certificates, newest first: one that is everywhere hides no other."""
        if not fingerprints:
            return []
        sighting = tables.sighting.c
        place = func.row_number().over(partition_by=sighting.sha256, order_by=sighting.id.desc()).label("place")
        ranked = select(sighting.id, place).where(sighting.sha256.in_(fingerprints)).subquery()
        query = _sightings().where(sighting.id.in_(select(ranked.c.id).where(ranked.c.place <= limit)))
        return [show_sighting(row) for row in await self._store.rows(query.order_by(sighting.id.desc()))]

    async def of_certificates(self, fingerprints: Sequence[bytes], limit: int, *, now: bool = False) -> list[Sighting]:
        """Return sightings of these certificates, newest first; with ``now`` only where they are, served or stored."""
        if not fingerprints:
            return []
        sighting = tables.sighting.c
        query = _sightings().where(sighting.sha256.in_(fingerprints))
        if now:
            query = query.where(sighting.ended_at.is_(None), sighting.role.in_(("served", "stored")))
        rows = await self._store.rows(query.order_by(sighting.id.desc()).limit(limit))
        return [show_sighting(row) for row in rows]


def _state_conditions(state: str) -> list[Condition]:
    location = tables.location.c
    if state == "gone":
        return [location.gone_at.is_not(None)]
    return [location.gone_at.is_(None), location.problem.is_(None) if state == "read" else location.problem.is_not(None)]


def _locations() -> Select[Any]:
    location, source = tables.location, tables.source
    return select(*location.c, source.c.name.label("source")).select_from(location.join(source, source.c.id == location.c.source_id))


def _sightings() -> Select[Any]:
    sighting, location, source = tables.sighting, tables.location, tables.source
    of_location = (location.c.shown, location.c.kind, location.c.host, location.c.seen_at, location.c.problem)
    joined = sighting.join(location, location.c.id == sighting.c.location_id).join(source, source.c.id == location.c.source_id)
    return select(*sighting.c, *of_location, source.c.name.label("source")).select_from(joined)


def show_location(row: Row[Any]) -> Location:
    """Return a row of ``location``."""
    return Location(
        id=row.id,
        source=row.source,
        key=row.key,
        kind=row.kind,
        shown=row.shown,
        unit=row.unit,
        host=row.host,
        state="gone" if row.gone_at is not None else "failed" if row.problem is not None else "read",
        first_seen=rfc3339(row.first_seen_at),
        last_seen=_when(row.seen_at),
        last_tried=rfc3339(row.tried_at),
        problem=row.problem,
        gone_at=_when(row.gone_at),
        key_sha256=row.key_sha256.hex() if row.key_sha256 else None,
        anchors=row.anchors.hex() if row.anchors else None,
        details=json.loads(row.details),
        facts=json.loads(row.facts),
    )


def show_sighting(row: Row[Any]) -> Sighting:
    """Return a row of ``sighting``, with the location's own last time while it is open."""
    last = row.last_seen_at if row.ended_at is not None else max(row.last_seen_at, row.seen_at or 0)
    return Sighting(
        id=row.id,
        sha256=row.sha256.hex(),
        location=row.location_id,
        shown=row.shown,
        kind=row.kind,
        host=row.host,
        source=row.source,
        role=row.role,
        chain=json.loads(row.chain),
        how=json.loads(row.how),
        first_seen=rfc3339(row.first_seen_at),
        last_seen=rfc3339(last),
        ended=_when(row.ended_at),
        problem=row.problem,
    )


def _when(at: int | None) -> str | None:
    return None if at is None else rfc3339(at)
