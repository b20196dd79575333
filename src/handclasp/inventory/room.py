"""The room put together: who records, who keeps it current, and who answers questions about it. Made once for a process."""

from __future__ import annotations

from dataclasses import dataclass

from handclasp.authority.authorities import Authorities
from handclasp.clock import Clock
from handclasp.inventory.confirm import Confirmer
from handclasp.inventory.detail import Details
from handclasp.inventory.follow import Follower
from handclasp.inventory.identities import Identities
from handclasp.inventory.overview import Agents, Overviews, no_agents
from handclasp.inventory.places import Places
from handclasp.inventory.quota import Quotas
from handclasp.inventory.reconcile import Reconciler
from handclasp.inventory.record import Recorder
from handclasp.inventory.resolve import Resolver
from handclasp.inventory.search import Inventory
from handclasp.inventory.states import Graces
from handclasp.inventory.triage import Triage
from handclasp.inventory.views import Views
from handclasp.store.database import Store
from handclasp.wire.observations import Recorded, Sightings


@dataclass(frozen=True, slots=True)
class InventoryRoom:
    """One process's inventory. Any number of callers at once, but for the follower, which is for one process alone."""

    recorder: Recorder
    confirmer: Confirmer
    reconciler: Reconciler
    follower: Follower
    certificates: Inventory
    identities: Identities
    places: Places
    views: Views
    triage: Triage
    overviews: Overviews
    details: Details

    async def record(self, source_id: int, sightings: Sightings, scan_id: str) -> Recorded:
        """Record what was seen in a scan (empty: in none), as :meth:`Recorder.record` does; durable on return."""
        return await self.recorder.record(source_id, sightings, scan_id=scan_id or None)

    async def record_of_agents(self, source_id: int, sightings: Sightings, scan_id: str) -> Recorded:
        """The same for what agents saw, of which each has a quota of its own."""
        return await self.recorder.record(source_id, sightings, scan_id=scan_id or None, by_agents=True)


def open_inventory(
    store: Store,
    authorities: Authorities,
    clock: Clock,
    *,
    graces: Graces | None = None,
    agents: Agents = no_agents,
    quotas: Quotas | None = None,
) -> InventoryRoom:
    """Return the room over a store. ``agents`` counts the agents, which this room knows nothing of, for the overview."""
    reconciler = Reconciler(store, clock, graces)
    resolver = Resolver(store)
    certificates, identities, places = Inventory(store, clock, resolver), Identities(store, clock, resolver), Places(store)
    return InventoryRoom(
        recorder=Recorder(store, authorities, clock, reconciler, quotas),
        confirmer=Confirmer(store),
        reconciler=reconciler,
        follower=Follower(store, clock, reconciler),
        certificates=certificates,
        identities=identities,
        places=places,
        views=Views(store, clock),
        triage=Triage(store, clock),
        overviews=Overviews(store, clock, agents),
        details=Details(store, clock, certificates, identities, places),
    )
