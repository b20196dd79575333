"""Opening a database, reading from it, and keeping it at the newest schema."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import Engine, Row, create_engine, event, select, text
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool
from sqlalchemy.sql import Select

from handclasp.clock import Clock, system_clock
from handclasp.errors import HandclaspError, Kind
from handclasp.store import tables
from handclasp.store.backend import Backend, PostgresBackend, SqliteBackend
from handclasp.store.ledger import Ledger

GENERATION_POLL = 0.5
"""Seconds after which a change of policy, tokens or authorities made by another process is seen here."""

_log = logging.getLogger("handclasp.store")

_AWAY = (DBAPIError, PoolTimeout, sqlite3.Error, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
"""What a database that is away makes the layers raise; SQLAlchemy does not wrap what asyncpg raises while it connects."""

_STEPS = 20_000
"""Instructions of SQLite's machine (about a millisecond) between two looks at the clock, in a query that may not take long."""

_WITHIN = text(
    "SELECT set_config('statement_timeout', :limit, true), set_config('plan_cache_mode', 'force_custom_plan', true), "
    "set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)"
)
"""What a query that is tried is run with: it finds few rows by indexes, or is stopped. Plans that read whole tables first are no help."""

LEADER_POLL = 0.5
"""Seconds between looks at whether the connection that holds a leader's lock is alive."""

LEADER_PATIENCE = 10.0
"""Seconds that such a look may take before the lock counts as lost."""

LEADER_SILENCE = 30.0
"""Seconds after which the database ends the session of a leader that does not look: it stands still, or its machine is gone."""

_SILENCE = text("SELECT set_config(name, :limit, false) FROM pg_settings WHERE name = 'idle_session_timeout'")  # from PostgreSQL 14 on


class Store:
    """One open database: reads here, writes through :attr:`ledger`."""

    def __init__(self, url: str, clock: Clock = system_clock, *, window: float = 0.001) -> None:
        self.url = url
        self.clock = clock
        self.sqlite_path = _sqlite_path(url)
        self._sync: Engine | None = None
        self._async: AsyncEngine | None = None
        self._single: AsyncEngine | None = None
        backend: Backend
        if self.sqlite_path is not None:
            backend = SqliteBackend(self.sqlite_path)
        else:
            backend = PostgresBackend(url)
        self.ledger = Ledger(backend, clock, window=window)
        self._hot: sqlite3.Connection | None = None
        self._poll: asyncio.Task[None] | None = None
        self._seen_generation = ""

    @classmethod
    async def open(cls, url: str, clock: Clock = system_clock, *, window: float = 0.001, migrate: bool = True) -> Store:
        """Open ``sqlite:///PATH`` or ``postgresql://…``, bring the schema up to date, and start the ledger.

        Raises ``unavailable`` when the database cannot be reached, ``bad_setting`` for another URL.
        """
        store = cls(url, clock, window=window)
        try:
            if migrate:
                await store.migrate()
            store._open_readers()
            store.ledger.start()
            await store._poll_generation()
        except (OSError, sqlite3.Error, asyncpg.PostgresError, DBAPIError) as error:
            raise HandclaspError(Kind.UNAVAILABLE, f"the database cannot be opened: {str(error).splitlines()[0]}") from error
        store._poll = asyncio.get_running_loop().create_task(store._keep_polling(), name="generation")
        return store

    @property
    def is_sqlite(self) -> bool:
        """Whether this is the embedded database (one process) and not PostgreSQL (any number)."""
        return self.sqlite_path is not None

    @property
    def generation(self) -> int:
        """A number that changes whenever tokens, policy, profiles or authorities changed anywhere (seen within 0.5 s)."""
        return self.ledger.generation

    async def migrate(self) -> None:
        """Bring the schema to the newest version. Safe to run from several processes at once; durable on return."""
        from handclasp.store.migrate import upgrade

        if self.sqlite_path is not None:
            self.sqlite_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        await upgrade(self.url)

    def _open_readers(self) -> None:
        if self.sqlite_path is not None:
            path = self.sqlite_path
            self._sync = create_engine("sqlite+pysqlite://", creator=lambda: _read_only(path), poolclass=QueuePool, pool_size=4)
            self._hot = _read_only(path)
        else:
            self._async = create_async_engine(
                self.url.replace("postgresql://", "postgresql+asyncpg://", 1), pool_size=4, max_overflow=4, pool_pre_ping=True
            )
            event.listen(self._async.sync_engine, "connect", _for_short_queries)
            # The same connections, without a transaction around each query, which is two more messages to the server and back.
            self._single = self._async.execution_options(isolation_level="AUTOCOMMIT")

    async def rows(self, statement: Select[Any], *, within: float | None = None) -> Sequence[Row[Any]]:
        """Run a query and return its rows. It may take long: other requests go on meanwhile.

        With ``within`` it is stopped after so many seconds, and ``timeout`` is raised: for a query that is tried, and has another way
        beside it. Raises ``unavailable``.
        """
        try:
            if self._sync is not None:
                return await asyncio.to_thread(self._rows_sync, statement, within)
            engine = self._single if within is None else self._async  # what is set for one query holds until its transaction ends
            assert engine is not None
            async with engine.connect() as connection:
                if within is not None:
                    # Planned for its own values: a plan for any values cannot know how much of an index lies between two ends.
                    await connection.execute(_WITHIN, {"limit": str(max(1, round(within * 1000)))})
                found: Sequence[Row[Any]] = (await connection.execute(statement)).all()
                return found
        except _AWAY as error:
            if within is not None and _was_stopped(error):
                raise HandclaspError(Kind.TIMEOUT, "this query took too long") from error
            raise HandclaspError(Kind.UNAVAILABLE, "the database cannot be read", retry_after=1) from error

    async def row(self, statement: Select[Any]) -> Row[Any] | None:
        """Run a query and return its first row, or None."""
        found = await self.rows(statement.limit(1))
        return found[0] if found else None

    def _rows_sync(self, statement: Select[Any], within: float | None = None) -> Sequence[Row[Any]]:
        assert self._sync is not None
        with self._sync.connect() as connection:
            if within is None:
                return connection.execute(statement).all()
            raw = connection.connection.driver_connection
            assert isinstance(raw, sqlite3.Connection)
            end = time.monotonic() + within
            raw.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
            try:
                return connection.execute(statement).all()
            finally:
                raw.set_progress_handler(None, 0)

    async def point(self, sql: str, arguments: Sequence[Any]) -> tuple[Any, ...] | None:
        """Read one row by key on the hot path. ``sql`` has ``?`` marks. On SQLite this is a few microseconds, in the loop."""
        try:
            if self._hot is not None:
                found: tuple[Any, ...] | None = self._hot.execute(sql, arguments).fetchone()
                return found
            assert self._single is not None
            async with self._single.connect() as connection:
                names = {f"p{number}": value for number, value in enumerate(arguments)}
                row = (await connection.execute(text(_named(sql)), names)).first()
                return tuple(row) if row is not None else None
        except _AWAY as error:
            raise HandclaspError(Kind.UNAVAILABLE, "the database cannot be read", retry_after=1) from error

    async def meta(self, name: str) -> str | None:
        """Return what the row ``name`` of the table ``meta`` says; None where there is none. Raises ``unavailable``."""
        found = await self.point("SELECT value FROM meta WHERE name = ?", (name,))
        return None if found is None else str(found[0])

    async def entries(self, start: int, limit: int) -> list[bytes]:
        """Return log entries in order from ``start``, at most ``limit`` of them."""
        column = tables.log_entry.c
        found = await self.rows(select(column.entry).where(column.index >= start).order_by(column.index).limit(limit))
        return [bytes(row.entry) for row in found]

    @contextlib.asynccontextmanager
    async def leader(self, name: str) -> AsyncIterator[bool]:
        """Yield whether this process alone does the job ``name`` while inside. SQLite has one process, so always true there.

        The lock lives as long as its connection. When that breaks, what runs inside is cancelled and ``unavailable`` is raised, because
        another process may be the leader already.
        """
        if self._async is None:
            yield True
            return
        key = int.from_bytes(name.encode()[:7].ljust(7, b"\0"), "big")
        watcher: asyncio.Task[None] | None = None
        try:
            async with self._async.connect() as connection, asyncio.timeout(None) as term:
                got = bool((await connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key})).scalar())
                if got:
                    await connection.execute(_SILENCE, {"limit": str(round(LEADER_SILENCE * 1000))})
                await connection.commit()
                if got:
                    watcher = asyncio.get_running_loop().create_task(_end_with(connection, term), name=f"leader {name}")
                try:
                    yield got
                finally:
                    if watcher is not None:
                        watcher.cancel()
                        await asyncio.wait([watcher])
                        await _unlock(connection, key)
        except _AWAY as error:  # a term that was ended is a TimeoutError, which is an OSError
            raise HandclaspError(Kind.UNAVAILABLE, f"the lock for {name} was lost with the database's connection", retry_after=1) from error

    async def _poll_generation(self) -> None:
        value = await self.meta("generation") or ""
        if value != self._seen_generation:
            self._seen_generation = value
            self.ledger.generation += 1

    async def _keep_polling(self) -> None:
        while True:
            await asyncio.sleep(GENERATION_POLL)
            try:
                await self._poll_generation()
            except HandclaspError:
                pass  # a database that is away is reported by those who need it
            except Exception:  # without this, a revocation in another process would never be seen here
                _log.exception("the generation cannot be looked at")

    async def close(self) -> None:
        """Commit what is waiting and close every connection."""
        if self._poll is not None:
            self._poll.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poll
        # Readers first: SQLite folds the WAL into the file when the last connection ends, and only one that may write can. What is copied
        # from a server that was stopped is then the whole database.
        if self._hot is not None:
            self._hot.close()
        if self._sync is not None:
            self._sync.dispose()
        await self.ledger.close()
        if self._async is not None:
            await self._async.dispose()


def _was_stopped(error: BaseException) -> bool:
    """Tell whether a query ended because its time was over: SQLite says ``interrupted``, PostgreSQL has a code for it."""
    cause = getattr(error, "orig", None) or error
    return "interrupted" in str(cause) or getattr(cause, "sqlstate", getattr(cause, "pgcode", "")) == "57014"


async def _unlock(connection: AsyncConnection, key: int) -> None:
    """Give a lock back; a connection that cannot do that is dropped, and the lock with it."""
    try:
        await connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})
        await connection.execute(_SILENCE, {"limit": "0"})
        await connection.commit()
    except (*_AWAY, PendingRollbackError):
        await connection.invalidate()


async def _end_with(connection: AsyncConnection, term: asyncio.Timeout) -> None:
    """End ``term`` when the connection breaks."""
    try:
        while True:
            await asyncio.sleep(LEADER_POLL)
            async with asyncio.timeout(LEADER_PATIENCE):
                await connection.execute(text("SELECT 1"))
                await connection.commit()
    except _AWAY:
        term.reschedule(asyncio.get_running_loop().time())


def _for_short_queries(connection: Any, _record: Any) -> None:
    """Readers ask much that is short: to start workers, or to compile, takes longer than such a query."""
    cursor = connection.cursor()
    cursor.execute("SELECT set_config('jit', 'off', false), set_config('max_parallel_workers_per_gather', '0', false)")
    cursor.close()
    connection.commit()  # else it ends with the transaction


def _sqlite_path(url: str) -> Path | None:
    if url.startswith("sqlite:///"):
        return Path(url.removeprefix("sqlite:///"))
    if url.startswith("postgresql://"):
        return None
    raise HandclaspError(
        Kind.BAD_SETTING, f"{url.split('://')[0]!r} is not a database we know", hint="use sqlite:///PATH or postgresql://USER@HOST/NAME"
    )


def _read_only(path: Path) -> sqlite3.Connection:
    """A reader that can never write or checkpoint: SQLite before 3.51.3 may corrupt a WAL file that two connections checkpoint."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False, timeout=5.0)
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("PRAGMA query_only=ON")
    connection.execute("PRAGMA cache_size=-16384")
    return connection


def _named(sql: str) -> str:
    parts = sql.split("?")
    return "".join(part + (f":p{number}" if number < len(parts) - 1 else "") for number, part in enumerate(parts))
