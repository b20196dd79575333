"""Schema migrations (Alembic), run by the server itself at start: an installation is never half a version behind its program."""

from __future__ import annotations

import asyncio
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.event import listen
from sqlalchemy.ext.asyncio import create_async_engine

MIGRATIONS = Path(__file__).parent / "migrations"

_LOCK = 0x68616E64636C61  # "handcla": the advisory lock that lets one process migrate while the others wait


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    command.upgrade(_config(connection), "head")


async def upgrade(url: str) -> None:
    """Bring the database at ``url`` to the newest schema; does nothing when it is there."""
    if url.startswith("sqlite:"):
        await asyncio.to_thread(_upgrade_sqlite, url)
        return
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://", 1), poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade)
    finally:
        await engine.dispose()


def _upgrade_sqlite(url: str) -> None:
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": 30})
    # Python's sqlite3 begins no transaction for CREATE TABLE: a kill in the middle would leave half a schema that no start gets past. And
    # who has read before it wants to write is refused at once where another process does the same, instead of being made to wait.
    listen(engine, "connect", lambda connection, _record: setattr(connection, "isolation_level", None))
    listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    try:
        with engine.begin() as connection:
            _upgrade(connection)
    finally:
        engine.dispose()
