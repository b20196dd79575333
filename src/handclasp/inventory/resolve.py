"""What filters mean in numbers: which identities, authorities, issuers and sources they speak of, as far as those are few.

A filter over names is turned into the identities that have such names, by the index that finds them fastest. Where more of them fit than
are worth listing, nothing is listed, and each certificate that is looked at is asked for its names instead: then they are not rare.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from sqlalchemy import Integer, Text, func, literal, or_, select, union_all
from sqlalchemy.sql import ColumnElement, FromClause, Select

from handclasp.errors import HandclaspError, Kind
from handclasp.inventory.conditions import Condition, among, begins, holds, identity_exists, name_exists, name_trigram, of_identity, value
from handclasp.inventory.digits import with_digits
from handclasp.inventory.filters import ANY, NOBODY, Filters, NamePattern
from handclasp.inventory.names import own_name
from handclasp.inventory.sample import Sample
from handclasp.store import tables
from handclasp.store.database import Store

FEW = 8000
"""Identities that are listed at most."""

MANY = 300
"""Listed identities of which it pays to leave out those that meet no other filter."""

PATIENCE = 0.04
"""Seconds that an index of names may take: trigrams that all names have in common can take long to tell a rare name from the others."""

DRIVEN = 2.5
"""Times as long an index of owners or of names' beginnings, or leaving some out, may take: what it leads to is read to the end."""

DOUBT = 1.2
"""Times as many as are listed may be guessed, and it is tried all the same."""

BROAD_SECONDS, SLOW_SECONDS = 60.0, 2.0
"""How long it is remembered that a question had more answers than are listed, or took too long: it is not tried again for each page."""

BESIDE_SECONDS = 1.0
"""How long it may take beside, where other pages of a list need not wait for it."""

TEXT_SECONDS = 3.0
"""How long it is remembered which identities have a text in their names: a page later they are the same."""

_REMEMBERED = 1000
"""Such questions that are remembered."""
_KEPT_LISTS = 16

_MANY_NAMES, _OWNERS = 200, 200
_OWN = ("tier", "environment", "owner", "spiffe")
_DRIVERS = ("owner", "spiffe")
"""Filters over identities that have an index."""


@dataclass(slots=True)
class Meaning:
    """Filters, resolved."""

    ids: list[int] | None = None
    """The identities that everything wanted belongs to; None where that says nothing, or they are not few."""
    met: frozenset[str] = frozenset()
    """The filters that ``ids`` stand for."""
    authority: int | None = None
    authorities: list[int] = field(default_factory=list)
    """Authorities that the filter ``issuer`` speaks of."""
    issuers: list[int] = field(default_factory=list)
    q_authorities: list[int] = field(default_factory=list)
    q_issuers: list[int] = field(default_factory=list)
    q_owners: list[str] = field(default_factory=list)
    direct: list[bytes] = field(default_factory=list)
    """Certificates of whose fingerprint or serial number ``q`` is the beginning: then it means those."""
    source: int | None = None
    last: int | None = None
    """The highest number of an identity whose names were listed before anything else was read, where that was asked."""
    population: int = 0
    """How many identities there are, about; 0 where nobody had to know."""
    nothing: bool = False
    """Whether nothing can fit, because what a filter names is not there."""


@dataclass(frozen=True, slots=True)
class _Text:
    """The identities that have a text in their names, up to the identity ``last``; true enough until then."""

    until: float
    ids: list[int]
    last: int


class Resolver:
    """Reads what filters speak of. What an authority is called never changes, so it is remembered until there are others."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sqlite = store.is_sqlite
        self._called: dict[int, tuple[str, str]] = {}
        self._generation: int | None = None
        self._broad: dict[Hashable, float] = {}
        self._texts: dict[Hashable, _Text] = {}
        self._beside: asyncio.Task[None] | None = None
        self._sample = Sample(store)

    async def resolve(self, filters: Filters) -> Meaning:
        """Return what the filters mean now."""
        meaning = Meaning()
        if filters.authority is not None or filters.issuer is not None or filters.q is not None:
            await self._authorities(filters, meaning)
        if filters.source is not None:
            row = await self._store.row(select(tables.source.c.id).where(tables.source.c.name == filters.source))
            meaning.source = row.id if row is not None else None
            meaning.nothing |= row is None
        if filters.issuer is not None:
            meaning.issuers = await self._issuers(filters.issuer)
            meaning.nothing |= not meaning.issuers and not meaning.authorities
        if filters.q is not None:
            meaning.direct = await with_digits(self._store, filters.q)
            if not meaning.direct:
                await self._about(filters.q, meaning)
        if not meaning.nothing:
            await self._identities(filters, meaning)
        meaning.population = self._sample.population
        return meaning

    async def names_of_authorities(self) -> dict[int, tuple[str, str]]:
        """Return the name and the subject (RFC 4514) of each authority."""
        generation, authority = self._store.generation, tables.authority.c
        if generation != self._generation:
            rows = await self._store.rows(select(authority.id, authority.name, authority.der))
            self._called = {row.id: self._called.get(row.id) or (row.name, _subject(row.der)) for row in rows}
            self._generation = generation
        return self._called

    async def _authorities(self, filters: Filters, meaning: Meaning) -> None:
        for number, (name, subject) in (await self.names_of_authorities()).items():
            words = (name.lower(), subject.lower())
            if filters.authority == name:
                meaning.authority = number
            if filters.issuer is not None and any(filters.issuer in word for word in words):
                meaning.authorities.append(number)
            if filters.q is not None and any(filters.q in word for word in words):
                meaning.q_authorities.append(number)
        meaning.nothing |= filters.authority is not None and meaning.authority is None

    async def _issuers(self, text: str) -> list[int]:
        """Issuers are some hundreds where certificates are millions: they are read through."""
        issuer = tables.issuer.c
        rows = await self._store.rows(select(issuer.id).where(holds(func.lower(issuer.name), text, self._sqlite)).limit(FEW))
        return [row.id for row in rows]

    async def _about(self, q: str, meaning: Meaning) -> None:
        """Read what else has the text, and up to which identity names are listed, in one query."""
        issuer, tally, link = tables.issuer.c, tables.tally.c, tables.identity_name.c
        issuers = select(issuer.id).where(holds(func.lower(issuer.name), q, self._sqlite)).limit(FEW).subquery()
        owned = (tally.kind == "owner", holds(func.lower(tally.bucket), q, self._sqlite))
        owners = select(tally.bucket).where(*owned).limit(_OWNERS).subquery()
        nothing = literal(None, Text).label("text")
        query = union_all(
            select(issuers.c.id.label("number"), nothing, literal(0, Integer).label("what")),
            select(literal(None, Integer).label("number"), owners.c.bucket.label("text"), literal(1, Integer).label("what")),
            select(func.max(link.identity_id).label("number"), nothing, literal(2, Integer).label("what")),
        ).subquery()
        for row in await self._store.rows(select(query)):
            if row.what == 0:
                meaning.q_issuers.append(row.number)
            elif row.what == 1:
                meaning.q_owners.append(row.text)
            else:
                meaning.last = row.number or 0

    async def _last(self, meaning: Meaning) -> int:
        """Return the highest number of an identity whose names are listed."""
        if meaning.last is None:
            row = await self._store.row(select(func.max(tables.identity_name.c.identity_id).label("last")))
            meaning.last = row.last if row is not None and row.last is not None else 0
        return meaning.last

    # --- identities -----------------------------------------------------------------------------------------------------------------------

    async def _identities(self, filters: Filters, meaning: Meaning) -> None:
        """List identities by the first filter that few of them meet."""
        identity = tables.identity.c
        if filters.identity is not None:
            await self._list(filters, meaning, "identity", select(identity.id).where(identity.name == filters.identity))
            return
        if filters.name is not None and await self._named(meaning, "name", filters.name):
            await self._narrow(filters, meaning)
            return
        if filters.spiffe is not None and await self._list(filters, meaning, "spiffe", self._below(filters.spiffe)):
            await self._narrow(filters, meaning)
            return
        if filters.q is not None and not meaning.direct and await self._by_text(filters, meaning):
            return
        if filters.owner is not None:
            owner = identity.owner.is_(None) if filters.owner == NOBODY else identity.owner == filters.owner
            await self._list(filters, meaning, "owner", select(identity.id).where(owner))

    async def _narrow(self, filters: Filters, meaning: Meaning) -> None:
        """Leave out of many listed identities those that do not meet the other filters either, before certificates are sorted for them.

        The filters are asked of each certificate all the same; this is only to have fewer of them. Not for a text that a certificate can
        have by its issuer.
        """
        ids, identity, name = meaning.ids or [], tables.identity.c, tables.name.c
        conditions = of_identity(filters, meaning.met)
        by_issuer = meaning.q_authorities or meaning.q_issuers or meaning.direct
        if filters.q is not None and not by_issuer:
            has = name_exists(identity.id, holds(name.text, filters.q, self._sqlite), by_row=not self._sqlite)
            conditions.append(or_(has, identity.owner.in_(meaning.q_owners)) if meaning.q_owners else has)
        if len(ids) < MANY or not conditions:
            return
        query = select(identity.id).where(among(identity.id, ids, self._sqlite), *conditions)
        left = await self._try(("narrow", filters), query, DRIVEN * PATIENCE)
        if left is not None:
            meaning.ids = left

    def _below(self, spiffe: str) -> Select[Any]:
        name = tables.identity.c.name
        return select(tables.identity.c.id).where(or_(name == spiffe, begins(name, f"{spiffe}/", self._sqlite)))

    async def _list(self, filters: Filters, meaning: Meaning, which: str, query: Select[Any]) -> bool:
        guess = self._sample.guess(None, Filters(**{which: getattr(filters, which)})) if which in _DRIVERS else None
        ids = await self._try((which, getattr(filters, which)), query) if guess is None or guess <= DOUBT * FEW else None
        if ids is None:
            return False
        meaning.ids = ids
        meaning.met = frozenset((which,))
        meaning.nothing |= not ids
        return True

    async def _named(self, meaning: Meaning, which: str, pattern: NamePattern) -> bool:
        ids = await self._of_names(meaning, pattern)
        if ids is None:
            return False
        meaning.ids, meaning.met = ids, frozenset((which,))
        meaning.nothing |= not ids
        return True

    async def _by_text(self, filters: Filters, meaning: Meaning) -> bool:
        """List the identities that have ``q`` in a name, or in their owner. Others may still fit by their issuer.

        Of those in whose names it is, only such as meet the other filters over identities: each is asked anyway, and together they are few.
        """
        assert filters.q is not None
        own = {name: getattr(filters, name) for name in _OWN if getattr(filters, name) is not None}
        ids = await self._of_names(meaning, NamePattern("part", filters.q), Filters(**own))
        if ids is None:
            return False
        if meaning.q_owners:
            query = select(tables.identity.c.id).where(tables.identity.c.owner.in_(meaning.q_owners)).limit(FEW + 1)
            rows = await self._store.rows(query)
            if len(rows) > FEW:
                return False
            ids = list({*ids, *(row.id for row in rows)})
        meaning.ids, meaning.met = ids, frozenset(("q",))
        return True

    async def _of_names(self, meaning: Meaning, pattern: NamePattern, own: Filters = ANY) -> list[int] | None:
        """Return the identities with such a name that meet ``own``; None when they are not few, or cannot be told in time."""
        found = self._names(pattern)
        if found is None:
            return None
        names, number, condition = found
        link = tables.identity_name.c
        # Written so that the index of names is read first, and no more of it than is needed.
        query = select(link.identity_id).select_from(names.join(tables.identity_name, link.name_id == value(number))).where(condition)
        conditions = of_identity(own)
        if conditions:
            query = query.where(identity_exists(link.identity_id, *conditions))
        question = (pattern, own)
        kept = self._texts.get(question)
        if kept is not None and kept.until > time.monotonic():
            return list({*kept.ids, *await self._newcomers(pattern, kept.last)})
        if self._is_broad(question):
            return None
        last = await self._last(meaning)
        self._sample.refresh(last)
        patience = PATIENCE
        if pattern.kind == "part":
            when, driver = self._way(pattern.text, own)
            if driver:
                query, patience = self._of_driver(pattern, own, driver), DRIVEN * PATIENCE
            if when == "beside":
                self._ask_beside(question, query, last)
            if when != "now":
                return None
        ids = await self._try(question, query, patience)
        if ids is None:
            if self._is_slow(question):
                self._ask_beside(question, query, last)
            return None
        if own == ANY and len(ids) > _MANY_NAMES:  # for the pages of a moment; names come to it a moment after they are issued anyway
            self._keep(question, ids, last)
        return list({*ids, *await self._newcomers(pattern, last)})

    def _way(self, text: str, own: Filters) -> tuple[str, str]:
        """Return when to list the identities that have a text, and by which filter of theirs, where fewer meet that (else by the names).

        ``now``, ``beside`` where it takes looking through too many, or ``never`` where too many have it.
        """
        number, all_ = self._sample.guess(text, ANY), self._sample.guess(text, own)
        if number is None or all_ is None:
            return "now", ""
        if all_ > DOUBT * FEW:
            return "never", ""
        drivers = {name: self._sample.guess(None, Filters(**{name: getattr(own, name)})) or 0.0 for name in _DRIVERS if getattr(own, name)}
        least = min(drivers, key=lambda name: drivers[name], default="")
        if not least or drivers[least] >= number / 2:
            least = ""
        through = DOUBT * (FEW if self._sqlite or least else FEW / 2)  # what PostgreSQL's trigrams find is looked up twice
        return "now" if drivers.get(least, number) <= through else "beside", least

    def _of_driver(self, pattern: NamePattern, own: Filters, driver: str) -> Select[Any]:
        """Return the query of identities that have a text, which looks through those that meet the filter ``driver``."""
        identity, name = tables.identity.c, tables.name.c
        by_row = not self._sqlite
        has = name_exists(identity.id, holds(name.text, pattern.text, self._sqlite), by_row=by_row)
        if driver == "spiffe":
            assert own.spiffe is not None
            query = self._below(own.spiffe)
        else:
            query = select(identity.id).where(identity.owner.is_(None) if own.owner == NOBODY else identity.owner == own.owner)
        return query.where(*of_identity(own, frozenset((driver,))), has)

    def _keep(self, question: Hashable, ids: list[int], last: int) -> None:
        _remember(self._texts, question, _Text(time.monotonic() + TEXT_SECONDS, ids, last), _KEPT_LISTS)

    def _ask_beside(self, question: Hashable, query: Select[Any], last: int) -> None:
        """Have a question that took too long answered to its end, beside the walk that goes on without it: for the next page of the list.

        One at a time: it is only worth it for whoever pages on now.
        """
        if self._store.is_sqlite or (self._beside is not None and not self._beside.done()):
            return

        async def ask() -> None:
            with contextlib.suppress(HandclaspError):
                rows = await self._store.rows(query.limit(4 * FEW + 1), within=BESIDE_SECONDS)
                if len(rows) <= 4 * FEW:  # too many to look each up, but a walk looks at its own rows only
                    self._broad.pop(question, None)
                    self._keep(question, [row[0] for row in rows], last)
                    return
            _remember(self._broad, question, time.monotonic() + BROAD_SECONDS)

        self._beside = asyncio.create_task(ask(), name="identities of a text")

    async def _newcomers(self, pattern: NamePattern, last: int) -> set[int]:
        """Return identities whose own name fits, of those whose names are not listed yet: that takes a moment after the first issuance.

        ``last`` is the newest of those whose names were listed before they were read.
        """
        identity = tables.identity.c
        rows = await self._store.rows(select(identity.id, identity.name).where(identity.id > last).order_by(identity.id.desc()).limit(FEW))
        return {row.id for row in rows if _fits(own_name(row.name).lower(), pattern)}

    def _names(self, pattern: NamePattern) -> tuple[FromClause, ColumnElement[int], Condition] | None:
        """Return where such names are looked up: the table, its column of ``name.id``, and the condition."""
        name = tables.name.c
        if pattern.kind == "exact":
            return tables.name, name.id, name.text == pattern.text
        if pattern.kind == "suffix":
            return tables.name, name.id, begins(name.reversed, pattern.text[::-1], self._sqlite)
        if len(pattern.text) < 3:  # it has no trigram, and it is no rare text
            return None
        if self._sqlite:
            phrase = '"' + pattern.text.replace('"', '""') + '"'
            return name_trigram, name_trigram.c.rowid, name_trigram.c.name_trigram.match(phrase)
        return tables.name, name.id, name.text.contains(pattern.text, autoescape=True)

    def _is_broad(self, question: Hashable) -> bool:
        return self._broad.get(question, 0.0) > time.monotonic()

    def _is_slow(self, question: Hashable) -> bool:
        return self._broad.get(question, 0.0) <= time.monotonic() + SLOW_SECONDS

    async def _try(self, question: Hashable, query: Select[Any], patience: float | None = None) -> list[int] | None:
        """Return the numbers that ``query`` lists; None when they are not few, or take too long, or did so a moment ago."""
        if self._is_broad(question):
            return None
        try:
            rows: Sequence[Any] | None = await self._store.rows(query.limit(FEW + 1), within=PATIENCE if patience is None else patience)
            seconds = BROAD_SECONDS
        except HandclaspError as error:
            if error.kind is not Kind.TIMEOUT:
                raise
            rows, seconds = None, SLOW_SECONDS
        if rows is not None and len(rows) <= FEW:
            return [row[0] for row in rows]
        _remember(self._broad, question, time.monotonic() + seconds)
        return None


def _remember(kept: dict[Any, Any], question: Hashable, answer: Any, most: int = _REMEMBERED) -> None:
    kept.pop(question, None)
    if len(kept) >= most:
        del kept[next(iter(kept))]
    kept[question] = answer


def _fits(name: str, pattern: NamePattern) -> bool:
    if pattern.kind == "exact":
        return name == pattern.text
    return name.endswith(pattern.text) if pattern.kind == "suffix" else pattern.text in name


def _subject(der: bytes) -> str:
    return x509.load_der_x509_certificate(der).subject.rfc4514_string()
