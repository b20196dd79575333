"""The ledger: every change of state goes through here, together with the log entries that tell of it.

Callers hand in a :class:`Write` and wait. One task gathers what is waiting and commits it in a single transaction (group commit), so a
hundred issuances cost one sync to disk. The order of commits is the order of the log: the first thing a transaction does is lock the log's
head, and it gives its entries the next free places, so the log has no gaps and no reader ever sees a later entry before an earlier one.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import asyncpg
from sqlalchemy import insert
from sqlalchemy.sql.base import Executable

from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault
from handclasp.store import tables
from handclasp.store.backend import Backend, compile_statement

declare("ledger.begun", "ledger.written", "ledger.committed")

MAX_BATCH = 512
"""Writes in one transaction: beyond this the gain is flat and the wait of the first one grows."""


class LoggedEntry(Protocol):
    """What the ledger needs of a log entry (see :class:`handclasp.log.entries.Entry`)."""

    @property
    def data(self) -> bytes:
        """The exact bytes that are hashed."""

    @property
    def personal(self) -> Sequence[tuple[str, bytes, str]]:
        """(field, salt, value) for each salted value in it."""

    @property
    def subjects(self) -> Sequence[str]:
        """What it is about, for look-ups."""


@dataclass(slots=True)
class Change:
    """One SQLAlchemy Core statement; with ``expect``, the whole write is undone unless it touches exactly that many rows."""

    statement: Executable
    expect: int | None = None
    conflict: HandclaspError | None = None


@dataclass(slots=True)
class CertificateRow:
    """A certificate about to be recorded. Times in milliseconds, fingerprints raw. See ``store.tables.certificate`` for the columns."""

    sha256: bytes
    serial: bytes
    der: bytes
    authority_id: int
    identity: str
    owner: str | None
    profile: str
    names: str
    spki_sha256: bytes
    key_type: str
    not_before: int
    not_after: int
    renew_after: int
    renew_before: int
    line: bytes
    generation: int
    predecessor: bytes | None
    granted_by: str
    obtained_by: str
    crl_shard: int


@dataclass(slots=True)
class Write:
    """One unit that becomes durable as a whole or not at all."""

    entries: Sequence[LoggedEntry]
    changes: Sequence[Change] = ()
    certificate: CertificateRow | None = None
    spend_token: str | None = None
    """Id of the token of which this uses one; refused when none is left, or it was revoked meanwhile."""
    spend_jwt: tuple[str, str, int] | None = None
    """(issuer, jti, expires_at) of an OIDC token that may be used once."""
    bump: bool = False
    """Tell every process that tokens, policy, profiles or authorities changed."""


@dataclass(slots=True)
class _Waiting:
    write: Write
    done: asyncio.Future[int]
    refused: HandclaspError | None = None
    identity_id: int = 0
    index: int = field(default=0)


_CERTIFICATE_COLUMNS = [
    "sha256", "serial", "der", "authority_id", "identity_id", "profile", "names", "spki_sha256", "key_type", "not_before", "not_after",
    "renew_after", "renew_before", "line", "generation", "predecessor", "granted_by", "obtained_by", "crl_shard", "log_index",
]  # fmt: skip


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
        self._sql = _Statements(backend)
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
        return await done

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
        except (sqlite3.IntegrityError, asyncpg.IntegrityConstraintViolationError) as error:
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
                one.refused = one.refused or unavailable
        for one in batch:
            if one.done.done():
                continue  # the caller went away; what it asked for is recorded all the same
            if one.refused is None:
                one.done.set_result(one.index)
            else:
                one.done.set_exception(one.refused)

    async def _commit(self, batch: list[_Waiting]) -> None:
        if not self._connected:
            await self._backend.connect()
            self._connected = True
        backend = self._backend
        await backend.begin()
        fault("ledger.begun")
        head = (await backend.fetch(self._sql.head))[0][0]
        await self._guard(batch)
        for one in batch:
            if one.refused is None and one.write.changes:
                await self._apply_changes(one)
        size = self._number(batch, head)
        await self._insert(batch)
        await backend.execute(self._sql.set_head, (size,))
        fault("ledger.written")
        await backend.commit()
        fault("ledger.committed")
        if any(one.write.bump and one.refused is None for one in batch):
            self.generation += 1

    # --- what may stop a write ------------------------------------------------------------------------------------------------------------

    async def _guard(self, batch: list[_Waiting]) -> None:
        """Refuse the writes whose token, JWT, key or predecessor does not allow them now that nobody else can write."""
        with_certificate = [one for one in batch if one.write.certificate is not None]
        if with_certificate:
            await self._resolve_identities(with_certificate)
            await self._guard_keys(with_certificate)
            await self._guard_predecessors(with_certificate)
        for one in batch:
            if one.write.spend_jwt is not None and one.refused is None:
                issuer, jti, expires_at = one.write.spend_jwt
                if not await self._backend.execute(self._sql.spend_jwt, (issuer, jti, expires_at)):
                    one.refused = HandclaspError(Kind.REPLAYED, "this identity token was already used, and policy allows one use")
        await self._spend_tokens([one for one in batch if one.write.spend_token is not None and one.refused is None])

    async def _resolve_identities(self, batch: list[_Waiting]) -> None:
        wanted = {one.write.certificate.identity: one.write.certificate.owner for one in batch if one.write.certificate is not None}
        missing = [name for name in wanted if name not in self._identity_ids]
        if missing:
            now = self._clock()
            await self._backend.many(self._sql.add_identity, [(name, wanted[name], now) for name in missing])
            for name in missing:
                found = await self._backend.fetch(self._sql.identity_id, (name,))
                if len(self._identity_ids) > 200_000:  # a cache, not a table: about 40 MB of names at most
                    self._identity_ids.clear()
                    return await self._resolve_identities(batch)
                self._identity_ids[name] = found[0][0]
        for one in batch:
            assert one.write.certificate is not None
            one.identity_id = self._identity_ids[one.write.certificate.identity]
        return None

    async def _guard_keys(self, batch: list[_Waiting]) -> None:
        """A key belongs to the first identity that was certified with it, and a blocked key to nobody."""
        first: dict[bytes, int] = {}
        for one in batch:
            assert one.write.certificate is not None
            first.setdefault(one.write.certificate.spki_sha256, one.identity_id)
        now = self._clock()
        await self._backend.many(self._sql.add_key, [(spki, identity_id, now) for spki, identity_id in first.items()])
        owners: dict[bytes, tuple[int | None, int | None]] = {}
        for chunk in _chunks(list(first), 256):
            for spki, identity_id, blocked_at in await self._backend.fetch(*self._sql.keys(chunk)):
                owners[bytes(spki)] = (identity_id, blocked_at)
        for one in batch:
            assert one.write.certificate is not None
            owner, blocked_at = owners[one.write.certificate.spki_sha256]
            if blocked_at is not None:
                one.refused = HandclaspError(Kind.BLOCKED_KEY, "this key is blocked", hint="make a new key")
            elif owner != one.identity_id:
                one.refused = HandclaspError(Kind.REUSED_KEY, "this key belongs to another identity", hint="make one key for each identity")

    async def _guard_predecessors(self, batch: list[_Waiting]) -> None:
        for one in batch:
            row = one.write.certificate
            if row is None or row.predecessor is None or one.refused is not None:
                continue
            found = await self._backend.fetch(self._sql.revoked_at, (row.predecessor,))
            if not found or found[0][0] is not None:
                one.refused = HandclaspError(Kind.REVOKED, "the certificate being renewed is revoked")
                continue
            await self._backend.execute(self._sql.supersede, (row.sha256, self._clock(), row.predecessor))

    async def _spend_tokens(self, batch: list[_Waiting]) -> None:
        asked = Counter(one.write.spend_token for one in batch)
        left: dict[str | None, float] = {}
        for token_id in asked:
            found = await self._backend.fetch(self._sql.token, (token_id,))
            if not found or found[0][2] is not None:
                left[token_id] = -1
            else:
                uses, used, _ = found[0]
                left[token_id] = uses - used if uses else float("inf")
        spent: Counter[str | None] = Counter()
        for one in batch:
            token_id = one.write.spend_token
            if left[token_id] < 0:
                one.refused = HandclaspError(Kind.TOKEN_REVOKED, "this token was revoked")
            elif spent[token_id] >= left[token_id]:
                one.refused = HandclaspError(Kind.TOKEN_SPENT, "this token has no use left", hint="ask its owner for a new one")
            else:
                spent[token_id] += 1
        now = self._clock()
        for token_id, count in spent.items():
            await self._backend.execute(self._sql.spend_token, (count, now, token_id))

    async def _apply_changes(self, one: _Waiting) -> None:
        """Run a write's own statements inside a savepoint, so that its conflict undoes it and nothing else."""
        await self._backend.execute("SAVEPOINT one")
        for change in one.write.changes:
            touched = await self._backend.execute(*compile_statement(change.statement, self._backend.dialect))
            if change.expect is not None and touched != change.expect:
                one.refused = change.conflict or HandclaspError(Kind.CONFLICT, "somebody else changed this at the same moment")
                await self._backend.execute("ROLLBACK TO SAVEPOINT one")
                break
        await self._backend.execute("RELEASE SAVEPOINT one")

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


class _Statements:
    """The ledger's own SQL, in the placeholders of its database."""

    def __init__(self, backend: Backend) -> None:
        self._mark = "?" if backend.dialect.name == "sqlite" else "$"
        lock = backend.lock_suffix
        self.head = f"SELECT size FROM log_head WHERE id = 1{lock}"  # noqa: S608  (a constant of ours)
        self.set_head = self._text("UPDATE log_head SET size = ? WHERE id = 1")
        self.identity_id = self._text("SELECT id FROM identity WHERE name = ?")
        self.add_identity = self._text("INSERT INTO identity (name, owner, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
        self.add_key = self._text("INSERT INTO key (spki_sha256, identity_id, first_seen_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
        self.revoked_at = self._text("SELECT revoked_at FROM certificate WHERE sha256 = ?")
        self.supersede = self._text(
            "UPDATE certificate SET superseded_by = ?, superseded_at = ? WHERE sha256 = ? AND superseded_by IS NULL"
        )
        self.token = self._text("SELECT uses, used, revoked_at FROM token WHERE id = ?")
        self.spend_token = self._text("UPDATE token SET used = used + ?, last_used_at = ? WHERE id = ?")
        self.spend_jwt = self._text("INSERT INTO replay (issuer, jti, expires_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
        self.bump = "UPDATE meta SET value = CAST(CAST(value AS BIGINT) + 1 AS TEXT) WHERE name = 'generation'"
        self.add_certificate = self._insert(tables.certificate, _CERTIFICATE_COLUMNS, backend)
        self.add_entry = self._insert(tables.log_entry, ["index", "entry"], backend)
        self.add_personal = self._insert(tables.log_personal, ["index", "field", "salt", "value"], backend)
        self.add_subject = self._insert(tables.log_subject, ["subject", "index"], backend)

    def _text(self, sql: str) -> str:
        if self._mark == "?":
            return sql
        parts = sql.split("?")
        return "".join(part + (f"${number}" if number < len(parts) else "") for number, part in enumerate(parts, 1))

    @staticmethod
    def _insert(table: Any, columns: list[str], backend: Backend) -> str:
        return str(insert(table).compile(dialect=backend.dialect, column_keys=columns))

    def keys(self, spkis: list[bytes]) -> tuple[str, Sequence[Any]]:
        """Who the keys belong to: the query and its arguments."""
        if self._mark == "$":
            return "SELECT spki_sha256, identity_id, blocked_at FROM key WHERE spki_sha256 = ANY($1::bytea[])", [spkis]
        marks = ",".join("?" * len(spkis))
        return f"SELECT spki_sha256, identity_id, blocked_at FROM key WHERE spki_sha256 IN ({marks})", spkis  # noqa: S608


def _chunks(items: list[bytes], size: int) -> list[list[bytes]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _first_line(error: BaseException) -> str:
    """The database's own words, without detail lines (they can quote row values)."""
    with contextlib.suppress(IndexError):
        return str(error).splitlines()[0][:200]
    return type(error).__name__
