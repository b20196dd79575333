"""Scans from their beginning to their end, on both databases."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select

from handclasp.discovery.endings import parts_of
from handclasp.discovery.leases import ATTEMPTS, Progress
from handclasp.discovery.scans import problems_of
from handclasp.discovery.source import Part
from handclasp.discovery.sources import Wanted
from handclasp.errors import HandclaspError, Kind
from handclasp.store import tables
from handclasp.store.database import Store
from support.discovery import ORIGIN, PERSON, Discovery, Now, NumbersKind, with_store
from support.errors import refused


async def log_types(store: Store) -> list[str]:
    return [json.loads(entry)["type"] for entry in await store.entries(0, 1000)]


def test_a_scan_reads_every_part_once_and_its_source_shows_it(migrated_url: str) -> None:
    async def body(store: Store) -> None:
        house = Discovery(store)
        source = await house.add(count=23, size=5)
        scan_id = await house.begin(source)
        with refused(Kind.CONFLICT):
            await house.begin(source)
        await house.finish()
        scan = await house.scans.get(scan_id)
        assert (scan.state, scan.total, scan.read, scan.failed, scan.certificates, scan.fresh) == ("done", 23, 23, 0, 23, 23)
        assert sorted(house.kind.read_numbers) == list(range(23))
        assert {one.unit for one in house.inventory.covered} == {"from 0", "from 5", "from 10", "from 15", "from 20"}
        assert all(one.began_at == scan.created_at for one in house.inventory.covered)
        shown = await house.sources.get("numbers")
        assert (shown.success_at, shown.problem) == (scan.created_at, None)
        await house.scans.tidy()
        assert await parts_of(store, scan_id) == {}
        assert await log_types(store) == ["source.added", "scan.started"]
        await house.begin(source)  # another one may begin now

    with_store(migrated_url, body)


def test_what_cannot_be_read_is_counted_with_a_reason_and_the_source_says_so(migrated_url: str) -> None:
    async def body(store: Store) -> None:
        house = Discovery(store)
        source = await house.add(count=10, size=5, broken=[7])
        scan = await house.begin(source)
        await house.finish()
        row = await house.scans.get(scan)
        assert (row.state, row.read, row.failed, row.problem) == ("done", 9, 1, "7: it is broken")
        assert [one.unit for one in house.inventory.covered] == ["from 0"]
        shown = await house.sources.get("numbers")
        assert shown.success_at is None
        assert shown.problem == "1 of 10 could not be read, such as: 7: it is broken"

    with_store(migrated_url, body)


def test_a_part_that_fails_is_tried_again_from_its_place_and_then_given_up(migrated_url: str) -> None:
    async def body(store: Store) -> None:
        clock = Now()
        house = Discovery(store, clock=clock)
        source = await house.add(count=10, size=5, fatal=8)
        scan = await house.begin(source)
        for _ in range(ATTEMPTS):
            await house.finish()
            clock.at += 1_000_000
        row = await house.scans.get(scan)
        assert (row.state, row.read, row.failed) == ("done", 8, 1)
        assert sorted(house.kind.read_numbers) == list(range(8))  # nothing before the place is read again
        assert await problems_of(store, scan) == ["the number is not there"]
        assert [one.unit for one in house.inventory.covered] == ["from 0"]
        await house.scans.tidy()
        assert await parts_of(store, scan) == {"failed": 1}

    with_store(migrated_url, body)


def test_a_scan_that_cannot_be_planned_has_failed(migrated_url: str) -> None:
    async def body(store: Store) -> None:
        house = Discovery(store)
        source = await house.add(count=10)
        scan = await house.begin(source)
        await store.ledger.commit(_settings(source.id, {"count": -1}))
        await house.finish()
        row = await house.scans.get(scan)
        assert (row.state, row.problem) == ("failed", "count is negative")
        assert (await house.sources.get("numbers")).problem == "count is negative"

    with_store(migrated_url, body)


class HalfPlanned(NumbersKind):
    """Finds a part, and then no more."""

    async def plan(self, settings: object, scope: object, tools: object) -> AsyncIterator[Part]:
        yield Part({"first": 0, "end": 5}, places=5)
        raise HandclaspError(Kind.BAD_SETTING, "the rest cannot be listed")


def test_parts_of_a_plan_that_failed_do_not_count(migrated_url: str) -> None:
    async def body(store: Store) -> None:
        house = Discovery(store, HalfPlanned())
        scan = await house.begin(await house.add(count=10))
        await house.finish()
        row = await house.scans.get(scan)
        assert (row.state, row.problem, row.total) == ("failed", "the rest cannot be listed", 0)

    with_store(migrated_url, body)


def _settings(source: int, settings: dict[str, object]) -> object:
    from sqlalchemy import update

    from handclasp.store.writes import Change, Write

    return Write([], [Change(update(tables.source).where(tables.source.c.id == source).values(settings=json.dumps(settings)))])


def test_a_dry_run_reads_and_records_nothing(migrated_url: str) -> None:
    async def body(store: Store) -> None:
        house = Discovery(store)
        source = await house.add(count=6)
        house.inventory.known.add(b"certificate 3")
        scan = await house.begin(source, dry=True)
        await house.finish()
        row = await house.scans.get(scan)
        assert (row.state, row.dry, row.read, row.certificates, row.fresh) == ("done", 1, 6, 6, 5)
        assert house.inventory.observed == []
        assert (await house.sources.get("numbers")).success_at is None

    with_store(migrated_url, body)


def test_a_worker_that_is_not_heard_of_loses_its_part_and_its_word_counts_no_more(migrated_url: str) -> None:
    async def body(store: Store) -> None:
        clock = Now()
        house = Discovery(store, clock=clock)
        await house.begin(await house.add(count=5, size=5))
        await house.engine.step()  # the plan
        first = await house.leases.take("first", runs=["server"])
        assert first is not None
        assert await house.leases.take("second", runs=["server"]) is None
        await house.leases.report(first, Progress(place="3", read=3))
        clock.at += 59_000
        assert await house.leases.take("second", runs=["server"]) is None
        await house.leases.report(first, Progress())
        clock.at += 60_000
        second = await house.leases.take("second", runs=["server"])
        assert second is not None
        assert (second.number, second.place) == (1, "3")
        assert not await house.leases.held(first)
        with refused(Kind.CONFLICT):
            await house.leases.report(first, Progress())
        with refused(Kind.CONFLICT):
            await house.leases.done(first, Progress(read=100))
        await house.leases.done(second, Progress(read=2))
        assert (await house.scans.get(second.scan)).read == 5

    with_store(migrated_url, body)


def test_a_part_whose_workers_die_one_after_the_other_is_given_up(migrated_url: str) -> None:
    async def body(store: Store) -> None:
        clock = Now()
        house = Discovery(store, clock=clock)
        scan = await house.begin(await house.add(count=5, size=5))
        await house.engine.step()
        for _ in range(ATTEMPTS):
            assert await house.leases.take("worker", runs=["server"]) is not None
            clock.at += 61_000
        assert await house.leases.take("worker", runs=["server"]) is None
        await house.scans.step()
        row = await house.scans.get(scan)
        assert (row.state, row.failed) == ("failed", 1)
        assert "4 times" in row.problem

    with_store(migrated_url, body)


def test_parts_are_leased_once_however_many_ask_at_once(migrated_url: str) -> None:
    async def body(store: Store) -> None:
        house = Discovery(store)
        other = await Store.open(store.url, migrate=False) if not store.is_sqlite else store
        house_2 = Discovery(other, worker="other")
        await house.begin(await house.add(count=40, size=1, parallel=0))
        await house.engine.step()
        taken = [
            one for one in await asyncio.gather(*(h.leases.take("w", runs=["server"]) for h in (house, house_2) for _ in range(15))) if one
        ]
        assert len(taken) == 30
        assert len({one.number for one in taken}) == 30
        if other is not store:
            await other.close()

    with_store(migrated_url, body)


def test_a_source_says_how_many_of_its_parts_are_read_at_once(migrated_url: str) -> None:
    async def body(store: Store) -> None:
        house = Discovery(store)
        await house.begin(await house.add(count=10, size=1, parallel=2))
        await house.engine.step()
        taken = [await house.leases.take("w", runs=["server"]) for _ in range(4)]
        assert [one is not None for one in taken] == [True, True, False, False]
        assert taken[0] is not None
        await house.leases.done(taken[0], Progress())
        assert await house.leases.take("w", runs=["server"]) is not None

    with_store(migrated_url, body)


def test_stopping_ends_the_reading_and_nothing_is_covered(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handclasp.discovery.engine.LOOK_EVERY", 0.01)

    async def body(store: Store) -> None:
        begun, never = asyncio.Event(), asyncio.Event()

        async def wait_at_three() -> None:
            begun.set()
            await never.wait()

        house = Discovery(store, NumbersKind(lambda number: wait_at_three() if number == 3 else None))
        source = await house.add(count=5, size=5)
        scan = await house.begin(source)
        await house.engine.step()
        working = asyncio.create_task(house.engine.step())
        await begun.wait()
        await house.scans.stop(scan, PERSON, ORIGIN)
        await working
        row = await house.scans.get(scan)
        assert (row.state, row.problem) == ("stopped", "it was stopped")
        assert house.inventory.covered == []
        assert await house.leases.take("w", runs=["server"]) is None
        with refused(Kind.CONFLICT):
            await house.scans.stop(scan, PERSON, ORIGIN)
        assert "scan.stopped" in await log_types(store)
        assert (await house.sources.get("numbers")).success_at is None

    with_store(migrated_url, body)


def test_an_engine_that_is_cancelled_gives_its_part_back_at_once(migrated_url: str) -> None:
    async def body(store: Store) -> None:
        begun, never = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            begun.set()
            await never.wait()

        house = Discovery(store, NumbersKind(lambda number: wait() if number == 3 else None))
        await house.begin(await house.add(count=5, size=5))
        working = asyncio.create_task(house.engine.run())
        await begun.wait()
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        again = await house.leases.take("w", runs=["server"])
        assert again is not None
        row = await store.row(select(tables.scan_part.c.attempts).where(tables.scan_part.c.number == 1))
        assert row is not None
        assert row.attempts == 1

    with_store(migrated_url, body)


def test_batches_are_bounded_and_the_reader_waits_for_the_sink(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handclasp.discovery.engine.BATCH", 50)

    async def body(store: Store) -> None:
        ahead = 0
        house = Discovery(store, NumbersKind(lambda number: None))

        async def record(source_id: int, sightings: object, scan_id: str) -> object:
            nonlocal ahead
            ahead = max(ahead, len(house.kind.read_numbers) - len(house.inventory.observed))
            await asyncio.sleep(0.001)
            return await type(house.inventory).record(house.inventory, source_id, sightings, scan_id)  # type: ignore[arg-type]

        house.desk._sink = record  # type: ignore[assignment]
        await house.begin(await house.add(count=1000, size=1000))
        await house.finish()
        assert len(house.inventory.observed) == 1000
        assert max(house.inventory.batches) == 50
        assert ahead <= 150

    with_store(migrated_url, body)


def test_schedules_begin_scans_and_what_was_missed_is_made_up_for_once(migrated_url: str) -> None:
    async def body(store: Store) -> None:
        clock = Now()
        house = Discovery(store, clock=clock)
        await house.add("often", every=3600.0, count=1)
        await house.add("asked", count=1)
        assert await house.scans.step() == ["often"]
        clock.at += 10 * 3600 * 1000
        assert await house.scans.step() == []  # the first still goes on
        await house.finish()
        assert await house.scans.step() == ["often"]
        await house.finish()
        assert await house.scans.step() == []
        row = await house.sources.get("often")
        assert clock.at + 3_600_000 <= row.due_at <= clock.at + 3_960_000
        clock.at = row.due_at
        await house.sources.change("often", Wanted(state="paused"), PERSON, ORIGIN)
        assert await house.scans.step() == []
        await house.sources.change("often", Wanted(state="active"), PERSON, ORIGIN)
        assert await house.scans.step() == ["often"]
        assert await log_types(store) == ["source.added"] * 2 + ["source.changed"] * 2  # the clock's scans are no entries

    with_store(migrated_url, body)


def test_two_processes_begin_a_due_scan_once(postgres_url: str) -> None:
    async def body() -> None:
        first = await Store.open(postgres_url)
        second = await Store.open(postgres_url, migrate=False)
        try:
            houses = [Discovery(first), Discovery(second)]
            await houses[0].add(every=3600.0, count=1)
            begun = await asyncio.gather(*(house.scans.step() for house in houses * 3))
            assert [name for names in begun for name in names] == ["numbers"]
        finally:
            await second.close()
            await first.close()

    asyncio.run(body())


def test_a_removed_source_is_forgotten_twice_and_then_its_name_and_number_are_free(migrated_url: str) -> None:
    async def body(store: Store) -> None:
        clock = Now()
        house = Discovery(store, clock=clock)
        source = await house.add(count=5)
        scan = await house.begin(source)
        await house.engine.step()
        leased = await house.leases.take("w", runs=["server"])
        assert leased is not None
        await house.sources.remove("numbers", PERSON, ORIGIN)
        for what in (house.sources.get("numbers"), house.scans.get(scan)):
            with refused(Kind.NOT_FOUND):
                await what
        assert not await house.leases.held(leased)
        with refused(Kind.CONFLICT):
            await house.leases.report(leased, Progress(read=1))
        again = await house.add(count=5)
        assert again.id != source.id
        await house.sources.forget_removed(house.inventory.forget)
        assert house.inventory.forgotten == [source.id]
        clock.at += 600_000
        await house.sources.forget_removed(house.inventory.forget)
        assert house.inventory.forgotten == [source.id] * 2
        assert [row.id for row in await store.rows(select(tables.source.c.id))] == [again.id]
        assert await store.rows(select(tables.scan.c.id)) == []
        assert await store.rows(select(tables.scan_part.c.number)) == []

    with_store(migrated_url, body)


BAD = [
    ("a b", "numbers", Wanted(), "not a source's name"),
    ("x", "nothing", Wanted(), "no source of the kind"),
    ("x", "numbers", Wanted(settings={"cuont": 3}), "cuont"),
    ("x", "numbers", Wanted(settings={"count": "three"}), "int"),
    ("x", "numbers", Wanted(settings={"count": -1}), "negative"),
    ("x", "numbers", Wanted(every=3), "every 1m"),
    ("x", "numbers", Wanted(runs="nobody"), "runs is one of"),
    ("x", "numbers", Wanted(facts={"a": "b" * 5000}), "too many"),
]


@pytest.mark.parametrize(("name", "kind", "wanted", "words"), BAD)
def test_what_cannot_be_a_source_is_refused(tmp_path: object, name: str, kind: str, wanted: Wanted, words: str) -> None:
    async def body() -> None:
        store = await Store.open(f"sqlite:///{tmp_path}/db")
        try:
            with pytest.raises(HandclaspError, match=words) as caught:
                await Discovery(store).sources.add(name, kind, wanted, PERSON, ORIGIN)
            assert caught.value.kind is Kind.BAD_SETTING
            assert await log_types(store) == []
        finally:
            await store.close()

    asyncio.run(body())
