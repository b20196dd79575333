"""The schema: migrations make what the tables say, from nothing, also when several processes start at once; and readers only read."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, NullPool, create_engine, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from handclasp.errors import Kind
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.migrate import upgrade
from handclasp.store.writes import Change, Write
from support.errors import refused
from support.writes import certificate_row, certificate_write, count, log_entry

UPGRADE = "import asyncio, sys; from handclasp.store.migrate import upgrade; asyncio.run(upgrade(sys.argv[1]))"


def _other_default(_context: Any, _column: Any, _wanted: Any, found: str | None, _default: Any, wanted: str | None) -> bool:
    """Compare defaults as values: each database writes a literal in its own way ('[]'::text), and Alembic stumbles over the empty one."""
    return (found or "").removesuffix("::text").strip("()'") != (wanted or "").strip("'")


def _is_of_the_schema(_object: Any, name: str | None, _type: str, _reflected: bool, _other: Any) -> bool:
    """Leave out what migrations make besides, each database in its own way."""
    return not (name or "").startswith(tables.BESIDE)


def _differences(connection: Connection) -> list[Any]:
    opts = {"compare_type": True, "compare_server_default": _other_default, "include_object": _is_of_the_schema}
    context = MigrationContext.configure(connection, opts=opts)
    # Alembic compares neither partial indexes' conditions nor comments it was not told to; everything else that it finds is a bug.
    return [one for one in compare_metadata(context, tables.metadata) if not str(one).startswith("('add_table_comment")]


def differences(url: str) -> list[Any]:
    """What alembic would still have to change so that the database is as ``store.tables`` says."""

    async def on_postgresql() -> list[Any]:
        engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://", 1), poolclass=NullPool)
        async with engine.connect() as connection:
            found: list[Any] = await connection.run_sync(_differences)
        await engine.dispose()
        return found

    if url.startswith("postgresql:"):
        return asyncio.run(on_postgresql())
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        return _differences(connection)


def test_migrations_and_tables_say_the_same(migrated_url: str) -> None:
    assert differences(migrated_url) == []


def test_several_processes_that_start_at_once_make_one_schema(database_url: str) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", UPGRADE, database_url], stderr=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()

    async def run() -> None:
        store = await Store.open(database_url)  # and once more, when everything is there
        assert await count(store, tables.log_head) == 1
        assert await store.ledger.commit(Write([log_entry()])) == 0
        await store.close()

    asyncio.run(run())
    assert differences(database_url) == []


KILLED = """
import asyncio, os, signal, sys
from sqlalchemy import Engine, event
from handclasp.store.migrate import upgrade

@event.listens_for(Engine, "after_cursor_execute")
def die(connection, cursor, statement, *rest):
    if "CREATE TABLE token" in statement:
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(upgrade(sys.argv[1]))
"""


def test_a_migration_that_was_killed_is_done_again(database_url: str) -> None:
    """All of a version or nothing: half a schema would stop every later start."""
    done = subprocess.run([sys.executable, "-c", KILLED, database_url], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    asyncio.run(upgrade(database_url))
    assert differences(database_url) == []


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_the_partial_index_of_revoked_certificates_is_there(migrated_url: str) -> None:
    with sqlite3.connect(migrated_url.removeprefix("sqlite:///")) as connection:
        found = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'ix_certificate_revoked'").fetchone()
    connection.close()
    assert "WHERE revoked_at IS NOT NULL" in found[0]


def test_readers_see_what_was_committed_and_cannot_write(migrated_url: str) -> None:
    async def run() -> None:
        store = await Store.open(migrated_url, migrate=False)
        row = certificate_row()
        await store.ledger.commit(certificate_write(row))
        found = await store.point("SELECT log_index FROM certificate WHERE sha256 = ? AND profile = ?", (row.sha256, "workload"))
        assert found == (0,)
        assert await store.point("SELECT 1 FROM certificate WHERE sha256 = ?", (bytes(32),)) is None
        assert [len(one) for one in await store.entries(0, 10)] == [len(entry.data) for entry in certificate_write(row).entries]
        if store.is_sqlite:
            with refused(Kind.UNAVAILABLE):
                await store.point("UPDATE log_head SET size = ?", (7,))
            assert store._sync is not None
            with store._sync.connect() as connection, pytest.raises(DBAPIError):
                connection.execute(text("DELETE FROM log_entry"))
        assert await count(store, tables.log_entry) == 1
        await store.close()

    asyncio.run(run())


def test_a_change_of_rules_is_seen_by_another_store_within_a_second(migrated_url: str) -> None:
    async def run() -> None:
        one = await Store.open(migrated_url, migrate=False)
        two = await Store.open(migrated_url, migrate=False) if not one.is_sqlite else one
        before, here = two.generation, one.generation
        await one.ledger.commit(Write([log_entry()]))
        assert one.generation == here  # nothing changed that anybody remembers
        await one.ledger.commit(Write([log_entry()], bump=True))
        assert one.generation > here
        async with asyncio.timeout(1):
            while two.generation == before:
                await asyncio.sleep(0.01)
        await one.close()
        if two is not one:
            await two.close()

    asyncio.run(run())


def test_a_leader_is_alone_and_another_takes_over(migrated_url: str) -> None:
    async def run() -> None:
        one, two = await Store.open(migrated_url, migrate=False), await Store.open(migrated_url, migrate=False)
        async with one.leader("jobs") as first:
            assert first
            async with two.leader("jobs") as second, two.leader("other jobs") as third:
                assert second is one.is_sqlite  # SQLite has one process, which the data directory's lock sees to
                assert third
        async with two.leader("jobs") as second:
            assert second
        await one.close()
        await two.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("mysql://localhost/x", Kind.BAD_SETTING),
        ("sqlite:////proc/nowhere/x.db", Kind.UNAVAILABLE),
        ("postgresql://nobody@127.0.0.1:1/x", Kind.UNAVAILABLE),
    ],
)
def test_a_database_that_cannot_be_opened_is_a_clear_answer(url: str, kind: Kind) -> None:
    with refused(kind):
        asyncio.run(Store.open(url))


def test_a_file_that_is_no_database_is_a_clear_answer(tmp_path: Any) -> None:
    path = tmp_path / "handclasp.db"
    path.write_bytes(b"this is no database at all, whatever its name says " * 100)
    with refused(Kind.UNAVAILABLE, "not a database"):
        asyncio.run(Store.open(f"sqlite:///{path}"))
    with refused(Kind.UNAVAILABLE):
        asyncio.run(Store.open(f"sqlite:///{path}", migrate=False))


def test_statements_of_the_hot_path_and_of_the_builder_agree(migrated_url: str) -> None:
    """A column that a statement forgets would be NULL in every row."""

    async def run() -> None:
        store = await Store.open(migrated_url, migrate=False)
        old = certificate_row()
        await store.ledger.commit(certificate_write(old))
        row = certificate_row(predecessor=old)
        revoked = update(tables.certificate).values(superseded_by=row.sha256, superseded_at=2, revoked_at=3, revocation_reason=1)
        await store.ledger.commit(certificate_write(row))
        await store.ledger.commit(Write([], [Change(revoked.where(tables.certificate.c.sha256 == row.sha256))]))
        found = await store.row(select(tables.certificate).where(tables.certificate.c.sha256 == row.sha256))
        assert found is not None
        assert None not in found
        await store.close()

    asyncio.run(run())
