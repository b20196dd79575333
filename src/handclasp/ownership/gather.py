"""Reads what is known of identities: tokens that obtained their certificates, names in them, facts of the places where they were seen."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, func, select

from handclasp.clock import Clock
from handclasp.ownership.rules import MAX_PLACES, Evidence, Said
from handclasp.store import tables
from handclasp.store.chunks import in_chunks
from handclasp.store.database import Store

_DNS = re.compile(r"(?:\*\.)?[a-z0-9-]+(?:\.[a-z0-9-]+)+")
_REMEMBERED = 50_000


class Gatherer:
    """Evidence, for many identities in a few queries."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._tokens: dict[str, tuple[str, str] | None] = {}
        """Token's id -> its name and owner; neither ever changes."""

    async def identities(self, ids: Sequence[int]) -> Sequence[Row[Any]]:
        """Return their rows."""
        return await self._store.rows(select(tables.identity).where(tables.identity.c.id.in_(ids))) if ids else []

    async def assignments(self, ids: Sequence[int]) -> Sequence[Row[Any]]:
        """Return everything that says who owns them."""
        return await self._store.rows(select(tables.assignment).where(tables.assignment.c.identity_id.in_(ids))) if ids else []

    async def evidence(self, ids: Sequence[int], said: Mapping[int, tuple[Said, ...]]) -> dict[int, Evidence]:
        """Return what is known of each."""
        if not ids:
            return {}
        tokens, dns, places = await self._token_owners(ids), await self._dns(ids), await self._places(ids)
        return {one: Evidence(said.get(one, ()), tuple(sorted(tokens[one])), tuple(sorted(dns[one])), tuple(places[one])) for one in ids}

    async def _token_owners(self, ids: Sequence[int]) -> dict[int, set[tuple[str, str]]]:
        certificate = tables.certificate.c
        current = select(certificate.identity_id, certificate.granted_by).where(
            certificate.identity_id.in_(ids), certificate.not_after > self._clock()
        )
        rows = list(await self._store.rows(current.distinct()))
        rest = sorted(set(ids) - {row.identity_id for row in rows})
        if rest:  # they have had certificates, perhaps: the last one says it
            last = (
                select(certificate.identity_id.label("one"), func.max(certificate.not_after).label("end"))
                .where(certificate.identity_id.in_(rest))
                .group_by(certificate.identity_id)
                .subquery()
            )
            newest = select(certificate.identity_id, certificate.granted_by).join(
                last, (certificate.identity_id == last.c.one) & (certificate.not_after == last.c.end)
            )
            rows += await self._store.rows(newest)
        granted = [(row.identity_id, token) for row in rows for token in _tokens_in(row.granted_by)]
        tokens = await self._look_up({token for _, token in granted})
        found: dict[int, set[tuple[str, str]]] = defaultdict(set)
        for identity_id, token in granted:
            known = tokens[token]
            if known is not None:
                found[identity_id].add(known)
        return found

    async def _look_up(self, ids: set[str]) -> dict[str, tuple[str, str] | None]:
        """Return each token's name and owner. What is being read is not remembered yet: another call would take it for no owner."""
        known = {one: self._tokens[one] for one in ids if one in self._tokens}
        missing = sorted(ids - known.keys())
        known |= dict.fromkeys(missing)
        token = tables.token.c
        for some in in_chunks(missing, 500):
            for row in await self._store.rows(select(token.id, token.name, token.owner).where(token.id.in_(some))):
                known[row.id] = (row.name, row.owner.strip()) if row.owner and row.owner.strip() else None
        if len(self._tokens) + len(missing) > _REMEMBERED:
            self._tokens.clear()
        self._tokens.update((one, known[one]) for one in missing)
        return known

    async def _dns(self, ids: Sequence[int]) -> dict[int, set[str]]:
        name, of = tables.name.c, tables.identity_name.c
        query = select(of.identity_id, name.text).join(tables.name, name.id == of.name_id).where(of.identity_id.in_(ids))
        found: dict[int, set[str]] = defaultdict(set)
        for row in await self._store.rows(query):
            if _DNS.fullmatch(row.text):
                found[row.identity_id].add(row.text)
        return found

    async def _places(self, ids: Sequence[int]) -> dict[int, list[Mapping[str, Any]]]:
        standing, sighting, location, source = tables.standing.c, tables.sighting.c, tables.location.c, tables.source.c
        order = (standing.origin.desc(), sighting.id)  # what was issued here first
        place = func.row_number().over(partition_by=standing.identity_id, order_by=order).label("place")
        seen = (
            select(standing.identity_id, standing.origin, location.facts, location.host, source.facts.label("common"), place)
            .join(tables.sighting, (sighting.sha256 == standing.sha256) & sighting.ended_at.is_(None))
            .join(tables.location, location.id == sighting.location_id)
            .outerjoin(tables.source, source.id == location.source_id)
            .where(standing.identity_id.in_(ids))
            .subquery()
        )
        query = select(seen).where(seen.c.place <= MAX_PLACES).order_by(seen.c.place)
        found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        issued: set[int] = set()
        for row in await self._store.rows(query):
            # Anybody can make a certificate with any name. Where one that was issued is seen, the others say nothing of whose it is.
            if row.origin == "issued":
                issued.add(row.identity_id)
            elif row.identity_id in issued:
                continue
            facts = facts_of(row.common or "{}", row.facts)
            if row.host and "host" not in facts:
                facts["host"] = row.host
            if facts and facts not in found[row.identity_id]:
                found[row.identity_id].append(facts)
        return found


def _tokens_in(granted_by: str) -> list[str]:
    """Return the tokens in a grant's name: ``token:ID``, ``policy:NAME``, or ``policy:NAME+token:ID``."""
    return [part.removeprefix("token:") for part in granted_by.split("+") if part.startswith("token:")]


def facts_of(*texts: str) -> dict[str, Any]:
    """Return facts put together, the later ones before the earlier; ``tags`` of all are kept."""
    facts: dict[str, Any] = {}
    for text in texts:
        found = json.loads(text)
        if isinstance(found, dict):
            tags = {**_tags(facts), **_tags(found)}
            facts |= found
            if tags:
                facts["tags"] = tags
    return facts


def _tags(facts: Mapping[str, Any]) -> dict[str, Any]:
    tags = facts.get("tags")
    return tags if isinstance(tags, dict) else {}
