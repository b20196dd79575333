"""The room put together: what handlers and jobs use, made once for a process."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from handclasp.clock import Clock
from handclasp.discovery.desk import LocalDesk, Sink
from handclasp.discovery.engine import Engine
from handclasp.discovery.kinds import load_kind
from handclasp.discovery.leases import LEASE, Leases
from handclasp.discovery.scans import Scans
from handclasp.discovery.source import SourceKind
from handclasp.discovery.sources import Sources
from handclasp.store import tables
from handclasp.store.chunks import in_chunks
from handclasp.store.database import Store
from handclasp.wire.observations import Sightings

PATIENCE = 2 * LEASE
"""Seconds for which an engine keeps what it read while the database is away; by then somebody else has the part."""


@dataclass(frozen=True, slots=True)
class DiscoveryRoom:
    """One process's discovery."""

    store: Store
    clock: Clock
    sources: Sources
    scans: Scans
    leases: Leases
    sink: Sink
    forget: Callable[[int], Awaitable[None]]
    """Removes everything that a source saw; may be called again after it was cut off."""

    def desk(self, worker: str, *, runs: Sequence[str] = ("server",)) -> LocalDesk:
        """Return where a worker gets parts of sources that ``runs`` reads."""
        return LocalDesk(self.leases, self.sink, self.unseen, worker, runs=runs)

    def engine(self, worker: str, *, workers: int, secrets: Sequence[Path]) -> Engine:
        """Return an engine that reads what servers read; it waits for a database that is away, as requests cannot."""
        leases = Leases(self.store, self.clock, patience=PATIENCE)
        desk = LocalDesk(leases, self.sink, self.unseen, worker, patience=PATIENCE)
        return Engine(desk, self.clock, workers=workers, secrets=secrets)

    async def unseen(self, sightings: Sightings) -> int:
        """Return how many certificates among these nobody has seen or issued before; records nothing."""
        wanted = {
            hashlib.sha256(one.der).digest() if one.der is not None else bytes(one.sha256 or b"")
            for each in sightings.observed
            for one in each.certificates
        }
        wanted.discard(b"")
        known: set[bytes] = set()
        for some in in_chunks(list(wanted), 1000):
            for table in (tables.certificate, tables.found):
                known |= {bytes(row.sha256) for row in await self.store.rows(select(table.c.sha256).where(table.c.sha256.in_(some)))}
        return len(wanted - known)


def open_discovery(
    store: Store, clock: Clock, sink: Sink, forget: Callable[[int], Awaitable[None]], *, kinds: Callable[[str], SourceKind] = load_kind
) -> DiscoveryRoom:
    """Return the room. ``sink`` records what is seen; see :data:`handclasp.discovery.desk.Sink`."""
    return DiscoveryRoom(store, clock, Sources(store, clock, kinds), Scans(store, clock), Leases(store, clock), sink, forget)
