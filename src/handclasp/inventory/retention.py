"""What is old goes: certificates some time after their end, and what was said about them. See "Retention" in ``docs/operations.md``.

Never: a certificate before its end (so none that is revoked and could still be accepted), one whose revocation a CRL has still to show,
one that is seen somewhere or was lately, the newest of an identity, the first of a line that goes on, one that a rotation still counts; and
never an entry of the log. Each rule is a condition that is asked twice: by a reader that looks for what can go, and again in the very write
that removes it.

Rows go in small writes with pauses between them, because SQLite commits in the event loop and issuance must not wait. On PostgreSQL
certificates do not go row by row: whole months are dropped (:mod:`handclasp.store.partitions`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Row, and_, delete, exists, false, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql

from handclasp.clock import Clock, rfc3339
from handclasp.faults import declare, fault
from handclasp.inventory import statements
from handclasp.store import tables
from handclasp.store.chunks import in_chunks
from handclasp.store.database import Store
from handclasp.store.partitions import Month, Partitions
from handclasp.store.writes import Change, Write

declare("retention.found", "retention.removed")

LOOK, AT_ONCE = 2000, 100
"""Rows that one query looks at, and rows that one write removes."""

PAUSE, REST = 0.02, 4
"""Seconds between two writes at least, and how many times as long as the write took: four fifths of the time belong to others."""

DAY = 86_400_000
MONTHS = 4
"""Months of the certificate table that are there, the present one among them: most certificates that are issued now end within them."""

UNREAD = 90 * DAY
"""Milliseconds, beyond what is kept anyway, after which a place that nobody reads says nothing any more of what ended there."""
COUNTERS = 400 * DAY
"""Milliseconds for which hours are counted: more than a year, so that a year can be compared with the one before."""

_HOURLY = ("issued", "renewed", "refused")

Removed = Callable[[str, int], None]


def nobody(_what: str, _number: int) -> None:
    """Look away."""


class Retention:
    """Removes what is old. For one caller at a time (a leader's job); whatever it is killed in, the next call goes on."""

    def __init__(self, store: Store, clock: Clock, keep: float, *, removed: Removed = nobody, pause: float = PAUSE) -> None:
        self._store = store
        self._clock = clock
        self._keep = round(keep * 1000)
        self._removed = removed
        self._pause = pause
        self._partitions = None if store.is_sqlite else Partitions(store.url)

    async def run(self) -> Counter[str]:
        """Remove everything that may go now, and return how much of what went. What was removed stays removed when this is stopped.

        ``keep`` is in seconds after the end; 0 keeps everything. Raises ``unavailable``.
        """
        self._gone: Counter[str] = Counter()
        now = self._clock()
        if not self._keep:
            return self._gone
        limit = now - self._keep
        await self._simple("confirmation", tables.confirmation.c.expires_at < limit)
        await self._simple("sighting", tables.sighting.c.ended_at < limit)
        await self._unread(limit - UNREAD)
        if self._partitions is None:
            await self._walk(
                "certificate", lambda c: certificate_goes(c, limit, now), [tables.certificate.c.not_after, *_key("certificate")], limit
            )
        else:
            await self._drop_months(self._partitions, limit, now)
        await self._walk("found", lambda c: found_goes(c, limit), [tables.found.c.not_after, *_key("found")], limit)
        await self._walk("standing", lambda c: standing_goes(c, limit))
        await self._walk("location", lambda c: location_goes(c, limit))
        await self._walk("name", _name_goes)
        await self._scans(limit)
        tally = tables.tally.c
        await self._simple("tally", and_(tally.kind.in_(_HOURLY), tally.bucket < rfc3339(now - COUNTERS)[:13]))
        return self._gone

    async def make_months(self) -> list[Month]:
        """Make the months that certificates will end in, and return those made; nothing on SQLite. Raises ``unavailable``."""
        if self._partitions is None:
            return []
        return await self._partitions.make(Month.of(self._clock()), MONTHS)

    async def count_months(self) -> int:
        """Return how many months there are."""
        return 0 if self._partitions is None else len(await self._partitions.existing())

    def _count(self, what: str, number: int) -> None:
        self._gone[what] += number
        self._removed(what, number)

    # --- what has no conditions beyond its age ---

    async def _simple(self, name: str, old: ColumnElement[bool]) -> None:
        key = _key(name)
        while rows := await self._store.rows(select(*key).where(old).limit(AT_ONCE)):
            await self._commit([Change(delete(tables.metadata.tables[name]).where(_among(key, rows), old))])
            self._count(name, len(rows))
            if len(rows) < AT_ONCE:
                return

    # --- what nobody read for long ---

    async def _unread(self, limit: int) -> None:
        """Remove sightings, open ones, of what ended long ago, at places that nobody has read since: an agent's whose host is gone.

        That is no word about the place. Where it is read again, everything that is there is recorded anew.
        """
        location, place = tables.location.c, 0
        query = select(location.id).where(location.seen_at < limit).order_by(location.id).limit(LOOK)
        while rows := await self._store.rows(query.where(location.id > place)):
            for some in in_chunks([row.id for row in rows], AT_ONCE):
                await self._forget_over(some, limit)
            place = rows[-1].id
            await asyncio.sleep(self._pause)

    async def _forget_over(self, places: Sequence[int], limit: int) -> None:
        sighting, location = tables.sighting, tables.location
        still = _exists(sighting, location.c.id == sighting.c.location_id, location.c.seen_at < limit)
        here = and_(sighting.c.location_id.in_(places), sighting.c.ended_at.is_(None), _is_over(sighting, limit), still)
        query = select(sighting.c.id, sighting.c.sha256, sighting.c.location_id).where(here)
        while rows := await self._store.rows(query.limit(AT_ONCE)):
            theirs = location.c.id.in_({row.location_id for row in rows})
            changes = [
                Change(delete(sighting).where(sighting.c.id.in_([row.id for row in rows]), still)),
                Change(update(location).where(theirs, location.c.seen_at < limit).values(content=None)),
                Change(statements.doubt, rows=[{"sha256": sha256} for sha256 in {bytes(row.sha256) for row in rows}]),
            ]
            await self._commit(changes)
            self._count("sighting", len(rows))

    # --- what has ---

    async def _walk(
        self, name: str, goes: Callable[[FromClause], ColumnElement[bool]], order: Sequence[Any] = (), limit: int | None = None
    ) -> None:
        """Look at every row of a table in the order of a key, and remove those that may go. Rows that stay are passed once a run."""
        table = tables.metadata.tables[name]
        key = _key(name)
        async for rows in self._pages(table, goes(table), list(order) or key, limit):
            for these in in_chunks(rows, AT_ONCE):
                fault("retention.found")
                await self._commit([Change(delete(table).where(_among(key, these), goes(table)))])
                self._count(name, len(these))

    async def _pages(
        self, table: Any, goes: ColumnElement[bool], order: Sequence[Any], limit: int | None
    ) -> AsyncIterator[Sequence[Row[Any]]]:
        columns = [*dict.fromkeys([*table.primary_key.columns, *order])]
        query = select(*columns, goes.label("goes")).order_by(*order).limit(LOOK)
        if limit is not None:
            query = query.where(order[0] < limit)
        place: tuple[Any, ...] | None = None
        while True:
            after = query
            if place is not None:  # the first column by itself is what the index is used for
                after = query.where(order[0] >= place[0], tuple_(*order) > tuple_(*place) if len(order) > 1 else order[0] > place[0])
            rows = await self._store.rows(after)
            if going := [row for row in rows if row.goes]:
                yield going
            if len(rows) < LOOK:
                return
            place = tuple(getattr(rows[-1], column.name) for column in order)
            await asyncio.sleep(self._pause)

    async def _scans(self, limit: int) -> None:
        """Remove scans but the newest of each source; their parts first, which may be many."""
        scan, part, newer = tables.scan, tables.scan_part, tables.scan.alias("newer")
        old = and_(
            scan.c.ended_at < limit, exists().where(newer.c.source_id == scan.c.source_id, newer.c.created_at > scan.c.created_at)
        )  # fmt: skip
        while rows := await self._store.rows(select(scan.c.id).where(old).order_by(scan.c.created_at).limit(AT_ONCE)):
            wanted = [row.id for row in rows]
            while parts := await self._store.rows(select(part.c.scan_id, part.c.number).where(part.c.scan_id.in_(wanted)).limit(AT_ONCE)):
                await self._commit([Change(delete(part).where(_among([part.c.scan_id, part.c.number], parts)))])
            await self._commit([Change(delete(scan).where(scan.c.id.in_(wanted)))])
            self._count("scan", len(rows))

    async def _drop_months(self, partitions: Partitions, limit: int, now: int) -> None:
        row = tables.certificate.alias("c")
        _, dropped, _ = await partitions.drop(limit, f"NOT ({_literally(row, certificate_goes(row, limit, now))})", now)
        if dropped:
            self._count("certificate", dropped)

    async def _commit(self, changes: Sequence[Change]) -> None:
        began = time.monotonic()
        await self._store.ledger.commit(Write([], changes))
        fault("retention.removed")
        await asyncio.sleep(max(self._pause, REST * (time.monotonic() - began)) if self._pause else 0)


def certificate_goes(c: FromClause, limit: int, now: int) -> ColumnElement[bool]:
    """Return the condition under which an issued certificate (a row ``c``) goes that ended before ``limit``."""
    crl, sighting, summary, other = tables.crl, tables.sighting, tables.summary, tables.certificate.alias("other")
    shown = _exists(c,  # a revocation leaves the CRL after one that was made after the end and had it (RFC 5280 3.3)
        crl.c.authority_id == c.c.authority_id, crl.c.shard == c.c.crl_shard, crl.c.this_update > c.c.not_after,
        crl.c.this_update > c.c.revoked_at,
    )  # fmt: skip
    goes_on = _exists(c, other.c.identity_id == c.c.identity_id, other.c.not_after > now, other.c.line == c.c.sha256)
    rotation, item = tables.rotation, tables.rotation_item
    counted = _exists(c, rotation.c.replaced.is_(None), item.c.rotation_id == rotation.c.id, item.c.sha256 == c.c.sha256)
    return and_(
        c.c.not_after < limit,
        c.c.not_after < now,
        _has_newer(summary, c),
        ~_exists(c, sighting.c.sha256 == c.c.sha256, or_(sighting.c.ended_at.is_(None), sighting.c.ended_at >= limit)),
        or_(c.c.revoked_at.is_(None), shown),
        or_(c.c.predecessor.is_not(None), ~goes_on),
        ~counted,
    )


def found_goes(c: FromClause, limit: int) -> ColumnElement[bool]:
    """Return the condition under which a found certificate goes: over, found long ago, seen nowhere lately, and not to be investigated."""
    sighting = tables.sighting
    return and_(
        c.c.not_after < limit,
        c.c.first_seen_at < limit,
        c.c.triage != "investigate",
        or_(c.c.identity_id.is_(None), _has_newer(tables.summary, c)),
        ~_exists(c, sighting.c.sha256 == c.c.sha256, or_(sighting.c.ended_at.is_(None), sighting.c.ended_at >= limit)),
    )


def standing_goes(c: FromClause, limit: int) -> ColumnElement[bool]:
    """Return the condition under which a standing goes: its certificate has."""
    issued, found = tables.certificate, tables.found
    return and_(
        c.c.not_after < limit,
        c.c.open == 0,
        ~_exists(c, issued.c.sha256 == c.c.sha256, issued.c.not_after == c.c.not_after),
        ~_exists(c, found.c.sha256 == c.c.sha256),
    )


def location_goes(c: FromClause, limit: int) -> ColumnElement[bool]:
    """Return the condition under which a location goes: gone for long, or nothing is there and nobody looked for as long.

    What was seen there ended before, and went before."""
    sighting = tables.sighting
    empty = ~_exists(c, sighting.c.location_id == c.c.id)
    return or_(
        and_(c.c.gone_at < limit, ~_exists(c, sighting.c.location_id == c.c.id, sighting.c.ended_at.is_(None))),
        and_(c.c.tried_at < limit - UNREAD, or_(c.c.seen_at.is_(None), c.c.seen_at < limit - UNREAD), empty),
    )


def _is_over(sighting: Any, limit: int) -> ColumnElement[bool]:
    """That what was seen is known to have ended before ``limit``."""
    issued, found = tables.certificate, tables.found
    return or_(
        _exists(sighting, issued.c.sha256 == sighting.c.sha256, issued.c.not_after < limit),
        _exists(sighting, found.c.sha256 == sighting.c.sha256, found.c.not_after < limit, found.c.not_after != 0),
    )


def _name_goes(c: FromClause) -> ColumnElement[bool]:
    return ~_exists(c, tables.identity_name.c.name_id == c.c.id)


def _has_newer(summary: Any, c: FromClause) -> ColumnElement[bool]:
    """That the identity's newest certificate is known, and is another one that does not end before this one."""
    return _exists(
        c, summary.c.identity_id == c.c.identity_id, summary.c.newest != c.c.sha256, summary.c.newest_not_after >= c.c.not_after
    )  # fmt: skip


def _exists(c: FromClause, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(*conditions).correlate(c)


def _key(name: str) -> list[Any]:
    return list(tables.metadata.tables[name].primary_key.columns)


def _among(key: Sequence[Any], rows: Sequence[Row[Any]]) -> ColumnElement[bool]:
    if not rows:
        return false()
    if len(key) == 1:
        found: ColumnElement[bool] = key[0].in_([getattr(row, key[0].name) for row in rows])
        return found
    return tuple_(*key).in_([tuple(getattr(row, column.name) for column in key) for row in rows])


def _literally(c: FromClause, condition: ColumnElement[bool]) -> str:
    """Return a condition on ``c`` as PostgreSQL's text, without bind parameters: there are only numbers of ours in it."""
    query = select(c).where(condition)
    text = str(query.compile(dialect=postgresql.asyncpg.dialect(), compile_kwargs={"literal_binds": True}))  # type: ignore[no-untyped-call]
    return text.partition("WHERE ")[2]
