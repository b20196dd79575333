"""What says who owns an identity, as the wire has it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select

from handclasp.clock import rfc3339
from handclasp.ownership.rules import Candidate, rank
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.wire.ownership import Assignment


async def said_of(store: Store, identity_id: int) -> list[Assignment]:
    """Return everything that says who owns an identity, the strongest first; the first with an owner is why it has the owner it has."""
    rows = await store.rows(select(tables.assignment).where(tables.assignment.c.identity_id == identity_id))
    return [show_row(row) for row in sorted(rows, key=rank)]


def show_row(row: Row[Any]) -> Assignment:
    """Return a row of ``assignment`` as the wire has it."""
    return _shown(row, at=rfc3339(row.at))


def show_candidate(one: Candidate) -> Assignment:
    """Return a candidate as the wire has it: of something that was only tried out, so it says so since never."""
    return _shown(one, at=None)


def _shown(one: Row[Any] | Candidate, *, at: str | None) -> Assignment:
    return Assignment(
        evidence=one.evidence,
        rule=one.rule,
        owner=one.owner or None,
        tier=one.tier,
        environment=one.environment,
        detail=one.detail,
        confidence=one.confidence,
        at=at,
        confirm_by=rfc3339(one.due_at) if one.due_at is not None else None,
        stands=one.stands,
    )
