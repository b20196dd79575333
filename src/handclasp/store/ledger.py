"""The ledger: every change of state goes through here, together with the log entries that tell of it.

Callers hand in a :class:`Write` and wait. One task gathers what is waiting and commits it in a single transaction (group commit), so a
hundred issuances cost one sync to disk. The order of commits is the order of the log: the first thing a transaction does is lock the log's
head, and it gives its entries the next free places, so the log has no gaps and no reader ever sees a later entry before an earlier one.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault
from handclasp.store.backend import Backend, compile_many, compile_statement
from handclasp.store.guard import Guard
from handclasp.store.statements import Statements
from handclasp.store.writes import CertificateRow, Write

declare("ledger.begun", "ledger.written", "ledger.committed")

MAX_BATCH = 512
"""Writes in one transaction: beyond this the gain is flat and the wait of the first one grows."""

MAX_REMEMBERED = 200_000
"""Identities whose row numbers are kept in memory: about 40 MB of names at most."""

POISON = (
    sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError,
    asyncpg.IntegrityConstraintViolationError, asyncpg.DataError, ValueError, TypeError, OverflowError,
)  # fmt: skip
"""What drivers raise when a value is wrong, and not the database: text that cannot be stored (a NUL in PostgreSQL), a row that is there."""


@dataclass(slots=True)
class _Waiting:
    write: Write
    done: asyncio.Future[int]
    refused: HandclaspError | None = None
    identity_id: int = 0
    index: int = field(default=0)


Observer = Callable[[Write, float, HandclaspError | None], None]


def _nobody(_write: Write, _seconds: float, _refused: HandclaspError | None) -> None:
    """Look away."""


class Ledger:
    """Group commit over one writing connection. Safe to call from any number of tasks of one event loop."""

    def __init__(self, backend: Backend, clock: Clock, *, window: float = 0.001) -> None:
        self._backend = backend
        self._clock = clock
        self._window = window
        self._waiting: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._connected = False
        self._identity_ids: dict[str, int] = {}
        self._sql = Statements(backend)
        self.observe: Observer = _nobody
        """Told of every commit: the write, how long it took in seconds, and why it was refused or None."""
        self.generation = 0
        """Rises whenever tokens, policy, profiles or authorities changed, in this process or (through the store's poll) another."""

    def start(self) -> None:
        """Begin committing; called once, from inside the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="ledger")

    async def commit(self, write: Write) -> int:
        """Commit ``write`` and return the place of its first entry in the log.

        Durable on return: rows and entries together. Raises ``token_spent``, ``token_revoked``, ``replayed``, ``reused_key``,
        ``blocked_key``, ``revoked`` or the write's own conflict when it may not happen (nothing of it is stored then), ``unavailable``
        when the database cannot take it. In doubt (connection lost during the commit) it raises ``unavailable`` although the write may
        have happened: callers must not have promised anything yet.
        """
        if self._closing or self._task is None or self._task.done():
            raise HandclaspError(Kind.UNAVAILABLE, "the server is shutting down", retry_after=1)
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(write, done))
        if len(self._waiting) == 1:
            self._wake.set()
        began = time.monotonic()
        try:
            index = await done
        except HandclaspError as error:
            self.observe(write, time.monotonic() - began, error)
            raise
        self.observe(write, time.monotonic() - began, None)
        return index

    async def close(self) -> None:
        """Commit what is waiting, then stop."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        await self._backend.close()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            if not self._closing:
                await asyncio.sleep(self._window)  # let the requests of this moment gather
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            if not self._waiting:
                self._wake.clear()
            if batch:
                await self._commit_or_explain(batch)
            if self._closing and not self._waiting:
                return

    async def _commit_or_explain(self, batch: list[_Waiting]) -> None:
        """Commit a batch; when something unforeseen is wrong with it, each write alone, so that one cannot take the others down."""
        try:
            await self._commit(batch)
        except POISON as error:
            await self._backend.rollback()
            if len(batch) > 1:
                for one in batch:
                    one.refused = None
                    await self._commit_or_explain([one])
                return
            batch[0].refused = HandclaspError(Kind.CONFLICT, f"the database refuses this change: {_first_line(error)}")
        except Exception as error:  # whatever the driver raises, callers get an answer and the next batch gets a fresh start
            await self._backend.rollback()
            self._connected = False
            unavailable = HandclaspError(Kind.UNAVAILABLE, f"the database cannot be written: {_first_line(error)}", retry_after=1)
            for one in batch:
                one.refused = unavailable  # also who was refused: perhaps only because of another one that did not happen either
        for one in batch:
            if one.done.done():
                continue  # the caller went away; what it asked for is recorded all the same
            if one.refused is None:
                one.done.set_result(one.index)
            else:
                one.done.set_exception(one.refused)

    async def _commit(self, batch: list[_Waiting]) -> None:
        backend = self._backend
        if not self._connected or not backend.alive:
            await backend.connect()
            self._connected = True
        await backend.begin()
        fault("ledger.begun")
        head = (await backend.fetch(self._sql.head))[0][0]
        # First what changes state by itself: a revocation of this very moment counts for everybody who is judged in it.
        for one in batch:
            if one.write.changes and not one.write.is_judged:
                await self._apply_changes(one)
        guard = await self._judge([one for one in batch if one.write.is_judged])
        size = self._number(batch, head)
        await self._insert(batch)
        await guard.supersede()
        await backend.execute(self._sql.set_head, (size,))
        fault("ledger.written")
        await backend.commit()
        fault("ledger.committed")
        self._remember(guard.new_ids)
        if any(one.write.bump and one.refused is None for one in batch):
            self.generation += 1

    async def _judge(self, batch: list[_Waiting]) -> Guard:
        """Refuse what may not happen, and store what the rest means; return who judged, which knows what is left to do."""
        guard = Guard(self._backend, self._sql, self._clock(), self._identity_ids)
        if not batch:
            return guard
        await guard.read([one.write for one in batch])
        for one in batch:
            one.refused = guard.refusal(one.write)
            if one.refused is None and (one.write.changes or one.write.spend_jwt is not None):
                await self._apply_changes(one, guard)
            if one.refused is None:
                guard.take(one.write)
        await guard.take_effect()
        for one in batch:
            if one.refused is None and one.write.certificate is not None:
                identity_id = guard.id_of(one.write.certificate.identity)
                assert identity_id is not None
                one.identity_id = identity_id
        return guard

    def _remember(self, identities: dict[str, int]) -> None:
        if len(self._identity_ids) + len(identities) > MAX_REMEMBERED:
            self._identity_ids.clear()
        self._identity_ids.update(identities)

    async def _apply_changes(self, one: _Waiting, guard: Guard | None = None) -> None:
        """Run a write's own statements inside a savepoint, so that its conflict undoes it and nothing else."""
        made: list[str] = []
        await self._backend.execute("SAVEPOINT one")
        if guard is not None and one.write.changes and one.write.certificate is not None:
            made = await guard.make_identities([one.write.certificate])  # its changes may refer to it
        one.refused = await self._conflict(one.write)
        if one.refused is not None:
            await self._backend.execute("ROLLBACK TO SAVEPOINT one")
            if guard is not None:
                guard.forget_identities(made)
        await self._backend.execute("RELEASE SAVEPOINT one")

    async def _conflict(self, write: Write) -> HandclaspError | None:
        """Run a write's own statements, and return why it must be undone; None when it need not."""
        if write.spend_jwt is not None and not await self._backend.execute(self._sql.spend_jwt, write.spend_jwt):
            return HandclaspError(Kind.REPLAYED, "this identity token was already used, and policy allows one use")
        for change in write.changes:
            if change.rows is not None:
                await self._backend.many(*compile_many(change.statement, self._backend.dialect, change.rows))
                continue
            touched = await self._backend.execute(*compile_statement(change.statement, self._backend.dialect))
            if change.expect is not None and touched != change.expect:
                return change.conflict or HandclaspError(Kind.CONFLICT, "somebody else changed this at the same moment")
        return None

    # --- what is written ------------------------------------------------------------------------------------------------------------------

    @staticmethod
    def _number(batch: list[_Waiting], head: int) -> int:
        for one in batch:
            if one.refused is None:
                one.index = head
                head += len(one.write.entries)
        return head

    async def _insert(self, batch: list[_Waiting]) -> None:
        certificates: list[Sequence[Any]] = []
        entries: list[Sequence[Any]] = []
        personal: list[Sequence[Any]] = []
        subjects: list[Sequence[Any]] = []
        for one in batch:
            if one.refused is not None:
                continue
            if one.write.certificate is not None:
                certificates.append(_certificate_values(one.write.certificate, one.identity_id, one.index))
            for index, entry in enumerate(one.write.entries, one.index):
                entries.append((index, entry.data))
                personal += [(index, *item) for item in entry.personal]
                subjects += [(subject, index) for subject in entry.subjects]
        for sql, rows in (
            (self._sql.add_certificate, certificates),
            (self._sql.add_entry, entries),
            (self._sql.add_personal, personal),
            (self._sql.add_subject, subjects),
        ):
            if rows:
                await self._backend.many(sql, rows)
        if any(one.write.bump and one.refused is None for one in batch):
            await self._backend.execute(self._sql.bump)


def _certificate_values(row: CertificateRow, identity_id: int, index: int) -> tuple[Any, ...]:
    return (
        row.sha256, row.serial, row.der, row.authority_id, identity_id, row.profile, row.names, row.spki_sha256, row.key_type,
        row.not_before, row.not_after, row.renew_after, row.renew_before, row.line, row.generation, row.predecessor, row.granted_by,
        row.obtained_by, row.crl_shard, index,
    )  # fmt: skip


def _first_line(error: BaseException) -> str:
    """The database's own words, without detail lines (they can quote row values)."""
    with contextlib.suppress(IndexError):
        return str(error).splitlines()[0][:200]
    return type(error).__name__
