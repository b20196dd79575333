"""Recording what sources saw: change-only, batched, safe to repeat, from any number of processes at once.

The normal case is that a location holds what it held: that costs one look-up by key, one hash and one timestamp, each for hundreds of
locations together. Everything else is found out before the write (which certificates are issued here, which are known, which are new and
what they say), and then one write for some hundred locations makes it durable: certificates, locations, sightings that begin and end.
Standings are judged right after (:mod:`handclasp.inventory.reconcile`); where the process dies in between, they are due, and judged by the
next one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, and_, delete, exists, or_, select

from handclasp.authority.authorities import Authorities
from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault
from handclasp.inventory import statements
from handclasp.inventory.differences import Differences, Open, Outcome
from handclasp.inventory.issuers import OurAuthorities
from handclasp.inventory.newcomers import Known, Newcomers
from handclasp.inventory.reconcile import Reconciler
from handclasp.inventory.rows import (
    LISTED,
    STANDING_ROLES,
    USE_ROLES,
    Look,
    bounded,
    check_observed,
    digest,
    location_values,
    look_of,
    place_values,
    problem_text,
)
from handclasp.store import tables
from handclasp.store.chunks import in_chunks
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write
from handclasp.wire.observations import Covered, Observed, Recorded, Sightings

declare("record.read", "record.touched", "record.newcomers", "record.written", "record.covered")

AT_ONCE = 250
"""Locations in one write."""
CHANGED_AT_ONCE = 100
"""Locations in one write that hold something else than before: each of them is some ten rows."""
MAX_CERTIFICATES = 300
"""Certificates in such a write; one location may have more, and is written whole."""
ATTEMPTS = 6

_Before = dict[int, Open]
"""By location, what was seen there."""


@dataclass(slots=True)
class _Chunk:
    """What some locations come to, while it is worked out."""

    source_id: int
    failed: list[tuple[Observed, str, int]] = field(default_factory=list)
    touched: list[dict[str, Any]] = field(default_factory=list)
    changed: list[tuple[Look, Row[Any] | None]] = field(default_factory=list)
    """With the location's row as it was; None for a new one."""
    missing: list[dict[str, Any]] = field(default_factory=list)
    """Locations that have no row yet."""

    def pieces(self) -> Iterator[_Chunk]:
        """Yield it in writes that do not hold up others for long."""
        yield _Chunk(self.source_id, self.failed, self.touched, [], self.missing)
        piece = _Chunk(self.source_id)
        weight = 0
        for look, row in self.changed:
            if piece.changed and (len(piece.changed) == CHANGED_AT_ONCE or weight + len(look.ders) > MAX_CERTIFICATES):
                yield piece
                piece, weight = _Chunk(self.source_id), 0
            piece.changed.append((look, row))
            weight += len(look.ders)
        if piece.changed:
            yield piece


class Recorder:
    """Records what sources saw. Any number of calls at once."""

    def __init__(self, store: Store, authorities: Authorities, clock: Clock, reconciler: Reconciler | None = None) -> None:
        self._store = store
        self._authorities = authorities
        self._clock = clock
        self._reconciler = reconciler or Reconciler(store, clock)
        self._ours: tuple[int, OurAuthorities] | None = None
        self._busy: set[tuple[int, str]] = set()
        self._free = asyncio.Condition()

    async def record(self, source_id: int, sightings: Sightings, *, scan_id: str | None = None) -> Recorded:
        """Record what was seen in a source, and return what came of it. Durable on return; recording the same again changes nothing.

        Certificates that cannot be read are kept as they are, with the reason; a location that could not be read keeps what was seen there.
        An observation that is older than what is known of its location is left out. Writes are short however much there is. When it is
        stopped in between, what was recorded stays recorded, and all of it can be handed in again.

        Raises ``bad_request`` before anything is recorded for what no source may say (an unknown kind or role, a certificate with neither
        bytes nor fingerprint), ``unavailable`` when the database cannot be read or written.
        """
        for observed in sightings.observed:
            check_observed(observed)
        done = Recorded(locations=0, changed=0, failed=0, certificates=0, fresh=0, gone=0)
        for part in _parts(sightings.observed):
            keys = [bounded(observed.key) for observed in part]
            async with self._alone({(source_id, key) for key in keys}):
                await self._record(source_id, part, keys, done, scan_id)
        for covered in sightings.covered:
            await self._cover(source_id, covered, done)
        return done

    async def forget_source(self, source_id: int) -> None:
        """Remove every location and sighting of a source that was removed, some at a time; what was seen nowhere else stands for nothing.

        Durable on return; when it is stopped in between, call it again.
        """
        location, sighting, standing = tables.location, tables.sighting, tables.standing
        while rows := await self._store.rows(select(location.c.id).where(location.c.source_id == source_id).limit(AT_ONCE)):
            ids = [row.id for row in rows]
            mine = select(sighting.c.id, sighting.c.sha256).where(sighting.c.location_id.in_(ids)).limit(AT_ONCE)
            still, ended = mine.where(sighting.c.ended_at.is_(None)), mine.where(sighting.c.ended_at.is_not(None))
            seen = [*await self._store.rows(still), *await self._store.rows(ended)]  # each has an index of its own
            certificates = list({bytes(row.sha256) for row in seen})
            if seen:
                is_use = sighting.c.role.in_(USE_ROLES)
                counts = or_(is_use, and_(sighting.c.role == LISTED, standing.c.origin == "found"))
                nowhere = ~exists().where(sighting.c.sha256 == standing.c.sha256, counts)
                changes = [
                    Change(delete(sighting).where(sighting.c.id.in_([row.id for row in seen]))),
                    Change(delete(standing).where(standing.c.sha256.in_(certificates), standing.c.first_seen_at > 0, nowhere)),
                    Change(statements.forget_gone, rows=[{"sha256": one} for one in certificates]),
                    Change(statements.doubt, rows=[{"sha256": one} for one in certificates]),
                    Change(statements.miss, rows=[{"sha256": one, "now": self._clock()} for one in certificates]),
                    Change(statements.doubt, rows=[{"sha256": one} for one in certificates]),
                ]
            else:
                changes = [Change(delete(location).where(location.c.id.in_(ids)))]
            await self._store.ledger.commit(Write([], changes))
            await self._reconciler.judge(certificates)

    # --- one chunk ------------------------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _alone(self, keys: set[tuple[int, str]]) -> AsyncIterator[None]:
        """Have these locations to oneself in this process. (Other processes are noticed when it is written.)"""
        async with self._free:
            await self._free.wait_for(lambda: self._busy.isdisjoint(keys))
            self._busy |= keys
        try:
            yield
        finally:
            self._busy -= keys
            async with self._free:
                self._free.notify_all()

    async def _record(self, source_id: int, part: Sequence[Observed], keys: Sequence[str], done: Recorded, scan_id: str | None) -> None:
        for attempt in range(ATTEMPTS):
            chunk = await self._compare(source_id, part, keys)
            fault("record.read")
            try:
                for piece in chunk.pieces():
                    await self._apply(piece, done, scan_id)
            except HandclaspError as error:
                if error.kind is not Kind.CONFLICT or attempt == ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.01 * attempt)  # another process recorded one of these locations this very moment: look again
                continue
            done.locations += len(part) - len(chunk.failed)
            done.failed += len(chunk.failed)
            done.certificates += sum(len(observed.certificates) for observed in part if observed.problem is None)
            return

    async def _compare(self, source_id: int, part: Sequence[Observed], keys: Sequence[str]) -> _Chunk:
        """Hold what was seen against what is known, by one hash for each location."""
        location, now = tables.location.c, self._clock()
        query = select(location.id, location.key, location.content, location.facts, location.seen_at, location.gone_at)
        rows = await self._store.rows(query.where(location.source_id == source_id, location.key.in_(keys)))
        known = {row.key: row for row in rows}
        chunk = _Chunk(source_id)
        for observed, key in zip(part, keys, strict=True):
            at, row = min(observed.at, now), known.get(key)  # a clock that is ahead must not make all that comes later look old
            if row is None:
                chunk.missing.append({"source_id": source_id, "key": key, "at": at, **place_values(observed)})
            if observed.problem is not None:
                chunk.failed.append((observed, key, at))
                continue
            if row is not None and row.seen_at is not None and at < row.seen_at:
                continue
            content = digest(observed)
            if row is not None and row.gone_at is None and row.content is not None and bytes(row.content) == content:
                chunk.touched.append({"id": row.id, "content": content, "at": at})
            else:
                chunk.changed.append((look_of(observed, key, at, content), row))
        return chunk

    async def _apply(self, chunk: _Chunk, done: Recorded, scan_id: str | None) -> None:
        changes: list[Change] = []
        if chunk.missing:
            changes.append(Change(statements.add_location, rows=chunk.missing))
        if chunk.touched:
            changes += self._touch(chunk.touched)
        if chunk.failed:
            rows = [
                {"source_id": chunk.source_id, "key": key, "at": at, "problem": problem_text(observed.problem or "")}
                for observed, key, at in chunk.failed
            ]
            changes.append(Change(statements.fail_location, rows=rows))
        outcome = Outcome()
        if chunk.changed:
            newcomers = Newcomers(self._store, await self._our_authorities(), self._clock())
            before = await self._open_sightings([row.id for _, row in chunk.changed if row is not None])
            besides = (sha256 for sightings in before.values() for sha256, _ in sightings)
            known = await newcomers.look_up([look for look, _ in chunk.changed], besides)
            await newcomers.record_unissued(scan_id)
            fault("record.newcomers")
            changes += [*newcomers.changes(), *self._see(chunk, known, before, outcome)]
            outcome.fresh += newcomers.fresh
            outcome.unreadable = newcomers.unreadable
        if changes:
            await self._store.ledger.commit(Write([], changes))
        fault("record.written" if chunk.changed else "record.touched")
        if outcome.judged:
            await self._reconciler.judge(outcome.judged)
        if outcome.woken:
            await self._reconciler.step()
        done.changed += len(chunk.changed)
        done.fresh += outcome.fresh
        done.gone += outcome.gone
        done.unreadable += outcome.unreadable

    def _touch(self, rows: list[dict[str, Any]]) -> list[Change]:
        if self._store.is_sqlite:
            return [Change(statements.touch_location, rows=rows), Change(statements.wake, rows=rows)]
        columns = {f"{name}s": [row[name] for row in rows] for name in ("id", "content", "at")}
        wake = statements.wake_many.bindparams(ids=columns["ids"], at=max(columns["ats"]))
        return [Change(statements.touch_locations.bindparams(**columns)), Change(wake)]

    async def _our_authorities(self) -> OurAuthorities:
        await self._authorities.refresh()
        generation = self._store.generation
        if self._ours is None or self._ours[0] != generation:
            self._ours = (generation, OurAuthorities(self._authorities.all()))
        return self._ours[1]

    # --- what changed ---------------------------------------------------------------------------------------------------------------------

    def _see(self, chunk: _Chunk, known: dict[bytes, Known], before: _Before, outcome: Outcome) -> list[Change]:
        """Return the changes that bring locations and sightings to what was seen."""
        differences = Differences(chunk.source_id, self._clock(), known, self._reconciler.graces, outcome)
        for look, row in chunk.changed:
            differences.add(look, row, before.get(row.id, {}) if row is not None else {})
        return [*self._locations(chunk), *differences.changes()]

    async def _open_sightings(self, ids: Sequence[int]) -> _Before:
        sighting, location = tables.sighting.c, tables.location.c
        found: _Before = {}
        for some in in_chunks(ids, AT_ONCE):
            query = (
                select(sighting.location_id, sighting.sha256, sighting.role, sighting.chain, sighting.how, location.seen_at)
                .join_from(tables.sighting, tables.location, location.id == sighting.location_id)
                .where(sighting.location_id.in_(some), sighting.ended_at.is_(None))
            )
            for row in await self._store.rows(query):
                found.setdefault(row.location_id, {})[bytes(row.sha256), row.role] = row
        return found

    def _locations(self, chunk: _Chunk) -> list[Change]:
        rows = [{**location_values(look), "key": look.key, "source_id": chunk.source_id} for look, _ in chunk.changed]
        if self._store.is_sqlite:  # one process, and in it nobody else has these locations now
            return [Change(statements.read_location, rows=rows)]
        for values, (_, row) in zip(rows, chunk.changed, strict=True):
            values["before"] = None if row is None else row.content
        columns = {name: [row[name] for row in rows] for name in statements.READ_LOCATIONS_TYPES}
        statement = statements.read_locations.bindparams(**{f"{name}": value for name, value in columns.items()}, source_id=chunk.source_id)
        return [Change(statement, expect=len(rows))]

    # --- what was not there ---------------------------------------------------------------------------------------------------------------

    async def _cover(self, source_id: int, covered: Covered, done: Recorded) -> None:
        """End what is in a unit that was listed whole, and was neither read nor tried since that began."""
        location = tables.location.c
        unit, began_at = bounded(covered.unit), min(covered.began_at, self._clock())
        absent = (
            select(location.id)
            .where(location.source_id == source_id, location.unit == unit, location.gone_at.is_(None), location.tried_at < began_at)
            .where(or_(location.seen_at.is_(None), location.seen_at < began_at))
            .limit(AT_ONCE)
        )
        while rows := await self._store.rows(absent):
            ids = [row.id for row in rows]
            sighting = tables.sighting.c
            was = select(sighting.sha256, sighting.role).where(sighting.location_id.in_(ids), sighting.ended_at.is_(None))
            open_here = await self._store.rows(was)
            each = [{"id": one, "began_at": began_at} for one in ids]
            changes = [
                Change(statements.end_sightings_of_absent, rows=each),
                Change(statements.touch_standings_of_absent, rows=each),
                Change(statements.end_absent, rows=each),
            ]
            await self._store.ledger.commit(Write([], changes))
            fault("record.covered")
            done.gone += len(open_here)
            await self._reconciler.judge({bytes(row.sha256) for row in open_here if row.role in STANDING_ROLES})


def _parts(observed: Sequence[Observed]) -> list[list[Observed]]:
    """Split what was seen into writes: not too much at once, and no location twice in one."""
    parts: list[list[Observed]] = []
    keys: set[str] = set()
    for one in observed:
        if not parts or one.key in keys or len(parts[-1]) >= AT_ONCE:
            parts.append([])
            keys.clear()
        parts[-1].append(one)
        keys.add(one.key)
    return parts
