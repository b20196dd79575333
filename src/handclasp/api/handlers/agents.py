"""Agents: what they report, and what the server knows of them."""

from __future__ import annotations

import json

import msgspec
from sqlalchemy import bindparam, func, or_, update
from sqlalchemy.sql import Select

from handclasp.access.policy import Policy
from handclasp.access.principals import CertificatePrincipal
from handclasp.api.fleet import PAGE, STATES, Fleet, Judged, agents_query, evidence_of
from handclasp.api.paging import read_cursor, read_limit, read_text, write_cursor
from handclasp.api.routes import Call
from handclasp.clock import rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.store import tables
from handclasp.store.writes import Change, Write
from handclasp.wire import Agent, AgentEvidence, AgentList, AgentMissed, AgentReport, Reported

LOOKED_THROUGH = 2_000
"""Agents that one request for a filtered list looks at: the page may be short, and has a cursor to go on with."""

_KNOWN = (
    "SELECT a.identity_id, a.hostname, a.version, a.address, a.report FROM agent a JOIN identity i ON i.id = a.identity_id WHERE i.name = ?"
)
_REPORT = (
    update(tables.agent)
    .where(tables.agent.c.identity_id == bindparam("agent"))
    .values(
        last_contact_at=bindparam("contact"),
        hostname=bindparam("new_hostname"),
        version=bindparam("new_version"),
        address=bindparam("new_address"),
        report=bindparam("new_report"),
    )
)


async def report(call: Call) -> Reported:
    """Take an agent's report about itself.

    Durable on return when it says anything new. One that says the same as the last only moves the time of contact, a moment later.
    """
    principal = call.principal
    if not isinstance(principal, CertificatePrincipal) or not principal.is_agent:
        raise HandclaspError(Kind.NOT_ALLOWED, "only an agent reports, with its own certificate")
    body: AgentReport = call.body
    now = call.services.clock()
    known = await call.services.store.point(_KNOWN, (principal.identity,))
    if known is None:
        raise HandclaspError(Kind.NOT_FOUND, "this agent is not enrolled here", hint="enrol it again")
    agent, *before = known
    told = [body.hostname, body.version, call.source.address, msgspec.json.encode(body.identities).decode()]
    changed = False
    if told == before:
        call.services.contacts.note(agent, now)
    else:
        changed = True
        row = dict(zip(("new_hostname", "new_version", "new_address", "new_report"), told, strict=True))
        await call.services.store.ledger.commit(Write([], [Change(_REPORT, rows=[{**row, "agent": agent, "contact": now}])]))
    call.services.reported.note(principal.identity, body.identities, changed=changed)
    return Reported(received_at=rfc3339(now), scans=await call.services.file_scans.concerns(principal.identity))


async def list_agents(call: Call) -> AgentList:
    """List agents by identity; a filter may leave a page short, or empty, that has a cursor all the same."""
    limit, matches = read_limit(call.query), _Filter(call)
    after = read_cursor(call.query, str)
    place = after[0] if after is not None else ""
    fleet = Fleet(call.services.store, call.services.clock)
    policy = (await call.services.rulebook.current()).policy
    found: list[Agent] = []
    looked_at = 0
    while len(found) < limit and looked_at < LOOKED_THROUGH:
        query = matches.narrow(agents_query()).where(tables.identity.c.name > place)
        rows = await call.services.store.rows(query.limit(min(PAGE, limit)))
        if not rows:
            return AgentList(items=found, next_cursor=None)
        for agent in await fleet.judge(rows):
            place, looked_at = agent.row.name, looked_at + 1
            if matches(agent):
                found.append(_to_agent(agent, policy))
            if len(found) == limit:
                break
    more = await call.services.store.row(matches.narrow(agents_query()).where(tables.identity.c.name > place))
    return AgentList(items=found, next_cursor=write_cursor(place) if more is not None else None)


async def show_agent(call: Call) -> Agent:
    """Show one agent, by its identity or, where there is one trust domain with such an agent, by its name."""
    wanted = call.path["identity"]
    if "://" not in wanted:
        names = [f"spiffe://{domain}/agent/{wanted}" for domain in call.services.authorities.trust_domains]
    else:
        names = [wanted]
    rows = await call.services.store.rows(agents_query().where(tables.identity.c.name.in_(names)).limit(2))
    if not rows:
        raise HandclaspError(Kind.NOT_FOUND, "no agent of this name is enrolled here", hint="handclasp agent list")
    if len(rows) > 1:
        raise HandclaspError(Kind.BAD_REQUEST, "several trust domains have an agent of this name", hint="give its whole identity")
    (agent,) = await Fleet(call.services.store, call.services.clock).judge(rows)
    return _to_agent(agent, (await call.services.rulebook.current()).policy)


class _Filter:
    """What a list of agents is narrowed to: by the database as far as it can tell, and exactly by :meth:`__call__`."""

    def __init__(self, call: Call) -> None:
        self._state = read_text(call.query, "state")
        self._identity = read_text(call.query, "identity")
        self._part = read_text(call.query, "q")
        label = read_text(call.query, "label")
        self._label = None if label is None else label.partition("=")
        if self._state is not None and self._state not in STATES:
            raise HandclaspError(Kind.BAD_REQUEST, f"{self._state!r} is not a state", hint=f"one of {', '.join(STATES)}")
        if self._label is not None and not (self._label[0] and self._label[1]):
            raise HandclaspError(Kind.BAD_REQUEST, "write a label as K=V")

    def narrow(self, query: Select[tuple[object, ...]]) -> Select[tuple[object, ...]]:
        """Add what the database can tell; it may let more through."""
        agent, name = tables.agent.c, tables.identity.c.name
        if self._identity is not None:
            query = query.where(or_(name == self._identity, agent.report.contains(_inside(self._identity), autoescape=True)))
        if self._label is not None:
            query = query.where(agent.labels.contains(json.dumps(self._label[2]), autoescape=True))
        if self._part is not None:
            part = self._part.lower()
            query = query.where(
                or_(func.lower(name).contains(part, autoescape=True), func.lower(agent.hostname).contains(part, autoescape=True))
            )
        return query

    def __call__(self, agent: Judged) -> bool:
        """Tell whether an agent is meant."""
        if self._state is not None and agent.state != self._state:
            return False
        if self._identity is not None and self._identity not in (agent.row.name, *(one.identity for one in agent.identities)):
            return False
        return self._label is None or json.loads(agent.row.labels).get(self._label[0]) == self._label[2]


def _inside(text: str) -> str:
    """Return a text as it stands between the quotes of JSON."""
    return msgspec.json.encode(text).decode()[1:-1]


def _to_agent(agent: Judged, policy: Policy) -> Agent:
    row, evidence = agent.row, evidence_of(agent.row)
    return Agent(
        identity=row.name,
        hostname=row.hostname,
        version=row.version,
        labels=json.loads(row.labels),
        enrolled_at=rfc3339(row.enrolled_at),
        last_contact=rfc3339(row.last_contact_at) if row.last_contact_at is not None else None,
        address=row.address,
        state=agent.state,
        identities=agent.identities,
        missed=[
            AgentMissed(
                identity=one.identity,
                sha256=one.sha256.hex(),
                renew_before=rfc3339(one.renew_before),
                not_after=rfc3339(one.not_after),
                state=one.state,
            )
            for one in agent.missed
        ],
        evidence=AgentEvidence(**evidence) if evidence is not None else None,
        can_enrol_again=evidence is not None and (rule := policy.enrolment_named(evidence["rule"])) is not None and not rule.once,
    )
