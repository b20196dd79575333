"""How many identities have a text in their names, guessed from a few thousand of them: whether it pays to list those before certificates.

To find out that a text is in too many names takes an index of trigrams about as long as to list them. The sample is read in the background,
now and then, and only where there are so many identities that it matters. It is a guess: what it says decides how something is searched,
never what is found.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

from sqlalchemy import select

from handclasp.errors import HandclaspError
from handclasp.inventory.conditions import among
from handclasp.inventory.filters import NOBODY, Filters
from handclasp.store import tables
from handclasp.store.database import Store

SIZE = 4_000
FROM = 20_000
"""Identities from which on it is worth it."""
KEPT_SECONDS, AGAIN_SECONDS = 900.0, 30.0
"""How long a sample is used, and after how long it is tried again when the database was away."""

_TOGETHER = 500
_QUESTIONS = 100
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class _Sampled:
    names: str
    """All of them, in lines."""
    own: str
    owner: str | None
    tier: str | None
    environment: str | None


class Sample:
    """A sample of identities, kept fresh by those who ask it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sampled: list[_Sampled] = []
        self._names: dict[Filters, list[str]] = {}
        self._until = 0.0
        self._reading: asyncio.Task[None] | None = None
        self.population = 0
        """How many identities there were, about; 0 where there are too few for a sample, or it was not read yet."""

    def refresh(self, last: int) -> None:
        """Have the sample read, unless it is new enough. ``last`` is the highest number of an identity; nobody waits."""
        if last < FROM or self._until > time.monotonic() or (self._reading is not None and not self._reading.done()):
            return
        self._until = time.monotonic() + AGAIN_SECONDS
        self._reading = asyncio.create_task(self._read(last), name="sample of identities")

    def guess(self, text: str | None, own: Filters) -> float | None:
        """Return how many identities have ``text`` in a name and meet ``own``, about; None without a sample."""
        if not self._sampled:
            return None
        names = self._names.get(own)
        if names is None:
            if len(self._names) >= _QUESTIONS:
                self._names.clear()
            names = self._names[own] = [one.names for one in self._sampled if _meets(one, own)]
        hits = len(names) if text is None else sum([text in one for one in names])
        return self.population * hits / len(self._sampled)

    async def _read(self, last: int) -> None:
        # Numbers that are spread evenly, and not in steps: whoever made them may have done it in turns.
        numbers = sorted({1 + int(last * (k * _GOLDEN % 1.0)) for k in range(1, SIZE + 1)})
        identity, link, name = tables.identity, tables.identity_name, tables.name
        columns = (identity.c.id, identity.c.name, identity.c.owner, identity.c.tier, identity.c.environment, name.c.text)
        joined = identity.join(link, link.c.identity_id == identity.c.id).join(name, name.c.id == link.c.name_id)
        sampled: dict[int, _Sampled] = {}
        with contextlib.suppress(HandclaspError):
            for start in range(0, len(numbers), _TOGETHER):
                some = among(identity.c.id, numbers[start : start + _TOGETHER], self._store.is_sqlite)
                for row in await self._store.rows(select(*columns).select_from(joined).where(some)):
                    known = sampled.get(row.id)
                    names = row.text if known is None else f"{known.names}\n{row.text}"
                    sampled[row.id] = _Sampled(names, row.name, row.owner, row.tier, row.environment)
            self._names.clear()
            self._sampled, self._until = list(sampled.values()), time.monotonic() + KEPT_SECONDS
            self.population = last * len(sampled) // len(numbers)


def _meets(one: _Sampled, own: Filters) -> bool:
    if own.owner is not None and one.owner != (None if own.owner == NOBODY else own.owner):
        return False
    if own.spiffe is not None and one.own != own.spiffe and not one.own.startswith(f"{own.spiffe}/"):
        return False
    return own.tier in (None, one.tier) and own.environment in (None, one.environment)
