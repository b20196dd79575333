"""Keys of certificates in the order of a list, from one table: a few that an index names, or a walk along the index of ends.

A walk looks at a stretch of the index at a time, longer ones as it goes on, until the page is full, the index ends, or its time is over.
Then it says how far it came, and the next page begins there: no list takes longer because little of it fits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import literal_column, select
from sqlalchemy.sql import FromClause

from handclasp.inventory.conditions import Condition, Key, Order
from handclasp.store.database import Store

FIRST_STRETCH = 1_000
LONGEST_STRETCH = 60_000


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


@dataclass(slots=True)
class Found:
    """Keys that fit, in order, and how far that is known: None is to the end."""

    keys: Sequence[Key]
    origin: str
    until: Key | None = None


async def find(store: Store, plan: Plan, order: Order, after: Key | None, limit: int, seconds: float) -> Found:
    """Return the first ``limit`` keys after ``after`` of what fits; fewer when the time is over."""
    if plan.few:
        return await _sort(store, plan, order, after, limit)
    return await _walk(store, plan, order, after, limit, seconds)


async def _sort(store: Store, plan: Plan, order: Order, after: Key | None, limit: int) -> Found:
    not_after, sha256 = plan.base.c.not_after, plan.base.c.sha256
    query = (
        select(not_after, sha256)
        .select_from(plan.joined)
        .where(*plan.fixed, *plan.conditions, *order.after(not_after + literal_column("0"), sha256, after))
        .order_by(*order.sorted_by(not_after, sha256))
        .limit(limit)
    )
    keys = [(row.not_after, bytes(row.sha256)) for row in await store.rows(query)]
    return Found(keys, plan.origin, keys[-1] if len(keys) == limit else None)


async def _walk(store: Store, plan: Plan, order: Order, after: Key | None, limit: int, seconds: float) -> Found:
    not_after, sha256 = plan.base.c.not_after, plan.base.c.sha256
    by = order.by(not_after, sha256)
    began, stretch, place = time.monotonic(), max(FIRST_STRETCH, limit), after
    keys: list[Key] = []
    while True:
        started = time.monotonic()
        rest = [*plan.fixed, *order.after(not_after, sha256, place)]
        end = await store.row(select(not_after, sha256).select_from(plan.base).where(*rest).order_by(*by).offset(stretch - 1))
        last = None if end is None else (end.not_after, bytes(end.sha256))
        if last is not None:
            rest += order.until(not_after, sha256, last)
        query = select(not_after, sha256).select_from(plan.joined).where(*rest, *plan.conditions).order_by(*by).limit(limit - len(keys))
        keys += [(row.not_after, bytes(row.sha256)) for row in await store.rows(query)]
        if len(keys) == limit:
            return Found(keys, plan.origin, keys[-1])
        if last is None:
            return Found(keys, plan.origin)
        place, now = last, time.monotonic()
        left = seconds - (now - began)
        if left <= 0:
            return Found(keys, plan.origin, place)
        # As long as fits into what is left, going by the last one; the next may be slower, so not much longer than that.
        fitting = int(stretch * left / max(now - started, 1e-4))
        stretch = max(FIRST_STRETCH, min(6 * stretch, fitting, LONGEST_STRETCH))


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
