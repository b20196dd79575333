"""Sources as rows: added, changed and removed by people, each time with an entry in the log.

A source that is removed is renamed at once and read no more; its locations and sightings go in short writes after that
(:meth:`Sources.forget_removed`), and its row last, so that its number means nobody else until nothing carries it any more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Row, delete, insert, select, update

from handclasp.access.principals import Principal
from handclasp.clock import Clock, format_duration
from handclasp.discovery.endings import OPEN, stopping
from handclasp.discovery.engine import read_settings
from handclasp.discovery.kinds import load_kind
from handclasp.discovery.leases import LEASE
from handclasp.discovery.source import Runs, Scope, SourceKind
from handclasp.errors import HandclaspError, Kind
from handclasp.log.entries import make_entry
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

SHORTEST = 60.0
"""Seconds between two scans of a source, at least."""
LONGEST = 366 * 86_400.0
RUNS: Sequence[Runs] = ("server", "collector", "agents")
STATES = ("active", "paused")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_source, _scan, _part = tables.source.c, tables.scan.c, tables.scan_part.c


class Wanted(msgspec.Struct, kw_only=True):
    """What somebody wants a source to be; of a change, None is: as it was."""

    settings: dict[str, Any] | None = None
    scope: Scope | None = None
    every: float | None = None
    """Seconds between scans; 0 is: only when asked."""
    runs: str | None = None
    state: str | None = None
    facts: dict[str, Any] | None = None


class Sources:
    """Keeps the sources of an installation. Any number of tasks and processes at once."""

    def __init__(self, store: Store, clock: Clock, kinds: Callable[[str], SourceKind] = load_kind) -> None:
        self._store, self._clock, self._kinds = store, clock, kinds

    async def get(self, name: str) -> Row[Any]:
        """Return a source's row; raise ``not_found``."""
        row = await self._store.row(select(tables.source).where(_source.name == name, _source.state != "removed"))
        if row is None:
            raise HandclaspError(Kind.NOT_FOUND, f"there is no source {name!r}", hint="handclasp source list")
        return row

    async def add(self, name: str, kind_name: str, wanted: Wanted, by: Principal, origin: Mapping[str, str]) -> Row[Any]:
        """Add a source; its first scan begins at once where it has a schedule. Durable and logged on return.

        Raises ``bad_setting`` for a kind that is not there or settings that it does not take, ``conflict`` for a name that is taken.
        """
        if not _NAME.fullmatch(name):
            raise HandclaspError(Kind.BAD_SETTING, f"{name!r} is not a source's name", hint="letters, digits, '.', '_', '-'")
        kind, now = self._kinds(kind_name), self._clock()
        values = {
            "settings": {}, "scope": Scope(), "every": 0.0, "runs": kind.runs, "state": "active", "facts": {},
        } | {key: value for key, value in msgspec.structs.asdict(wanted).items() if value is not None}  # fmt: skip
        row = _checked(kind, values)
        row |= {"name": name, "kind": kind_name, "created_at": now, "created_by": by.describe(), "due_at": _first_due(row, now)}
        if await self._store.row(select(_source.id).where(_source.name == name)) is not None:
            raise HandclaspError(Kind.CONFLICT, f"there is a source {name!r} already", hint=f"handclasp source change {name}")
        what = {"source": name, "kind": kind_name, **_told(row)}
        entry = make_entry("source.added", at=now, who=by.to_log(), source=origin, subjects=[f"source:{name}"], what=what)
        await self._store.ledger.commit(Write([entry], [Change(insert(tables.source).values(row))]))
        return await self.get(name)

    async def change(self, name: str, wanted: Wanted, by: Principal, origin: Mapping[str, str]) -> Row[Any]:
        """Change a source, from its next scan on. Durable and logged on return; a change that changes nothing is no entry."""
        now, before = self._clock(), await self.get(name)
        if before.kind == "agent":
            raise HandclaspError(Kind.CONFLICT, "this source is what agents report of their targets: there is nothing to change in it")
        was = {
            "settings": json.loads(before.settings), "scope": msgspec.json.decode(before.scope, type=Scope), "every": before.every / 1000,
            "runs": before.runs, "state": before.state, "facts": json.loads(before.facts),
        }  # fmt: skip
        row = _checked(self._kinds(before.kind), was | {k: v for k, v in msgspec.structs.asdict(wanted).items() if v is not None})
        changed = [key for key, value in row.items() if getattr(before, key) != value]
        if not changed:
            return before
        if "every" in changed or "state" in changed:
            row["due_at"] = _first_due(row, now)
        entry = make_entry(
            "source.changed", at=now, who=by.to_log(), source=origin, subjects=[f"source:{name}"],
            what={"source": name, "changed": changed, **_told(row)},
        )  # fmt: skip
        await self._store.ledger.commit(
            Write([entry], [Change(update(tables.source).where(_source.id == before.id).values(row), expect=1)])
        )
        return await self.get(name)

    async def remove(self, name: str, by: Principal, origin: Mapping[str, str]) -> int:
        """Remove a source: it is read no more, and what it saw is forgotten soon after. Returns the place of the log entry.

        Durable and logged on return. The source of what agents report stays: it is there as long as there are agents.
        """
        now, row = self._clock(), await self.get(name)
        if row.kind == "agent":
            raise HandclaspError(Kind.CONFLICT, "this source is what agents report of their targets: it cannot be removed")
        entry = make_entry(
            "source.removed", at=now, who=by.to_log(), source=origin, subjects=[f"source:{name}"], what={"source": name, "kind": row.kind}
        )
        gone = {"state": "removed", "name": f"~{row.id}", "due_at": now + 2 * round(LEASE * 1000), "problem": None}
        running = await self._store.rows(select(_scan.id).where(_scan.source_id == row.id, _scan.state.in_(OPEN)))
        changes = [Change(update(tables.source).where(_source.id == row.id, _source.state != "removed").values(gone), expect=1)]
        return await self._store.ledger.commit(Write([entry], [*changes, *(stopping(one.id, now) for one in running)]))

    async def forget_removed(self, forget: Callable[[int], Awaitable[None]]) -> None:
        """Forget what removed sources saw: at once, and once more when no worker can hold a part of theirs any more; then their rows.

        ``forget`` takes a source's number and may be called again after it was cut off. For one process at a time.
        """
        for row in await self._store.rows(select(_source.id, _source.due_at).where(_source.state == "removed")):
            is_last = row.due_at <= self._clock()
            await forget(row.id)
            if not is_last:
                continue
            while scans := [one.id for one in await self._store.rows(select(_scan.id).where(_scan.source_id == row.id).limit(50))]:
                parts = delete(tables.scan_part).where(_part.scan_id.in_(scans))
                await self._store.ledger.commit(Write([], [Change(parts), Change(delete(tables.scan).where(_scan.id.in_(scans)))]))
            await self._store.ledger.commit(Write([], [Change(delete(tables.source).where(_source.id == row.id))]))


def _checked(kind: SourceKind, values: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a source; raise ``bad_setting`` for what cannot be."""
    settings, scope, every = read_settings(kind, values["settings"]), values["scope"], values["every"]
    kind.check(settings, scope)
    if every and not SHORTEST <= every <= LONGEST:
        raise HandclaspError(Kind.BAD_SETTING, f"a source is read every {format_duration(SHORTEST)} at most", hint="every 6h is usual")
    if values["runs"] not in RUNS or values["state"] not in STATES:
        raise HandclaspError(Kind.BAD_SETTING, f"runs is one of {', '.join(RUNS)}, and state one of {', '.join(STATES)}")
    if kind.runs == "agents" != values["runs"]:
        raise HandclaspError(Kind.BAD_SETTING, f"a source of the kind {kind.name} is read by agents, on their hosts", hint="leave out runs")
    if values["runs"] == "agents" != kind.runs:
        raise HandclaspError(
            Kind.BAD_SETTING,
            f"agents cannot read a source of the kind {kind.name}: they read files",
            hint="runs: server, or collector to read it with `handclasp collect`",
        )
    facts = msgspec.json.encode(values["facts"]).decode()
    if len(facts) > 4096:
        raise HandclaspError(Kind.BAD_SETTING, "the facts of a source are too many")
    return {
        "settings": msgspec.json.encode(settings).decode(),
        "scope": msgspec.json.encode(scope).decode(),
        "every": round(every * 1000),
        "runs": values["runs"],
        "state": values["state"],
        "facts": facts,
    }


def _first_due(row: Mapping[str, Any], now: int) -> int | None:
    return now if row["every"] and row["state"] == "active" else None


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the log says of a source's content: what it may read, and a digest's worth of the rest."""
    scope = json.loads(row["scope"])
    shown = {key: (value[:20] if isinstance(value, list) else value) for key, value in scope.items()}
    return {"scope": shown, "every": format_duration(row["every"] / 1000), "runs": row["runs"], "state": row["state"]}
