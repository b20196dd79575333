"""Agents: what they report, and the list of them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from sqlalchemy import Row, select, update

from handclasp.access.principals import CertificatePrincipal
from handclasp.api.paging import page, read_cursor, read_limit, write_cursor
from handclasp.api.routes import Call
from handclasp.clock import rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.store import tables
from handclasp.store.writes import Change, Write
from handclasp.wire import Agent, AgentIdentity, AgentList, AgentReport, Reported

OVERDUE = 15 * 60 * 1000
"""Milliseconds without a word after which an agent counts as silent: well over any poll interval."""


async def report(call: Call) -> Reported:
    """Take an agent's report about itself."""
    principal = call.principal
    if not isinstance(principal, CertificatePrincipal) or not principal.is_agent:
        raise HandclaspError(Kind.NOT_ALLOWED, "only an agent reports, with its own certificate")
    body: AgentReport = call.body
    now = call.services.clock()
    identity_id = select(tables.identity.c.id).where(tables.identity.c.name == principal.identity).scalar_subquery()
    statement = (
        update(tables.agent)
        .where(tables.agent.c.identity_id == identity_id)
        .values(
            hostname=body.hostname,
            version=body.version,
            last_contact_at=now,
            address=call.source.address,
            report=msgspec.json.encode(body.identities).decode(),
        )
    )
    gone = HandclaspError(Kind.NOT_FOUND, "this agent is not enrolled here", hint="enrol it again")
    await call.services.store.ledger.commit(Write([], [Change(statement, expect=1, conflict=gone)]))
    return Reported(received_at=rfc3339(now))


async def list_agents(call: Call) -> AgentList:
    """List agents by identity."""
    agent, identity = tables.agent, tables.identity
    limit = read_limit(call.query)
    query = select(agent, identity.c.name).join(identity, identity.c.id == agent.c.identity_id)
    after = read_cursor(call.query, str)
    if after is not None:
        query = query.where(identity.c.name > after[0])
    rows, more = page(await call.services.store.rows(query.order_by(identity.c.name).limit(limit + 1)), limit)
    now = call.services.clock()
    return AgentList(items=[_to_agent(row, now) for row in rows], next_cursor=write_cursor(rows[-1].name) if more else None)


def _to_agent(row: Row[Any], now: int) -> Agent:
    identities = msgspec.json.decode(row.report, type=list[AgentIdentity])
    return Agent(
        identity=row.name,
        hostname=row.hostname,
        version=row.version,
        labels=json.loads(row.labels),
        enrolled_at=rfc3339(row.enrolled_at),
        last_contact=rfc3339(row.last_contact_at) if row.last_contact_at is not None else None,
        address=row.address,
        state=_state(row.last_contact_at, identities, now),
        identities=identities,
    )


def _state(last_contact: int | None, identities: list[AgentIdentity], now: int) -> str:
    if last_contact is None:
        return "enrolled"
    if now - last_contact > OVERDUE:
        return "silent"
    return "ok" if all(identity.state in ("ok", "renewing") for identity in identities) else "attention"
