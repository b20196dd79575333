"""Scans while the database comes and goes, and while clocks jump: they end, with the right numbers, and nothing is read without need."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from sqlalchemy import select, update

from handclasp.discovery.desk import LocalDesk
from handclasp.discovery.engine import Engine
from handclasp.discovery.leases import FARTHEST, Leases, Progress
from handclasp.discovery.patience import patiently
from handclasp.errors import HandclaspError, Kind
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write
from support.discovery import Discovery, Now, with_store
from support.errors import refused

HOURS = 3_600_000
_part, _source = tables.scan_part.c, tables.source.c


def away(*_: object) -> HandclaspError:
    return HandclaspError(Kind.UNAVAILABLE, "the database is away")


class Moody:
    """A database that is away for every third commit, of which every second one happened nevertheless."""

    def __init__(self, store: Store, patch: pytest.MonkeyPatch) -> None:
        self.commits = self.refused = 0
        self._commit = store.ledger.commit
        patch.setattr(store.ledger, "commit", self.commit)

    async def commit(self, write: Write) -> int:
        self.commits += 1
        if self.commits % 3:
            return await self._commit(write)
        self.refused += 1
        if self.refused % 2:
            await self._commit(write)
        raise away()


def test_a_database_that_comes_and_goes_costs_a_scan_nothing(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handclasp.discovery.patience.FIRST", 0.001)
    monkeypatch.setattr("handclasp.discovery.engine.BATCH", 2)

    async def body(store: Store) -> None:
        house = Discovery(store)
        leases = Leases(store, house.leases._clock, patience=30)
        desk = LocalDesk(leases, house.inventory.record, house.inventory.probe, "w", patience=30)
        engine = Engine(desk, house.leases._clock, kinds=lambda _name: house.kind)
        scan = await house.begin(await house.add(count=23, size=5, broken=[7]))
        with monkeypatch.context() as patch:
            moody = Moody(store, patch)
            for _ in range(200):
                with contextlib.suppress(HandclaspError):
                    if not await engine.step():
                        break
        assert moody.refused > 5
        row = await house.scans.get(scan)
        assert (row.state, row.total, row.read, row.failed, row.certificates) == ("done", 23, 22, 1, 22)
        assert sorted(house.kind.read_numbers) == sorted(set(house.kind.read_numbers))
        problems = await store.rows(select(_part.attempts, _part.problem).where(_part.scan_id == scan, _part.number > 0))
        assert {row.problem for row in problems} == {None}

    with_store(migrated_url, body)


def test_a_database_that_stays_away_ends_the_patience() -> None:
    made: list[int] = []

    async def attempt() -> None:
        made.append(1)
        raise away()

    with refused(Kind.UNAVAILABLE):
        asyncio.run(patiently(attempt, 0.5))
    assert len(made) > 1
    made.clear()
    with refused(Kind.UNAVAILABLE):
        asyncio.run(patiently(attempt, 0.0))
    assert made == [1]


def test_whether_a_part_is_held_is_not_known_while_the_database_is_away(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(store: Store) -> None:
        house = Discovery(store)
        await house.begin(await house.add(count=5, size=5))
        leased = await house.leases.take("w", runs=["server"])
        assert leased is not None
        desk = LocalDesk(house.leases, house.inventory.record, house.inventory.probe, "w", patience=1)

        async def row(_query: object) -> None:
            raise away()

        with monkeypatch.context() as patch:
            patch.setattr(store, "row", row)
            assert await desk.held(leased)
            with refused(Kind.UNAVAILABLE):
                await house.desk.held(leased)

    with_store(migrated_url, body)


def test_a_planner_that_begins_anew_does_not_count_twice(migrated_url: str) -> None:
    async def body(store: Store) -> None:
        clock = Now()
        house = Discovery(store, clock=clock)
        scan = await house.begin(await house.add(count=5))
        for found in (2, 3):
            planner = await house.leases.take("w", runs=["server"])
            assert planner is not None
            for number in range(1, found + 1):
                await house.leases.report(planner, Progress(parts=[{"first": number}], place=str(number), total=10))
            clock.at += 61_000
        row = await house.scans.get(scan)
        assert row.total == 30
        assert len(await store.rows(select(_part.number).where(_part.scan_id == scan, _part.number > 0))) == 3

    with_store(migrated_url, body)


# --- clocks ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [2 * HOURS, -2 * HOURS], ids=["forward", "back"])
def test_a_clock_that_jumps_while_a_part_is_read(migrated_url: str, jump: int) -> None:
    """Its worker goes on; if that one dies, another has the part within a minute and not in two hours."""

    async def body(store: Store) -> None:
        clock = Now()
        house = Discovery(store, clock=clock)
        scan = await house.begin(await house.add(count=5, size=5))
        await house.engine.step()
        first = await house.leases.take("first", runs=["server"])
        assert first is not None
        clock.at += jump
        await house.leases.report(first, Progress(place="2", read=2))
        assert await house.leases.take("second", runs=["server"]) is None
        clock.at += 61_000
        second = await house.leases.take("second", runs=["server"])
        assert second is not None
        assert second.place == "2"
        clock.at -= jump
        third = await house.leases.take("third", runs=["server"])  # nothing was heard of the second since
        assert third is not None
        await house.leases.done(third, Progress(read=3))
        row = await house.scans.get(scan)
        assert (row.state, row.read, row.failed) == ("done", 5, 0)

    with_store(migrated_url, body)


def test_a_schedule_is_kept_by_a_clock_that_jumps(migrated_url: str) -> None:
    async def body(store: Store) -> None:
        clock = Now()
        house = Discovery(store, clock=clock)
        await house.add("often", every=600.0, count=1)

        async def begun() -> int:
            number = 0
            for _ in range(5):
                number += len(await house.scans.step())
                await house.finish()
            return number

        assert await begun() == 1
        clock.at += 2 * HOURS
        assert await begun() == 1  # what was missed is made up for once
        clock.at -= 2 * HOURS
        assert await begun() == 1  # and nobody waits two hours for the next one
        assert await begun() == 0
        clock.at = (await house.sources.get("often")).due_at
        assert await begun() == 1

    with_store(migrated_url, body)


def test_a_pause_that_a_wrong_clock_wrote_is_over(migrated_url: str) -> None:
    async def body(store: Store) -> None:
        clock = Now()
        house = Discovery(store, clock=clock)
        await house.begin(await house.add(count=5, size=5))
        far = update(tables.scan_part).values(leased_until=clock.at + FARTHEST + 1)
        await store.ledger.commit(Write([], [Change(far)]))
        assert await house.leases.take("w", runs=["server"]) is not None

    with_store(migrated_url, body)
