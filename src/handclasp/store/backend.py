"""The two databases behind one small interface: what the ledger needs to write, and nothing more.

A backend owns exactly one writing connection. SQLite commits inside the event loop on purpose: a writer thread beside a busy loop costs
more in hand-over of the interpreter lock than the commit takes (``docs/decisions/databases.md``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import asyncpg
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.compiler import SQLCompiler

from handclasp.errors import HandclaspError, Kind

Arguments = Sequence[Any]


class Backend(Protocol):
    """One writing connection. Not for concurrent use: the ledger is its only caller."""

    dialect: Dialect
    lock_suffix: str
    """What a SELECT needs at its end so that the rows read stay as they are until commit."""

    @property
    def alive(self) -> bool:
        """Whether there is a connection that is not known to be broken."""

    async def connect(self) -> None:
        """Open the connection, or open it again after it broke."""

    async def begin(self) -> None:
        """Begin a transaction that no other writer can interleave with."""

    async def commit(self) -> None:
        """Make the transaction durable; when this returns it survives a power loss."""

    async def rollback(self) -> None:
        """Undo the transaction; never raises."""

    async def execute(self, sql: str, arguments: Arguments = ()) -> int:
        """Run one statement and return how many rows it touched."""

    async def fetch(self, sql: str, arguments: Arguments = ()) -> Sequence[Any]:
        """Run one query and return its rows, as sequences."""

    async def many(self, sql: str, rows: Iterable[Arguments]) -> None:
        """Run one statement for every row."""

    async def close(self) -> None:
        """Close the connection."""


def compile_statement(statement: Executable, dialect: Dialect) -> tuple[str, list[Any]]:
    """Return a SQLAlchemy Core statement as SQL text and positional arguments for ``dialect``."""
    compiled = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})  # type: ignore[attr-defined]
    assert isinstance(compiled, SQLCompiler)
    parameters = compiled.construct_params()
    return str(compiled), [parameters[name] for name in compiled.positiontup or ()]


def compile_many(statement: Executable, dialect: Dialect, rows: Iterable[Mapping[str, Any]]) -> tuple[str, list[list[Any]]]:
    """Return a statement with named bind parameters as SQL text, and the positional arguments of each row."""
    compiled = statement.compile(dialect=dialect)  # type: ignore[attr-defined]
    assert isinstance(compiled, SQLCompiler)
    names = compiled.positiontup or ()
    fixed = compiled.params
    return str(compiled), [[row[name] if name in row else fixed[name] for name in names] for row in rows]


class SqliteBackend:
    """SQLite: WAL, ``synchronous=FULL``, one writing connection for the whole installation."""

    lock_suffix = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dialect: Dialect = sqlite.dialect()
        self._connection: sqlite3.Connection | None = None

    @property
    def connection(self) -> sqlite3.Connection:
        """The writing connection."""
        if self._connection is None:
            raise HandclaspError(Kind.UNAVAILABLE, "the database is closed")
        return self._connection

    @property
    def alive(self) -> bool:
        """Whether the file is open."""
        return self._connection is not None

    async def connect(self) -> None:
        """Open the file and set what durability and speed depend on."""
        await self.close()
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5.0, cached_statements=256)
        self._connection = connection  # at once, so that it is closed when the file turns out not to be usable
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "cache_size=-65536",
            "temp_store=MEMORY",
            "wal_autocheckpoint=4000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    async def begin(self) -> None:
        """Take the write lock at once, so that a transaction never has to upgrade."""
        self.connection.execute("BEGIN IMMEDIATE")

    async def commit(self) -> None:
        """Commit; WAL with ``synchronous=FULL`` syncs before this returns."""
        self.connection.execute("COMMIT")

    async def rollback(self) -> None:
        """Undo, also after an error (a full disk, say) that already ended the transaction."""
        try:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        except (sqlite3.Error, HandclaspError):
            await self.close()  # a connection in an unknown state is not used again; the next batch opens a new one

    async def execute(self, sql: str, arguments: Arguments = ()) -> int:
        """Run one statement and return how many rows it touched."""
        return self.connection.execute(sql, arguments).rowcount

    async def fetch(self, sql: str, arguments: Arguments = ()) -> Sequence[Any]:
        """Run one query and return its rows."""
        return self.connection.execute(sql, arguments).fetchall()

    async def many(self, sql: str, rows: Iterable[Arguments]) -> None:
        """Run one statement for every row."""
        self.connection.executemany(sql, rows)

    async def close(self) -> None:
        """Close the connection; the WAL is folded into the file when it was the last one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


STANDSTILL = 10.0
"""Seconds that a process may say nothing in the middle of a transaction: one that is stopped, or whose machine is gone."""


class PostgresBackend:
    """PostgreSQL through asyncpg: one connection per process for writing."""

    lock_suffix = " FOR UPDATE"

    def __init__(self, url: str) -> None:
        self.url = url
        self.dialect: Dialect = postgresql.asyncpg.dialect()  # type: ignore[no-untyped-call]
        self._connection: asyncpg.Connection | None = None

    @property
    def connection(self) -> Any:
        """The writing connection."""
        if self._connection is None or self._connection.is_closed():
            raise HandclaspError(Kind.UNAVAILABLE, "the database connection is lost", retry_after=1)
        return self._connection

    @property
    def alive(self) -> bool:
        """Whether the server has not closed the connection: one that went away while nothing was written costs nobody a write."""
        return self._connection is not None and not self._connection.is_closed()

    async def connect(self) -> None:
        """Connect; ``synchronous_commit`` is set here so that a server-wide default cannot weaken a commit.

        Whoever stands still in a transaction keeps every other process from writing: the database ends its session after a while.
        """
        await self.close()
        settings = {
            "synchronous_commit": "on",
            "idle_in_transaction_session_timeout": str(round(STANDSTILL * 1000)),
            "application_name": "handclasp-ledger",
        }
        self._connection = await asyncpg.connect(self.url, timeout=10, command_timeout=30, server_settings=settings)

    async def begin(self) -> None:
        """Begin; the ledger takes the log head's row lock first, which is what keeps other writers out."""
        await self.connection.execute("BEGIN")

    async def commit(self) -> None:
        """Commit."""
        await self.connection.execute("COMMIT")

    async def rollback(self) -> None:
        """Undo; a connection that cannot even do that is dropped."""
        try:
            if self._connection is not None and not self._connection.is_closed():
                await self._connection.execute("ROLLBACK")
        except Exception:  # asyncpg has errors of its own beside the server's and the network's
            await self.close()

    async def execute(self, sql: str, arguments: Arguments = ()) -> int:
        """Run one statement and return how many rows it touched."""
        status: str = await self.connection.execute(sql, *arguments)
        last = status.rsplit(" ", 1)[-1]
        return int(last) if last.isdigit() else -1

    async def fetch(self, sql: str, arguments: Arguments = ()) -> Sequence[Any]:
        """Run one query and return its rows."""
        rows: Sequence[Any] = await self.connection.fetch(sql, *arguments)
        return rows

    async def many(self, sql: str, rows: Iterable[Arguments]) -> None:
        """Run one statement for every row, pipelined."""
        await self.connection.executemany(sql, rows)

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            if not connection.is_closed():
                try:
                    await connection.close(timeout=2)
                except Exception:  # whatever it says, it is over
                    connection.terminate()
