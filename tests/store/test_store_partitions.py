"""Months of the certificate table on PostgreSQL: made from a table with rows, made ahead, dropped; and issuance that goes on meanwhile."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from alembic import command
from sqlalchemy import Connection, NullPool, select
from sqlalchemy.ext.asyncio import create_async_engine

from handclasp.clock import system_clock
from handclasp.errors import Kind
from handclasp.store import partitions, tables
from handclasp.store.database import Store
from handclasp.store.migrate import _config, upgrade
from handclasp.store.partitions import DEFAULT, Month, Partitions, months
from handclasp.store.writes import CertificateRow
from support.errors import refused
from support.writes import certificate_row, certificate_write, count, revoke_change

DAY = 86_400_000
JANUARY = Month(2027, 1)
ON_POSTGRESQL = pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)


def ending(at: int, **more: Any) -> CertificateRow:
    return replace(certificate_row(**more), not_before=at - DAY, not_after=at)


async def where(url: str) -> dict[str, int]:
    """Return how many certificates each partition has."""
    connection = await asyncpg.connect(url)
    rows = await connection.fetch("SELECT tableoid::regclass::text, COUNT(*) FROM certificate GROUP BY 1")
    await connection.close()
    return {row[0]: row[1] for row in rows}


def test_months_are_months() -> None:
    assert months(Month(2026, 11), 3) == [Month(2026, 11), Month(2026, 12), JANUARY]
    assert (JANUARY.begin, JANUARY.end, JANUARY.table) == (1_798_761_600_000, 1_801_440_000_000, "certificate_2027_01")
    assert (Month.of(JANUARY.begin - 1), Month.of(JANUARY.begin), Month.of(JANUARY.end - 1)) == (Month(2026, 12), JANUARY, JANUARY)


def test_a_table_with_rows_is_converted_as_it_is(postgres_url: str) -> None:
    """Columns keep their order and their values, and every row is in its month."""
    now = system_clock()
    ends = [now - 70 * DAY, now - 40 * DAY, now, now + 5 * DAY, now + 400 * DAY]

    def to_the_version_before(connection: Connection) -> None:
        command.upgrade(_config(connection), "0002")

    async def run() -> None:
        engine = create_async_engine(postgres_url.replace("postgresql://", "postgresql+asyncpg://", 1), poolclass=NullPool)
        async with engine.begin() as connection:
            await connection.run_sync(to_the_version_before)
        await engine.dispose()
        raw = await asyncpg.connect(postgres_url)
        columns = [column.name for column in tables.certificate.columns]
        values = [_values(number, end) for number, end in enumerate(ends)]
        await raw.copy_records_to_table("certificate", records=values, columns=columns)
        before = await raw.fetch("SELECT * FROM certificate ORDER BY sha256")
        await upgrade(postgres_url)
        assert await raw.fetch("SELECT * FROM certificate ORDER BY sha256") == before
        keys = await raw.fetch(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'certificate'::regclass ORDER BY 1"
        )
        assert [tuple(row) for row in keys] == [
            ("pk_certificate", "PRIMARY KEY (sha256, not_after)"),
            ("uq_certificate_serial", "UNIQUE (serial, not_after)"),
        ]
        await raw.close()
        expected = {Month.of(end).table if end < now + 300 * DAY else DEFAULT for end in ends}
        assert set(await where(postgres_url)) == expected

    asyncio.run(run())


def _values(number: int, end: int) -> tuple[Any, ...]:
    some = bytes([number]) * 32
    return (
        some, some[:19], b"der", 1, 1, "workload", "{}", some, "p256", end - DAY, end, end, end, some, 0, None, None, None, "token:a",
        "token:a", None, None, 0, number,
    )  # fmt: skip


@ON_POSTGRESQL
def test_what_waits_for_its_month_moves_into_it(migrated_url: str) -> None:
    async def run() -> None:
        store = await Store.open(migrated_url, migrate=False)
        rows = [ending(at) for at in (JANUARY.begin, JANUARY.end - 1, JANUARY.end, JANUARY.begin - 1, JANUARY.end + 900 * DAY)]
        for row in rows:
            await store.ledger.commit(certificate_write(row))
        assert await where(migrated_url) == {DEFAULT: 5}
        table = Partitions(migrated_url)
        assert await table.make(JANUARY, 2) == [Month(2026, 12), JANUARY, Month(2027, 2)]  # the one before has a row, so it is made too
        assert await where(migrated_url) == {"certificate_2026_12": 1, "certificate_2027_01": 2, "certificate_2027_02": 1, DEFAULT: 1}
        assert await table.make(JANUARY, 2) == []
        assert await count(store, tables.certificate) == 5
        await store.close()

    asyncio.run(run())


@ON_POSTGRESQL
def test_a_line_goes_on_from_month_to_month(migrated_url: str) -> None:
    """What judges and changes certificates by their fingerprint finds them in whatever month they are."""

    async def run() -> None:
        store = await Store.open(migrated_url, migrate=False)
        await Partitions(migrated_url).make(Month.of(system_clock()), 4)
        first = ending(system_clock() + DAY)
        await store.ledger.commit(certificate_write(first))
        second = ending(system_clock() + 40 * DAY, predecessor=first)
        await store.ledger.commit(certificate_write(second))
        other = ending(system_clock() + 70 * DAY, predecessor=first)  # an answer that got lost
        await store.ledger.commit(certificate_write(other))
        third = ending(system_clock() + 700 * DAY, predecessor=other)
        await store.ledger.commit(certificate_write(third))
        with refused(Kind.SUPERSEDED):
            await store.ledger.commit(certificate_write(ending(system_clock() + DAY, predecessor=first)))
        await store.ledger.commit(
            replace(certificate_write(ending(system_clock() + DAY)), changes=[revoke_change(third)], certificate=None)
        )
        with refused(Kind.REVOKED):
            await store.ledger.commit(certificate_write(ending(system_clock() + DAY, predecessor=third)))
        found = {bytes(row.sha256): row.superseded_by for row in await store.rows(select(tables.certificate))}
        assert found == {first.sha256: other.sha256, second.sha256: other.sha256, other.sha256: third.sha256, third.sha256: None}
        assert len(await where(migrated_url)) >= 3
        await store.close()

    asyncio.run(run())


@ON_POSTGRESQL
def test_issuance_goes_on_while_months_come_and_go(migrated_url: str) -> None:
    """Everything that was answered is there; nobody waits for longer than a catalogue's row takes."""

    async def run() -> None:
        store = await Store.open(migrated_url, migrate=False)
        table, now = Partitions(migrated_url), system_clock()
        this = Month.of(now)
        kept = [ending(now - (40 + 30 * number) * DAY) for number in range(6)]
        for row in kept:
            await store.ledger.commit(certificate_write(row))
        issued: list[bytes] = []
        busy = True

        async def issue() -> None:
            while busy:
                row = ending(now + int.from_bytes(os.urandom(1)) * DAY)
                await store.ledger.commit(certificate_write(row))
                issued.append(row.sha256)

        async def change() -> None:
            nonlocal busy
            try:
                await table.make(this, 2)
                await table.drop(this.begin, f"c.sha256 = '\\x{kept[0].sha256.hex()}'::bytea", now)
                await table.make(this, 6)
            finally:
                busy = False

        await asyncio.gather(issue(), issue(), change())
        there = {bytes(row.sha256) for row in await store.rows(select(tables.certificate.c.sha256))}
        assert there == {*issued, kept[0].sha256}
        assert (await where(migrated_url))["certificate_kept"] == 1
        await store.close()

    asyncio.run(run())


@ON_POSTGRESQL
def test_who_reads_for_long_is_not_waited_for(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "LOCK_TIMEOUT", "50ms")

    async def run() -> None:
        store = await Store.open(migrated_url, migrate=False)
        await store.ledger.commit(certificate_write(ending(JANUARY.begin)))
        reader = await asyncpg.connect(migrated_url)
        table = Partitions(migrated_url)
        async with reader.transaction():
            await reader.fetch("SELECT * FROM certificate")
            with refused(Kind.UNAVAILABLE, "lock"):
                await table.make(JANUARY, 1)
        assert await table.make(JANUARY, 1) == [JANUARY]
        async with reader.transaction():
            await reader.fetch("SELECT * FROM certificate")
            with refused(Kind.UNAVAILABLE, "lock"):
                await table.drop(JANUARY.end, "false", JANUARY.end)
        assert await count(store, tables.certificate) == 1
        assert await table.drop(JANUARY.end, "false", JANUARY.end) == ([JANUARY], 0, 0)  # how many it was, nobody had counted
        assert await count(store, tables.certificate) == 0
        await reader.close()
        await store.close()

    asyncio.run(run())


def test_a_database_that_is_away_is_a_clear_answer() -> None:
    with refused(Kind.UNAVAILABLE):
        asyncio.run(Partitions("postgresql://nobody@127.0.0.1:1/x").existing())
