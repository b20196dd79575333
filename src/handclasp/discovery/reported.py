"""What agents report of their own targets, as sightings: the built-in source ``agents``.

An agent reports each minute and mostly the same. A change is recorded within seconds; what stays the same is told again every quarter of an
hour, with many others in one write, so that it does not look old. A target that fails is a problem of its location and no absence; one that
the report no longer has is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator

from sqlalchemy import insert, select

from handclasp.clock import Clock
from handclasp.discovery.desk import Sink
from handclasp.errors import HandclaspError, Kind
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write
from handclasp.wire import AgentIdentity, AgentTarget
from handclasp.wire.filescans import host_of
from handclasp.wire.observations import Covered, Observed, Seen, Sightings

NAME, KIND = "agents", "agent"
GATHER = 2.0
"""Seconds in which changes gather; as many may have to be told again by their agents when a process is killed."""
AGAIN = 15 * 60_000
"""Milliseconds after which what has not changed is told again."""
_TOGETHER = 400
_SHA256 = re.compile("[0-9a-f]{64}")
_source = tables.source.c


class ReportedTargets:
    """Gathers what agents report. For one event loop; several processes at once do no harm."""

    def __init__(self, store: Store, clock: Clock, sink: Sink) -> None:
        self._store, self._clock, self._sink = store, clock, sink
        self._source_id: int | None = None
        self._told: dict[str, int] = {}
        self._waiting: dict[str, list[AgentIdentity]] = {}
        self._task: asyncio.Task[None] | None = None

    def note(self, identity: str, report: list[AgentIdentity], *, changed: bool) -> None:
        """Take an agent's report; it is recorded within seconds, without anybody waiting for it."""
        if not changed and self._clock() - self._told.get(identity, -AGAIN) < AGAIN:
            return
        self._waiting[identity] = report
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write_soon(), name="reported targets")

    async def close(self) -> None:
        """Record what still waits, as far as that can be done now. Nothing is to be noted after this."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._waiting:
            with contextlib.suppress(HandclaspError):  # it is told again by the agents, a quarter of an hour later
                await self.flush()

    async def _write_soon(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER)
            with contextlib.suppress(HandclaspError):  # the database is away: once more in a moment
                await self.flush()

    async def flush(self) -> None:
        """Record what has gathered; durable on return. What cannot be recorded now is kept for the next time. Raises ``unavailable``."""
        waiting, self._waiting = self._waiting, {}
        try:
            await self._write(waiting)
        except BaseException:  # also when it is cancelled: what was not written is kept for the next time, and raised on
            self._waiting = waiting | self._waiting  # what came meanwhile is newer
            raise

    async def _write(self, waiting: dict[str, list[AgentIdentity]]) -> None:
        source_id = await self._source()
        batch, now = Sightings(), self._clock()
        for identity, report in waiting.items():
            batch.observed += _observed(identity, report, now)
            batch.covered.append(Covered(unit=f"agent:{identity}", began_at=now))
            if len(batch.observed) + len(batch.covered) >= _TOGETHER:
                await self._sink(source_id, batch, "")
                batch = Sightings()
        if batch.covered:
            await self._sink(source_id, batch, "")
        self._told |= dict.fromkeys(waiting, now)

    async def _source(self) -> int:
        """Return the source's number; it is made when there is something to record for the first time."""
        if self._source_id is None:
            query = select(_source.id).where(_source.kind == KIND)
            row = await self._store.row(query)
            if row is None:
                taken = await self._store.row(select(_source.id).where(_source.name == NAME))
                values = {"name": NAME if taken is None else f"{NAME}.reported", "kind": KIND, "every": 0, "runs": "agents"}
                made = insert(tables.source).values({**values, "created_at": self._clock(), "created_by": "server"})
                with contextlib.suppress(HandclaspError):  # another process made it meanwhile
                    await self._store.ledger.commit(Write([], [Change(made)]))
                row = await self._store.row(query)
            if row is None:
                raise HandclaspError(Kind.UNAVAILABLE, "what agents report cannot be recorded at the moment", retry_after=1)
            self._source_id = row.id
        return self._source_id


def _observed(identity: str, report: list[AgentIdentity], now: int) -> Iterator[Observed]:
    seen: set[str] = set()
    for one in report:
        for target in one.targets:
            key = f"agent:{identity}:{target.name}"
            if key not in seen and (target.sha256 or target.last_failure):
                seen.add(key)
                yield _location(identity, one.identity, target, key, now)


def _location(identity: str, workload: str, target: AgentTarget, key: str, now: int) -> Observed:
    failed = target.state == "failed"
    known = not failed and _SHA256.fullmatch(target.sha256 or "") is not None
    return Observed(
        key=key,
        kind="file" if target.name.startswith("/") else "endpoint",
        shown=f"{host_of(identity)}: {target.name}",
        unit=f"agent:{identity}",
        host=host_of(identity),
        at=now,
        # Whose it is, is known by its fingerprint: it was issued here. What a report calls it makes nobody's identity.
        certificates=[Seen(sha256=bytes.fromhex(target.sha256 or ""), role="served")] if known else [],
        details={"target": target.name, "identity": workload},
        problem=(target.last_failure or "its delivery fails") if failed else None,
    )
