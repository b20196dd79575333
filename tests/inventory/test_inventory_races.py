"""Several processes record and judge at once: nothing is lost, nothing is there twice, and counters say what the rows say."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from handclasp.authority.authorities import Authorities
from handclasp.authority.keystore import KeyStore
from handclasp.inventory import tallies
from handclasp.inventory.follow import Follower
from handclasp.inventory.reconcile import Reconciler
from handclasp.inventory.record import Recorder
from handclasp.inventory.states import Graces
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.wire.observations import Covered, Sightings
from support.installation import PASSPHRASE
from support.inventory import SOURCE, Watch, foreign, rogue, sha, watch

pytestmark = pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)


@asynccontextmanager
async def others(here: Watch, url: str, directory: Path, count: int = 2) -> AsyncIterator[list[Recorder]]:
    """What further processes have: a store each, with a connection of its own that writes."""
    stores = [await Store.open(url, here.house.here.clock, migrate=False) for _ in range(count)]
    recorders = []
    for store in stores:
        authorities = Authorities(store, KeyStore(directory / "keys", PASSPHRASE), here.house.here.clock)
        await authorities.load()
        recorders.append(
            Recorder(store, authorities, here.house.here.clock, Reconciler(store, here.house.here.clock, here.reconciler.graces))
        )
    yield recorders
    for store in stores:
        await store.close()


async def is_whole(here: Watch) -> None:
    """Fail unless every row has its one place, and each counter is the number of its rows."""
    found = await here.rows(tables.found)
    assert len({bytes(row.sha256) for row in found}) == len(found)
    open_now = [row for row in await here.rows(tables.sighting) if row.ended_at is None]
    assert len({(row.location_id, bytes(row.sha256), row.role) for row in open_now}) == len(open_now)
    seen = Counter(bytes(row.sha256) for row in open_now if row.role in ("served", "stored"))
    for row in await here.rows(tables.standing):
        assert row.due_at != 0
        assert row.open == seen[bytes(row.sha256)]
    identities = {row.id for row in await here.rows(tables.identity)}
    issuers = {row.id for row in await here.rows(tables.issuer)}
    for row in found:
        assert row.identity_id is None or row.identity_id in identities
        assert row.issuer_id is None or row.issuer_id in issuers
    kept = {(row.kind, row.bucket): row.number for row in await here.rows(tables.tally) if row.number}
    right = await tallies.truth(here.store)
    assert {key: number for key, number in kept.items() if key[0] in {kind for kind, _ in right}} == right


def test_the_same_new_things_at_the_same_moment_are_recorded_once(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here, others(here, migrated_url, tmp_path) as more:
            leaves = [foreign(f"s{number}.example.net", now=here.now) for number in range(12)]
            ours = await rogue(here)
            observed = [here.at(f"tls:h{number}:443", leaf) for number, leaf in enumerate([*leaves, ours])]
            told = await asyncio.gather(*(one.record(SOURCE, Sightings(observed=observed)) for one in (here.recorder, *more)))
            assert all(one.locations == 13 for one in told)
            assert await here.number(tables.location) == 13
            assert await here.number(tables.sighting) == 13
            assert await here.number(tables.found) == 13
            assert await here.number(tables.issuer) == 2
            entries = [one for one in await here.house.entries() if one["type"] == "certificate.unissued"]
            assert len(entries) == 1
            await here.settle()
            assert await here.counts() == {"foreign": 12, "unissued": 1}
            await is_whole(here)

    asyncio.run(run())


def test_a_location_that_changes_under_two_recorders_holds_the_newest(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here, others(here, migrated_url, tmp_path, 3) as more:
            leaves = [foreign(f"s{number}.example.net", now=here.now) for number in range(4)]
            for _ in range(6):
                here.pass_(10)
                looks = [here.at("tls:h:443", leaf, at=here.now - number) for number, leaf in enumerate(leaves)]
                await asyncio.gather(*(one.record(SOURCE, Sightings(observed=[look])) for one, look in zip(more, looks[1:], strict=True)))
                await here.see(looks[0])
                await here.settle()
                open_now = [row for row in await here.rows(tables.sighting) if row.ended_at is None]
                assert [bytes(row.sha256) for row in open_now] == [sha(leaves[0])]
                await is_whole(here)

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(2))
def test_counters_never_drift_while_everybody_writes(migrated_url: str, tmp_path: Path, seed: int) -> None:
    async def run() -> None:
        dice = random.Random(seed)
        async with watch(tmp_path, migrated_url, Graces(unseen=0, old=1)) as here, others(here, migrated_url, tmp_path) as more:
            token = await here.house.token(allow=["spiffe://example.org/prod/*"], expires="24h")
            pool = [foreign(f"s{number}.example.net", now=here.now) for number in range(8)]
            issued = [await here.house.issue(token, identity=f"spiffe://example.org/prod/{number}") for number in range(4)]
            pool += [await here.der(one) for one in issued]

            async def watcher(recorder: Recorder, mine: random.Random) -> None:
                for _ in range(12):
                    keys = mine.sample(range(10), 4)
                    observed = [here.at(f"tls:h{key}:443", *mine.sample(pool, mine.randrange(3)), unit=f"u{key % 2}") for key in keys]
                    covered = [Covered(unit=f"u{mine.randrange(2)}", began_at=here.now)] if not mine.randrange(4) else []
                    await recorder.record(SOURCE, Sightings(observed=observed, covered=covered))
                    here.pass_(0.005)

            async def issuer(mine: random.Random) -> None:
                line = list(issued)
                for _ in range(12):
                    number = mine.randrange(len(line))
                    line[number] = await here.house.renew(line[number])
                    pool.append(await here.der(line[number]))
                    here.pass_(0.005)

            async def keeper() -> None:
                follower = Follower(here.store, here.house.here.clock, here.reconciler)
                for _ in range(30):
                    await follower.step()
                    await here.reconciler.step()
                    await asyncio.sleep(0)

            work = [watcher(one, random.Random(dice.random())) for one in (here.recorder, *more)]
            await asyncio.gather(*work, issuer(dice), keeper())
            here.pass_(1)
            await here.settle()
            await is_whole(here)
            summaries = {row.identity_id: row for row in await here.rows(tables.summary)}
            for row in await here.store.rows(select(tables.certificate).order_by(tables.certificate.c.log_index)):
                assert summaries[row.identity_id].newest_origin == "issued"
            assert sum(row.issued for row in summaries.values()) == await here.number(tables.certificate)
            assert await here.reconciler.recount() == {}

    asyncio.run(run())
