"""Identities with evidence of who owns them, on a real database."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select

from handclasp.log.entries import parse_entry
from handclasp.ownership.due import due
from handclasp.ownership.room import OwnershipRoom, open_ownership
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write
from handclasp.wire.ownership import (
    OwnerEntry,
    OwnerImport,
)
from support.installation import Ticker

WHO = {"kind": "test"}
WEB = "spiffe://example.org/ns/shop/sa/web"
API = "spiffe://example.org/ns/kube-system/sa/api"
DB = "dns:db.example.org"
DAY = 86400.0
RULES = """
version: 1
rules:
  - {name: label, workload_label: team, owner: "{value}"}
  - {name: ns, namespace_label: team, owner: "{value}", environment: prod}
  - {name: path, spiffe: "spiffe://example.org/ns/{team}/**", owner: "{team}", tier: 2}
"""


@dataclass
class OwnerWorld:
    store: Store
    clock: Ticker
    room: OwnershipRoom

    async def identities(self, *names: str, owner: str | None = None) -> list[int]:
        rows = [{"name": name, "owner": owner, "created_at": 1} for name in names]
        await self.store.ledger.commit(Write([], [Change(insert(tables.identity).values(row)) for row in rows]))
        found = {row.name: row.id for row in await self.store.rows(select(tables.identity))}
        return [found[name] for name in names]

    async def seen(self, identity_id: int, facts: dict[str, Any], *, source: dict[str, Any] | None = None, origin: str = "found") -> int:
        """Have a certificate of the identity seen at a place with these facts; return the place's number."""
        sha256, number = os.urandom(32), int.from_bytes(os.urandom(3))
        times = {"first_seen_at": 1, "last_seen_at": 1}
        place = {"id": number, "source_id": number, "key": f"k{number}", "kind": "file", "shown": "x", "facts": json.dumps(facts)}
        changes = [
            insert(tables.source).values(
                id=number, name=f"s{number}", kind="x", every=0, facts=json.dumps(source or {}), created_at=1, created_by="x"
            ),
            insert(tables.location).values(place | {"first_seen_at": 1, "tried_at": 1}),
            insert(tables.sighting).values(location_id=number, sha256=sha256, role="served", **times),
            insert(tables.standing).values(
                sha256=sha256, origin=origin, state="seen", since_at=1, identity_id=identity_id, not_after=1, open=1, **times
            ),
        ]
        again = due([identity_id], self.clock())
        assert again is not None
        await self.store.ledger.commit(Write([], [*(Change(change) for change in changes), again]))
        return number

    async def drain(self) -> int:
        looked_at = 0
        while (some := await self.room.assigner.step()) > 0:
            looked_at += some
        return looked_at

    async def owners(self) -> dict[str, str | None]:
        return {row.name: row.owner for row in await self.store.rows(select(tables.identity))}

    async def tallies(self) -> dict[str, int]:
        tally = tables.tally.c
        return {
            row.bucket: row.number
            for row in await self.store.rows(select(tally.bucket, tally.number).where(tally.kind == "owner"))
            if row.number
        }

    async def counted(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for owner in (await self.owners()).values():
            counts[owner or ""] = counts.get(owner or "", 0) + 1
        return counts

    async def teams(self, *names: str, directory: str = "d") -> None:
        owners = [OwnerEntry(name=name) for name in names]
        await self.room.owners.import_(OwnerImport(directory=directory, owners=owners), WHO)

    async def entries(self) -> list[dict[str, Any]]:
        return [parse_entry(data) for data in await self.store.entries(0, 1000)]


@asynccontextmanager
async def owner_world(url: str) -> AsyncIterator[OwnerWorld]:
    clock = Ticker()
    store = await Store.open(url, clock, migrate=False)
    try:
        yield OwnerWorld(store, clock, open_ownership(store, clock, confirm_every=180 * DAY))
    finally:
        await store.close()


def with_owners(url: str, work: Callable[[OwnerWorld], Coroutine[Any, Any, None]]) -> None:
    async def all_of_it() -> None:
        async with owner_world(url) as here:
            await work(here)

    asyncio.run(all_of_it())
