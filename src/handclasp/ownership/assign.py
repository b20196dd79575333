"""Derives who owns each identity, and writes what changed.

``assignment`` has everything that says who owns an identity; the winner is in ``identity.owner``, ``tier`` and ``environment``. Equal again
costs nothing but the look. One process does this (a job of the leader); a person's word takes effect at once in whichever process takes it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, insert, select, update

from handclasp.clock import Clock
from handclasp.ownership.book import Book, OwnershipBook
from handclasp.ownership.due import SWEEP
from handclasp.ownership.gather import Gatherer
from handclasp.ownership.rules import DENIED, Candidate, Evidence, Judgement, Said, evaluate
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

BATCH = 250
"""Identities in one step: its write and its thinking are a few tens of milliseconds in the event loop."""

_BY_PEOPLE = frozenset({"confirmed", DENIED})
_COLUMNS = ("tier", "environment", "detail", "confidence", "due_at", "stands")
_Key = tuple[int, str, str, str]


class Assigner:
    """Keeps owners current. For one event loop; any number of calls at once."""

    def __init__(self, store: Store, book: OwnershipBook, clock: Clock) -> None:
        self._store = store
        self._book = book
        self._clock = clock
        self._gather = Gatherer(store, clock)

    async def step(self) -> int:
        """Derive some that are due, else some of a sweep over all; return how many were looked at. Durable on return."""
        table = tables.assignment_due
        due = await self._store.rows(select(table).order_by(table.c.since_at).limit(BATCH))
        if due:
            taken = delete(table).where(table.c.identity_id == bindparam("one"), table.c.since_at == bindparam("since"))
            off = Change(taken, rows=[{"one": row.identity_id, "since": row.since_at} for row in due])
            await self._derive([row.identity_id for row in due], [off])
            return len(due)
        return await self._sweep()

    async def derive(self, identity_ids: Sequence[int]) -> None:
        """Derive these now. Durable on return."""
        await self._derive(identity_ids, [])

    async def _sweep(self) -> int:
        said = await self._store.meta(SWEEP) or ""
        version, colon, place = said.partition(":")
        if not colon:
            return 0
        identity = tables.identity.c
        ids = [
            one.id for one in await self._store.rows(select(identity.id).where(identity.id > int(place)).order_by(identity.id).limit(BATCH))
        ]
        # Only as long as no other change began a sweep of its own: that one has its own place.
        meta = tables.meta
        on = update(meta).where(meta.c.name == SWEEP, meta.c.value == said)
        await self._derive(ids, [Change(on.values(value=f"{version}:{ids[-1]}" if ids else version))])
        return len(ids)

    async def progress(self) -> tuple[int, int] | None:
        """Return how many identities a sweep over all has behind it, and of how many; None while there is none."""
        _, colon, place = (await self._store.meta(SWEEP) or "").partition(":")
        if not colon:
            return None
        newest = await self._store.row(select(func.max(tables.identity.c.id).label("id")))
        total = int(newest.id or 0) if newest is not None else 0
        return min(int(place), total), total  # numbers of rows, which have next to no gaps: counting a million takes a while

    async def _derive(self, identity_ids: Sequence[int], also: Iterable[Change]) -> None:
        book = await self._book.current()
        identities = await self._gather.identities(identity_ids)
        ids = [row.id for row in identities]
        before: dict[int, list[Row[Any]]] = defaultdict(list)
        for row in await self._gather.assignments(ids):
            before[row.identity_id].append(row)
        evidence = await self._gather.evidence(ids, {key: _said(rows) for key, rows in before.items()})
        # In a thread: rules and catalogue may be large, and what they are held against comes from outside.
        judged = await asyncio.to_thread(lambda: [_judged(identity.name, evidence[identity.id], book) for identity in identities])
        work = _Work(self._clock())
        for identity, judgement in zip(identities, judged, strict=True):
            work.judge(identity, before[identity.id], judgement)
        changes = [*work.changes(), *also]
        if changes:
            await self._store.ledger.commit(Write([], changes))

    async def judge(self, name: str, evidence: Evidence | None, book: Book | None = None) -> Judgement:
        """Return who owns an identity by the evidence given, or by what is known of it; writes nothing."""
        book = book or await self._book.current()
        if evidence is None:
            row = await self._store.row(select(tables.identity).where(tables.identity.c.name == name))
            if row is None:
                return await asyncio.to_thread(_judged, name, Evidence(), book)
            said = _said(await self._gather.assignments([row.id]))
            evidence = (await self._gather.evidence([row.id], {row.id: said}))[row.id]
        return await asyncio.to_thread(_judged, name, evidence, book)


def _judged(name: str, evidence: Evidence, book: Book) -> Judgement:
    return evaluate(name, evidence, book.rules, book.known)


def _said(rows: Iterable[Row[Any]]) -> tuple[Said, ...]:
    return tuple(
        Said(row.evidence, row.owner, row.rule, row.tier, row.environment, row.detail, row.at, row.due_at)
        for row in rows
        if row.evidence in _BY_PEOPLE
    )


class _Work:
    """What is different from what the rows say."""

    def __init__(self, now: int) -> None:
        self._now = now
        self._gone: list[dict[str, Any]] = []
        self._new: list[dict[str, Any]] = []
        self._other: list[dict[str, Any]] = []
        self._stands: list[dict[str, Any]] = []
        self._winners: list[dict[str, Any]] = []

    def judge(self, identity: Row[Any], before: Sequence[Row[Any]], judgement: Judgement) -> None:
        """Compare one identity's rows with what is true now."""
        old = {(identity.id, row.evidence, row.rule, row.owner): row for row in before}
        new: dict[_Key, Candidate] = {(identity.id, one.evidence, one.rule, one.owner): one for one in judgement.candidates}
        for key, row in old.items():
            if key not in new and row.evidence not in _BY_PEOPLE:
                self._gone.append(_named(key))
        for key, one in new.items():
            row_ = old.get(key)
            if row_ is not None and all(getattr(row_, name) == getattr(one, name) for name in _COLUMNS):
                continue
            values = _named(key) | {f"new_{name}": getattr(one, name) for name in _COLUMNS}
            if one.evidence in _BY_PEOPLE:
                # Their rows are theirs: only how they stand is derived. One that went away meanwhile does not come back by this.
                self._stands.append(_named(key) | {"new_stands": one.stands})
            elif row_ is None:
                self._new.append(values | {"at": self._now})
            else:
                self._other.append(values)
        if (identity.owner, identity.tier, identity.environment) != (judgement.owner, judgement.tier, judgement.environment):
            self._winners.append(
                {
                    "one": identity.id,
                    "new_owner": judgement.owner,
                    "new_tier": judgement.tier,
                    "new_environment": judgement.environment,
                }
            )

    def changes(self) -> Iterable[Change]:
        """Return it as statements; none when nothing is different."""
        table, identity = tables.assignment, tables.identity
        this = (
            (table.c.identity_id == bindparam("one"))
            & (table.c.evidence == bindparam("of"))
            & (table.c.rule == bindparam("by"))
            & (table.c.owner == bindparam("who"))
        )
        new: dict[str, Any] = {name: bindparam(f"new_{name}") for name in _COLUMNS}
        if self._gone:
            yield Change(delete(table).where(this), rows=self._gone)
        if self._new:
            keys: dict[str, Any] = {
                "identity_id": bindparam("one"),
                "evidence": bindparam("of"),
                "rule": bindparam("by"),
                "owner": bindparam("who"),
            }
            # Another process may have derived the same: then there is a row of this key, and it is replaced.
            yield Change(delete(table).where(this), rows=[{name: row[name] for name in ("one", "of", "by", "who")} for row in self._new])
            yield Change(insert(table).values(keys | new | {"at": bindparam("at")}), rows=self._new)
        if self._other:
            yield Change(update(table).where(this).values(new), rows=self._other)
        if self._stands:
            yield Change(update(table).where(this).values(stands=bindparam("new_stands")), rows=self._stands)
        if self._winners:
            winner: dict[str, Any] = {name: bindparam(f"new_{name}") for name in ("owner", "tier", "environment")}
            yield Change(update(identity).where(identity.c.id == bindparam("one")).values(winner), rows=self._winners)


def _named(key: _Key) -> dict[str, Any]:
    return dict(zip(("one", "of", "by", "who"), key, strict=True))
