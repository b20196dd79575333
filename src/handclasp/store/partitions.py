"""The months of the certificate table on PostgreSQL, which is partitioned by the certificates' ends.

    certificate_kept       (MINVALUE, oldest month): the few of earlier months that stay
    certificate_2026_11    [month, next month), in UTC
    certificate_default    everything else: ends far ahead, and whatever has no month yet

A month is made before certificates end in it, and dropped as a whole when they are old. Both need a lock that keeps readers out, for as
long as changing a few rows of the catalogue takes: it is waited for no longer than :data:`LOCK_TIMEOUT`, and asked for again the next time.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg

from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault
from handclasp.store.chunks import in_chunks

declare("partition.made", "partition.copied", "partition.dropped")

PARENT, KEPT, DEFAULT, NEXT = "certificate", "certificate_kept", "certificate_default", "certificate_next"

LOCK_TIMEOUT = "500ms"
"""Readers and issuance queue behind a lock that is waited for, so it is not waited for longer than nobody minds."""

TOGETHER = 2
"""Months dropped under one lock: dropping a table takes some milliseconds for each of its indexes."""

CLOCKS = 600_000
"""Milliseconds by which the clocks of two servers may differ."""

_MONTH = re.compile(rf"{PARENT}_(\d{{4}})_(\d\d)")


@dataclass(frozen=True, order=True, slots=True)
class Month:
    """One month, in UTC."""

    year: int
    month: int

    @classmethod
    def of(cls, at: int) -> Month:
        """Return the month of a time (milliseconds)."""
        moment = datetime.fromtimestamp(at // 1000, UTC)
        return cls(moment.year, moment.month)

    @property
    def next(self) -> Month:
        """The month after."""
        return Month(self.year + self.month // 12, self.month % 12 + 1)

    @property
    def begin(self) -> int:
        """Its first millisecond."""
        return int(datetime(self.year, self.month, 1, tzinfo=UTC).timestamp()) * 1000

    @property
    def end(self) -> int:
        """The first millisecond after it."""
        return self.next.begin

    @property
    def table(self) -> str:
        """What its partition is called."""
        return f"{PARENT}_{self.year:04}_{self.month:02}"


def months(first: Month, count: int) -> list[Month]:
    """Return ``count`` months from ``first`` on."""
    found = [first]
    while len(found) < count:
        found.append(found[-1].next)
    return found[:count]


class Partitions:
    """Makes and drops months. For one caller at a time (a leader's job); other processes read and issue meanwhile."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def existing(self) -> list[Month]:
        """Return the months that there are, the oldest first. Raises ``unavailable``."""
        async with self._connected() as connection:
            return await _existing(connection)

    async def make(self, first: Month, count: int) -> list[Month]:
        """Make the months from ``first`` on that are missing, and earlier ones of which there are rows without a month; return those made.

        Rows of a month that are in the DEFAULT partition move into it in the same transaction. Durable on return, month by month. Raises
        ``unavailable``, also where somebody reads for so long that the lock cannot be had now.
        """
        made: list[Month] = []
        async with self._connected() as connection:
            there = set(await _existing(connection))
            wanted = [month for month in months(first, count) if month not in there]
            horizon = months(first, count)[-1].end
            while True:
                stray = await connection.fetchval(f"SELECT MIN(not_after) FROM {DEFAULT} WHERE not_after < $1", horizon)  # noqa: S608
                if stray is None and not wanted:
                    return made
                month = wanted.pop(0) if stray is None else Month.of(stray)
                if month in wanted:
                    wanted.remove(month)
                await _make(connection, month)
                fault("partition.made")
                made.append(month)

    async def drop(self, before: int, stays: str, now: int) -> tuple[list[Month], int, int]:
        """Drop the months that ended before ``before``, but keep their rows for which ``stays`` is true.

        ``stays`` is a condition on a row ``c`` of the table. Rows that stay are in the partition of the kept ones afterwards; those of
        earlier months for which it is no longer true go, too. What has to be copied is copied before the lock is taken; what happened since
        (a sighting, a revocation) is looked at again under it. A few months at a time, each time all or nothing: killed anywhere, the next
        call goes on. Returns the months, how many rows were dropped (about), and how many were kept. Raises ``unavailable``.
        """
        async with self._connected() as connection:
            old = [month for month in await _existing(connection) if month.end <= before]
            dropped = kept = 0
            for some in in_chunks(old, TOGETHER):
                rows, kept = await self._fold(connection, some, stays, now)
                dropped += rows
            return old, dropped, kept

    async def _fold(self, connection: Any, old: Sequence[Month], stays: str, now: int) -> tuple[int, int]:
        """Put what stays of these months, and of those before, in their place; return how many rows went (about), and how many stay."""
        sources = [*([KEPT] if await _has(connection, KEPT) else []), *(month.table for month in old)]
        rows = await connection.fetchval("SELECT SUM(reltuples) FROM pg_class WHERE oid = ANY($1::text[]::regclass[])", sources)
        mark = await connection.fetchval("SELECT COALESCE(MAX(id), 0) FROM sighting")
        await self._copy(connection, sources, stays, old[-1].end)
        fault("partition.copied")
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            await connection.execute(f"LOCK TABLE {PARENT} IN ACCESS EXCLUSIVE MODE")
            await _catch_up(connection, sources, mark, now - CLOCKS)
            # Rows that old come to the DEFAULT partition no more, but they may be there; they are judged the next time.
            moved = f"WITH moved AS (DELETE FROM {DEFAULT} WHERE not_after < $1 RETURNING *)"  # noqa: S608
            await connection.execute(f"{moved} INSERT INTO {NEXT} SELECT * FROM moved", old[-1].end)  # noqa: S608
            for source in sources:
                await connection.execute(f"DROP TABLE {source}")
            await connection.execute(f"ALTER TABLE {NEXT} RENAME TO {KEPT}")
            await connection.execute(f"ALTER TABLE {PARENT} ATTACH PARTITION {KEPT} FOR VALUES FROM (MINVALUE) TO ({old[-1].end})")
            await connection.execute(f"ALTER TABLE {KEPT} DROP CONSTRAINT {NEXT}_ends")
            fault("partition.dropped")
        stay = int(await connection.fetchval(f"SELECT COUNT(*) FROM {KEPT}"))  # noqa: S608
        return max(0, int(rows) - stay), stay

    async def _copy(self, connection: Any, sources: Sequence[str], stays: str, end: int) -> None:
        """Copy what stays into a table beside, whose constraint saves the scan when it is attached."""
        async with connection.transaction():
            await connection.execute(f"DROP TABLE IF EXISTS {NEXT}")  # of a run that was killed
            await connection.execute(f"CREATE TABLE {NEXT} (LIKE {PARENT} INCLUDING DEFAULTS INCLUDING COMMENTS INCLUDING INDEXES)")
            for source in sources:
                await connection.execute(f"INSERT INTO {NEXT} SELECT c.* FROM {source} c WHERE {stays}")  # noqa: S608
            await connection.execute(f"ALTER TABLE {NEXT} ADD CONSTRAINT {NEXT}_ends CHECK (not_after < {end})")

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        """Yield a connection of its own: what runs here takes longer than the ledger's writers may wait."""
        try:
            connection = await asyncpg.connect(self._url, timeout=10, server_settings={"application_name": "handclasp-partitions"})
        except (OSError, asyncpg.PostgresError) as error:
            raise HandclaspError(Kind.UNAVAILABLE, "the database cannot be reached", retry_after=1) from error
        try:
            yield connection
        except asyncpg.LockNotAvailableError as error:
            words = "certificates are being read all the time: the lock to change their months could not be had"
            raise HandclaspError(Kind.UNAVAILABLE, words, retry_after=60, hint="it is tried again") from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise HandclaspError(Kind.UNAVAILABLE, f"months cannot be changed: {str(error).splitlines()[0][:200]}") from error
        finally:
            connection.terminate() if connection.is_closed() else await connection.close()


async def _existing(connection: Any) -> list[Month]:
    rows = await connection.fetch(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1::regclass", PARENT
    )
    found = [_MONTH.fullmatch(row[0]) for row in rows]
    return sorted(Month(int(one[1]), int(one[2])) for one in found if one is not None)


async def _has(connection: Any, table: str) -> bool:
    return bool(await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table))


async def _make(connection: Any, month: Month) -> None:
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        # As the ledger does: a certificate of this month that waits for the DEFAULT partition's lock would be refused when it has it.
        await connection.execute("SELECT size FROM log_head WHERE id = 1 FOR UPDATE")
        await connection.execute(f"LOCK TABLE {DEFAULT} IN ACCESS EXCLUSIVE MODE")
        await connection.execute(f"CREATE TABLE {month.table} (LIKE {PARENT} INCLUDING DEFAULTS INCLUDING COMMENTS INCLUDING INDEXES)")
        mine = f"not_after >= {month.begin} AND not_after < {month.end}"
        await connection.execute(
            f"WITH moved AS (DELETE FROM {DEFAULT} WHERE {mine} RETURNING *) INSERT INTO {month.table} SELECT * FROM moved"  # noqa: S608
        )
        await connection.execute(f"ALTER TABLE {PARENT} ATTACH PARTITION {month.table} FOR VALUES FROM ({month.begin}) TO ({month.end})")


async def _catch_up(connection: Any, sources: Sequence[str], mark: int, since: int) -> None:
    """Bring what changed since the copy was begun: old certificates that were seen again, and revocations of them."""
    for source in sources:
        await connection.execute(
            f"INSERT INTO {NEXT} SELECT c.* FROM {source} c WHERE c.sha256 IN"  # noqa: S608
            f" (SELECT sha256 FROM sighting WHERE id > $1 AND ended_at IS NULL) ON CONFLICT DO NOTHING",
            mark,
        )
        await connection.execute(
            f"INSERT INTO {NEXT} SELECT c.* FROM {source} c WHERE c.revoked_at >= $1 ON CONFLICT DO NOTHING",  # noqa: S608
            since,
        )
        await connection.execute(
            f"UPDATE {NEXT} n SET revoked_at = c.revoked_at, revocation_reason = c.revocation_reason FROM {source} c"  # noqa: S608
            " WHERE c.revoked_at IS NOT NULL AND n.sha256 = c.sha256 AND n.revoked_at IS DISTINCT FROM c.revoked_at"
        )
