"""Parts of scans as rows that workers lease: whoever asks gets one, and loses it when nothing is heard of them.

A lease is a name of its own in the row, so that a worker that was thought dead and comes back can change nothing any more. All times are
those of the processes that share the database; a lease is many times longer than their clocks differ.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random, SystemRandom
from typing import Any

from sqlalchemy import Row, Select, and_, exists, func, insert, or_, select, tuple_, update

from handclasp.clock import Clock
from handclasp.discovery.endings import OPEN, finish
from handclasp.discovery.patience import patiently
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

declare("scan.recorded", "scan.placed")

LEASE = 60.0
"""Seconds after which a part is taken from a worker that says nothing."""
ATTEMPTS = 4
"""Times that a part is begun before the scan goes on without it."""
PAUSE = 2.0
"""Seconds before a part that failed is tried again; four times as long after each further failure."""
FARTHEST = 3_600_000
"""Milliseconds that the end of a lease or a pause lies ahead at most; what lies farther was written by a clock that was wrong."""
MAX_PARTS = 100_000
PLAN = 0
"""The number of the part that plans the others."""

_scan, _part, _source = tables.scan.c, tables.scan_part.c, tables.source.c


@dataclass(frozen=True, slots=True)
class Leased:
    """A part that a worker has, and everything it needs for it."""

    scan: str
    number: int
    """0 is the part that plans the others."""
    lease: str
    source_id: int
    source: str
    kind: str
    settings: dict[str, Any]
    scope: dict[str, Any]
    facts: dict[str, Any]
    spec: dict[str, Any]
    place: str
    began_at: int
    """When the scan began, ms."""
    dry: bool
    seconds: float = LEASE
    """How long the lease lasts from each word on."""


@dataclass(slots=True)
class Progress:
    """What came of a part since the last word; numbers are added to the scan's."""

    total: int = 0
    read: int = 0
    failed: int = 0
    certificates: int = 0
    fresh: int = 0
    gone: int = 0
    place: str | None = None
    """None: as before."""
    problem: str | None = None
    parts: list[dict[str, Any]] = field(default_factory=list)
    """Of the part that plans: what it found so far."""


def lost() -> HandclaspError:
    """Return the error of a lease that is lost: one of its own each time, as its traceback holds on to what was read under that lease."""
    return HandclaspError(Kind.CONFLICT, "this part was taken by another worker, or its scan was stopped")


class Leases:
    """Gives parts out and takes them back. Any number of tasks and processes at once.

    ``patience`` is for how many seconds a word about a part waits for a database that is away. It is kept once however often that is
    tried.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        patience: float = 0.0,
        random: Random | None = None,
        new_id: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._store = store
        self._clock = clock
        self._patience = patience
        self._random = random or SystemRandom()
        self._new_id = new_id

    async def take(
        self, worker: str, *, runs: Collection[str], kinds: Collection[str] = (), source: str | None = None, seconds: float = LEASE
    ) -> Leased | None:
        """Lease one open part to ``worker``, or return None when there is nothing to do.

        Scans take turns by chance, so that a large one does not keep small ones waiting; a scan has at most as many parts leased at once as
        its source's settings say (``parallel``). Durable on return.
        """
        now = self._clock()
        open_scans = list(await self._store.rows(_open_scans(now, runs, kinds, source)))
        self._random.shuffle(open_scans)
        for row in open_scans:
            if await self._is_full(row, now):
                continue
            lease = f"{worker}/{base64.b32encode(self._new_id(10)).decode().lower()}"
            doubt = await self._try(Write([], [*_give_up(row.id, now), Change(_take(row, lease, now, seconds))]))
            mine = select(tables.scan_part).where(_part.scan_id == row.id, _part.leased_by == lease, _part.state == "leased")
            taken = await patiently(partial(self._store.row, mine), self._patience)
            if taken is not None:
                return _leased(row, taken, lease, seconds)
            if doubt is not None:
                raise doubt
        return None

    async def _try(self, write: Write) -> HandclaspError | None:
        """Commit, and return why nobody knows whether it happened: a lease that nobody knows of would keep its part for a minute."""
        try:
            await self._store.ledger.commit(write)
        except HandclaspError as error:
            if error.kind is not Kind.UNAVAILABLE or not self._patience:
                raise
            return error
        return None

    async def _is_full(self, scan: Row[Any], now: int) -> bool:
        """Tell whether as many parts of a scan are being read as its source allows: then nothing is written to find that out."""
        parallel = _parallel(scan)
        if parallel is None:
            return False
        busy = select(func.count().label("number")).where(_part.scan_id == scan.id, _part.state == "leased", ~_is_over(now))
        row = await self._store.row(busy)
        return row is not None and row.number >= parallel

    async def held(self, leased: Leased) -> bool:
        """Tell whether a worker still has its part: the lease is its own, and the scan goes on."""
        row = await self._store.row(
            select(_scan.state, _part.leased_by).join_from(tables.scan_part, tables.scan, _scan.id == _part.scan_id).where(_mine(leased))
        )
        return row is not None and row.state in OPEN

    async def report(self, leased: Leased, progress: Progress) -> None:
        """Keep how far a part is, add to the scan's numbers, and lengthen the lease, all in one write, durable on return.

        Raises ``conflict`` when the lease is lost; nothing is kept then.
        """
        await self._hear(leased, progress, _insert_parts(leased, progress))
        fault("scan.placed")

    async def done(self, leased: Leased, progress: Progress) -> None:
        """The same, and the part is read to its end; the last one ends the scan."""
        ended = Change(update(tables.scan_part).where(_mine(leased)).values(state="done", leased_until=None))
        changes = [*_insert_parts(leased, progress), ended]
        if leased.number == PLAN:
            changes.append(Change(update(tables.scan).where(_scan.id == leased.scan, _scan.state == "planning").values(state="running")))
        await self._hear(leased, progress, changes)
        fault("scan.placed")
        await patiently(lambda: finish(self._store, leased.scan, self._clock()), self._patience)

    async def failed(self, leased: Leased, progress: Progress, problem: str, *, final: bool = False) -> None:
        """The part could not be read on: it is tried again from its place after a pause, or given up, ``final`` or after four attempts."""
        row = await patiently(lambda: self._store.row(select(_part.attempts).where(_mine(leased))), self._patience)
        if row is None:
            raise lost()
        given_up = final or row.attempts >= ATTEMPTS
        pause = round(PAUSE * 1000 * 4 ** (row.attempts - 1))
        values = {"state": "failed" if given_up else "waiting", "leased_until": None if given_up else self._clock() + pause}
        changes = [Change(update(tables.scan_part).where(_mine(leased)).values(problem=problem, **values))]
        if given_up:
            counted = {"failed": _scan.failed + 1, "problem": func.coalesce(_scan.problem, problem)}
            changes.append(Change(update(tables.scan).where(_scan.id == leased.scan).values(counted)))
        await self._hear(leased, progress, changes)
        await patiently(lambda: finish(self._store, leased.scan, self._clock()), self._patience)

    async def release(self, leased: Leased) -> None:
        """Give a part back unread, as a process that ends does: another takes it at once. Nothing happens when the lease is lost."""
        again = update(tables.scan_part).where(_mine(leased)).values(state="waiting", leased_until=None, attempts=_part.attempts - 1)
        await self._store.ledger.commit(Write([], [Change(again)]))

    async def recover(self, runs: str = "server") -> None:
        """Take back what an earlier process of this installation had leased. Only where there is one process, when it begins."""
        mine = select(_scan.id).join_from(tables.scan, tables.source, _source.id == _scan.source_id).where(_source.runs == runs)
        back = update(tables.scan_part).where(_part.state == "leased", _part.scan_id.in_(mine)).values(leased_until=0)
        await self._store.ledger.commit(Write([], [Change(back)]))

    async def find(self, scan_id: str, number: int, lease: str, runs: str) -> Leased | None:
        """Return a part that is leased by this name and read by ``runs``; None where there is none. For whoever hands in what was read:
        settings, ``spec`` and ``place`` are left out.
        """
        query = (
            select(_part.number, _scan.id, _scan.source_id, _scan.created_at, _scan.dry, _source.name, _source.kind, _source.facts)
            .join_from(tables.scan_part, tables.scan, _scan.id == _part.scan_id)
            .join(tables.source, _source.id == _scan.source_id)
            .where(_part.scan_id == scan_id, _part.number == number, _part.leased_by == lease, _part.state == "leased")
            .where(_source.runs == runs)
        )
        row = await self._store.row(query)
        if row is None:
            return None
        return Leased(
            scan=row.id, number=row.number, lease=lease, source_id=row.source_id, source=row.name, kind=row.kind, settings={}, scope={},
            facts=json.loads(row.facts), spec={}, place="", began_at=row.created_at, dry=bool(row.dry),
        )  # fmt: skip

    async def known(self, source_id: int, unit: str, most: int = 100_000) -> frozenset[str]:
        """Return the keys of the locations that a unit of a source has and that are not gone."""
        place = tables.location.c
        query = select(place.key).where(place.source_id == source_id, place.unit == unit, place.gone_at.is_(None)).limit(most)
        return frozenset(row.key for row in await self._store.rows(query))

    async def _hear(self, leased: Leased, progress: Progress, changes: Sequence[Change]) -> None:
        """Commit a word about a part, once: a database that goes away in a commit is asked afterwards whether it happened."""
        tried: list[int] = []

        async def attempt() -> None:
            if tried and await self._was_heard(leased, tried):
                return
            tried.append(self._clock() + round(leased.seconds * 1000))
            await self._store.ledger.commit(Write([], [*self._progress(leased, progress, tried[-1]), *changes]))

        await patiently(attempt, self._patience)

    async def _was_heard(self, leased: Leased, tried: Collection[int]) -> bool:
        mine = and_(_part.scan_id == leased.scan, _part.number == leased.number, _part.leased_by == leased.lease)
        row = await self._store.row(select(_part.state, _part.leased_until).where(mine))
        return row is not None and (row.state != "leased" or row.leased_until in tried)

    def _progress(self, leased: Leased, progress: Progress, until: int) -> list[Change]:
        values: dict[str, Any] = {"leased_until": until}
        if progress.place is not None:
            values["place"] = progress.place
        still = exists(select(_scan.id).where(_scan.id == leased.scan, _scan.state.in_(OPEN)))
        changes = [Change(update(tables.scan_part).where(_mine(leased), still).values(values), expect=1, conflict=lost())]
        added: dict[str, Any] = {
            name: tables.scan.c[name] + count
            for name in ("total", "read", "failed", "certificates", "fresh", "gone")
            if (count := getattr(progress, name))
        }
        if _begins_plan(leased, progress):
            added["total"] = progress.total
        if progress.problem is not None:
            added["problem"] = func.coalesce(_scan.problem, progress.problem)
        if added:
            changes.append(Change(update(tables.scan).where(_scan.id == leased.scan).values(added)))
        return changes


def _mine(leased: Leased) -> Any:
    return and_(_part.scan_id == leased.scan, _part.number == leased.number, _part.leased_by == leased.lease, _part.state == "leased")


def _available(now: int) -> Any:
    """The parts that nobody works on: waiting, when their pause is over, or leased by somebody who is not heard of."""
    over = _is_over(now)
    waiting = and_(_part.state == "waiting", or_(_part.leased_until.is_(None), over))
    planned = or_(_part.number == PLAN, _scan.state == "running")
    return and_(or_(waiting, and_(_part.state == "leased", over)), planned)


def _is_over(now: int) -> Any:
    """Whether the time of a part has come; also one that is farther away than any can be, written by a clock that was wrong."""
    return or_(_part.leased_until <= now, _part.leased_until > now + FARTHEST)


def _open_scans(now: int, runs: Collection[str], kinds: Collection[str], source: str | None) -> Select[Any]:
    part = select(_part.number).where(_part.scan_id == _scan.id, _available(now)).correlate(tables.scan)
    query = (
        select(tables.scan, _source.name.label("source"), _source.kind, _source.settings, _source.scope, _source.facts)
        .join_from(tables.scan, tables.source, _source.id == _scan.source_id)
        .where(_scan.state.in_(OPEN), _source.runs.in_(list(runs)), exists(part))
    )
    if kinds:
        query = query.where(_source.kind.in_(list(kinds)))
    return query.where(_source.name == source) if source is not None else query


def _take(scan: Row[Any], lease: str, now: int, seconds: float) -> Any:
    first = (
        select(_part.scan_id, _part.number)
        .join_from(tables.scan_part, tables.scan, _scan.id == _part.scan_id)
        .where(_part.scan_id == scan.id, _available(now), _part.attempts < ATTEMPTS, _scan.state.in_(OPEN))
        .order_by(_part.number)
        .limit(1)
        .with_for_update(skip_locked=True, of=tables.scan_part)
    )
    taken = update(tables.scan_part).where(tuple_(_part.scan_id, _part.number).in_(first))
    parallel = _parallel(scan)
    if parallel is not None:
        other = tables.scan_part.alias("other")
        busy = select(func.count()).where(
            other.c.scan_id == scan.id, other.c.state == "leased", other.c.leased_until > now, other.c.leased_until <= now + FARTHEST
        )
        taken = taken.where(busy.scalar_subquery() < parallel)
    return taken.values(state="leased", leased_by=lease, leased_until=now + round(seconds * 1000), attempts=_part.attempts + 1)


def _parallel(scan: Row[Any]) -> int | None:
    parallel = json.loads(scan.settings).get("parallel")
    return parallel if isinstance(parallel, int) and parallel > 0 else None


def _give_up(scan_id: str, now: int) -> list[Change]:
    """Fail the parts whose workers died one after the other."""
    dead = and_(_part.scan_id == scan_id, _part.state == "leased", _is_over(now), _part.attempts >= ATTEMPTS)
    problem = f"given up: its worker ended {ATTEMPTS} times"
    some = exists(select(_part.number).where(dead))
    counted = {"failed": _scan.failed + 1, "problem": func.coalesce(_scan.problem, problem)}
    return [
        Change(update(tables.scan).where(_scan.id == scan_id, some).values(counted)),
        Change(update(tables.scan_part).where(dead).values(state="failed", leased_until=None, problem=problem)),
    ]


def _first_part(progress: Progress) -> int:
    return int(progress.place or 0) - len(progress.parts) + 1


def _begins_plan(leased: Leased, progress: Progress) -> bool:
    """Tell whether these are the first parts of a plan, which take the place of those that a planner before this one had found."""
    return leased.number == PLAN and bool(progress.parts) and _first_part(progress) == 1


def _insert_parts(leased: Leased, progress: Progress) -> list[Change]:
    """Add the parts that planning found. A planner that begins anew first takes out what the one before it had found."""
    if leased.number != PLAN or not progress.parts:
        return []
    first = _first_part(progress)
    rows = [
        {"scan_id": leased.scan, "number": number, "spec": json.dumps(spec), "state": "waiting", "place": "", "attempts": 0}
        for number, spec in enumerate(progress.parts, first)
    ]
    changes = [Change(insert(tables.scan_part), rows=rows)]
    if _begins_plan(leased, progress):
        changes.insert(0, Change(tables.scan_part.delete().where(_part.scan_id == leased.scan, _part.number > PLAN)))
    return changes


def _leased(scan: Row[Any], part: Row[Any], lease: str, seconds: float) -> Leased:
    return Leased(
        scan=scan.id,
        number=part.number,
        lease=lease,
        source_id=scan.source_id,
        source=scan.source,
        kind=scan.kind,
        settings=json.loads(scan.settings),
        scope=json.loads(scan.scope),
        facts=json.loads(scan.facts),
        spec=json.loads(part.spec),
        place=part.place if part.number != PLAN else "",
        began_at=scan.created_at,
        dry=bool(scan.dry),
        seconds=seconds,
    )
