"""Databases at the newest schema to copy from, one a test process: migrating takes longer than most tests do."""

from __future__ import annotations

import asyncio
import tempfile
from functools import cache
from pathlib import Path

from handclasp.store.migrate import upgrade
from support.postgres import shared_cluster


@cache
def sqlite() -> bytes:
    """Return the bytes of an SQLite database."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "empty.db"
        asyncio.run(upgrade(f"sqlite:///{path}"))
        return path.read_bytes()


@cache
def postgresql() -> str:
    """Return the name of a database on the run's cluster; it goes away with the cluster."""
    cluster = shared_cluster()
    name = cluster.create_database()
    asyncio.run(upgrade(cluster.url(name)))
    return name
