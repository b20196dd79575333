"""The overview and the timeline: figures that are kept, read together, each with the list that it counts.

Nothing here counts rows but those of one hour at a time: everything else stands in ``tally``, so a page costs the same at ten million rows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from prometheus_client import Gauge
from sqlalchemy import ColumnElement, select

from handclasp.clock import Clock, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.inventory import tallies
from handclasp.inventory.follow import PLACE
from handclasp.inventory.states import STATES
from handclasp.inventory.steps import describe
from handclasp.inventory.tallies import HOUR
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.wire.inventory import Figure, Load, Overview, Timeline

DAY = 24 * HOUR
MAX_HOURS = 24 * 62
"""Hours in one timeline; longer ones are asked for by the day."""
MAX_DAYS = 366 * 3

SPANS: tuple[tuple[str, str, int], ...] = (("24h", "24 hours", DAY), ("7d", "7 days", 7 * DAY), ("30d", "30 days", 30 * DAY))

STANDINGS = Gauge("handclasp_standings", "Certificates by where they stand: what was issued, compared with what is seen.", ["state"])
OVERDUE = Gauge("handclasp_identities_overdue", "Identities whose certificate is past the moment by which it was to be renewed.")
FOLLOW_LAG = Gauge("handclasp_inventory_lag_entries", "Entries of the log that the inventory does not have yet.")

Agents = Callable[[], Awaitable[Mapping[str, int]]]
"""Says how many agents are in each state."""


async def no_agents() -> Mapping[str, int]:
    """Say that there are no agents."""
    return {}


class Overviews:
    """Reads overviews and timelines. Any number of calls at once."""

    def __init__(self, store: Store, clock: Clock, agents: Agents = no_agents) -> None:
        self._store = store
        self._clock = clock
        self._agents = agents

    async def overview(self) -> Overview:
        """Return how everything stands. Raises ``unavailable``."""
        now = self._clock()
        wanted = {name: tallies.between("expiry", now, now + span) for name, _, span in SPANS}
        wanted |= {
            "ended": tallies.between("expiry", None, now),
            "overdue": _overdue(now),
            "all": tallies.total("owner"),
            "unowned": tallies.total("owner", ""),
        }
        found = await tallies.numbers(self._store, wanted)
        issuance = await self._loads(now - 23 * HOUR, now + 1, HOUR)
        issued, refused = sum(one.issued + one.renewed for one in issuance), sum(one.refused for one in issuance)
        return Overview(
            at=rfc3339(now),
            identities=[
                _figure("all", "Identities", found["all"], "/v1/identities"),
                _figure("owned", "With an owner", found["all"] - found["unowned"], "/v1/identities"),
                _figure("unowned", "Without an owner", found["unowned"], "/v1/identities?owner=none", "attention"),
            ],
            expiring=[_expiring(name, title, found[name]) for name, title, _ in SPANS],
            overdue=_figure("overdue", "Past their renewal point", max(0, found["overdue"]), "/v1/identities?state=overdue", "alarm"),
            expired=_figure("expired", "Expired", found["ended"], "/v1/identities?state=expired"),
            standings=await self._standings(),
            sources=await self._sources(),
            locations=await self._locations(),
            agents=await self._agent_figures(),
            issuance=issuance,
            issued_24h=_figure("issued_24h", "Issued in 24 hours", issued, "/v1/log/entries?type=certificate.issued"),
            refused_24h=_figure("refused_24h", "Refused in 24 hours", refused, "/v1/log/entries?type=issuance.refused", "attention"),
            followed=await self._behind(),
        )

    async def timeline(self, since: int, until: int, by: str = "") -> Timeline:
        """Return what happened and what is to come from ``since`` to ``until`` (ms), by ``hour`` or ``day`` (UTC); empty: as fits.

        Raises ``bad_request`` for another ``by``, for an end that is not after the beginning, and for more than can be shown.
        """
        by = by or ("hour" if (until - since) // HOUR <= MAX_HOURS else "day")
        if by not in ("hour", "day"):
            raise HandclaspError(Kind.BAD_REQUEST, f"{by[:100]!r} is no length of time", hint="hour or day")
        step, most = (HOUR, MAX_HOURS) if by == "hour" else (DAY, MAX_DAYS)
        if not 0 <= since < until < 1 << 47:
            raise HandclaspError(Kind.BAD_REQUEST, "until is not after since")
        if (until - since) // step > most:
            raise HandclaspError(Kind.BAD_REQUEST, f"more than {most} {by}s cannot be shown at once", hint="by=day, or a shorter time")
        loads = await self._loads(since, until, step)
        return Timeline(since=rfc3339(since), until=rfc3339(until), by=by, now=rfc3339(self._clock()), items=loads)

    async def counts(self) -> dict[str, int]:
        """Return how many certificates are in each state, all states of them."""
        found = await tallies.of_kind(self._store, "state")
        return {state: max(0, found.get(state, 0)) for state in STATES}

    async def overdue(self) -> int:
        """Return how many identities have a certificate that is past its renewal point and has not ended."""
        return max(0, (await tallies.numbers(self._store, {"n": _overdue(self._clock())}))["n"])

    async def gauges(self) -> None:
        """Set the figures for Prometheus."""
        for state, number in (await self.counts()).items():
            STANDINGS.labels(state).set(number)
        OVERDUE.set(await self.overdue())
        FOLLOW_LAG.set(await self._behind())

    # --- parts ----------------------------------------------------------------------------------------------------------------------------

    async def _standings(self) -> list[Figure]:
        said = [describe(state, number) for state, number in (await self.counts()).items()]
        return [_figure(one.standing, one.title, one.count, f"/v1/certificates?standing={one.standing}", one.level) for one in said]

    async def _sources(self) -> list[Figure]:
        """Sources are some dozens: they are read. What agents tell of themselves is no source that somebody has yet to read."""
        source = tables.source.c
        numbers = dict.fromkeys(("ok", "failing", "never", "paused"), 0)
        for row in await self._store.rows(select(source.kind, source.state, source.success_at, source.problem)):
            if row.kind == "agent" and row.success_at is None and row.problem is None:
                continue
            if row.state == "paused":
                numbers["paused"] += 1
            else:
                numbers["failing" if row.problem is not None else "never" if row.success_at is None else "ok"] += 1
        titles = {"ok": "Read as planned", "failing": "Not read whole", "never": "Not read yet", "paused": "Paused"}
        levels = {"failing": "alarm", "never": "attention"}
        return [_figure(name, titles[name], number, "/v1/sources", levels.get(name, "fine")) for name, number in numbers.items()]

    async def _locations(self) -> list[Figure]:
        found = await tallies.of_kind(self._store, "location")
        names = (("read", "Read", "fine"), ("failed", "Could not be read", "attention"), ("gone", "Gone", "fine"))
        return [_figure(name, title, found.get(name, 0), f"/v1/locations?state={name}", level) for name, title, level in names]

    async def _agent_figures(self) -> list[Figure]:
        levels = {"attention": "attention", "overdue": "alarm", "silent": "attention"}
        return [
            _figure(state, state.capitalize(), number, f"/v1/agents?state={state}", levels.get(state, "fine"))
            for state, number in (await self._agents()).items()
        ]

    async def _behind(self) -> int:
        head = await self._store.row(select(tables.log_head.c.size))
        return max(0, (int(head.size) if head is not None else 0) - int(await self._store.meta(PLACE) or 0))

    async def _loads(self, since: int, until: int, step: int) -> list[Load]:
        begin = since // step * step
        kinds = ("issued", "renewed", "refused", "expiry", "renewal")
        sums = await tallies.loads(self._store, kinds, begin, until, days=step == DAY)
        return [
            Load(
                at=rfc3339(at),
                issued=sums["issued"].get(at, 0),
                renewed=sums["renewed"].get(at, 0),
                refused=sums["refused"].get(at, 0),
                expiring=sums["expiry"].get(at, 0),
                renewing=sums["renewal"].get(at, 0),
            )
            for at in range(begin, until, step)
        ]


def _overdue(now: int) -> ColumnElement[Any]:
    """What is past its end is past its renewal point too, so the difference of two sums is exact, and nothing is counted."""
    return tallies.between("renewal", None, now) - tallies.between("end", None, now)


def _expiring(name: str, title: str, number: int) -> Figure:
    return _figure(name, f"Ending within {title}", max(0, number), f"/v1/identities?expires_after=0s&expires_before={name}&sort=expires")


def _figure(name: str, title: str, number: int, list_: str, level: str = "fine") -> Figure:
    return Figure(name=name, title=title, number=number, list=list_, level=level if number else "fine")
