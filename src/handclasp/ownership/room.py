"""Everything that this room does for one installation, put together."""

from __future__ import annotations

from dataclasses import dataclass

from handclasp.clock import Clock
from handclasp.ownership.assign import Assigner
from handclasp.ownership.book import OwnershipBook
from handclasp.ownership.owners import Owners
from handclasp.ownership.people import People
from handclasp.ownership.views import OwnershipViews
from handclasp.store.database import Store

CONFIRM_EVERY = 180 * 86400.0
"""Seconds after which an owner is asked again; 90 to 180 days are usual for reviews of this kind."""


@dataclass(frozen=True, slots=True)
class OwnershipRoom:
    """Owners, rules, who derives, who says, who asks."""

    owners: Owners
    book: OwnershipBook
    assigner: Assigner
    people: People
    views: OwnershipViews


def open_ownership(store: Store, clock: Clock, *, confirm_every: float = CONFIRM_EVERY) -> OwnershipRoom:
    """Return the room over a store; ``confirm_every`` in seconds."""
    owners = Owners(store, clock)
    book = OwnershipBook(store, owners, clock)
    assigner = Assigner(store, book, clock)
    people = People(store, owners, assigner, clock, confirm_every=confirm_every)
    return OwnershipRoom(owners, book, assigner, people, OwnershipViews(store, book, assigner, clock))
