"""Scans of files: given to the agents that are to do them, and taken back from each, and from it about itself alone.

A scan has one part for each agent. A part waits until its agent comes; an agent that says nothing for as long as the source says leaves its
part failed, and the scan ends as one that did not read everything. Nothing is gone for that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from sqlalchemy import Row, bindparam, delete, func, insert, select, update

from handclasp.clock import Clock, parse_duration
from handclasp.discovery.desk import Sink, with_facts
from handclasp.discovery.endings import finish
from handclasp.discovery.files import FilesSettings, concerns, order_of
from handclasp.discovery.leases import PLAN
from handclasp.discovery.source import Scope
from handclasp.errors import HandclaspError, Kind
from handclasp.store import tables
from handclasp.store.chunks import in_chunks
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write
from handclasp.wire.filescans import FileRecorded, FileScanList, FileSightings, host_of, key_of, unit_of, whole_unit
from handclasp.wire.observations import Covered, Observed, Recorded, Sightings

AWAY = 30 * 86_400_000
"""Milliseconds without a word after which an agent is not waited for at all: its host is gone."""
LOOK_EVERY = 2.0
"""Seconds for which a process believes what it knows of the scans that go on."""
KINDS = ("file", "keystore")
_MOST_ROWS = 500
_scan, _part, _source, _agent = tables.scan.c, tables.scan_part.c, tables.source.c, tables.agent.c


class Confirming(Protocol):
    """The inventory's short words; see :class:`handclasp.inventory.confirm.Confirmer`."""

    async def still(self, source_id: int, digests: Mapping[str, str], at: int) -> list[str]: ...  # noqa: D102
    async def unread(self, source_id: int, host: str, places: Mapping[str, str], at: int) -> None: ...  # noqa: D102


class FileScans:
    """Any number of tasks and processes at once; :meth:`step` for one process at a time."""

    def __init__(
        self, store: Store, clock: Clock, sink: Sink, confirming: Confirming, *, ticks: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._clock, self._sink, self._confirming, self._ticks = store, clock, sink, confirming, ticks
        self._waiting: dict[str, set[str]] = {}
        self._looked = float("-inf")

    # --- for agents -----------------------------------------------------------------------------------------------------------------------

    async def concerns(self, identity: str) -> bool:
        """Tell whether something may be due for an agent; cheap, asked with each of its reports, and a few seconds late."""
        if self._ticks() - self._looked > LOOK_EVERY:
            self._looked = self._ticks()
            going_on = [row.id for row in await self._store.rows(select(_scan.id).join_from(*_JOINED).where(*_GOES_ON))]
            self._waiting = {scan: self._waiting[scan] if scan in self._waiting else await self._agents_of(scan) for scan in going_on}
        return any(identity in agents for agents in self._waiting.values())

    async def due(self, identity: str) -> FileScanList:
        """Return the scans that an agent is to do, oldest first."""
        query = select(_scan.id, _source.name, _source.settings).join_from(*_JOINED).join(tables.scan_part, _part.scan_id == _scan.id)
        query = query.where(*_GOES_ON, _part.leased_by == identity, _part.state.in_(("waiting", "leased"))).order_by(_scan.created_at)
        rows = await self._store.rows(query)
        return FileScanList(items=[order_of(msgspec.json.decode(row.settings, type=FilesSettings), row.id, row.name) for row in rows])

    async def take(self, identity: str, found: FileSightings) -> FileRecorded:
        """Record what an agent found, durable on return.

        Raises ``bad_request`` for anything that is not the agent's own: another's key, host or unit, another kind of location.
        """
        row = await self._part_of(identity, found.scan)
        if row is None:
            self._waiting.get(found.scan, set()).discard(identity)
            return FileRecorded(recorded=_NOTHING, over=True)
        settings = msgspec.json.decode(row.settings, type=FilesSettings)
        host = host_of(identity)
        _check_own(found, identity, host, settings)
        now = max(self._clock(), row.created_at)
        recorded, unknown = _counted(found.observed), []
        if not row.dry:
            digests = {one.key: one.digest for one in found.unchanged}
            unknown = await self._confirming.still(row.source_id, digests, now) if digests else []
            places = {key_of(identity, one.path): one.problem for one in found.unread}
            if places:
                await self._confirming.unread(row.source_id, host, places, now)
            recorded = await self._record(row, found, now)
        await self._note(row, identity, found, recorded, len(unknown), now, round(parse_duration(settings.wait) * 1000))
        return FileRecorded(recorded=recorded, unknown=unknown)

    async def _record(self, row: Row[Any], found: FileSightings, now: int) -> Recorded:
        for one in found.observed:
            one.at = now
            one.facts = {}  # evidence of ownership is the source's to give: a host that is taken over must not say whose things are
        covered = [Covered(unit=unit, began_at=row.created_at) for unit in found.covered]
        if not found.observed and not covered:
            return _NOTHING
        sightings = with_facts(Sightings(observed=found.observed, covered=covered), json.loads(row.facts))
        return await self._sink(row.source_id, sightings, row.id)

    async def _note(
        self, row: Row[Any], identity: str, found: FileSightings, recorded: Recorded, unknown: int, now: int, wait: int
    ) -> None:
        state = ("failed" if found.problem else "done") if found.done else "leased"
        part = {
            "state": state,
            "place": found.place,
            "leased_until": now + wait,
            "problem": _words(identity, found.problem or found.skipped),
        }
        locked = sum(1 for one in found.observed if one.problem and one.details.get("locked"))
        failed = sum(1 for one in found.observed if one.problem) - locked + (1 if found.problem else 0)
        failed += recorded.refused
        read = found.read + len(found.unchanged) - unknown + sum(1 for one in found.observed if not one.problem) + locked - recorded.refused
        added: dict[str, Any] = {
            "read": _scan.read + read,
            "failed": _scan.failed + failed,
            "certificates": _scan.certificates + recorded.certificates,
            "fresh": _scan.fresh + recorded.fresh,
            "gone": _scan.gone + recorded.gone,
        }
        problem = found.problem or next((f"{one.shown}: {one.problem}" for one in found.observed if one.problem and not locked), None)
        if recorded.refused:
            problem = problem or f"{recorded.refused} places were not recorded. {recorded.refusal}"
        if problem:
            added["problem"] = func.coalesce(_scan.problem, _words(identity, problem))
        mine = (_part.scan_id == row.id, _part.number == row.number, _part.state.in_(("waiting", "leased")))
        changes = [
            Change(update(tables.scan_part).where(*mine).values(part)),
            Change(update(tables.scan).where(_scan.id == row.id).values(added)),
        ]
        await self._store.ledger.commit(Write([], changes))
        if found.done:
            self._waiting.get(row.id, set()).discard(identity)
            await finish(self._store, row.id, now)

    async def _part_of(self, identity: str, scan: str) -> Row[Any] | None:
        query = (
            select(_scan.id, _scan.source_id, _scan.dry, _scan.created_at, _part.number, _source.settings, _source.facts)
            .join_from(*_JOINED)
            .join(tables.scan_part, _part.scan_id == _scan.id)
        )
        mine = (_scan.id == scan, _part.leased_by == identity, _part.state.in_(("waiting", "leased")))
        return await self._store.row(query.where(*_GOES_ON, *mine))

    async def _agents_of(self, scan: str) -> set[str]:
        query = select(_part.leased_by).where(_part.scan_id == scan, _part.state.in_(("waiting", "leased")), _part.number > PLAN)
        return {row.leased_by for row in await self._store.rows(query) if row.leased_by}

    # --- for the server -------------------------------------------------------------------------------------------------------------------

    async def step(self) -> None:
        """Give the parts of scans that have begun to the agents, and give up those of agents that say nothing."""
        query = select(tables.scan, _source.settings, _source.scope).join_from(*_JOINED).where(_scan.state == "planning", *_OF_FILES)
        for row in await self._store.rows(query):
            await self._plan(row)
        await self._give_up()

    async def _plan(self, scan: Row[Any]) -> None:
        settings, scope = msgspec.json.decode(scan.settings, type=FilesSettings), msgspec.json.decode(scan.scope, type=Scope)
        now = self._clock()
        known = select(tables.identity.c.name, _agent.labels).join_from(
            tables.agent, tables.identity, tables.identity.c.id == _agent.identity_id
        )
        last = func.coalesce(_agent.last_contact_at, _agent.enrolled_at)
        rows = await self._store.rows(known.where(last > now - AWAY).order_by(tables.identity.c.name))
        agents = [row.name for row in rows if concerns(settings, scope, row.name, json.loads(row.labels))]
        # Parts that an interrupted attempt left are made anew.
        await self._store.ledger.commit(Write([], [Change(delete(tables.scan_part).where(_part.scan_id == scan.id, _part.number > PLAN))]))
        until = now + round(parse_duration(settings.wait) * 1000)
        parts = [_part_row(scan.id, number, identity, until) for number, identity in enumerate(agents, PLAN + 1)]
        for some in in_chunks(parts, _MOST_ROWS):
            await self._store.ledger.commit(Write([], [Change(insert(tables.scan_part), rows=some)]))
        values: dict[str, Any] = {"state": "running"}
        if not agents:
            values["problem"] = "no agent is one of those that are to look"
        planned = update(tables.scan_part).where(_part.scan_id == scan.id, _part.number == PLAN).values(state="done", leased_until=None)
        running = update(tables.scan).where(_scan.id == scan.id, _scan.state == "planning").values(values)
        await self._store.ledger.commit(Write([], [Change(planned), Change(running)]))
        self._looked = float("-inf")
        if not agents:
            await finish(self._store, scan.id, now)

    async def _give_up(self) -> None:
        now = self._clock()
        silent = (_part.state.in_(("waiting", "leased")), _part.leased_until <= now, _part.number > PLAN, *_GOES_ON)
        query = select(_part.scan_id, _part.number, _part.leased_by).join_from(*_JOINED).join(tables.scan_part, _part.scan_id == _scan.id)
        rows = await self._store.rows(query.where(*silent).limit(_MOST_ROWS))
        for scan in {row.scan_id for row in rows}:
            mine = [row for row in rows if row.scan_id == scan]
            gone = update(tables.scan_part).where(_part.scan_id == scan, _part.number == bindparam("which"))
            gone = gone.values(state="failed", problem=bindparam("why"))
            rows_ = [{"which": row.number, "why": f"{host_of(row.leased_by or '')} was not heard of in time"} for row in mine]
            counted = {"failed": _scan.failed + len(mine), "problem": func.coalesce(_scan.problem, rows_[0]["why"])}
            changes = [Change(gone, rows=rows_), Change(update(tables.scan).where(_scan.id == scan).values(counted))]
            await self._store.ledger.commit(Write([], changes))
            await finish(self._store, scan, now)


_JOINED = (tables.scan, tables.source, _source.id == _scan.source_id)
_OF_FILES = (_source.runs == "agents", _source.kind == "files", _source.state != "removed")
_GOES_ON = (_scan.state == "running", *_OF_FILES)
_NOTHING = Recorded(locations=0, changed=0, failed=0, certificates=0, fresh=0, gone=0)


def _words(identity: str, text: str | None) -> str | None:
    """Return what an agent says of its part of a scan, with the name of its host."""
    return f"{host_of(identity)}: {text}" if text else None


def _part_row(scan: str, number: int, identity: str, until: int) -> dict[str, Any]:
    spec = json.dumps({"agent": identity})
    return {
        "scan_id": scan, "number": number, "spec": spec, "state": "waiting", "place": "", "attempts": 0, "leased_by": identity,
        "leased_until": until,
    }  # fmt: skip


def _check_own(found: FileSightings, identity: str, host: str, settings: FilesSettings) -> None:
    """An agent tells of itself, and of nobody else: whoever has one host must not be able to say what is on another."""
    prefix, units = key_of(identity, "/"), {unit_of(identity, path) for path in settings.paths}
    for one in found.observed:
        own = (
            one.key.startswith(prefix) and one.host == host and one.kind in KINDS and not units.isdisjoint((one.unit, whole_unit(one.unit)))
        )
        # A file has the certificate's bytes: with a fingerprint and a name alone, anything could be said of anybody.
        if not own or any(seen.role == "served" or seen.der is None for seen in one.certificates):
            raise HandclaspError(Kind.BAD_REQUEST, "an agent tells of the files of its own host alone")
    keys = [*(one.key for one in found.unchanged), *(key_of(identity, one.path) for one in found.unread)]
    if not all(key.startswith(prefix) for key in keys) or any(units.isdisjoint((unit, whole_unit(unit))) for unit in found.covered):
        raise HandclaspError(Kind.BAD_REQUEST, "an agent tells of the files of its own host alone")


def _counted(observed: Sequence[Observed]) -> Recorded:
    """Return the numbers of a dry run: what was seen, and nothing that came of it."""
    read = [one for one in observed if not one.problem]
    certificates = sum(len(one.certificates) for one in read)
    return Recorded(locations=len(read), changed=0, failed=len(observed) - len(read), certificates=certificates, fresh=0, gone=0)
