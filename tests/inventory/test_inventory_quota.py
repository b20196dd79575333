"""Quotas: an agent or a source that sees too much that is new is stopped, and what is known goes on to be recorded."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY

from handclasp.errors import HandclaspError, Kind
from handclasp.inventory import statements
from handclasp.inventory.quota import DAY, LOOK_AGAIN, Bringer, Quota, Quotas
from handclasp.inventory.record import Recorder
from handclasp.server.instance import open_instance
from handclasp.server.settings import Settings
from handclasp.server.setup import initialise
from handclasp.store import tables
from handclasp.store.writes import Write
from handclasp.wire.filescans import agent_of, key_of
from handclasp.wire.observations import Observed, Recorded, Seen, Sightings
from support.inventory import Watch, foreign, sha, watch

WEB, DB = "spiffe://example.org/agent/web-1", "spiffe://example.org/agent/db-1"


def recorder(here: Watch, agent: Quota, source: Quota = Quota()) -> Recorder:  # noqa: B008  (frozen)
    store, clock = here.store, here.house.here.clock
    return Recorder(store, here.house.here.authorities, clock, here.reconciler, Quotas(store, clock, agent, source))


def places(here: Watch, agent: str, *numbers: int, **more: Any) -> list[Observed]:
    host = agent.rpartition("/")[2]
    return [here.at(key_of(agent, f"/etc/{number}"), kind="file", host=host, **more) for number in numbers]


async def record(to: Recorder, *observed: Observed, source: int = 1) -> Recorded:
    return await to.record(source, Sightings(observed=list(observed)), by_agents=True)


def test_places_of_one_agent_end_at_its_quota(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            to, held = recorder(here, Quota(locations=10)), Seen(der=foreign(now=here.now))
            before = REGISTRY.get_sample_value("handclasp_sightings_refused_total", {"what": "locations"}) or 0
            done = await record(to, *places(here, WEB, *range(8)), *places(here, DB, *range(9), problem="locked"))
            assert (done.locations, done.failed, done.refused, done.refusal) == (8, 9, 0, "")
            done = await record(to, *places(here, WEB, *range(4, 14)), *places(here, DB, 50, 51))
            assert (done.locations, done.refused) == (4 + 2 + 1, 4 + 1), "what is known goes on"
            assert "agent_locations" in done.refusal
            for host, number in (("web-1", 10), ("db-1", 10)):
                assert await here.number(tables.location, tables.location.c.host == host) == number
            elsewhere = await record(to, *places(here, WEB, *range(20, 25)), source=2)
            assert elsewhere.refused == 0, "in each source"
            [known] = places(here, WEB, 0)
            known.certificates = [held]
            assert (await record(to, known)).fresh == 1
            assert REGISTRY.get_sample_value("handclasp_sightings_refused_total", {"what": "locations"}) == before + 5
            entries = [one["what"] for one in await here.house.entries() if one["type"] == "sightings.limited"]
            assert entries == [{"agent": agent, "of": "locations", "quota": 10, "source": "1"} for agent in (WEB, DB)], "once a day each"

            done = await record(to, *places(here, WEB, 40, 41, problem="locked"), *places(here, WEB, 42))
            assert (done.locations, done.failed, done.refused) == (0, 2, 1), "what could not be read either is counted once"

            assert (await record(to, *places(here, WEB, 30))).refused == 1
            await here.recorder.forget_source(1)
            assert (await record(to, *places(here, WEB, 30))).refused == 1
            here.house.here.clock.pass_(LOOK_AGAIN / 1000)
            assert (await record(to, *places(here, WEB, 30))).refused == 0, "there is room again, and that is noticed"

    asyncio.run(run())


def test_whoever_asks_several_times_at_once_gets_no_more(tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path) as here:
            quotas = Quotas(here.store, here.house.here.clock, Quota(locations=20), Quota())
            granted = await asyncio.gather(*(quotas.places(Bringer(1, WEB, "web-1"), 9) for _ in range(5)))
            assert sum(granted) == 20

    asyncio.run(run())


def test_what_is_refused_is_counted_once_however_often_it_is_tried(tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path) as here:
            to = recorder(here, Quota(certificates=1))
            commit, failed = here.store.ledger.commit, 0

            async def conflicting(write: Write) -> int:
                nonlocal failed
                if not failed and any(change.statement is statements.fail_location for change in write.changes):
                    failed += 1
                    raise HandclaspError(Kind.CONFLICT, "another process was faster")
                return int(await commit(write))

            here.store.ledger.commit = conflicting
            [place] = places(here, WEB, 1)
            place.certificates = [Seen(der=foreign(f"{number}.example.org", now=here.now)) for number in range(3)]
            assert (await record(to, place)).refused == 0, "more than a quota at once takes all of it"
            [other] = places(here, WEB, 2)
            other.certificates = [Seen(der=foreign("more.example.org", now=here.now))]
            done = await record(to, other)
            assert (failed, done.locations, done.refused) == (1, 0, 1)

    asyncio.run(run())


def test_another_process_begins_with_what_is_there(tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path) as here:
            await record(recorder(here, Quota(locations=10)), *places(here, WEB, *range(9)))
            other = recorder(here, Quota(locations=10), Quota(locations=11))
            assert (await record(other, *places(here, WEB, *range(9), *range(20, 23)))).refused == 2
            done = await other.record(1, Sightings(observed=places(here, DB, 1, 2, 3)))
            assert (done.locations, done.refused) == (1, 2), "of a source that no agents read, all of it counts"
            assert "source_locations" in done.refusal

    asyncio.run(run())


def test_new_certificates_of_one_agent_end_at_its_quota(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            to = recorder(here, Quota(certificates=10))
            known, new = foreign("known.example.org", now=here.now), [foreign(f"{n}.example.org", now=here.now) for n in range(9)]
            first, second, third, fourth = places(here, WEB, 1, 2, 3, 4)
            first.certificates = [Seen(der=known, chain=new[:4])]
            assert (await record(to, first)).fresh == 1
            first.certificates, second.certificates = [Seen(der=one) for one in new], [Seen(der=known)]
            third.certificates = fourth.certificates = [Seen(der=new[8])]
            [other] = places(here, DB, 1)
            other.certificates = [Seen(der=foreign("other.example.org", now=here.now))]
            for one in (first, second, third, fourth, other):
                one.at += 1
            here.house.here.clock.pass_(1)
            done = await record(to, first, second, third, fourth, other)
            assert done.refused == 0  # five and five
            assert sha(new[8]) in {bytes(row.sha256) for row in await here.rows(tables.found)}

            flood = [foreign(f"flood-{n}.example.org", now=here.now) for n in range(3)]
            here.house.here.clock.pass_(1)
            first.certificates, third.certificates = [Seen(der=known), Seen(der=flood[0])], [Seen(der=flood[0], chain=flood)]
            [fifth] = places(here, WEB, 5)
            fifth.certificates = [Seen(der=flood[1])]
            for one in (first, second, third, fourth, fifth):
                one.at += 1000
            done = await record(to, first, second, third, fourth, fifth)
            assert (done.locations, done.refused) == (2, 3)
            assert "agent_certificates" in done.refusal
            assert not {sha(one) for one in flood} & {bytes(row.sha256) for row in await here.rows(tables.found)}
            rows = {row.key.rpartition("/")[2]: row for row in await here.rows(tables.location) if row.host == "web-1"}
            assert [name for name, row in sorted(rows.items()) if row.problem] == ["1", "3", "5"]
            still = await here.number(tables.sighting, tables.sighting.c.location_id == rows["1"].id, tables.sighting.c.ended_at.is_(None))
            assert still == 9, "what was seen there stays"
            [entry] = [one["what"] for one in await here.house.entries() if one["type"] == "sightings.limited"]
            assert (entry["agent"], entry["of"]) == (WEB, "certificates")

            here.house.here.clock.pass_(DAY)
            for one in (first, third, fifth):
                one.at = here.now
            assert (await record(to, first, third, fifth)).refused == 0

    asyncio.run(run())


def test_whose_a_key_is() -> None:
    assert agent_of(key_of(WEB, "/etc/a:b")) == WEB
    assert agent_of(f"agent:{DB}:/etc/tls.pem") == DB
    for key in ("tls:host:443", "file:web:/etc", "file:spiffe://x", "k8s:c/spiffe://x:y", ""):
        assert agent_of(key) == ""


def test_the_settings_are_what_a_server_keeps_to(tmp_path: Path) -> None:
    async def run() -> None:
        limits = {"agent_locations": 2, "agent_certificates": 1, "source_locations": 3, "source_certificates": 2}
        settings = Settings.load({"data": str(tmp_path / "data"), "trust_domain": "example.org", **limits}, env={})
        await initialise(settings)
        instance = await open_instance(settings)
        try:
            inventory, now = instance.services.inventory, instance.clock()
            ders = [foreign(f"{number}.example.org", now=now) for number in range(8)]

            def seen(agent: str, *certificates: int) -> list[Observed]:
                host = agent.rpartition("/")[2]
                return [
                    Observed(key=key_of(agent, f"/{n}"), kind="file", shown="x", host=host, at=now, certificates=[Seen(der=ders[n])])
                    for n in certificates
                ]

            assert (await inventory.record_of_agents(1, Sightings(observed=seen(WEB, 0)), "")).refused == 0
            done = await inventory.record_of_agents(1, Sightings(observed=seen(WEB, 1, 2, 3)), "")
            assert (done.refused, done.fresh) == (3, 0)  # two beyond the places, one beyond the certificates
            assert (await inventory.record_of_agents(1, Sightings(observed=seen(DB, 4)), "")).refused == 0
            assert (await inventory.record(2, Sightings(observed=seen(WEB, 5, 6)), "")).refused == 0
            assert (await inventory.record(2, Sightings(observed=seen(WEB, 1, 2, 3, 7)), "")).refused == 4
        finally:
            await instance.close()

    asyncio.run(run())
