"""Which identities are to be derived again: some for their own sake, or all after a change of rules or owners.

Both are rows, so that whoever changes something says so in the very write that changes it, and a process that dies loses nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change

SWEEP = "ownership_sweep"
"""``meta``: VERSION:PLACE while every identity is derived again, PLACE the last one that was; VERSION alone when all were."""


# One that is due already gets another number, so that who is just deriving it does not take it off the list: what it read is old.
_AGAIN = (
    " ON CONFLICT (identity_id) DO UPDATE SET since_at ="
    " CASE WHEN excluded.since_at > assignment_due.since_at THEN excluded.since_at ELSE assignment_due.since_at + 1 END"
)
DUE_BY_ID = text("INSERT INTO assignment_due (identity_id, since_at) VALUES (:identity_id, :at)" + _AGAIN)  # noqa: S608  (constants of ours)
DUE_BY_NAME = text("INSERT INTO assignment_due (identity_id, since_at) SELECT id, :at FROM identity WHERE name = :identity" + _AGAIN)  # noqa: S608
"""By these, identities are derived again, for writes of many of them at once; ``at`` in ms."""


def due(identity_ids: Iterable[int], at: int) -> Change | None:
    """Return the change by which identities are derived again; None for none."""
    rows = [{"identity_id": identity_id, "at": at} for identity_id in dict.fromkeys(identity_ids)]
    return Change(DUE_BY_ID, rows=rows) if rows else None


def sweep(store: Store, random: Callable[[int], bytes] = os.urandom) -> Change:
    """Return the change by which every identity is derived again, from the first one on."""
    value = f"{random(9).hex()}:0"
    insert = sqlite_insert if store.is_sqlite else postgres_insert
    statement = insert(tables.meta).values(name=SWEEP, value=value)
    return Change(statement.on_conflict_do_update(index_elements=["name"], set_={"value": value}))
