"""What the server tells of agents by itself: overdue, ended and silent, whatever they said last."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from sqlalchemy import update

from handclasp import wire
from handclasp.api.fleet import Fleet, Judged, agents_query
from handclasp.issuance.request import IssuedCertificate
from handclasp.server.fleet import FleetWatch
from handclasp.store import tables
from handclasp.store.writes import Change, Write
from support.issuing import House, house

AGENT = "spiffe://example.org/agent/h1"
WEB = "spiffe://example.org/prod/web"


async def enrolled(here: House, name: str = AGENT) -> IssuedCertificate:
    token = await here.token(name="agents", agent=True, allow=[name, WEB], profiles=["agent", "workload"])
    return await here.issue(token, identity=name, profile="agent")


async def reported(here: House, *identities: wire.AgentIdentity, contact: int | None = None, **values: Any) -> None:
    import msgspec

    report = msgspec.json.encode(identities).decode()
    statement = update(tables.agent).values(report=report, last_contact_at=here.here.clock() if contact is None else contact, **values)
    await here.here.store.ledger.commit(Write([], [Change(statement)]))


async def judged(here: House) -> list[Judged]:
    return await Fleet(here.here.store, here.here.clock).judge(await here.here.store.rows(agents_query()))


def metric(name: str, state: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"state": state})


def test_a_missed_renewal_shows_although_the_agent_says_nothing(tmp_path: Path, database_url: str) -> None:
    async def run() -> None:
        async with house(tmp_path, database_url) as here:
            clock = here.here.clock
            agent = await enrolled(here)
            holder = await here.holder(agent)
            web = await here.issue(holder, identity=WEB, profile="workload", ttl=3600)
            watch = FleetWatch(here.here.store, clock)

            async def seen() -> tuple[str, list[tuple[str, str]]]:
                (one,) = await judged(here)
                await watch.run()
                assert metric("handclasp_agents", one.state) == 1
                assert metric("handclasp_renewals_missed", "overdue") == sum(missed.state == "overdue" for missed in one.missed)
                assert metric("handclasp_renewals_missed", "ended") == sum(
                    missed.state == "ended" for missed in one.missed if one.state != "silent"
                )
                return one.state, [(missed.identity, missed.state) for missed in one.missed]

            assert await seen() == ("enrolled", [])
            start, told = clock(), wire.AgentIdentity(identity=WEB, sha256=web.sha256.hex(), state="ok")
            await reported(here, told)
            assert await seen() == ("ok", [])
            clock.now = web.renew_before + 20_000
            await reported(here, told)
            assert await seen() == ("ok", []), "a renewal at the very end of its window takes a moment"
            clock.now = web.renew_before + 31_000
            await reported(here, told)
            assert await seen() == ("overdue", [(WEB, "overdue")]), "although it says that all is well"
            await reported(here, told, contact=start)
            assert await seen() == ("overdue", [(WEB, "overdue")]), "and although it says nothing"
            newer = await here.renew(web)
            assert await seen() == ("silent", [])
            await reported(here, wire.AgentIdentity(identity=WEB, sha256=newer.sha256.hex(), state="failed"))
            assert await seen() == ("attention", [])
            clock.now = newer.not_after + 1
            await reported(here, wire.AgentIdentity(identity=WEB, sha256=newer.sha256.hex(), state="failed"))
            assert await seen() == ("overdue", [(WEB, "ended")])
            await reported(here, wire.AgentIdentity(identity=WEB, sha256=newer.sha256.hex(), state="failed"), contact=start)
            assert await seen() == ("silent", [(WEB, "ended")]), "a host that is gone is no alarm for ever"

    asyncio.run(run())


def test_an_agent_that_was_enrolled_and_never_started_is_overdue_in_its_time(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path) as here:
            agent = await enrolled(here)
            seen = []
            for at in (agent.renew_before, agent.renew_before + 31_000, agent.not_after + 1):
                here.here.clock.now = at
                (one,) = await judged(here)
                seen.append(one.state)
            assert seen == ["enrolled", "overdue", "enrolled"]

    asyncio.run(run())


def test_an_agents_own_certificate_counts_and_only_the_newest(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path) as here:
            clock = here.here.clock
            first = await enrolled(here)
            clock.pass_(6 * 3600)
            second = await here.issue(
                await here.token(name="again", agent=True, allow=[AGENT, WEB], profiles=["agent", "workload"]),
                identity=AGENT,
                profile="agent",
            )
            clock.now = first.renew_before + 60_000
            junk = [wire.AgentIdentity(identity=WEB, sha256=text, state="ok") for text in ("", "x" * 64, "0" * 64, "é" * 64)]
            await reported(here, *junk, evidence='{"rule": "r", "method": "aws", "subject": "i-1"}')
            (one,) = await judged(here)
            clock.now = second.renew_before + 60_000
            await reported(here)
            (later,) = await judged(here)
            assert [(missed.identity, missed.state) for missed in later.missed] == [(AGENT, "overdue")]
            assert (one.state, one.missed) == ("ok", [])

    asyncio.run(run())
