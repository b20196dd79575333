"""One identity: its line of certificates, where they are, whose it is and why, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, or_, select

from handclasp.access.policy import Policy
from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind
from handclasp.inventory import steps
from handclasp.inventory.conditions import Key
from handclasp.inventory.entitled import denied_by, may_issue, of_the_server
from handclasp.inventory.filters import Filters
from handclasp.inventory.identities import Identities, identity_query
from handclasp.inventory.places import Places
from handclasp.inventory.search import Inventory
from handclasp.ownership.shown import said_of
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.wire import Certificate, Sighting
from handclasp.wire.inventory import IdentityDetail, Lineage, LineItem

SHOWN = 20
"""Certificates of an identity that its page shows, and sightings of each."""
SERVED = 100
NAMES = 200


@dataclass(frozen=True, slots=True)
class LineagePage:
    """One page of a line, and where the next one begins."""

    lineage: Lineage
    next: Key | None


class Details:
    """Reads one identity. Raises ``not_found`` for one that is not known, ``unavailable`` when the database is away."""

    def __init__(self, store: Store, clock: Clock, inventory: Inventory, identities: Identities, places: Places) -> None:
        self._store = store
        self._clock = clock
        self._inventory = inventory
        self._identities = identities
        self._places = places

    async def identity(self, name: str, policy: Policy) -> IdentityDetail:
        """Return everything about one identity; ``policy`` is the one in force."""
        now = self._clock()
        row = await self._row(name)
        (shown,) = await self._identities.show([row])
        page = await self._inventory.certificates(Filters(identity=name), SHOWN)
        line = await self._with_sightings(page.items)
        served = await self._served(row.id)
        evidence = await said_of(self._store, row.id)
        standing = await self._standing(row.id)
        newest = next((item.certificate for item in line if item.certificate.sha256 == shown.newest), None)
        grants = [*of_the_server(newest), *await may_issue(self._store, policy, name, now)]
        agents = await self._agents(name)
        subject = steps.Subject(shown, standing, evidence, grants, agents, denied_by(policy, name))
        return IdentityDetail(
            identity=shown,
            names=await self._names(row.id),
            evidence=evidence,
            line=line,
            more=page.next is not None,
            served=served,
            grants=grants,
            agents=agents,
            next_steps=steps.next_steps(subject, now),
            log_subject=f"identity:{name}",
        )

    async def lineage(self, name: str, limit: int, after: Key | None = None) -> LineagePage:
        """Return the certificates of an identity, those that end last first, each with where it was seen."""
        await self._row(name)
        page = await self._inventory.certificates(Filters(identity=name), limit, after)
        return LineagePage(Lineage(identity=name, items=await self._with_sightings(page.items)), page.next)

    async def _row(self, name: str) -> Row[Any]:
        row = await self._store.row(identity_query().where(tables.identity.c.name == name))
        if row is None:
            raise HandclaspError(Kind.NOT_FOUND, "no identity of this name is known here", hint="handclasp identity list --q PART")
        return row

    async def _with_sightings(self, certificates: Sequence[Certificate]) -> list[LineItem]:
        seen = [one for one in certificates if one.first_seen is not None]
        wanted = [bytes.fromhex(one.sha256) for one in seen]
        every = await self._places.of_each(wanted, SHOWN + 1)
        by: dict[str, list[Sighting]] = {}
        for sighting in every:
            by.setdefault(sighting.sha256, []).append(sighting)
        return [
            LineItem(certificate=one, sightings=by.get(one.sha256, [])[:SHOWN], more_sightings=len(by.get(one.sha256, ())) > SHOWN)
            for one in certificates
        ]

    async def _served(self, identity_id: int) -> list[Sighting]:
        standing = tables.standing.c
        query = select(standing.sha256).where(standing.identity_id == identity_id, standing.open > 0)
        rows = await self._store.rows(query.order_by(standing.not_after.desc()).limit(SERVED))
        return await self._places.of_certificates([bytes(row.sha256) for row in rows], SERVED, now=True)

    async def _names(self, identity_id: int) -> list[str]:
        name, link = tables.name.c, tables.identity_name.c
        query = select(name.text).where(link.identity_id == identity_id, name.id == link.name_id)
        return sorted(row.text for row in await self._store.rows(query.limit(NAMES)))

    async def _standing(self, identity_id: int) -> list[Row[Any]]:
        standing = tables.standing.c
        urgent = standing.state.not_in(("seen", "past"))
        query = select(standing.sha256, standing.state, standing.since_at, standing.open)
        return list(await self._store.rows(query.where(standing.identity_id == identity_id, urgent).limit(SHOWN)))

    async def _agents(self, name: str) -> list[str]:
        agent, identity = tables.agent, tables.identity
        holds = or_(identity.c.name == name, agent.c.report.contains(json.dumps(name)[1:-1], autoescape=True))
        query = select(identity.c.name).select_from(agent.join(identity, identity.c.id == agent.c.identity_id)).where(holds)
        return [row.name for row in await self._store.rows(query.order_by(identity.c.name).limit(SHOWN))]
