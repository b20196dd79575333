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
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from random import SystemRandom
from typing import Any

from msgspec import structs
from sqlalchemy import Row, and_, delete, exists, or_, select

from handclasp.authority.authorities import Authorities
from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault
from handclasp.inventory import statements
from handclasp.inventory.differences import Differences, Open, Outcome
from handclasp.inventory.issuers import OurAuthorities
from handclasp.inventory.newcomers import Known, Newcomers
from handclasp.inventory.quota import Bringer, Quotas
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
from handclasp.wire.filescans import agent_of
from handclasp.wire.observations import Covered, Observed, Recorded, Sightings

declare("record.read", "record.touched", "record.newcomers", "record.written", "record.covered")

AT_ONCE = 250
"""Locations in one write."""
CHANGED_AT_ONCE = 100
"""Locations in one write that hold something else than before: each of them is some ten rows."""
MAX_CERTIFICATES = 300
"""Certificates in such a write; one location may have more, and is written whole."""
ATTEMPTS = 10
_CHANCE = SystemRandom()

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
    refused: int = 0
    """Locations of which the certificates are beyond a quota."""

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


@dataclass(frozen=True, slots=True)
class _Call:
    """Whose sightings are being recorded."""

    source_id: int
    scan_id: str | None
    by_agents: bool

    def bringer(self, key: str, host: str | None) -> Bringer:
        """Return whose quota a location counts for."""
        return Bringer(self.source_id, agent_of(key), host) if self.by_agents else Bringer(self.source_id)


class Recorder:
    """Records what sources saw. Any number of calls at once."""

    def __init__(
        self, store: Store, authorities: Authorities, clock: Clock, reconciler: Reconciler | None = None, quotas: Quotas | None = None
    ) -> None:
        self._store = store
        self._quotas = quotas
        self._authorities = authorities
        self._clock = clock
        self._reconciler = reconciler or Reconciler(store, clock)
        self._ours: tuple[int, OurAuthorities] | None = None
        self._busy: set[tuple[int, str]] = set()
        self._free = asyncio.Condition()

    async def record(self, source_id: int, sightings: Sightings, *, scan_id: str | None = None, by_agents: bool = False) -> Recorded:
        """Record what was seen in a source, and return what came of it. Durable on return; recording the same again changes nothing.

        Certificates that cannot be read are kept as they are, with the reason; a location that could not be read keeps what was seen there.
        An observation that is older than what is known of its location is left out. Writes are short however much there is. When it is
        stopped in between, what was recorded stays recorded, and all of it can be handed in again.

        What is new beyond a quota is left out and counted as ``refused``; with ``by_agents`` each agent has a quota of its own, and is
        known by the keys of its locations.

        Raises ``bad_request`` before anything is recorded for what no source may say (an unknown kind or role, a certificate with neither
        bytes nor fingerprint), ``unavailable`` when the database cannot be read or written.
        """
        for observed in sightings.observed:
            check_observed(observed)
        done = Recorded(locations=0, changed=0, failed=0, certificates=0, fresh=0, gone=0)
        for keyed in _parts(sightings.observed):
            part, keys = list(keyed.values()), list(keyed)
            async with self._alone({(source_id, key) for key in keys}):
                await self._record(_Call(source_id, scan_id, by_agents), part, keys, done)
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
                # An authority that our key signed, and that is none of ours, stands for something wherever it is.
                rogue = exists().where(
                    tables.found.c.sha256 == standing.c.sha256, tables.found.c.is_ca == 1, tables.found.c.authority_id > 0
                )
                counts = or_(is_use, and_(sighting.c.role == LISTED, standing.c.origin == "found"), rogue)
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

    async def _record(self, call: _Call, part: Sequence[Observed], keys: Sequence[str], done: Recorded) -> None:
        for attempt in range(ATTEMPTS):
            chunk = await self._compare(call.source_id, part, keys)
            unread = len(chunk.failed)
            refused = await self._leave_out(chunk, call, done) if chunk.missing and self._quotas is not None else 0
            fault("record.read")
            try:
                for piece in chunk.pieces():
                    await self._apply(piece, done, call)
                    refused += piece.refused
            except HandclaspError as error:
                if error.kind is not Kind.CONFLICT or attempt == ATTEMPTS - 1:
                    raise
                # Another process recorded one of these locations this very moment: look again, and not all in step.
                await asyncio.sleep(_CHANCE.uniform(0, 0.02 * 2 ** min(attempt, 4)))
                continue
            done.locations += len(part) - unread - refused
            done.failed += unread
            done.refused += refused
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
            if row is not None and row.seen_at is not None and at < row.seen_at <= now + statements.SKEW:
                continue
            content = digest(observed)
            if row is not None and row.gone_at is None and row.content is not None and bytes(row.content) == content:
                chunk.touched.append({"id": row.id, "content": content, "at": at})
            else:
                chunk.changed.append((look_of(observed, key, at, content), row))
        return chunk

    async def _leave_out(self, chunk: _Chunk, call: _Call, done: Recorded) -> int:
        """Take out of a chunk the new locations that are beyond a quota; return how many of these had been read."""
        assert self._quotas is not None
        new: dict[Bringer, list[str]] = {}
        for row in chunk.missing:
            new.setdefault(call.bringer(row["key"], row["host"]), []).append(row["key"])
        refused: set[str] = set()
        unread = len(chunk.failed)
        for bringer, keys in new.items():
            granted = await self._quotas.places(bringer, len(keys))
            if granted < len(keys):
                refused.update(keys[granted:])
                done.refusal = self._quotas.problem(bringer, "locations")
        if refused:
            chunk.missing = [row for row in chunk.missing if row["key"] not in refused]
            chunk.failed = [one for one in chunk.failed if one[1] not in refused]
            chunk.changed = [(look, row) for look, row in chunk.changed if row is not None or look.key not in refused]
        return len(refused) - (unread - len(chunk.failed))

    async def _over(self, brought: Collection[Look], call: _Call, done: Recorded) -> dict[Bringer, str]:
        """Return who brings more new certificates than their quota lets them, with the reason. ``brought`` has one for each."""
        over: dict[Bringer, str] = {}
        for bringer, number in Counter(call.bringer(look.key, look.observed.host) for look in brought).items():
            if self._quotas is not None and not await self._quotas.certificates(bringer, number):
                done.refusal = over[bringer] = self._quotas.problem(bringer, "certificates")
        return over

    async def _look_up(self, chunk: _Chunk, call: _Call, done: Recorded) -> tuple[Newcomers, dict[bytes, Known], _Before]:
        """Return what is known of everything in a chunk. What is beyond a quota leaves the chunk, as a location that was not read."""
        before = await self._open_sightings([row.id for _, row in chunk.changed if row is not None])
        over: dict[Bringer, str] = {}
        while True:
            newcomers = Newcomers(self._store, await self._our_authorities(), self._clock(), self._reconciler.graces)
            besides = (sha256 for sightings in before.values() for sha256, _ in sightings)
            known = await newcomers.look_up([look for look, _ in chunk.changed], besides)
            if over or not newcomers.brought or not (over := await self._over(newcomers.brought.values(), call, done)):
                return newcomers, known, before
            whole, chunk.changed = chunk.changed, []
            for look, row in whole:
                problem = over.get(call.bringer(look.key, look.observed.host))
                if problem is None or look.ders.keys().isdisjoint(newcomers.brought):
                    chunk.changed.append((look, row))
                else:
                    chunk.failed.append((structs.replace(look.observed, problem=problem), look.key, look.at))
            chunk.refused = len(whole) - len(chunk.changed)

    async def _apply(self, chunk: _Chunk, done: Recorded, call: _Call) -> None:
        changes: list[Change] = []
        future = self._clock() + statements.SKEW
        if chunk.changed:
            newcomers, known, before = await self._look_up(chunk, call, done)
        if chunk.missing:
            changes.append(Change(statements.add_location, rows=chunk.missing))
        if chunk.touched:
            changes += self._touch(chunk.touched, future)
        if chunk.failed:
            rows = [
                {"source_id": chunk.source_id, "key": key, "at": at, "problem": problem_text(observed.problem or ""), "future": future}
                for observed, key, at in chunk.failed
            ]
            changes.append(Change(statements.fail_location, rows=rows))
        outcome = Outcome()
        if chunk.changed:
            await newcomers.record_unissued(call.scan_id)
            fault("record.newcomers")
            changes += [*newcomers.changes(), *self._see(chunk, known, before, outcome, newcomers.learnt)]
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

    def _touch(self, rows: list[dict[str, Any]], future: int) -> list[Change]:
        if self._store.is_sqlite:
            return [Change(statements.touch_location.bindparams(future=future), rows=rows), Change(statements.wake, rows=rows)]
        columns = {f"{name}s": [row[name] for row in rows] for name in ("id", "content", "at")}
        wake = statements.wake_many.bindparams(ids=columns["ids"], at=max(columns["ats"]))
        return [Change(statements.touch_locations.bindparams(**columns, future=future)), Change(wake)]

    async def _our_authorities(self) -> OurAuthorities:
        await self._authorities.refresh()
        generation = self._store.generation
        if self._ours is None or self._ours[0] != generation:
            self._ours = (generation, OurAuthorities(self._authorities.all()))
        return self._ours[1]

    # --- what changed ---------------------------------------------------------------------------------------------------------------------

    def _see(self, chunk: _Chunk, known: dict[bytes, Known], before: _Before, outcome: Outcome, learnt: Collection[bytes]) -> list[Change]:
        """Return the changes that bring locations and sightings to what was seen."""
        differences = Differences(chunk.source_id, self._clock(), known, self._reconciler.graces, outcome, learnt)
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
        future = self._clock() + statements.SKEW
        if self._store.is_sqlite:  # one process, and in it nobody else has these locations now
            return [Change(statements.read_location, rows=[{**row, "future": future} for row in rows])]
        for values, (_, row) in zip(rows, chunk.changed, strict=True):
            values["before"] = None if row is None else row.content
        columns = {name: [row[name] for row in rows] for name in statements.READ_LOCATIONS_TYPES}
        statement = statements.read_locations.bindparams(**columns, source_id=chunk.source_id, future=future)
        return [Change(statement, expect=len(rows))]

    # --- what was not there ---------------------------------------------------------------------------------------------------------------

    async def _cover(self, source_id: int, covered: Covered, done: Recorded) -> None:
        """End what is in a unit that was listed whole, and was neither read nor tried since that began."""
        location = tables.location.c
        now = self._clock()
        unit, began_at, future = bounded(covered.unit), min(covered.began_at, now), now + statements.SKEW
        absent = (
            select(location.id)
            .where(location.source_id == source_id, location.unit == unit, location.gone_at.is_(None))
            .where(or_(location.tried_at < began_at, location.tried_at > future))
            .where(or_(location.seen_at.is_(None), location.seen_at < began_at, location.seen_at > future))
            .limit(AT_ONCE)
        )
        while rows := await self._store.rows(absent):
            ids = [row.id for row in rows]
            sighting = tables.sighting.c
            was = select(sighting.sha256, sighting.role).where(sighting.location_id.in_(ids), sighting.ended_at.is_(None))
            open_here = await self._store.rows(was)
            each = [{"id": one, "began_at": began_at, "future": future} for one in ids]
            changes = [
                Change(statements.end_sightings_of_absent, rows=each),
                Change(statements.touch_standings_of_absent, rows=each),
                Change(statements.end_absent, rows=each),
            ]
            await self._store.ledger.commit(Write([], changes))
            fault("record.covered")
            done.gone += len(open_here)
            await self._reconciler.judge({bytes(row.sha256) for row in open_here if row.role in STANDING_ROLES})


def _parts(observed: Sequence[Observed]) -> list[dict[str, Observed]]:
    """Split what was seen, by the key as it is kept, into writes: not too much at once, and no location twice in one."""
    parts: list[dict[str, Observed]] = []
    for one in observed:
        key = bounded(one.key)
        if not parts or key in parts[-1] or len(parts[-1]) >= AT_ONCE:
            parts.append({})
        parts[-1][key] = one
    return parts
