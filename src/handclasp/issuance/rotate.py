"""Rotations: have certificates replaced, with new keys, before their time.

A rotation is written down with its log entry first. Then it tells the certificates, a few hundred in one transaction, in the order of their
ends: each becomes an item, and its renewal window is pulled into the rotation's time. Agents and clients find the new window when they next
ask, and renew by themselves, by the way of every renewal.

Where it stands is in its row, and each step changes that row together with what it did. Killed at any point, it goes on from there: the
leader's job looks for rotations that are not told to the end (:meth:`Rotations.resume`). Until then ``total`` is the number that was
counted when it began. What is issued after its log entry is not its concern.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random, SystemRandom
from typing import Any

from sqlalchemy import Row, bindparam, func, insert, select, update

from handclasp.access.principals import Principal
from handclasp.authority.authorities import Authorities
from handclasp.clock import Clock, format_duration, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault
from handclasp.issuance.request import Source
from handclasp.issuance.selection import Selection, stored_selection
from handclasp.issuance.suggestions import Suggestions
from handclasp.issuance.window import pulled_window, rotation_span, spread_points
from handclasp.log.entries import make_entry
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

declare("rotation.started", "rotation.chunk", "rotation.told")

_log = logging.getLogger("handclasp.rotation")

CHUNK = 250
"""Certificates that one transaction tells: some milliseconds in which others wait (14 where there are 60,000)."""
FEW = 500
"""Certificates that the request that starts a rotation tells itself, so that who asked sees at once who is meant."""
COUNTED = 5_000
"""Names that are compared at a time while matching certificates are counted."""
AT_ONCE = 1.0
"""Seconds for which the process that starts a rotation tells certificates; the rest is the leader's."""
SHORTEST, LONGEST = 1.0, 30 * 86400.0
"""Seconds that a rotation may take."""
LEFT = 0.25
"""At least this part of the time asked for is left to certificates that are told late, because the server was away."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A rotation that has not happened: what it would concern; times in ms."""

    selection: Selection
    now: int
    ends_at: int
    total: int

    @property
    def first_at(self) -> int:
        """When the first certificate is due."""
        return rotation_span(self.now, self.ends_at)[0]


class Rotations:
    """Starts rotations and carries them through. Methods may run at once, also in several processes."""

    def __init__(
        self,
        store: Store,
        authorities: Authorities,
        suggestions: Suggestions,
        clock: Clock,
        *,
        random: Random | None = None,
        new_id: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._store = store
        self._authorities = authorities
        self._suggestions = suggestions
        self._clock = clock
        self._random = random or SystemRandom()
        self._new_id = new_id
        self._telling: set[asyncio.Task[bool]] = set()

    async def plan(self, selection: Selection, within: float) -> Planned:
        """Return what a rotation would concern; ``within`` in seconds. Changes nothing. Raises ``bad_request`` for a time out of bounds."""
        if not SHORTEST <= within <= LONGEST:
            raise HandclaspError(
                Kind.BAD_REQUEST, f"a rotation takes from {format_duration(SHORTEST)} to {format_duration(LONGEST)}", hint="10m is usual"
            )
        now = self._clock()
        return Planned(selection, now, now + round(within * 1000), await self._count(selection, now))

    async def start(self, planned: Planned, reason: str, principal: Principal, source: Source) -> str:
        """Start a rotation and return its id. Durable and logged on return, and told to the end when there is little to tell.

        Of many certificates none need be told on return: that goes on beside the requests, and what is not told after a second is told
        by the leader's job. A server that is busy needs many turns of its event loop for it, and nobody should wait for them.
        """
        rotation_id = base64.b32encode(self._new_id(10)).decode().lower()
        what = {
            "rotation": rotation_id,
            planned.selection.what: planned.selection.public_value,
            "certificates": planned.total,
            "ends_at": rfc3339(planned.ends_at),
        }
        entry = make_entry(
            "rotation.started", at=planned.now, who=principal.to_log(), what=what, source=source.to_log(),
            personal={"reason": reason} if reason else None, subjects=[f"rotation:{rotation_id}"],
        )  # fmt: skip
        row = {
            "id": rotation_id, "what": planned.selection.to_json(), "reason": reason, "by": principal.describe(), "created_at": planned.now,
            "ends_at": planned.ends_at, "total": planned.total, "place": "",
        }  # fmt: skip
        await self._store.ledger.commit(Write([entry], [Change(insert(tables.rotation).values(row)), self._suggestions.changed()]))
        fault("rotation.started")
        if planned.total <= FEW:
            await self.tell(rotation_id, seconds=AT_ONCE)
        else:
            task = asyncio.get_running_loop().create_task(self.tell(rotation_id, seconds=AT_ONCE), name="rotation")
            self._telling.add(task)
            task.add_done_callback(self._told)
        return rotation_id

    async def finish_telling(self) -> None:
        """Wait until this process tells nothing beside its requests any more: a second at most."""
        if self._telling:
            await asyncio.wait(self._telling)

    def _told(self, task: asyncio.Task[bool]) -> None:
        self._telling.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.warning("telling goes on in the leader's job: %s", task.exception())

    async def resume(self) -> list[str]:
        """Tell what is left of every rotation, oldest first, and return their ids. For one process at a time; more do no harm."""
        table = tables.rotation.c
        rows = await self._store.rows(select(table.id).where(table.place.is_not(None)).order_by(table.created_at, table.id))
        for row in rows:
            await self.tell(row.id)
        return [row.id for row in rows]

    async def tell(self, rotation_id: str, *, seconds: float | None = None) -> bool:
        """Tell certificates until all are told, or for ``seconds``; return whether all are. Durable step by step.

        Somebody else who tells the same rotation at the same time is let go on alone.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            row = await self._store.row(select(tables.rotation).where(tables.rotation.c.id == rotation_id))
            if row is None or row.place is None:
                return True
            if deadline is not None and time.monotonic() > deadline:
                return False
            try:
                await self._step(row)
            except HandclaspError as error:
                if error.kind is not Kind.CONFLICT:
                    raise
                return False
            fault("rotation.chunk")
            await asyncio.sleep(0)

    async def concerns(self, identity: str, authority: str, log_entry: int) -> bool:
        """Tell whether a recent rotation wants a certificate replaced that is nobody's item: one of the server's own."""
        table = tables.rotation.c
        rows = await self._store.rows(
            select(table.what).where(table.log_index > log_entry).order_by(table.created_at.desc(), table.id).limit(20)
        )
        for row in rows:
            selection = stored_selection(row.what, self._authorities)
            if selection.what == "all" or (selection.value == authority if selection.what == "authority" else selection.covers(identity)):
                return True
        return False

    # --- steps ------------------------------------------------------------------------------------------------

    async def _count(self, selection: Selection, now: int) -> int:
        certificate, identity = tables.certificate, tables.identity
        if selection.is_exact:
            row = await self._store.row(
                select(func.count().label("number"))
                .select_from(certificate.join(identity, identity.c.id == certificate.c.identity_id))
                .where(*selection.live(now, None))
            )
            return int(row.number) if row is not None else 0
        total, after = 0, None
        while True:
            rows = await self._store.rows(selection.query(now, None, after, COUNTED))
            total += sum(1 for row in rows if selection.covers(row.name))
            if len(rows) < COUNTED:
                return total
            after = (rows[-1].not_after, bytes(rows[-1].sha256))

    async def _step(self, row: Row[Any]) -> None:
        """Tell the next certificates. Raises ``conflict`` when somebody else just did."""
        selection = stored_selection(row.what, self._authorities)
        index = row.log_index if row.log_index is not None else await self._log_index(row.id)
        now = self._clock()
        rows = await self._store.rows(selection.query(now, index, _place(row.place), CHUNK))
        meant = [one for one in rows if selection.covers(one.name)]
        ends_at = max(row.ends_at, now + int((row.ends_at - row.created_at) * LEFT)) if meant else row.ends_at
        told = self._windows(meant, row.created_at, ends_at, now)
        fault("rotation.told")
        await self._store.ledger.commit(Write([], self._changes(row, rows, told, index, ends_at)))

    def _windows(self, meant: Sequence[Row[Any]], begins_at: int, ends_at: int, now: int) -> list[tuple[bytes, int, int]]:
        first, last, length = rotation_span(begins_at, ends_at)
        first = max(first, now)
        points = spread_points(len(meant), first, max(first, last), self._random)
        windows = []
        for one, point in zip(meant, points, strict=True):
            after, before = pulled_window(one.renew_after, one.renew_before, one.not_after, now=now, point=point, length=length)
            windows.append((bytes(one.sha256), after, before))
        return windows

    def _changes(
        self, row: Row[Any], looked_at: Sequence[Row[Any]], told: Sequence[tuple[bytes, int, int]], index: int | None, ends_at: int
    ) -> list[Change]:
        rotation, item, certificate = tables.rotation, tables.rotation_item, tables.certificate
        ours = rotation.c.id == row.id
        values: dict[str, Any] = {"log_index": index, "ends_at": ends_at}
        if len(looked_at) == CHUNK:
            values["place"] = f"{looked_at[-1].not_after}:{looked_at[-1].sha256.hex()}"
        else:
            number = select(func.count()).where(item.c.rotation_id == row.id).scalar_subquery()
            values |= {"place": None, "total": number + len(told)}  # before this step's items are there
        # First of all: who comes second must not do anything.
        changes = [Change(update(rotation).where(ours, rotation.c.place == row.place).values(values), expect=1)]
        if told:
            changes += [
                Change(
                    insert(item).values(rotation_id=row.id, sha256=bindparam("told")),
                    rows=[{"told": sha256} for sha256, _, _ in told],
                ),
                Change(
                    update(certificate)
                    .where(certificate.c.sha256 == bindparam("told"))
                    .values(renew_after=bindparam("after"), renew_before=bindparam("before")),
                    rows=[{"told": sha256, "after": after, "before": before} for sha256, after, before in told],
                ),
                self._suggestions.changed(),
            ]
        return changes

    async def _log_index(self, rotation_id: str) -> int | None:
        """Return the place of a rotation's entry in the log."""
        subject = tables.log_subject.c
        row = await self._store.row(select(subject.index.label("place")).where(subject.subject == f"rotation:{rotation_id}"))
        return None if row is None else int(row.place)


def _place(text: str) -> tuple[int, bytes] | None:
    if not text:
        return None
    not_after, _, sha256 = text.partition(":")
    return int(not_after), bytes.fromhex(sha256)
