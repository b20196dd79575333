"""The reading side of the inventory, put together: one object for whoever answers questions about it."""

from __future__ import annotations

from handclasp.clock import Clock
from handclasp.inventory.detail import Details
from handclasp.inventory.identities import Identities
from handclasp.inventory.overview import Agents, Overviews, no_agents
from handclasp.inventory.places import Places
from handclasp.inventory.resolve import Resolver
from handclasp.inventory.search import Inventory
from handclasp.inventory.triage import Triage
from handclasp.inventory.views import Views
from handclasp.store.database import Store


class Reading:
    """Everything that can be read of the inventory, and what people decide and keep. Any number of callers at once."""

    def __init__(self, store: Store, clock: Clock, agents: Agents = no_agents) -> None:
        self.certificates = Inventory(store, clock)
        self.identities = Identities(store, clock, Resolver(store))
        self.places = Places(store)
        self.views = Views(store, clock)
        self.triage = Triage(store, clock)
        self.overviews = Overviews(store, clock, agents)
        self.details = Details(store, clock, self.certificates, self.identities, self.places)
