"""Keys of certificates in the order of a list, from one table: a few that an index names, or a walk along the index of ends.

A walk looks at a stretch of the index at a time, until the page is full, the index ends, or its time is over. Then it says how far it came,
and the next page begins there: no list takes longer because little of it fits. How long a stretch may be goes by how long such a row took
in the last lists of the same kind (:class:`Pace`), so that most pages are one stretch, and none takes much longer than it may.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import literal_column, select
from sqlalchemy.sql import FromClause

from handclasp.errors import HandclaspError, Kind
from handclasp.inventory.conditions import Condition, Key, Order
from handclasp.store.database import Store

FIRST_STRETCH = 2_000
"""Rows of a stretch at least."""
LONGEST_STRETCH = 100_000

GUESSED = {True: 1.5e-6, False: 5e-6}
"""Seconds that a row takes in a list of a kind that was not asked for yet, on SQLite and on PostgreSQL."""

_DOUBT = 0.3
"""How much of a slower stretch is believed."""
_CAUTION = 0.7
"""What part of the time that is left a stretch is made for: rows are not all alike."""
_WORTH = 0.25
"""What part of the whole time must be left for another stretch."""
_PATIENCE = 2.0
"""Times the whole time that sorting may take, where a walk would do instead."""
_LATE_SECONDS = 5.0
"""For how long it is not tried again after it took longer."""
_KINDS = 2_000


class Pace:
    """How long a row takes in walks of one kind: with the same filters, whatever their values."""

    def __init__(self, guessed: float) -> None:
        self._guessed = guessed
        self._seconds: dict[Hashable, float] = {}
        self._late: dict[Hashable, float] = {}

    def rows(self, kind: Hashable, seconds: float) -> int:
        """Return how many rows are likely to take so long."""
        return int(_CAUTION * max(seconds, 0.0) / self._seconds.get(kind, self._guessed))

    def took(self, kind: Hashable, rows: int, seconds: float) -> None:
        """Learn from a stretch that was walked to its end: quickly that it goes faster, slowly that it does not.

        Whatever else the machine does makes single stretches slower, and none faster.
        """
        each, known = seconds / rows, self._seconds.pop(kind, None)
        if len(self._seconds) >= _KINDS:
            del self._seconds[next(iter(self._seconds))]
        self._seconds[kind] = each if known is None or each < known else known + _DOUBT * (each - known)

    def sorts(self, kind: Hashable) -> bool:
        """Tell whether it is worth to try to sort what such a plan leads to: it did not take too long a moment ago."""
        return self._late.get(kind, 0.0) <= time.monotonic()

    def late(self, kind: Hashable) -> None:
        """Remember that sorting took too long."""
        if len(self._late) >= _KINDS:
            self._late.clear()
        self._late[kind] = time.monotonic() + _LATE_SECONDS


@dataclass(slots=True)
class Plan:
    """How to find the certificates of one table that fit."""

    origin: str
    base: FromClause
    """What is read: it has ``not_after`` and ``sha256``, and for a walk an index that begins with ``fixed`` and goes on with them."""
    joined: FromClause
    """The same, with what ``conditions`` need beside it."""
    conditions: list[Condition]
    fixed: list[Condition] = field(default_factory=list)
    few: bool = False
    """Whether other indexes lead to all that fit, and they are sorted; else the index of ends is walked."""
    instead: Plan | None = None
    """The walk to the same, for when sorting takes too long: they were not that few."""
    kind: Hashable = None
    """What plans have in common whose rows take about as long."""


@dataclass(slots=True)
class Found:
    """Keys that fit, in order, and how far that is known: None is to the end."""

    keys: list[Key]
    origin: str
    until: Key | None = None


@dataclass(slots=True)
class _Walk:
    """One plan that is being followed."""

    plan: Plan
    place: Key | None
    begun: bool = False
    ended: bool = False
    keys: list[Key] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Walker:
    """Follows plans for one page of a list, all of them within the same time."""

    store: Store
    order: Order
    after: Key | None
    limit: int
    seconds: float
    pace: Pace

    async def find(self, plans: Sequence[Plan]) -> list[Found]:
        """Return for each plan the first keys after ``after`` of what fits; fewer than ``limit`` when the time is over.

        Walks do not go further than what is known from the other plans is of use, and the one that is behind goes on first.
        """
        began = time.monotonic()
        sorted_ = await asyncio.gather(*(self._sorted(plan) for plan in plans if plan.few))
        parts = [part for part in sorted_ if isinstance(part, Found)]
        walks = [_Walk(plan, self.after) for plan in (*(p for p in sorted_ if isinstance(p, Plan)), *(p for p in plans if not p.few))]
        while True:
            walk = self._behind(walks)
            left = self.seconds - (time.monotonic() - began)
            if walk is None or (walk.begun and (self._enough(parts, walks) or left < _WORTH * self.seconds)):
                break
            others = sum(not one.ended for one in walks)
            await self._step(walk, left / others, self._useful(parts, walks))
        return [*parts, *(Found(walk.keys, walk.plan.origin, None if walk.ended else walk.place) for walk in walks)]

    async def _sorted(self, plan: Plan) -> Found | Plan:
        """Return what a plan of few leads to, or the walk to the same when they are too many to be sorted in time."""
        if plan.instead is None:
            return await self._sort(plan)
        if not self.pace.sorts(plan.kind):
            return plan.instead
        try:
            return await self._sort(plan, _PATIENCE * self.seconds)
        except HandclaspError as error:
            if error.kind is not Kind.TIMEOUT:
                raise
            self.pace.late(plan.kind)
            return plan.instead

    async def _sort(self, plan: Plan, within: float | None = None) -> Found:
        not_after, sha256 = plan.base.c.not_after, plan.base.c.sha256
        query = (
            select(not_after, sha256)
            .select_from(plan.joined)
            .where(*plan.fixed, *plan.conditions, *self.order.after(not_after + literal_column("0"), sha256, self.after))
            .order_by(*self.order.sorted_by(not_after, sha256))
            .limit(self.limit)
        )
        keys = [(row.not_after, bytes(row.sha256)) for row in await self.store.rows(query, within=within)]
        return Found(keys, plan.origin, keys[-1] if len(keys) == self.limit else None)

    def _behind(self, walks: Sequence[_Walk]) -> _Walk | None:
        """Return the walk that has come least far; None when all of them are at their ends."""
        going = [walk for walk in walks if not walk.ended]
        fresh = next((walk for walk in going if not walk.begun), None)
        if fresh is not None or not going:
            return fresh
        return min(going, key=lambda walk: self._rank(walk.place))

    def _enough(self, parts: Sequence[Found], walks: Sequence[_Walk]) -> bool:
        """Tell whether a page is full with what lies before the place up to which everything is known."""
        known = min((self._rank(walk.place) for walk in walks if not walk.ended), default=None)
        keys = [key for found in _keys(parts, walks) for key in found]
        return sum(known is None or self._rank(key) <= known for key in keys) >= self.limit

    def _useful(self, parts: Sequence[Found], walks: Sequence[_Walk]) -> Key | None:
        """Return the place beyond which nothing comes onto this page, as far as that is known."""
        full = [keys[-1] for keys in _keys(parts, walks) if len(keys) >= self.limit]
        return min(full, key=self.order.rank, default=None)

    def _rank(self, place: Key | None) -> tuple[int, int]:
        return (-(1 << 64), 0) if place is None else self.order.rank(place)

    async def _step(self, walk: _Walk, seconds: float, bound: Key | None) -> None:
        """Walk one stretch, of about so many seconds, and not beyond ``bound``."""
        plan, wanted, began = walk.plan, self.limit - len(walk.keys), time.monotonic()
        stretch = max(FIRST_STRETCH, wanted, min(self.pace.rows(plan.kind, seconds), LONGEST_STRETCH))
        last = await self._end(plan, walk.place, stretch, bound)
        keys = await self._stretch(plan, walk.place, last or bound, wanted)
        walk.keys += keys
        walk.begun = True
        if len(keys) == wanted:
            walk.place = keys[-1]
            return
        walk.ended = last is None and bound is None
        walk.place = last or bound
        if last is not None:
            self.pace.took(plan.kind, stretch, time.monotonic() - began)

    async def _end(self, plan: Plan, place: Key | None, stretch: int, bound: Key | None) -> Key | None:
        """Return the last key of the next ``stretch`` rows; None when there are not so many, up to ``bound``."""
        not_after, sha256 = plan.base.c.not_after, plan.base.c.sha256
        ends = self._between(plan, place, bound)
        query = select(not_after, sha256).select_from(plan.base).where(*ends).order_by(*self.order.by(not_after, sha256))
        end = await self.store.row(query.offset(stretch - 1))
        return None if end is None else (end.not_after, bytes(end.sha256))

    async def _stretch(self, plan: Plan, place: Key | None, last: Key | None, limit: int) -> list[Key]:
        """Return the keys of what fits after ``place`` and up to ``last``."""
        not_after, sha256 = plan.base.c.not_after, plan.base.c.sha256
        query = select(not_after, sha256).select_from(plan.joined).where(*self._between(plan, place, last), *plan.conditions)
        rows = await self.store.rows(query.order_by(*self.order.by(not_after, sha256)).limit(limit))
        return [(row.not_after, bytes(row.sha256)) for row in rows]

    def _between(self, plan: Plan, place: Key | None, last: Key | None) -> list[Condition]:
        not_after, sha256 = plan.base.c.not_after, plan.base.c.sha256
        until = [] if last is None else self.order.until(not_after, sha256, last)
        return [*plan.fixed, *self.order.after(not_after, sha256, place), *until]


def _keys(parts: Sequence[Found], walks: Sequence[_Walk]) -> list[list[Key]]:
    return [*(part.keys for part in parts), *(walk.keys for walk in walks)]


def merge(parts: Sequence[Found], order: Order, limit: int) -> tuple[list[tuple[Key, str]], Key | None]:
    """Return the first ``limit`` keys of all with their origins, and where to go on; None when that is everything.

    What lies beyond the place up to which every part is known is left for the next page.
    """
    known = min((part.until for part in parts if part.until is not None), key=order.rank, default=None)
    items = {key: part.origin for part in parts for key in part.keys if known is None or order.rank(key) <= order.rank(known)}
    ordered = sorted(items.items(), key=lambda item: order.rank(item[0]))
    if len(ordered) > limit:
        return ordered[:limit], ordered[limit - 1][0]
    return ordered, known
