"""Counters that are kept, so that no page has to count: which there are, how they are read, and how they are counted again.

    state    STATE                standings, by state                                                        by triggers
    expiry   HOUR                 identities, by the end of their newest certificate                         by triggers
    renewal  HOUR                 identities, by the moment by which their newest issued one is to be renewed  by triggers
    end      HOUR                 the same identities, by the end of that certificate                        by triggers
    location STATE                locations, read, failed or gone                                            by triggers
    owner    OWNER or empty       identities, by owner                                                       by triggers
    issued   HOUR                 certificates issued anew                                                   by the follower of the log
    renewed  HOUR                 certificates issued in the place of their predecessor                      by the follower of the log
    refused  HOUR                 issuances and renewals that were refused                                   by the follower of the log

Hours are ``YYYY-MM-DDTHH`` in UTC. Those that triggers keep cannot drift (:mod:`handclasp.store.counters`); those of the follower are
written with its place in the log, so each entry counts once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, literal_column, select, text

from handclasp.clock import parse_rfc3339, rfc3339
from handclasp.store import tables
from handclasp.store.counters import COUNTED, LAST_TIME, Counted, bucket_of
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

HOUR = 3_600_000


def hour_of(at: int) -> str:
    """Return the bucket of a moment: its hour in UTC."""
    return rfc3339(min(max(at, 0), LAST_TIME))[:13]


async def of_kind(store: Store, kind: str) -> dict[str, int]:
    """Return every counter of a kind that is not zero."""
    column = tables.tally.c
    rows = await store.rows(select(column.bucket, column.number).where(column.kind == kind, column.number != 0))
    return {row.bucket: row.number for row in rows}


async def loads(store: Store, kinds: Sequence[str], since: int, until: int, *, days: bool = False) -> dict[str, dict[int, int]]:
    """Return the counters of some kinds from ``since`` up to ``until`` (excluded) in one query: by kind, and when the hour (day) begins."""
    column = tables.tally.c
    inside = (column.kind.in_(kinds), column.bucket >= hour_of(since), column.bucket < hour_of(until + HOUR - 1))
    bucket = func.substr(column.bucket, 1, 10 if days else 13).label("of")
    query = select(column.kind, bucket, func.sum(column.number).label("number")).where(*inside).group_by(column.kind, bucket)
    found: dict[str, dict[int, int]] = {kind: {} for kind in kinds}
    for row in await store.rows(query):
        found[row.kind][parse_rfc3339(f"{row.of}T00:00:00Z" if days else f"{row.of}:00:00Z")] = int(row.number)
    return found


async def numbers(store: Store, wanted: Mapping[str, ColumnElement[Any]]) -> dict[str, int]:
    """Return several figures in one query, by their names."""
    row = await store.row(select(*(figure.label(name) for name, figure in wanted.items())))
    assert row is not None
    return {name: int(getattr(row, name)) for name in wanted}


def between(kind: str, after: int | None, until: int) -> ColumnElement[Any]:
    """Return the figure of how many identities there are after a moment (None: ever) and up to another (included).

    ``kind`` is one that counts identities by hours. It is exact: of the hours at both ends the rows are read.
    """
    tally, summary = tables.tally.c, tables.summary.c
    whole = [tally.kind == kind, tally.bucket < hour_of(until)]
    if after is not None:
        whole.append(tally.bucket >= hour_of(after))
    hours = select(func.coalesce(func.sum(tally.number), 0)).where(*whole).scalar_subquery()
    moment = summary.newest_renew_before if kind == "renewal" else summary.newest_not_after
    also = [summary.newest_renew_before.is_not(None)] if kind == "end" else []

    def within(at: int) -> ColumnElement[Any]:
        begun = [moment >= at // HOUR * HOUR, moment <= at]
        return select(func.count()).select_from(tables.summary).where(*begun, *also).scalar_subquery()

    return hours + within(until) - (within(after) if after is not None else 0)


def total(kind: str, bucket: str | None = None) -> ColumnElement[Any]:
    """Return the figure of all counters of a kind, or of one of them."""
    tally = tables.tally.c
    conditions = [tally.kind == kind, *([tally.bucket == bucket] if bucket is not None else [])]
    return select(func.coalesce(func.sum(tally.number), 0)).where(*conditions).scalar_subquery()


# --- counting again -----------------------------------------------------------------------------------------------------------------------


async def truth(store: Store) -> dict[tuple[str, str], int]:
    """Count the rows themselves, for every kind that triggers keep. Slow where there are many: for the daily look, and for tests."""
    dialect = "sqlite" if store.is_sqlite else "postgresql"
    found: dict[tuple[str, str], int] = {}
    for counted in COUNTED:
        for row in await store.rows(_counting(counted, dialect)):
            if row.bucket is not None:
                found[counted.kind, row.bucket] = int(row.number)
    return found


async def recount(store: Store) -> dict[tuple[str, str], int]:
    """Put every counter that triggers keep to what its rows are; return by how much each was off.

    A difference counts only when it is there twice: rows change while they are counted. What is wrong is then counted in the very write.
    """
    off = await _differences(store)
    again = await _differences(store) if off else {}
    off = {key: number for key, number in off.items() if again.get(key) == number}
    dialect = "sqlite" if store.is_sqlite else "postgresql"
    wrong = [counted for counted in COUNTED if any(kind == counted.kind for kind, _ in off)]
    changes = [Change(text(sql)) for counted in wrong for sql in _again(counted, dialect)]
    if changes:
        await store.ledger.commit(Write([], changes))
    return off


async def _differences(store: Store) -> dict[tuple[str, str], int]:
    right = await truth(store)
    of_ours = tables.tally.c.kind.in_([counted.kind for counted in COUNTED])
    kept = {(row.kind, row.bucket): row.number for row in await store.rows(select(tables.tally).where(of_ours))}
    return {key: kept.get(key, 0) - right.get(key, 0) for key in {*kept, *right} if kept.get(key, 0) != right.get(key, 0)}


def _counting(counted: Counted, dialect: str) -> Any:
    bucket: Any = literal_column(bucket_of(counted, dialect))
    return select(bucket.label("bucket"), func.count().label("number")).select_from(tables.metadata.tables[counted.table]).group_by(bucket)


def _again(counted: Counted, dialect: str) -> list[str]:
    bucket = bucket_of(counted, dialect).replace(":", "\\:")
    return [
        f"DELETE FROM tally WHERE kind = '{counted.kind}'",  # noqa: S608  (constants of ours)
        f"INSERT INTO tally (kind, bucket, number) SELECT '{counted.kind}', bucket, count(*) FROM (SELECT {bucket} AS bucket"  # noqa: S608
        f" FROM {counted.table}) AS counted WHERE bucket IS NOT NULL GROUP BY bucket",
    ]


def rows_of(counters: dict[tuple[str, str], int]) -> list[dict[str, Any]]:
    """Return the rows for :data:`handclasp.inventory.statements.count` that add these numbers."""
    return [{"kind": kind, "bucket": bucket, "number": number} for (kind, bucket), number in sorted(counters.items()) if number]
