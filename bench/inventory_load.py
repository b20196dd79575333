"""Bringing many rows into a database quickly: without its ledger, with secondary indexes made afterwards. For test data only."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import asyncpg

NUMBERED = ("identity", "name", "issuer", "source", "location", "sighting")
"""Tables whose rows have numbers that others refer to."""


class Loader(Protocol):
    """One database that is being filled. Nobody else may use it meanwhile."""

    async def facts(self) -> tuple[list[int], dict[str, int]]:
        """Return the issuing authorities' row numbers, and the highest row number of each table that has them."""

    async def begin(self, tables: Iterable[str]) -> None:
        """Put the tables' secondary indexes away."""

    async def add(self, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
        """Add rows; a counter that is there already is added to."""

    async def finish(self) -> None:
        """Make the indexes again, and let the database look at what it has."""

    async def close(self) -> None:
        """Let go of it."""


async def open_loader(url: str) -> Loader:
    """Return the loader for ``sqlite:///PATH`` or ``postgresql://…``."""
    if url.startswith("sqlite:///"):
        return _Sqlite(url.removeprefix("sqlite:///"))
    return _Postgres(await asyncpg.connect(url, command_timeout=None))


class _Sqlite:
    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=OFF", "cache_size=-800000", "temp_store=MEMORY", "foreign_keys=OFF"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._indexes: list[str] = []

    async def facts(self) -> tuple[list[int], dict[str, int]]:
        run = self._connection.execute
        authorities = [row[0] for row in run("SELECT id FROM authority WHERE kind = 'issuing' AND state = 'active' ORDER BY id")]
        return authorities, {table: run(f"SELECT COALESCE(MAX(id), 0) FROM {table}").fetchone()[0] for table in NUMBERED}

    async def begin(self, tables: Iterable[str]) -> None:
        run, wanted = self._connection.execute, set(tables)
        found = run("SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL").fetchall()
        run("BEGIN IMMEDIATE")
        for name, table, sql in found:
            if table in wanted:
                self._indexes.append(sql)
                run(f'DROP INDEX "{name}"')

    async def add(self, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
        more = " ON CONFLICT DO UPDATE SET number = number + excluded.number" if table == "tally" else ""
        sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))}){more}"
        self._connection.executemany(sql, rows)

    async def finish(self) -> None:
        run = self._connection.execute
        for sql in self._indexes:
            run(sql)
        run("COMMIT")
        run("ANALYZE")
        run("PRAGMA wal_checkpoint(TRUNCATE)")

    async def close(self) -> None:
        self._connection.close()


class _Postgres:
    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._indexes: list[str] = []
        self._tables: list[str] = []

    async def facts(self) -> tuple[list[int], dict[str, int]]:
        fetch = self._connection.fetch
        authorities = await fetch("SELECT id FROM authority WHERE kind = 'issuing' AND state = 'active' ORDER BY id")
        highest = {table: (await fetch(f"SELECT COALESCE(MAX(id), 0) FROM {table}"))[0][0] for table in NUMBERED}
        return [row[0] for row in authorities], highest

    async def begin(self, tables: Iterable[str]) -> None:
        self._tables = list(tables)
        found = await self._connection.fetch(
            "SELECT i.indexname AS name, i.indexdef AS sql FROM pg_indexes i JOIN pg_class c ON c.oid = quote_ident(i.indexname)::regclass"
            " WHERE i.schemaname = current_schema() AND i.tablename = ANY($1::text[])"
            " AND NOT EXISTS (SELECT 1 FROM pg_constraint k WHERE k.conindid = c.oid)",
            self._tables,
        )
        self._indexes = [row["sql"].replace(" ON ONLY ", " ON ") for row in found]
        for row in found:
            await self._connection.execute(f'DROP INDEX "{row["name"]}"')
        await self._connection.execute("SET synchronous_commit = off")
        await self._connection.execute("SET maintenance_work_mem = '1GB'")

    async def add(self, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
        if table == "tally":
            sql = "INSERT INTO tally AS t (kind, bucket, number) VALUES ($1, $2, $3)"
            more = " ON CONFLICT (kind, bucket) DO UPDATE SET number = t.number + excluded.number"
            await self._connection.executemany(sql + more, rows)
            return
        await self._connection.copy_records_to_table(table, records=rows, columns=list(columns))

    async def finish(self) -> None:
        for sql in self._indexes:
            await self._connection.execute(sql)
        for table in NUMBERED:
            await self._connection.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT COALESCE(MAX(id), 1) FROM {table}))"
            )
        for table in self._tables:
            await self._connection.execute(f"VACUUM ANALYZE {table}")

    async def close(self) -> None:
        await self._connection.close()
