"""Triggers that keep counters (table ``tally``) in step with the rows they count, whoever writes these.

Counting in the transaction of the change is the only way that cannot drift: several processes write, judgements are made on what was read
before, retention removes rows. One trigger for a statement on PostgreSQL, one for a row on SQLite, which has no other. Migration 0003 makes
them; what they count, and how it is counted again, is told in :mod:`handclasp.inventory.tallies`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LAST_TIME = 253_402_300_799_000
"""The end of the year 9999 in ms: certificates say so when they mean "no end", and no database writes a later year in four digits."""


@dataclass(frozen=True, slots=True)
class Counted:
    """One kind of counter: rows of ``table`` by ``bucket``, an SQL expression over ``{row}``; NULL is not counted."""

    kind: str
    table: str
    columns: tuple[str, ...]
    """Those that decide about the bucket: a change of others costs nothing."""
    bucket: str
    hour: bool = False
    """Whether ``bucket`` is a time, to be counted by its hour."""


COUNTED: Sequence[Counted] = (
    Counted("state", "standing", ("state",), "{row}state"),
    Counted("expiry", "summary", ("newest_not_after",), "{row}newest_not_after", hour=True),
    Counted("renewal", "summary", ("newest_renew_before",), "{row}newest_renew_before", hour=True),
    Counted(
        "end",
        "summary",
        ("newest_not_after", "newest_renew_before"),
        "CASE WHEN {row}newest_renew_before IS NOT NULL THEN {row}newest_not_after END",
        hour=True,
    ),
    Counted(
        "location",
        "location",
        ("problem", "gone_at"),
        "CASE WHEN {row}gone_at IS NOT NULL THEN 'gone' WHEN {row}problem IS NOT NULL THEN 'failed' ELSE 'read' END",
    ),
    Counted("owner", "identity", ("owner",), "COALESCE({row}owner, '')"),
)
"""Everything that is counted by triggers. ``end`` is ``expiry`` of those that are to be renewed: what was issued here."""


def bucket_of(counted: Counted, dialect: str, row: str = "") -> str:
    """Return the SQL of a counter's bucket; ``row`` is what its columns are prefixed with."""
    bucket = counted.bucket.format(row=row)
    if not counted.hour:
        return bucket
    if dialect == "sqlite":
        return f"strftime('%Y-%m-%dT%H', MIN(MAX({bucket}, 0), {LAST_TIME}) / 1000, 'unixepoch')"
    clamped = f"CASE WHEN {bucket} IS NULL THEN NULL ELSE LEAST(GREATEST({bucket}, 0), {LAST_TIME}) END"
    return f"to_char(to_timestamp(({clamped}) / 1000) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24')"


def _tables() -> Mapping[str, list[Counted]]:
    tables: dict[str, list[Counted]] = {}
    for counted in COUNTED:
        tables.setdefault(counted.table, []).append(counted)
    return tables


def triggers(dialect: str) -> list[str]:
    """Return the statements that make every trigger, for ``sqlite`` or ``postgresql``."""
    return _on_sqlite() if dialect == "sqlite" else _on_postgresql()


def _on_sqlite() -> list[str]:
    made = []
    for counted in COUNTED:
        old, new = bucket_of(counted, "sqlite", "old."), bucket_of(counted, "sqlite", "new.")
        less = f"UPDATE tally SET number = number - 1 WHERE kind = '{counted.kind}' AND bucket = {old};"  # noqa: S608  (constants of ours)
        more = (
            f"INSERT INTO tally (kind, bucket, number) SELECT '{counted.kind}', {new}, 1 WHERE {new} IS NOT NULL"
            " ON CONFLICT (kind, bucket) DO UPDATE SET number = number + 1;"
        )
        name, table = f"tally_{counted.kind}", counted.table
        made += [
            f"CREATE TRIGGER {name}_added AFTER INSERT ON {table} BEGIN {more} END",
            f"CREATE TRIGGER {name}_removed AFTER DELETE ON {table} BEGIN {less} END",
            f"CREATE TRIGGER {name}_changed AFTER UPDATE OF {', '.join(counted.columns)} ON {table}"
            f" WHEN {old} IS NOT {new} BEGIN {less} {more} END",
        ]
    return made


def _on_postgresql() -> list[str]:
    made = []
    for table, kinds in _tables().items():
        added = " UNION ALL ".join(_rows(counted, "new_rows", 1) for counted in kinds)
        removed = " UNION ALL ".join(_rows(counted, "old_rows", -1) for counted in kinds)
        for name, event, referencing, rows in (
            ("added", "INSERT", "NEW TABLE AS new_rows", added),
            ("removed", "DELETE", "OLD TABLE AS old_rows", removed),
            ("changed", "UPDATE", "OLD TABLE AS old_rows NEW TABLE AS new_rows", f"{added} UNION ALL {removed}"),
        ):
            made += [
                f"CREATE FUNCTION tally_{table}_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"  # noqa: S608
                " INSERT INTO tally (kind, bucket, number) SELECT kind, bucket, sum(n) AS number FROM"
                f" ({rows}) AS counted WHERE bucket IS NOT NULL GROUP BY kind, bucket HAVING sum(n) <> 0"
                " ON CONFLICT (kind, bucket) DO UPDATE SET number = tally.number + excluded.number; RETURN NULL; END $$",
                f"CREATE TRIGGER tally_{table}_{name} AFTER {event} ON {table} REFERENCING {referencing}"
                f" FOR EACH STATEMENT EXECUTE FUNCTION tally_{table}_{name}()",
            ]
    return made


def _rows(counted: Counted, rows: str, number: int) -> str:
    return f"SELECT '{counted.kind}' AS kind, {bucket_of(counted, 'postgresql')} AS bucket, {number} AS n FROM {rows}"  # noqa: S608
