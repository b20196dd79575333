"""When agents were last heard of, written together: thousands of them say the same as before each minute, and no commit each for that."""

from __future__ import annotations

import asyncio
import contextlib

from sqlalchemy import bindparam, update

from handclasp.errors import HandclaspError
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

GATHER = 2.0
"""Seconds that a contact may wait to be written; as much may be forgotten when a process is killed, until the agent's next report."""

_CONTACT = update(tables.agent).where(tables.agent.c.identity_id == bindparam("agent")).values(last_contact_at=bindparam("contact"))


class Contacts:
    """Gathers contacts. For one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[int, int] = {}
        self._task: asyncio.Task[None] | None = None

    def note(self, agent: int, at: int) -> None:
        """Note that an agent (its row) was heard of at ``at`` (ms); it is written within two seconds, without anybody waiting for it."""
        self._waiting[agent] = at
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write_soon(), name="contacts")

    async def close(self) -> None:
        """Write what still waits, as far as that can be done now. Nothing is to be noted after this."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._flush()

    async def _write_soon(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER)
            await self._flush()

    async def _flush(self) -> None:
        waiting, self._waiting = self._waiting, {}
        rows = [{"agent": agent, "contact": at} for agent, at in waiting.items()]
        with contextlib.suppress(HandclaspError):  # the database is away: the agents will be heard of again
            if rows:
                await self._store.ledger.commit(Write([], [Change(_CONTACT, rows=rows)]))
