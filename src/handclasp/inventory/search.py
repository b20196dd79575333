"""The lists of the inventory, a page at a time, over issued and found certificates at once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sqlalchemy import func, select

from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind
from handclasp.inventory import shown
from handclasp.inventory.conditions import Key, Order, among
from handclasp.inventory.filters import Filters
from handclasp.inventory.plans import Planner
from handclasp.inventory.resolve import Meaning, Resolver
from handclasp.inventory.walk import GUESSED, Pace, Walker, merge
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.wire import Certificate

COUNTED = {True: 4000, False: 8000}
"""Identities whose certificates are counted at most, on SQLite and on PostgreSQL: those of more are many."""

ANSWER_SECONDS = {True: 0.035, False: 0.055}
"""How long a list looks for what fills its page before it gives what it has: on SQLite, and on PostgreSQL, where more is looked through."""

LEAST_PART = 0.4
"""What part of that is left for the walk, however long it took to find out what the filters mean."""


@dataclass(frozen=True, slots=True)
class CertificatePage:
    """One page, and where the next one begins (None: there is none). It may have fewer items than asked for."""

    items: list[Certificate]
    next: Key | None


class Inventory:
    """Reads certificates. Nothing is written, any number of readers at once; raises ``unavailable`` when the database is away."""

    def __init__(self, store: Store, clock: Clock, resolver: Resolver | None = None, *, seconds: float | None = None) -> None:
        self._store = store
        self._clock = clock
        self._seconds = ANSWER_SECONDS[store.is_sqlite] if seconds is None else seconds
        self._resolver = resolver or Resolver(store)
        self._pace = Pace(GUESSED[store.is_sqlite])

    async def certificates(self, filters: Filters, limit: int, after: Key | None = None, *, der: bool = False) -> CertificatePage:
        """Return up to ``limit`` certificates that fit, after the place ``after``; with ``der`` each has its PEM."""
        now, began = self._clock(), time.monotonic()
        meaning = await self._resolver.resolve(filters)
        keys, following = await self._keys(filters, meaning, now, limit, after, began)
        subjects = await self._resolver.names_of_authorities()
        return CertificatePage(await shown.fetch(self._store, keys, now, subjects, der=der), following)

    async def _keys(
        self, filters: Filters, meaning: Meaning, now: int, limit: int, after: Key | None, began: float
    ) -> tuple[list[tuple[Key, str]], Key | None]:
        planner = Planner(filters, meaning, now, self._store.is_sqlite, await self._count(meaning), meaning.population)
        order = Order(filters.sort != "expires")
        left = max(began + self._seconds - time.monotonic(), LEAST_PART * self._seconds)
        parts = await Walker(self._store, order, after, limit + 1, left, self._pace).find(planner.plans())
        return merge(parts, order, limit)

    async def _count(self, meaning: Meaning) -> int:
        """Return how many certificates were issued to the listed identities: whether it pays to sort them."""
        if not meaning.ids:
            return 0
        if len(meaning.ids) > COUNTED[self._store.is_sqlite]:
            return len(meaning.ids) * COUNTED[True]
        summary = tables.summary.c
        query = select(func.sum(summary.issued).label("number")).where(among(summary.identity_id, meaning.ids, self._store.is_sqlite))
        row = await self._store.row(query)
        return int(row.number or 0) if row is not None else 0

    async def certificate(self, sha256: bytes) -> Certificate:
        """Return one certificate with its PEM; raise ``not_found`` for one that was neither issued nor found."""
        subjects = await self._resolver.names_of_authorities()
        for origin, table in (("issued", tables.certificate), ("found", tables.found)):
            row = await self._store.row(select(table.c.not_after, table.c.der).where(table.c.sha256 == sha256))
            keys = [((row.not_after, sha256), origin)] if row is not None else []
            for item in await shown.fetch(self._store, keys, self._clock(), subjects, der=True):
                if origin == "issued":
                    item.subject = shown.subject_of(bytes(row.der)) if row is not None else None
                return item
        raise HandclaspError(
            Kind.NOT_FOUND, "no certificate with this fingerprint was issued or found here", hint="handclasp cert list --sha256 DIGITS"
        )

    async def walk(self, filters: Filters, *, der: bool = False, page: int = 500) -> AsyncIterator[list[Certificate]]:
        """Yield everything that fits, a page at a time: for exports.

        What does not change meanwhile comes exactly once: a place in the order is passed once, and a certificate's place never changes.
        """
        after: Key | None = None
        while True:
            found = await self.certificates(filters, page, after, der=der)
            if found.items:
                yield found.items
            if found.next is None:
                return
            after = found.next
