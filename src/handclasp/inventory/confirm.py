"""What a source that keeps its own memory says shortly: this is as it was, and of that nothing is known today.

``record`` takes what was read. Here nothing was read again: the locations' times move, and their content stays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, bindparam, func, or_, select, update

from handclasp.inventory.rows import bounded
from handclasp.inventory.statements import SKEW
from handclasp.store import tables
from handclasp.store.chunks import in_chunks
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

_location = tables.location.c
_TOGETHER = 400
_STILL = (
    update(tables.location)
    .where(_location.id == bindparam("which"), or_(_location.seen_at <= bindparam("at"), _location.seen_at > bindparam("future")))
    .where(_location.gone_at.is_(None))
    .values(seen_at=bindparam("at"), tried_at=bindparam("at"), problem=None)
)


class Confirmer:
    """Any number of tasks and processes at once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def still(self, source_id: int, digests: Mapping[str, str], at: int) -> list[str]:
        """Take that locations are as they were when their ``details`` had this ``digest``; return the keys of which that is not known.

        Durable on return. What is not known is to be recorded whole: it was never told, was gone, or held something else.
        """
        unknown = []
        kept = {bounded(key): key for key in digests}
        for keys in in_chunks(sorted(kept), _TOGETHER):
            query = select(_location.id, _location.key, _location.details, _location.seen_at, _location.gone_at, _location.content)
            rows = {row.key: row for row in await self._store.rows(query.where(_location.source_id == source_id, _location.key.in_(keys)))}
            known = []
            for key in keys:
                row = rows.get(key)
                if row is not None and _is_still(row, digests[kept[key]]):
                    known.append({"which": row.id, "at": at, "future": at + SKEW})
                else:
                    unknown.append(kept[key])
            if known:
                await self._store.ledger.commit(Write([], [Change(_STILL, rows=known)]))
        return unknown

    async def unread(self, source_id: int, host: str, places: Mapping[str, str], at: int) -> None:
        """Take that nothing can be told of what lies at or below some places (their keys, and why); durable on return.

        It is no absence: a unit that is covered from ``at`` on leaves these locations as they were.
        """
        for key, problem in places.items():
            below = key.rstrip("/") + "/"
            concerned = or_(_location.key == bounded(key), func.substr(_location.key, 1, len(below)) == below)
            change = update(tables.location).where(_location.source_id == source_id, _location.host == bounded(host), concerned)
            values = {"tried_at": at, "problem": problem}
            await self._store.ledger.commit(Write([], [Change(change.where(_location.gone_at.is_(None)).values(values))]))


def _is_still(row: Row[Any], digest: str) -> bool:
    if row.gone_at is not None or row.seen_at is None or row.content is None:
        return False
    return bool(json.loads(row.details).get("digest") == digest)
