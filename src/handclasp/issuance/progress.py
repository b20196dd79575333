"""How far rotations are: counted from the rows of the certificates that they concern, so that no count can be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, and_, case, delete, func, or_, select, update

from handclasp.access.grants import AGENT_PROFILE
from handclasp.clock import Clock
from handclasp.issuance.window import POLL_SLACK
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

MAX_PENDING = 1000
DROPPED = 5_000
"""Items of a rotation that is over which one transaction drops."""
_HOLDER = "certificate:"
"""What ``obtained_by`` begins with where a certificate's holder asked, an agent most of all."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A certificate that was not replaced yet, and the agent that has it (from whom its line began), when it is an agent's."""

    sha256: bytes
    identity: str
    not_after: int
    renew_before: int
    agent: str | None
    agent_last_contact: int | None


@dataclass(frozen=True, slots=True)
class Progress:
    """One rotation as it stands; ``row`` is that of the table ``rotation``."""

    row: Row[Any]
    total: int
    replaced: int
    gone: int
    waiting: int
    late: bool

    @property
    def state(self) -> str:
        """``running``, ``done`` or ``late``."""
        if self.row.place is None and not self.waiting:
            return "done"
        return "late" if self.late else "running"


class Progresses:
    """Reads how far rotations are, and cleans up after those that are over."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def of(self, rotations: Sequence[Row[Any]]) -> list[Progress]:
        """Return the progress of rotations (rows of the table), in one query over their items."""
        item, certificate = tables.rotation_item, tables.certificate
        now = self._clock()
        open_ = [row.id for row in rotations if row.replaced is None]
        replaced = certificate.c.superseded_at.is_not(None)
        gone = and_(certificate.c.superseded_at.is_(None), or_(certificate.c.revoked_at.is_not(None), certificate.c.not_after <= now))
        counted = await self._store.rows(
            select(
                item.c.rotation_id,
                func.count().label("items"),
                func.sum(case((replaced, 1), else_=0)).label("replaced"),
                func.sum(case((gone, 1), else_=0)).label("gone"),
            )
            .join_from(item, certificate, certificate.c.sha256 == item.c.sha256)
            .where(item.c.rotation_id.in_(open_))
            .group_by(item.c.rotation_id)
        )
        counts = {row.rotation_id: (int(row.items), int(row.replaced), int(row.gone)) for row in counted}
        return [_progress(row, counts.get(row.id, (0, 0, 0)), now) for row in rotations]

    async def pending(self, rotation_id: str) -> list[Pending]:
        """Return the certificates of a rotation that are neither replaced nor gone, 1,000 at most, those first that were due first."""
        item, certificate, identity = tables.rotation_item, tables.certificate, tables.identity
        first = certificate.alias("first")
        rows = await self._store.rows(
            select(
                certificate.c.sha256, certificate.c.not_after, certificate.c.renew_before, certificate.c.profile, identity.c.name,
                first.c.obtained_by,
            )
            .join_from(item, certificate, certificate.c.sha256 == item.c.sha256)
            .join(identity, identity.c.id == certificate.c.identity_id)
            .outerjoin(first, first.c.sha256 == certificate.c.line)
            .where(item.c.rotation_id == rotation_id, certificate.c.superseded_at.is_(None), certificate.c.revoked_at.is_(None))
            .where(certificate.c.not_after > self._clock())
            .order_by(certificate.c.renew_before, certificate.c.sha256)
            .limit(MAX_PENDING)
        )  # fmt: skip
        holders = {bytes(row.sha256): _agent_of(row) for row in rows}
        agents = await self._agents(sorted({name for name in holders.values() if name is not None}))
        found = []
        for row in rows:
            name = holders[bytes(row.sha256)]
            agent = name if name in agents else None
            contact = agents.get(agent) if agent is not None else None
            found.append(Pending(bytes(row.sha256), row.name, row.not_after, row.renew_before, agent, contact))
        return found

    async def _agents(self, names: Sequence[str]) -> dict[str, int | None]:
        agent, identity = tables.agent, tables.identity
        rows = await self._store.rows(
            select(identity.c.name, agent.c.last_contact_at)
            .join(identity, identity.c.id == agent.c.identity_id)
            .where(identity.c.name.in_(names))
        )
        return {row.name: row.last_contact_at for row in rows}

    async def settle(self) -> int:
        """Write down the last counts of rotations that are over, and drop their items; return how many were settled."""
        table = tables.rotation
        rows = await self._store.rows(select(table).where(table.c.place.is_(None), table.c.replaced.is_(None)))
        over = [one for one in await self.of(rows) if one.state == "done"]
        for one in over:
            settled = update(table).where(table.c.id == one.row.id).values(replaced=one.replaced)
            await self._store.ledger.commit(Write([], [Change(settled)]))
        leftover = await self._store.rows(
            select(tables.rotation_item.c.rotation_id).join(table, table.c.id == tables.rotation_item.c.rotation_id)
            .where(table.c.replaced.is_not(None)).distinct()
        )  # fmt: skip
        for row in leftover:
            await self._drop_items(row.rotation_id)
        return len(over)

    async def _drop_items(self, rotation_id: str) -> None:
        item = tables.rotation_item
        while True:
            some = select(item.c.sha256).where(item.c.rotation_id == rotation_id).limit(DROPPED)
            if not await self._store.rows(some.limit(1)):
                return
            gone = delete(item).where(item.c.rotation_id == rotation_id, item.c.sha256.in_(some))
            await self._store.ledger.commit(Write([], [Change(gone)]))


def _progress(row: Row[Any], counts: tuple[int, int, int], now: int) -> Progress:
    if row.replaced is not None:
        return Progress(row, row.total, row.replaced, row.total - row.replaced, 0, False)
    items, replaced, gone = counts
    total = max(row.total, items) if row.place is not None else items
    return Progress(row, total, replaced, gone, total - replaced - gone, now > row.ends_at + POLL_SLACK)


def _agent_of(row: Row[Any]) -> str | None:
    if row.profile == AGENT_PROFILE:
        return str(row.name)
    holder = row.obtained_by or ""
    return holder.removeprefix(_HOLDER) if holder.startswith(_HOLDER) else None
