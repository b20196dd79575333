"""The list of identities: the rows that people look at, each with its newest certificate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, literal, or_, select, tuple_
from sqlalchemy.sql import ColumnElement, Select

from handclasp.clock import Clock, rfc3339
from handclasp.inventory.conditions import Condition, among, exists_standing, holds, matches, name_exists, of_identity
from handclasp.inventory.filters import Filters
from handclasp.inventory.resolve import Meaning, Resolver
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.wire import Identity

WALK_SECONDS = 0.03
_STRETCHES = (1_000, 4_000)
_COUNTED = 1_000
"""Certificates of an identity that are counted; beyond that the kept counter is shown."""

Place = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class IdentityPage:
    """One page, and where the next one begins: (name,) or (end, number) as it is sorted. It may have fewer items than asked for."""

    items: list[Identity]
    next: Place | None


class Identities:
    """Reads identities. Raises ``unavailable`` when the database is away."""

    def __init__(self, store: Store, clock: Clock, resolver: Resolver) -> None:
        self._store = store
        self._clock = clock
        self._resolver = resolver

    async def page(self, filters: Filters, limit: int, after: Place | None = None) -> IdentityPage:
        """Return up to ``limit`` identities that fit, after the place ``after``."""
        now = self._clock()
        meaning = await self._resolver.resolve(filters)
        if meaning.direct:
            meaning.ids, meaning.met = await self._holders(meaning.direct), frozenset(("q",))
        if meaning.nothing or (meaning.ids is not None and not meaning.ids):
            return IdentityPage([], None)
        by = _Sorting(filters.sort)
        conditions = self._conditions(filters, meaning, now)
        rows, following = await self._walk(by, conditions, meaning.ids, limit, after)
        return IdentityPage(await self.show(rows), following)

    async def _walk(
        self, by: _Sorting, conditions: list[Condition], ids: Sequence[int] | None, limit: int, after: Place | None
    ) -> tuple[Sequence[Row[Any]], Place | None]:
        """Walk along names or ends, a stretch at a time; what an index lists is sorted whole."""
        began, place = time.monotonic(), after
        rows: list[Row[Any]] = []
        stretches = iter(_STRETCHES)
        stretch = max(next(stretches), limit)
        if ids is not None:
            conditions = [*conditions, among(tables.identity.c.id, ids, self._store.is_sqlite)]
        while True:
            end = None
            rest = by.after(place)
            if ids is None:
                end = await self._store.row(select(*by.columns).select_from(by.base).where(*rest).order_by(*by.order).offset(stretch - 1))
            query = _query(by).where(*rest, *conditions)
            if end is not None:
                query = query.where(*by.until(tuple(end)))
            rows += await self._store.rows(query.order_by(*by.order).limit(limit + 1 - len(rows)))
            if len(rows) > limit:
                return rows[:limit], by.place(rows[limit - 1])
            if end is None or time.monotonic() - began > WALK_SECONDS:
                return rows, None if end is None else tuple(end)
            place, stretch = tuple(end), next(stretches, _STRETCHES[-1])

    async def _holders(self, fingerprints: Sequence[bytes]) -> list[int]:
        found: set[int] = set()
        for table in (tables.certificate, tables.found):
            query = select(table.c.identity_id).where(table.c.sha256.in_(fingerprints), table.c.identity_id.is_not(None))
            found.update(row.identity_id for row in await self._store.rows(query))
        return list(found)

    def _conditions(self, f: Filters, meaning: Meaning, now: int) -> list[Condition]:
        identity, summary, sqlite = tables.identity.c, tables.summary.c, self._store.is_sqlite
        conditions = of_identity(f, meaning.met)
        if f.name is not None and "name" not in meaning.met:
            name = tables.name.c
            conditions.append(name_exists(identity.id, matches(name.text, name.reversed, f.name, sqlite)))
        if f.q is not None and "q" not in meaning.met:
            owned = [identity.owner.in_(meaning.q_owners)] if meaning.q_owners else []
            conditions.append(or_(name_exists(identity.id, holds(tables.name.c.text, f.q, sqlite)), *owned))
        if f.expires_after is not None:
            conditions.append(summary.newest_not_after >= f.expires_after)
        if f.expires_before is not None:
            conditions.append(summary.newest_not_after < f.expires_before)
        if f.origin is not None:
            conditions.append(summary.newest_origin == f.origin)
        if f.standing is not None:
            conditions.append(exists_standing(identity.id, f.standing))
        return [*conditions, *_state_conditions(f.state, now)]

    async def show(self, rows: Sequence[Row[Any]]) -> list[Identity]:
        """Return rows of :func:`identity_query` as the API shows them."""
        now = self._clock()
        newest = await self._newest([row.id for row in rows])
        return [_identity(row, newest.get(row.id), now) for row in rows]

    async def _newest(self, ids: Sequence[int]) -> dict[int, _Newest]:
        """Return what was issued last and how much, by identity: from the certificates, which are there before the counters are."""
        if not ids:
            return {}
        identity, certificate = tables.identity.c, tables.certificate
        of = certificate.c.identity_id == identity.id
        order = (certificate.c.not_after.desc(), certificate.c.generation.desc())
        newest = select(certificate.c.sha256).where(of).order_by(*order).limit(1).correlate(tables.identity).scalar_subquery()
        counted = select(literal(1).label("one")).where(of).limit(_COUNTED + 1).correlate(tables.identity).subquery()
        number = select(func.count()).select_from(counted).scalar_subquery()
        query = select(identity.id, newest.label("sha256"), number.label("number")).where(
            among(identity.id, list(ids), self._store.is_sqlite)
        )
        rows = await self._store.rows(query)
        keys = [bytes(row.sha256) for row in rows if row.sha256 is not None]
        columns = (certificate.c.identity_id, certificate.c.sha256, certificate.c.not_after, certificate.c.renew_before)
        found = await self._store.rows(select(*columns).where(certificate.c.sha256.in_(keys))) if keys else []
        ends = {row.identity_id: row for row in found}
        return {row.id: _Newest(row.number, ends.get(row.id)) for row in rows}


@dataclass(frozen=True, slots=True)
class _Newest:
    number: int
    certificate: Row[Any] | None


class _Sorting:
    """How a list of identities is sorted, and what it walks along."""

    def __init__(self, sort: str) -> None:
        identity, summary = tables.identity, tables.summary
        self.down = sort == "-expires"
        self.by_name = sort in ("", "name")
        self.base: Any = identity if self.by_name else summary
        self.columns: tuple[ColumnElement[Any], ...] = (
            (identity.c.name,) if self.by_name else (summary.c.newest_not_after, summary.c.identity_id)
        )
        self.order = tuple(column.desc() for column in self.columns) if self.down else self.columns
        self._always: list[Condition] = [] if self.by_name else [summary.c.newest_not_after.is_not(None)]

    def after(self, place: Place | None) -> list[Condition]:
        if place is None:
            return self._always
        first = self.columns[0] <= place[0] if self.down else self.columns[0] >= place[0]
        return [*self._always, first, self._compare(place, after=True)]

    def until(self, place: Place) -> list[Condition]:
        first = self.columns[0] >= place[0] if self.down else self.columns[0] <= place[0]
        return [first, self._compare(place, after=False)]

    def _compare(self, place: Place, *, after: bool) -> Condition:
        compared: Condition
        if self.by_name:
            compared = self.columns[0] > place[0] if after else self.columns[0] <= place[0]
            return compared
        ours, theirs = tuple_(*self.columns), tuple_(*(literal(value) for value in place))
        if after:
            return ours < theirs if self.down else ours > theirs
        return ours >= theirs if self.down else ours <= theirs

    def place(self, row: Row[Any]) -> Place:
        return (row.name,) if self.by_name else (row.newest_not_after, row.id)


def _query(by: _Sorting) -> Select[Any]:
    identity, summary = tables.identity, tables.summary
    columns = [column for column in summary.c if column.name != "identity_id"]
    same = summary.c.identity_id == identity.c.id
    joined = identity.outerjoin(summary, same) if by.by_name else summary.join(identity, same)
    return select(*identity.c, *columns).select_from(joined)


def identity_query() -> Select[Any]:
    """Return the query of identities with their counters, for :meth:`Identities.show`."""
    return _query(_Sorting(""))


def _state_conditions(state: str | None, now: int) -> list[Condition]:
    summary = tables.summary.c
    if state is None:
        return []
    if state == "none":
        return [summary.newest.is_(None)]
    if state == "expired":
        return [summary.newest_not_after <= now]
    if state == "overdue":
        return [summary.newest_not_after > now, summary.newest_renew_before <= now]
    return [summary.newest_not_after > now, or_(summary.newest_renew_before.is_(None), summary.newest_renew_before > now)]


def _identity(row: Row[Any], newest: _Newest | None, now: int) -> Identity:
    held = newest.certificate if newest is not None else None
    sha256, end, renew_before, origin = row.newest, row.newest_not_after, row.newest_renew_before, row.newest_origin
    if held is not None and (origin != "issued" or end is None or held.not_after >= end):
        sha256, end, renew_before, origin = held.sha256, held.not_after, held.renew_before, "issued"
    return Identity(
        identity=row.name,
        owner=row.owner,
        tier=row.tier,
        environment=row.environment,
        created_at=rfc3339(row.created_at),
        certificates=max(row.issued or 0, newest.number if newest is not None else 0),
        newest=bytes(sha256).hex() if sha256 is not None else None,
        newest_not_after=rfc3339(end) if end is not None else None,
        newest_origin=origin,
        newest_renew_before=rfc3339(renew_before) if renew_before is not None else None,
        state=_state(end, renew_before, now),
    )


def _state(end: int | None, renew_before: int | None, now: int) -> str:
    if end is None:
        return "none"
    if end <= now:
        return "expired"
    return "overdue" if renew_before is not None and renew_before <= now else "ok"
