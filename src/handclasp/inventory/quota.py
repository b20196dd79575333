"""How much one agent, or one source, may bring into the inventory: whoever has one host must not be able to fill the database of all.

What is known goes on to be recorded, whatever is over a quota: only places and certificates that nobody has seen before count. The numbers
are kept in memory, each process for itself, and are read from the database when a process needs one for the first time, after each tenth of
the quota, and now and then while the quota is used up. Several processes together may so take a tenth each too much.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from dataclasses import dataclass

from prometheus_client import Counter
from sqlalchemy import func, literal, select

from handclasp.access.limits import Limiter
from handclasp.clock import Clock
from handclasp.errors import HandclaspError
from handclasp.log.entries import make_entry
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Write

DAY = 86_400
LOOK_AGAIN = 60_000
"""Milliseconds between two looks whether there is room again."""
_KEPT = 100_000
"""Agents whose number is kept; of others it is read again."""
REFUSED = Counter("handclasp_sightings_refused_total", "What sources and agents saw beyond their quota, and was not recorded.", ["what"])


@dataclass(frozen=True, slots=True)
class Quota:
    """What one agent, or one source, may bring. 0: any number."""

    locations: int = 0
    certificates: int = 0
    """That nobody has seen before, in a day."""


@dataclass(frozen=True, slots=True)
class Bringer:
    """Who brings something: a source, and of a source that agents read one agent."""

    source_id: int
    agent: str = ""
    """The agent's identity."""
    host: str | None = None


@dataclass(slots=True)
class _Held:
    number: int
    at: int
    added: int = 0


class Quotas:
    """Keeps to the quotas of all agents and sources. For one event loop."""

    def __init__(self, store: Store, clock: Clock, agent: Quota, source: Quota) -> None:
        self._store, self._clock = store, clock
        self._of_agents, self._of_sources = agent, source
        self._held: OrderedDict[Bringer, _Held] = OrderedDict()
        self._limits = {quota: _limiter(quota, clock) for quota in (agent, source)}
        self._noted: dict[tuple[Bringer, str], int] = {}

    async def places(self, bringer: Bringer, wanted: int) -> int:
        """Return how many of so many new places may be recorded, and count them."""
        most = self._of(bringer).locations
        if not most:
            return wanted
        before = held = self._held.get(bringer)
        is_full = held is not None and held.number + wanted > most and self._clock() - held.at >= LOOK_AGAIN
        if held is None or held.added * 10 >= most or is_full:
            counted = _Held(await self._count(bringer, most), self._clock())
            # Whoever counted at the same time has granted something since, of which no row may be there yet.
            other = self._held.get(bringer)
            held = counted if other is None or other is before else other
        granted = max(0, min(wanted, most - held.number))
        held.number += granted
        held.added += granted
        self._held[bringer] = held
        self._held.move_to_end(bringer)
        if len(self._held) > _KEPT:
            self._held.popitem(last=False)
        if granted < wanted:
            await self._refuse(bringer, "locations", wanted - granted, most)
        return granted

    async def certificates(self, bringer: Bringer, number: int) -> bool:
        """Tell whether so many new certificates may be recorded now, and count them."""
        quota = self._of(bringer)
        limiter = self._limits[quota]
        if limiter is None:
            return True
        try:
            limiter.check(f"{bringer.source_id}/{bringer.agent}", number)
        except HandclaspError:
            await self._refuse(bringer, "certificates", number, quota.certificates)
            return False
        return True

    def problem(self, bringer: Bringer, what: str) -> str:
        """Return why something was not recorded, with the setting that decides."""
        by = "agent" if bringer.agent else "source"
        if what == "locations":
            return f"over quota: one {by} may have {self._of(bringer).locations} places in a source ({by}_locations)"
        return f"over quota: one {by} may bring {self._of(bringer).certificates} new certificates a day ({by}_certificates)"

    def _of(self, bringer: Bringer) -> Quota:
        return self._of_agents if bringer.agent else self._of_sources

    async def _count(self, bringer: Bringer, most: int) -> int:
        location = tables.location.c
        here = select(literal(1)).where(location.source_id == bringer.source_id)
        if bringer.agent:
            here = here.where(location.host == bringer.host)
        row = await self._store.row(select(func.count().label("number")).select_from(here.limit(most).subquery()))
        return int(row.number) if row is not None else 0

    async def _refuse(self, bringer: Bringer, what: str, number: int, most: int) -> None:
        """Count what is refused; the first time in a day it is an entry of the log, where the agent's own history shows it."""
        REFUSED.labels(what).inc(number)
        now = self._clock()
        if now - self._noted.get((bringer, what), -DAY * 1000) < DAY * 1000:
            return
        if len(self._noted) > _KEPT:
            self._noted.clear()
        self._noted[bringer, what] = now
        source = await self._store.row(select(tables.source.c.name).where(tables.source.c.id == bringer.source_id))
        name = source.name if source is not None else str(bringer.source_id)
        subjects = [f"source:{name}", *([f"agent:{bringer.agent}"] if bringer.agent else [])]
        about = {"source": name, "of": what, "quota": most} | ({"agent": bringer.agent} if bringer.agent else {})
        entry = make_entry("sightings.limited", at=now, who={"kind": "server"}, what=about, subjects=subjects)
        with contextlib.suppress(HandclaspError):  # it stays refused; the metric counts it
            await self._store.ledger.commit(Write([entry]))


def _limiter(quota: Quota, clock: Clock) -> Limiter | None:
    return Limiter(quota.certificates / DAY, quota.certificates, clock) if quota.certificates else None
