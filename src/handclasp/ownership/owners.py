"""Owners and the catalogue: imported from directories, or made by hand.

A directory is imported whole. Who is missing from it has left: that is noted and shown, and nothing is deleted, for its identities need a
new owner first. An owner belongs to the directory that brought it; another directory that names it too changes nothing, unless it had left.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, bindparam, delete, insert, select, update

from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind
from handclasp.log.entries import make_entry
from handclasp.ownership.catalogue import COMPONENT, PATH, Item
from handclasp.ownership.due import sweep
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write
from handclasp.wire.ownership import CatalogueEntry, OwnerChange, OwnerEntry, OwnerImport, OwnerImported

_FIELDS = ("kind", "title", "contact", "escalation")
_ITEM_COLUMNS = tuple(tables.catalogue.c.keys())
_SHOWN = 200
"""Changes that a log entry names: an entry has a size limit."""

ItemKey = tuple[str, str]


@dataclass(slots=True)
class Plan:
    """What an import comes to. Made by :func:`plan_import`, which is pure."""

    changes: list[OwnerChange] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    put: list[dict[str, Any]] = field(default_factory=list)
    """Rows of owners that are new or other than before."""
    left: list[str] = field(default_factory=list)
    items_put: list[dict[str, Any]] = field(default_factory=list)
    items_gone: list[ItemKey] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether nothing would change."""
        return not (self.put or self.left or self.items_put or self.items_gone)


def plan_import(wanted: OwnerImport, owners: Mapping[str, Any], items: Mapping[ItemKey, Any], now: int) -> Plan:
    """Return what importing ``wanted`` changes in the owners and (of this directory) catalogue items that are there, by name.

    Raises ``bad_request`` for owners that escalate to each other in a circle, or for a name that is there twice.
    """
    plan = Plan()
    given = _each_once(wanted)
    for entry in given.values():
        row = owners.get(entry.name)
        if row is not None and row.left_at is None and row.directory != wanted.directory:
            where = row.directory or "by hand"
            plan.changes.append(
                OwnerChange(change="kept", owner=entry.name, detail=f"it is {where if not row.directory else 'in ' + where}")
            )
            continue
        _plan_owner(plan, entry, row, wanted.directory, _escalation(plan, entry, given, owners), now)
    for name, row in sorted(owners.items()):
        if row.directory == wanted.directory and row.left_at is None and name not in given:
            plan.left.append(name)
            plan.changes.append(OwnerChange(change="left", owner=name, detail="it is not in the directory any more"))
    _no_circle({name: row.escalation for name, row in owners.items()} | {row["name"]: row["escalation"] for row in plan.put})
    _plan_items(plan, wanted, items)
    return plan


def _each_once(wanted: OwnerImport) -> dict[str, OwnerEntry]:
    given = {entry.name: entry for entry in wanted.owners}
    if len(given) != len(wanted.owners):
        raise HandclaspError(Kind.BAD_REQUEST, "an owner is there twice")
    if len({(item.kind, item.name) for item in wanted.catalogue}) != len(wanted.catalogue):
        raise HandclaspError(Kind.BAD_REQUEST, "a component or path is there twice")
    return given


def _escalation(plan: Plan, entry: OwnerEntry, given: Mapping[str, OwnerEntry], owners: Mapping[str, Any]) -> str | None:
    above = entry.escalation
    if above is not None and above not in given and above not in owners:
        plan.notes.append(f"{entry.name}: {above}, to whom it escalates, is not known and was left out")
        return None
    return above


def _plan_owner(plan: Plan, entry: OwnerEntry, row: Any, directory: str, escalation: str | None, now: int) -> None:
    values = {"kind": entry.kind, "title": entry.title, "contact": entry.contact, "escalation": escalation}
    new = {"name": entry.name, **values, "directory": directory, "left_at": None, "created_at": now, "updated_at": now}
    if row is None:
        plan.put.append(new)
        plan.changes.append(OwnerChange(change="added", owner=entry.name))
        return
    differs = [name for name in _FIELDS if getattr(row, name) != values[name]]
    if row.left_at is not None:
        plan.changes.append(OwnerChange(change="back", owner=entry.name, detail="it had left, and is there again"))
    elif differs:
        plan.changes.append(OwnerChange(change="changed", owner=entry.name, detail=", ".join(differs)))
    else:
        return
    plan.put.append(new | {"created_at": row.created_at})


def _plan_items(plan: Plan, wanted: OwnerImport, items: Mapping[ItemKey, Any]) -> None:
    given: set[ItemKey] = set()
    for place, item in enumerate(wanted.catalogue):
        key = (item.kind, item.name)
        given.add(key)
        row = _item_row(wanted.directory, item, place if item.kind == PATH else 0)
        before = items.get(key)
        if before is None or any(getattr(before, name) != row[name] for name in ("place", "owners", "tier", "environment")):
            plan.items_put.append(row)
    plan.items_gone = [key for key in items if key not in given]


def _item_row(directory: str, item: CatalogueEntry, place: int) -> dict[str, Any]:
    owners = json.dumps(list(dict.fromkeys(item.owners)))
    return {
        "directory": directory,
        "kind": item.kind,
        "name": item.name,
        "place": place,
        "owners": owners,
        "tier": item.tier,
        "environment": item.environment,
    }


def _no_circle(above: Mapping[str, str | None]) -> None:
    """Raise ``bad_request`` when owners escalate to each other in a circle: nobody would ever be asked last."""
    fine: set[str] = set()
    for start in sorted(above):
        way: list[str] = []
        one: str | None = start
        while one is not None and one not in fine:
            if one in way:
                circle = " -> ".join([*way[way.index(one) :], one][:20])
                raise HandclaspError(
                    Kind.BAD_REQUEST, f"owners escalate in a circle: {circle}", hint="take the escalation of one of them out"
                )
            way.append(one)
            one = above.get(one)
        fine.update(way)


class Owners:
    """Owners, as rows. Every change is logged, and has every identity derived again."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def import_(self, wanted: OwnerImport, who: Mapping[str, str]) -> OwnerImported:
        """Bring a directory in, whole; durable and logged on return. The same again changes nothing and is not logged."""
        owners = {row.name: row for row in await self._store.rows(select(tables.owner))}
        item = tables.catalogue
        rows = await self._store.rows(select(item).where(item.c.directory == wanted.directory))
        now = self._clock()
        plan = plan_import(wanted, owners, {(row.kind, row.name): row for row in rows}, now)
        answer = OwnerImported(
            directory=wanted.directory,
            changes=plan.changes,
            owners=len(wanted.owners),
            components=sum(entry.kind == COMPONENT for entry in wanted.catalogue),
            paths=sum(entry.kind == PATH for entry in wanted.catalogue),
            catalogue_changed=len(plan.items_put) + len(plan.items_gone),
            notes=plan.notes,
        )
        if not wanted.dry and not plan.is_empty:
            answer.log_entry = await self._commit(plan, wanted, who, now)
            answer.applied = True
        return answer

    async def _commit(self, plan: Plan, wanted: OwnerImport, who: Mapping[str, str], now: int) -> int:
        told = [f"{change.change} {change.owner}" for change in plan.changes if change.change != "kept"]
        what = {
            "directory": wanted.directory,
            "changes": told[:_SHOWN],
            "count": len(told),
            "catalogue": len(plan.items_put) + len(plan.items_gone),
        }
        entry = make_entry("owner.changed", at=now, who=who, what=what, subjects=[f"owner:{one.owner}" for one in plan.changes[:_SHOWN]])
        changes = [*_put_owners(plan.put), *_put_items(wanted.directory, plan), sweep(self._store)]
        if plan.left:
            statement = update(tables.owner).where(tables.owner.c.name == bindparam("one")).values(left_at=now, updated_at=now)
            changes.insert(0, Change(statement, rows=[{"one": name} for name in plan.left]))
        return await self._store.ledger.commit(Write([entry], changes))

    async def add(self, entry: OwnerEntry, who: Mapping[str, str]) -> int:
        """Make an owner by hand, or change one that was; return the log entry. Raises ``conflict`` for one that a directory brings."""
        owners = {row.name: row for row in await self._store.rows(select(tables.owner))}
        row = owners.get(entry.name)
        if row is not None and row.directory and row.left_at is None:
            raise HandclaspError(
                Kind.CONFLICT, f"{entry.name} is in the directory {row.directory}", hint="change it there, and import again"
            )
        if entry.escalation is not None and entry.escalation not in owners:
            raise HandclaspError(Kind.BAD_REQUEST, f"there is no owner {entry.escalation} to escalate to", hint="add that one first")
        _no_circle({name: one.escalation for name, one in owners.items()} | {entry.name: entry.escalation})
        now = self._clock()
        new = {name: getattr(entry, name) for name in ("name", *_FIELDS)} | {"directory": "", "left_at": None, "updated_at": now}
        new["created_at"] = now if row is None else row.created_at
        told = "added" if row is None else "changed"
        what = {"directory": "", "changes": [f"{told} {entry.name}"], "count": 1}
        log = make_entry("owner.changed", at=now, who=who, what=what, subjects=[f"owner:{entry.name}"])
        return await self._store.ledger.commit(Write([log], [*_put_owners([new]), sweep(self._store)]))

    async def remove(self, name: str, who: Mapping[str, str]) -> int:
        """Remove an owner that owns nothing any more; return the log entry. Raises ``not_found``, ``conflict`` while it owns something.

        What evidence goes on to name it, then names an owner that nobody knows.
        """
        row = await self.find(name)
        if row.directory and row.left_at is None:
            raise HandclaspError(Kind.CONFLICT, f"{name} is in the directory {row.directory}", hint="take it out there, and import again")
        held = tables.assignment
        owns = select(held.c.identity_id).where(held.c.owner == name, held.c.stands.in_(("owner", "disputed", "contested")))
        if await self._store.row(owns) is not None:
            raise HandclaspError(Kind.CONFLICT, f"{name} still owns identities", hint=f"handclasp identity list --owner {name}")
        below = await self._store.row(select(tables.owner.c.name).where(tables.owner.c.escalation == name))
        if below is not None:
            raise HandclaspError(Kind.CONFLICT, f"{below.name} escalates to {name}", hint="change that first")
        now = self._clock()
        what = {"directory": row.directory, "changes": [f"removed {name}"], "count": 1}
        log = make_entry("owner.changed", at=now, who=who, what=what, subjects=[f"owner:{name}"])
        gone = Change(delete(tables.owner).where(tables.owner.c.name == name), expect=1)
        return await self._store.ledger.commit(Write([log], [gone, sweep(self._store)]))

    async def find(self, name: str) -> Row[Any]:
        """Return an owner's row; raise ``not_found``."""
        row = await self._store.row(select(tables.owner).where(tables.owner.c.name == name))
        if row is None:
            raise HandclaspError(Kind.NOT_FOUND, f"there is no owner {name[:200]}", hint="handclasp owner list")
        return row

    async def catalogue(self) -> list[Item]:
        """Return everything that directories say about components and paths."""
        rows = await self._store.rows(select(tables.catalogue))
        return [
            Item(row.directory, row.kind, row.name, tuple(json.loads(row.owners)), row.tier, row.environment, row.place) for row in rows
        ]


def _put_owners(rows: Sequence[Mapping[str, Any]]) -> Iterable[Change]:
    """Replace whole rows: the same two statements on both databases."""
    if rows:
        yield Change(delete(tables.owner).where(tables.owner.c.name == bindparam("one")), rows=[{"one": row["name"]} for row in rows])
        columns = tables.owner.c.keys()
        yield Change(insert(tables.owner).values({name: bindparam(name) for name in columns}), rows=rows)


def _put_items(directory: str, plan: Plan) -> Iterable[Change]:
    item = tables.catalogue
    old = [*plan.items_gone, *((row["kind"], row["name"]) for row in plan.items_put)]
    if old:
        which = (item.c.directory == directory) & (item.c.kind == bindparam("which")) & (item.c.name == bindparam("one"))
        yield Change(delete(item).where(which), rows=[{"which": kind, "one": name} for kind, name in old])
    if plan.items_put:
        yield Change(insert(item).values({name: bindparam(name) for name in _ITEM_COLUMNS}), rows=plan.items_put)
