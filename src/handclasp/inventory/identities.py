"""The list of identities: the rows that people look at, each with its newest certificate."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Row, func, literal, or_, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql import ColumnElement, Select

from handclasp.clock import Clock, rfc3339
from handclasp.inventory.conditions import Condition, among, exists_standing, holds, matches, name_exists, of_identity
from handclasp.inventory.filters import Filters
from handclasp.inventory.resolve import Meaning, Resolver
from handclasp.inventory.walk import GUESSED, Pace
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.wire import Identity

ANSWER_SECONDS = {True: 0.03, False: 0.055}
"""How long a list looks for what fills its page, on SQLite and on PostgreSQL, before it gives what it has."""

FIRST_STRETCH, LONGEST_STRETCH = 1_000, 40_000
"""Rows that are looked through at once, at least and at most."""

_CAUTION_LEFT = 0.25
"""What part of that time must be left for another stretch."""

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
        self._pace = Pace(GUESSED[store.is_sqlite])

    async def page(self, filters: Filters, limit: int, after: Place | None = None) -> IdentityPage:
        """Return up to ``limit`` identities that fit, after the place ``after``."""
        now, began = self._clock(), time.monotonic()
        meaning = await self._resolver.resolve(filters)
        if meaning.direct:
            meaning.ids, meaning.met = await self._holders(meaning.direct), frozenset(("q",))
        if meaning.nothing or (meaning.ids is not None and not meaning.ids):
            return IdentityPage([], None)
        by, ends = _Sorting(filters.sort), _ends(filters, now)
        conditions = self._conditions(filters, meaning, now)
        if by.by_name:
            conditions += ends
        else:
            by.always += ends  # the walk begins and stops there
        if meaning.ids is not None:
            conditions.append(among(tables.identity.c.id, meaning.ids, self._store.is_sqlite))
            rows = await self._rows(by, [*by.after(after), *conditions], limit + 1)
            following = by.place(rows[limit - 1]) if len(rows) > limit else None
        else:
            rows, following = await self._walk(by, conditions, limit, after, (filters.names, filters.sort), began)
        rows = rows[:limit]
        return IdentityPage(await self.show(rows), following)

    async def _walk(
        self, by: _Sorting, conditions: list[Condition], limit: int, after: Place | None, kind: Hashable, began: float
    ) -> tuple[list[Row[Any]], Place | None]:
        """Walk along names or ends, a stretch at a time, until the page is full or the time is over."""
        place, whole = after, ANSWER_SECONDS[self._store.is_sqlite]
        rows: list[Row[Any]] = []
        while True:
            started = time.monotonic()
            left = max(whole - (started - began), 0.4 * whole if place is after else 0.0)
            if place is not after and left < _CAUTION_LEFT * whole:
                return rows, place
            stretch = max(FIRST_STRETCH, limit, min(self._pace.rows(kind, left), LONGEST_STRETCH))
            rest = by.after(place)
            end = await self._store.row(select(*by.columns).select_from(by.base).where(*rest).order_by(*by.order).offset(stretch - 1))
            last = [] if end is None else by.until(tuple(end))
            rows += await self._rows(by, [*rest, *last, *conditions], limit + 1 - len(rows))
            if len(rows) > limit:
                return rows, by.place(rows[limit - 1])
            if end is None:
                return rows, None
            self._pace.took(kind, stretch, time.monotonic() - started)
            place = tuple(end)

    async def _rows(self, by: _Sorting, conditions: list[Condition], limit: int) -> list[Row[Any]]:
        return list(await self._store.rows(_query(by).where(*conditions).order_by(*by.order).limit(limit)))

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
        if f.origin is not None:
            conditions.append(summary.newest_origin == f.origin)
        if f.standing is not None:
            conditions.append(exists_standing(identity.id, f.standing))
        return [*conditions, *_state_conditions(f.state, now)]

    async def show(self, rows: Sequence[Row[Any]]) -> list[Identity]:
        """Return rows of :func:`identity_query` as the API shows them."""
        now = self._clock()
        if self._store.is_sqlite:
            newest = await self._newest([row.id for row in rows])
        else:
            newest = await self._newest([row.id for row in rows if (row.issued or 0) > _COUNTED])
            newest |= await self._counted([row.id for row in rows if (row.issued or 0) <= _COUNTED])
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
        c = certificate.c
        columns = (c.identity_id, c.sha256, c.not_after, c.renew_before, c.revoked_at)
        found = await self._store.rows(select(*columns).where(c.sha256.in_(keys))) if keys else []
        ends = {row.identity_id: row for row in found}
        return {row.id: _Newest(row.number, ends.get(row.id)) for row in rows}

    async def _counted(self, ids: Sequence[int]) -> dict[int, _Newest]:
        """Return the same of identities that do not have many, by indexes alone: on PostgreSQL each look-up goes through all months."""
        if not ids:
            return {}
        c = tables.certificate.c
        query = select(c.identity_id, func.count().label("number"), func.max(c.not_after).label("end"))
        rows = await self._store.rows(query.where(among(c.identity_id, list(ids), sqlite=False)).group_by(c.identity_id))
        if not rows:
            return {}
        whose, ends = [row.identity_id for row in rows], [row.end for row in rows]
        wanted = (
            func.unnest(literal(whose, ARRAY(BigInteger)), literal(ends, ARRAY(BigInteger)))
            .table_valued("whose", "until", name="wanted")
            .render_derived()
        )
        same = (c.identity_id == wanted.c.whose) & (c.not_after == wanted.c.until)
        columns = (c.identity_id, c.sha256, c.not_after, c.renew_before, c.revoked_at, c.generation)
        found = await self._store.rows(
            select(*columns).select_from(wanted.join(tables.certificate, same)).where(c.not_after.between(min(ends), max(ends)))
        )
        last = {row.identity_id: row for row in sorted(found, key=lambda row: row.generation)}
        return {row.identity_id: _Newest(row.number, last.get(row.identity_id)) for row in rows}


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
        self.always: list[Condition] = [] if self.by_name else [summary.c.newest_not_after.is_not(None)]

    def after(self, place: Place | None) -> list[Condition]:
        if place is None:
            return self.always
        first = self.columns[0] <= place[0] if self.down else self.columns[0] >= place[0]
        return [*self.always, first, self._compare(place, after=True)]

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


def _ends(f: Filters, now: int) -> list[Condition]:
    """Return between which ends the newest certificates lie."""
    end = tables.summary.c.newest_not_after
    ends: list[Condition] = []
    if f.expires_after is not None:
        ends.append(end >= f.expires_after)
    if f.expires_before is not None:
        ends.append(end < f.expires_before)
    if f.state in ("ok", "overdue"):
        ends.append(end > now)
    if f.state == "expired":
        ends.append(end <= now)
    return ends


def _state_conditions(state: str | None, now: int) -> list[Condition]:
    summary = tables.summary.c
    if state == "none":
        return [summary.newest.is_(None)]
    if state == "overdue":
        return [summary.newest_renew_before <= now]
    return [or_(summary.newest_renew_before.is_(None), summary.newest_renew_before > now)] if state == "ok" else []


def _identity(row: Row[Any], newest: _Newest | None, now: int) -> Identity:
    held = newest.certificate if newest is not None else None
    sha256, end, renew_before, origin = row.newest, row.newest_not_after, row.newest_renew_before, row.newest_origin
    if held is not None and (origin != "issued" or end is None or _is_newest(held, sha256, end)):
        sha256, end, renew_before, origin = held.sha256, held.not_after, held.renew_before, "issued"
        if held.revoked_at is not None:  # it is to be replaced from then on; the summary says so a moment later
            renew_before = min(renew_before, held.revoked_at)
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


def _is_newest(held: Any, newest: bytes, end: int) -> bool:
    """Tell whether a certificate is newer than what the summary has. One that is revoked and ends later may have been replaced since."""
    return bool(held.not_after >= end and (held.revoked_at is None or bytes(held.sha256) == bytes(newest)))


def _state(end: int | None, renew_before: int | None, now: int) -> str:
    if end is None:
        return "none"
    if end <= now:
        return "expired"
    return "overdue" if renew_before is not None and renew_before <= now else "ok"
