"""What the server itself can tell of agents: from their last reports, and from its own rows of the certificates that those name.

An agent that says nothing any more cannot say that it missed a renewal. The certificate's row can.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Row, select

from handclasp.access.grants import AGENT_PROFILE
from handclasp.clock import Clock
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.wire import AgentIdentity

SILENT = 15 * 60 * 1000
"""Milliseconds without a word after which an agent counts as silent: well over any poll interval."""
SLACK = 30_000
"""Milliseconds beyond the renewal window before a certificate counts as overdue: a renewal at its very end takes a moment."""
SLACK_PART = 4
"""At most this part of what is left then: certificates of 20 s exist."""
STATES = ("ok", "attention", "overdue", "silent", "enrolled")
OVERDUE, ENDED = "overdue", "ended"
_TOGETHER = 1000
PAGE = 200
"""Agents that are judged together."""


@dataclass(frozen=True, slots=True)
class Missed:
    """A certificate whose renewal point was missed: ``overdue``, or ``ended`` without a successor. Times in ms."""

    identity: str
    sha256: bytes
    renew_before: int
    not_after: int
    state: str


@dataclass(slots=True)
class Judged:
    """An agent's row (with ``name``, its identity) and what follows from everything that is known."""

    row: Row[Any]
    identities: list[AgentIdentity]
    missed: list[Missed] = field(default_factory=list)
    state: str = "ok"


class Fleet:
    """Judges agents. Reads only; a few queries for a page of agents, whatever they hold."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def pages(self) -> AsyncIterator[list[Judged]]:
        """Yield every agent, judged, in pages; other work goes on in between."""
        after = ""
        while True:
            rows = await self._store.rows(agents_query().where(tables.identity.c.name > after).limit(PAGE))
            if not rows:
                return
            yield await self.judge(rows)
            after = rows[-1].name

    async def judge(self, rows: Sequence[Row[Any]]) -> list[Judged]:
        """Return agents (rows of :func:`agents_query`), judged as of now."""
        found = [Judged(row, msgspec.json.decode(row.report, type=list[AgentIdentity])) for row in rows]
        now = self._clock()
        held = await self._held({one.sha256 for agent in found for one in agent.identities if one.sha256 is not None})
        own = await self._own([row.identity_id for row in rows], now)
        for agent in found:
            told = [(one.identity, held.get(one.sha256)) for one in agent.identities if one.sha256 is not None]
            told.append((agent.row.name, own.get(agent.row.identity_id)))
            agent.missed = list(_missed(told, now))
            agent.state = _state(agent, now)
        return found

    async def _held(self, fingerprints: Iterable[str]) -> dict[str, Row[Any]]:
        """Return the rows of certificates by fingerprint; what is no fingerprint of ours is left out."""
        wanted = [bytes.fromhex(text) for text in sorted(fingerprints) if len(text) == 64 and set(text) <= set("0123456789abcdef")]
        found: dict[str, Row[Any]] = {}
        for start in range(0, len(wanted), _TOGETHER):
            query = _certificates().where(tables.certificate.c.sha256.in_(wanted[start : start + _TOGETHER]))
            found |= {row.sha256.hex(): row for row in await self._store.rows(query)}
        return found

    async def _own(self, identity_ids: Sequence[int], now: int) -> dict[int, Row[Any]]:
        """Return the newest of the agents' own certificates that still serve."""
        certificate = tables.certificate.c
        rows = await self._store.rows(
            _certificates()
            .where(certificate.identity_id.in_(identity_ids), certificate.not_after > now, certificate.profile == AGENT_PROFILE)
            .where(certificate.superseded_at.is_(None), certificate.revoked_at.is_(None))
            .order_by(certificate.log_index)
        )
        return {row.identity_id: row for row in rows}


def agents_query() -> Any:
    """Return the query of agents by identity, with the columns that judging needs."""
    agent, identity = tables.agent, tables.identity
    return select(agent, identity.c.name).join(identity, identity.c.id == agent.c.identity_id).order_by(identity.c.name)


def evidence_of(row: Row[Any]) -> Mapping[str, str] | None:
    """Return what an agent last enrolled with: ``rule``, ``method``, ``subject``; None where it was a token."""
    if row.evidence is None:
        return None
    found = json.loads(row.evidence)
    return {name: str(found.get(name, "")) for name in ("rule", "method", "subject")}


def _certificates() -> Any:
    certificate = tables.certificate.c
    return select(
        certificate.sha256, certificate.identity_id, certificate.renew_before, certificate.not_after, certificate.superseded_at,
        certificate.revoked_at,
    )  # fmt: skip


def _missed(told: Iterable[tuple[str, Row[Any] | None]], now: int) -> Iterable[Missed]:
    for identity, row in told:
        if row is None or row.superseded_at is not None or row.revoked_at is not None:
            continue
        slack = min(SLACK, (row.not_after - row.renew_before) // SLACK_PART)
        if now > row.renew_before + slack:
            state = ENDED if row.not_after <= now else OVERDUE
            yield Missed(identity, bytes(row.sha256), row.renew_before, row.not_after, state)


def _state(agent: Judged, now: int) -> str:
    """A missed renewal says more than silence, unless all is over: then the host is probably gone."""
    contact = agent.row.last_contact_at
    overdue = any(one.state == OVERDUE for one in agent.missed)
    if contact is None:
        return "overdue" if overdue else "enrolled"
    silent = now - contact > SILENT
    if overdue or (agent.missed and not silent):
        return "overdue"
    if silent:
        return "silent"
    return "ok" if all(one.state in ("ok", "renewing") for one in agent.identities) else "attention"
