"""What was found before its authority was one of ours.

An authority may be seen before it is here: its certificate lies in a file until somebody imports it, and what an existing one signed is all
over the place. Until then it is foreign, or signed by our root and never issued; when it has come, both are looked at again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, or_, select, text, true, update

from handclasp.authority import facts
from handclasp.clock import Clock
from handclasp.inventory import statements
from handclasp.inventory.issuers import OurAuthorities
from handclasp.inventory.newcomers import unissued_entry
from handclasp.inventory.reconcile import Reconciler
from handclasp.inventory.rows import bounded
from handclasp.pki import chains
from handclasp.pki.reading import name_text, read_certificate
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

PLACE = "inventory.adopted"
"""In ``meta``: the newest authority that was looked at."""
AT_ONCE = 100

_stand_for_rogue = text(
    "INSERT INTO standing (sha256, origin, state, since_at, due_at, identity_id, not_after, open, first_seen_at, last_seen_at, version)"
    " SELECT sha256, 'found', 'unissued', :now, 0, identity_id, not_after, 0, first_seen_at, first_seen_at, 1 FROM found"
    " WHERE sha256 = :sha256 AND is_ca = 1 ON CONFLICT DO NOTHING"
)


class Adoption:
    """Looks again at what authorities that are new here have signed, and are. For one caller at a time (the follower of the log)."""

    def __init__(self, store: Store, clock: Clock, reconciler: Reconciler) -> None:
        self._store = store
        self._clock = clock
        self._reconciler = reconciler

    async def step(self) -> int:
        """Look at every authority that came since the last time; return how many certificates turned out to be theirs. Durable on return.

        Killed anywhere, the next call goes on: what is done is not found again. Raises ``unavailable``.
        """
        done = 0
        place = int(await self._store.meta(PLACE) or 0)
        rows = await self._store.rows(select(tables.authority).order_by(tables.authority.c.id))
        if not rows or rows[-1].id <= place:
            return 0
        every = [facts.from_row(row) for row in rows]
        certificates = OurAuthorities(every).certificates
        for one in every:
            if one.id > place:
                done += await self._adopt(one, certificates)
                kept = Change(statements.keep_place, rows=[{"name": PLACE, "value": str(one.id)}])
                await self._store.ledger.commit(Write([], [kept]))
        return done

    async def _adopt(self, one: facts.Authority, certificates: Collection[bytes]) -> int:
        """Look at one authority; ``certificates`` are those of all of ours."""
        itself = [one.sha256, *(chains.fingerprint(above) for above in one.chain)]
        await self._store.ledger.commit(Write([], [Change(statements.doubt, rows=[{"sha256": sha256} for sha256 in itself])]))
        await self._reconciler.judge(itself)
        ours, done = OurAuthorities([one]), 0
        subject, _ = chains.subject_and_key(one.certificate)
        issuer = tables.issuer.c
        named = or_(issuer.name == bounded(name_text(subject)), issuer.key_id == chains.key_id(one.certificate))
        for row in await self._store.rows(select(issuer.id, issuer.authority_id).where(named)):
            done += await self._signed(row, one, ours, certificates)
        return done

    async def _signed(self, issuer: Row[Any], one: facts.Authority, ours: OurAuthorities, certificates: Collection[bytes]) -> int:
        """Go through what names this issuer, and is nobody's of ours yet."""
        found, done, is_named = tables.found.c, 0, False
        query = select(tables.found).where(found.issuer_id == issuer.id, found.authority_id.is_(None), found.der.is_not(None))
        # As its index has them: in another order each page would read all that this issuer signed, which may be everything.
        query = query.order_by(found.not_after, found.sha256).limit(AT_ONCE)
        after: ColumnElement[bool] = true()
        while rows := await self._store.rows(query.where(after)):
            end, last = rows[-1].not_after, bytes(rows[-1].sha256)
            after = and_(found.not_after >= end, or_(found.not_after > end, found.sha256 > last))
            theirs = []
            for row in rows:
                reading = read_certificate(bytes(row.der))
                is_named = is_named or ours.named(reading) is not None
                if bytes(row.sha256) not in certificates and ours.signer_of(reading, bytes(row.der)) is not None:
                    theirs.append(row)
            if theirs:
                await self._take(theirs, one)
            done += len(theirs)
        if is_named and issuer.authority_id is None:
            change = update(tables.issuer).where(tables.issuer.c.id == issuer.id, tables.issuer.c.authority_id.is_(None))
            await self._store.ledger.commit(Write([], [Change(change.values(authority_id=one.id))]))
        return done

    async def _take(self, theirs: Sequence[Row[Any]], one: facts.Authority) -> None:
        now, found = self._clock(), tables.found.c
        wanted = [bytes(row.sha256) for row in theirs]
        identity = tables.identity.c
        ids = [row.identity_id for row in theirs if row.identity_id is not None]
        names = {row.id: row.name for row in await self._store.rows(select(identity.id, identity.name).where(identity.id.in_(ids)))}
        horizon = self._reconciler.graces.horizon
        entries = [
            unissued_entry(bytes(row.sha256), bytes(row.serial), names.get(row.identity_id, ""), one.name, bool(row.is_ca), now)
            for row in theirs
            if not (horizon and row.not_after and row.first_seen_at > row.not_after + horizon)
        ]
        each = [{"sha256": sha256} for sha256 in wanted]
        changes = [
            Change(update(tables.found).where(found.sha256.in_(wanted), found.authority_id.is_(None)).values(authority_id=one.id)),
            Change(_stand_for_rogue, rows=[{"sha256": sha256, "now": now} for sha256 in wanted]),
            Change(statements.doubt, rows=each),
        ]
        await self._store.ledger.commit(Write(entries, changes))
        await self._reconciler.judge(wanted)
