"""Figures about agents, for alarms: how many are in each state, and which renewals were missed. Every process counts for itself."""

from __future__ import annotations

import time
from collections.abc import Mapping

import structlog
from prometheus_client import Gauge
from sqlalchemy import select

from handclasp.api.fleet import ENDED, OVERDUE, STATES, Fleet
from handclasp.clock import Clock
from handclasp.issuance.progress import Progresses
from handclasp.store import tables
from handclasp.store.database import Store

AGENTS = Gauge("handclasp_agents", "Agents by state.", ["state"])
MISSED = Gauge(
    "handclasp_renewals_missed",
    "Certificates of agents past their renewal point: overdue ones still serve, ended ones do not and have no successor.",
    ["state"],
)
ROTATIONS = Gauge("handclasp_rotations", "Rotations that are not done, by state.", ["state"])
NAMED = 20
"""Missed renewals that one look names in the log; the list of agents has them all."""
_log = structlog.get_logger("handclasp.agents")


class AgentFigures:
    """How many agents are in each state, for the overview: as of a moment ago."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._fleet = Fleet(store, clock)
        self._counted: dict[str, int] = {}
        self._until = 0.0

    async def __call__(self) -> Mapping[str, int]:
        """Return the number for each state. They are counted again no more often than counting takes a fiftieth of the time."""
        began = time.monotonic()
        if began >= self._until:
            counted = dict.fromkeys(STATES, 0)
            async for page in self._fleet.pages():
                for agent in page:
                    counted[agent.state] += 1
            took = time.monotonic() - began
            self._counted, self._until = counted, time.monotonic() + max(1.0, 50 * took)
        return self._counted


class FleetWatch:
    """Looks at every agent now and then."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._fleet = Fleet(store, clock)
        self._progress = Progresses(store, clock)
        self._known: set[bytes] = set()

    async def run(self) -> None:
        """Look once: set the figures, and say which renewals are newly missed."""
        agents, missed = dict.fromkeys(STATES, 0), {OVERDUE: 0, ENDED: 0}
        seen: set[bytes] = set()
        async for page in self._fleet.pages():
            for agent in page:
                agents[agent.state] += 1
                for one in agent.missed:
                    if one.state == ENDED and agent.state == "silent":
                        continue  # the host is gone: nobody waits for this renewal any more
                    missed[one.state] += 1
                    seen.add(one.sha256)
                    if one.sha256 not in self._known and len(seen - self._known) <= NAMED:
                        _log.warning("renewal missed", identity=one.identity, agent=agent.row.name, certificate=one.sha256.hex())
        self._known = seen
        for state, number in agents.items():
            AGENTS.labels(state).set(number)
        for state, number in missed.items():
            MISSED.labels(state).set(number)
        await self._count_rotations()

    async def _count_rotations(self) -> None:
        rows = await self._store.rows(select(tables.rotation).where(tables.rotation.c.replaced.is_(None)))
        states = [one.state for one in await self._progress.of(rows)]
        for state in ("running", "late"):
            ROTATIONS.labels(state).set(states.count(state))
