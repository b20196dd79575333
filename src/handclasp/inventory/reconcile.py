"""Keeping every standing current: judges again what changed, and what time changes.

Whoever writes a fact (a sighting begins or ends, a certificate is superseded or revoked) raises the ``version`` of its standing in the same
write and makes it due. A judgement reads the facts, decides (:mod:`handclasp.inventory.states`), and counts only if the version is still
the one it saw; so any number of processes may judge at once, in any order, killed anywhere, and the last word is about the newest facts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Row, case, func, select

from handclasp.clock import Clock
from handclasp.faults import declare, fault
from handclasp.inventory import statements, tallies
from handclasp.inventory.rows import LISTED, SERVED, USE_ROLES
from handclasp.inventory.states import EXPIRED_SERVED, GONE, Facts, Graces, Judgement, judge
from handclasp.pki import chains
from handclasp.pki import der as asn1
from handclasp.store import tables
from handclasp.store.chunks import in_chunks
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

declare("reconcile.read", "reconcile.written")

AT_ONCE = 400
"""Certificates judged in one write."""
MINUTE = 60_000
DAY = 86_400_000
RECOUNTED = "inventory.recounted"
"""When counters were last counted again, in ``meta``."""
ROLES = sorted(USE_ROLES)


@dataclass(frozen=True, slots=True)
class _Seen:
    open: int
    listed: int
    used_at: int | None
    """When it was last in use; None for one that never was."""
    listed_at: int | None
    ended_at: int | None


_Known = tuple[Facts, _Seen | None, int | None]
"""Facts, sightings, and the identity's number."""
_OURS: _Known = (Facts("found", 0), None, None)
"""Of an authority of ours: nothing is to be said of where it is."""


class Reconciler:
    """Judges standings. Any number of calls at once, in any number of processes."""

    def __init__(self, store: Store, clock: Clock, graces: Graces | None = None) -> None:
        self._store = store
        self._clock = clock
        self.graces = graces or Graces()
        self._looked_at = 0

    async def step(self, limit: int = 10_000) -> int:
        """Judge what is due, at most ``limit`` of them; return how many were. Durable on return. Raises ``unavailable``."""
        done = 0
        column = tables.standing.c
        while done < limit:
            due = select(column.sha256).where(column.due_at <= self._clock()).order_by(column.due_at).limit(AT_ONCE)
            rows = await self._store.rows(due)
            if not rows:
                done += await self._too_early()
                break
            settled = await self.judge([bytes(row.sha256) for row in rows])
            done += len(rows)
            if not settled:
                break  # others are at it
        return done

    async def _too_early(self) -> int:
        """Once a minute, judge again what is said to have ended and has not: the clock was ahead, and was put right."""
        now, column = self._clock(), tables.standing.c
        if 0 <= now - self._looked_at < MINUTE:
            return 0
        early = select(column.sha256).where(column.state == EXPIRED_SERVED, column.not_after > now).limit(AT_ONCE)
        rows = await self._store.rows(early)
        if len(rows) < AT_ONCE:
            self._looked_at = now
        return await self.judge([bytes(row.sha256) for row in rows])

    async def judge(self, certificates: Iterable[bytes]) -> int:
        """Judge these certificates (those of them that have a standing); return how many. Durable on return."""
        done = 0
        for chunk in in_chunks(list(dict.fromkeys(certificates)), AT_ONCE):
            done += await self._judge(chunk)
        return done

    async def recount_if_due(self) -> dict[tuple[str, str], int]:
        """As :meth:`recount`, once a day, and not on the first: an installation has been counting for a day before it is looked at."""
        now = self._clock()
        last = await self._store.meta(RECOUNTED)
        if last is not None and int(last) + DAY > now:
            return {}
        await self._store.ledger.commit(Write([], [Change(statements.keep_place, rows=[{"name": RECOUNTED, "value": str(now)}])]))
        return await self.recount() if last is not None else {}

    async def recount(self) -> dict[tuple[str, str], int]:
        """Count again everything that is kept by triggers, and put right what is wrong; return by how much each counter was off.

        They are kept in the transactions of what they count, so there is nothing to put right unless somebody changed rows by hand.
        """
        return await tallies.recount(self._store)

    async def _judge(self, chunk: Sequence[bytes]) -> int:
        now = self._clock()
        standings = await self._store.rows(select(tables.standing).where(tables.standing.c.sha256.in_(chunk)))
        if not standings:
            return 0
        facts = await self._facts(standings, now)
        fault("reconcile.read")
        settle: list[dict[str, Any]] = []
        unsettle: list[dict[str, Any]] = []
        for row in standings:
            sha256 = bytes(row.sha256)
            known, seen, identity_id = facts.get(sha256, _OURS)
            judgement = judge(known, now, self.graces)
            if judgement is None:
                unsettle.append({"sha256": sha256, "version": row.version})
            else:
                settle.append(_settled(row, known, seen, judgement, now) | {"identity_id": identity_id})
        changes = [Change(statements.settle, rows=settle)] if settle else []
        changes += [Change(statements.unsettle, rows=unsettle)] if unsettle else []
        await self._store.ledger.commit(Write([], changes))
        fault("reconcile.written")
        return len(standings)

    # --- facts --------------------------------------------------------------------------------------------------------------------------

    async def _facts(self, standings: Sequence[Row[Any]], now: int) -> dict[bytes, _Known]:
        wanted = [bytes(row.sha256) for row in standings]
        issued = {bytes(row.sha256): row for row in await self._store.rows(_issued(wanted))}
        found = {bytes(row.sha256): row for row in await self._store.rows(_found([one for one in wanted if one not in issued]))}
        own = await self._authorities([sha256 for sha256, row in found.items() if row.is_ca])
        # A foreign authority's certificate is kept and trusted in many places: in use it is where a server shows it as its own.
        authorities = {sha256 for sha256, row in found.items() if row.is_ca and row.authority_id is None}
        seen = await self._sightings([one for one in wanted if one not in authorities], (*ROLES, LISTED))
        if authorities:
            seen |= await self._sightings(sorted(authorities), (SERVED,))
        facts: dict[bytes, _Known] = {}
        vanished: dict[bytes, int] = {}
        for row in standings:
            sha256 = bytes(row.sha256)
            if sha256 in own:  # it was seen before it was one of ours: now it stands for nothing
                continue
            known = _facts_of(row, seen.get(sha256), issued.get(sha256), found.get(sha256))
            facts[sha256] = (known, seen.get(sha256), (issued.get(sha256) or found.get(sha256) or row).identity_id)
            last = seen.get(sha256)
            if last is not None and last.used_at is not None and last.ended_at is not None and _may_be_gone(known, now):
                vanished[sha256] = last.ended_at
        for sha256 in await self._replaced(vanished):
            known, last, identity_id = facts[sha256]
            facts[sha256] = (replace(known, replaced=True), last, identity_id)
        return facts

    async def _authorities(self, wanted: Sequence[bytes]) -> set[bytes]:
        """Return those that are certificates of our authorities."""
        if not wanted:
            return set()
        rows = await self._store.rows(select(tables.authority.c.sha256, tables.authority.c.chain))
        above = {chains.fingerprint(der) for row in rows for der in asn1.elements(bytes(row.chain))}
        return {*above, *(bytes(row.sha256) for row in rows)}.intersection(wanted)

    async def _sightings(self, wanted: Sequence[bytes], roles: Sequence[str]) -> dict[bytes, _Seen]:
        """Return, for each certificate that was seen or listed, in how many places it is, and until when it last was."""
        sighting, location = tables.sighting.c, tables.location.c
        is_open, in_use = sighting.ended_at.is_(None), sighting.role != LISTED
        last = case((is_open, func.coalesce(location.seen_at, sighting.last_seen_at)), else_=sighting.last_seen_at)
        query = (
            select(
                sighting.sha256,
                func.sum(case((is_open & in_use, 1), else_=0)).label("open"),
                func.sum(case((is_open & ~in_use, 1), else_=0)).label("listed"),
                func.max(case((in_use, last))).label("used_at"),
                func.max(case((~in_use, last))).label("listed_at"),
                func.max(case((in_use, sighting.ended_at))).label("ended"),
            )
            .join_from(tables.sighting, tables.location, location.id == sighting.location_id)
            .where(sighting.sha256.in_(wanted), sighting.role.in_(roles))
            .group_by(sighting.sha256)
        )
        rows = await self._store.rows(query)
        return {
            bytes(row.sha256): _Seen(int(row.open), int(row.listed), row.used_at, row.listed_at, None if row.open else row.ended)
            for row in rows
        }

    async def _replaced(self, vanished: dict[bytes, int]) -> set[bytes]:
        """Return those in whose last place another certificate came when they went, or later."""
        found: set[bytes] = set()
        for still in (True, False):  # each by its own index
            left = [sha256 for sha256 in vanished if sha256 not in found]
            if not left:
                break
            gone, there = tables.sighting.alias("gone"), tables.sighting.alias("there")
            query = (
                select(gone.c.sha256, gone.c.ended_at)
                .distinct()
                .join_from(gone, there, there.c.location_id == gone.c.location_id)
                .where(gone.c.sha256.in_(left), gone.c.role.in_(ROLES), there.c.role.in_(ROLES), there.c.sha256 != gone.c.sha256)
                .where(there.c.first_seen_at >= gone.c.ended_at)
                .where(there.c.ended_at.is_(None) if still else there.c.ended_at >= gone.c.ended_at)
            )
            rows = await self._store.rows(query)
            found |= {bytes(row.sha256) for row in rows if row.ended_at == vanished[bytes(row.sha256)]}
        return found


def _issued(wanted: Sequence[bytes]) -> Any:
    c = tables.certificate.c
    return select(
        c.sha256, c.identity_id, c.not_before, c.not_after, c.superseded_at, c.revoked_at, c.profile, c.obtained_by
    ).where(c.sha256.in_(wanted))  # fmt: skip


def _found(wanted: Sequence[bytes]) -> Any:
    c = tables.found.c
    return select(c.sha256, c.identity_id, c.not_after, c.authority_id, c.is_ca).where(c.sha256.in_(wanted))


def _facts_of(row: Row[Any], seen: _Seen | None, issued: Row[Any] | None, found: Row[Any] | None) -> Facts:
    """Put together what is known. Where retention took the rows behind a standing, the standing itself says what they said."""
    first = row.first_seen_at or None
    count, used_at = (seen.open, seen.used_at) if seen is not None else (0, None)
    if issued is not None:
        return Facts(
            "issued", issued.not_after, first, count, used_at=used_at, superseded_at=issued.superseded_at, revoked_at=issued.revoked_at,
            issued_at=issued.not_before, apart=is_apart(issued.profile, issued.obtained_by),
        )  # fmt: skip
    if found is not None:
        used = row.state == GONE if seen is None or seen.used_at is None else True  # retention takes the sightings of what is gone
        listed = seen.listed if seen is not None else 0
        return Facts("found", found.not_after, first, count, listed, used, used_at, ours=found.authority_id is not None)
    return Facts(row.origin, row.not_after, first, count, used_at=used_at, replaced=row.state == "past")


def _may_be_gone(facts: Facts, now: int) -> bool:
    ended = facts.not_after and facts.not_after <= now
    return not (facts.open or ended or facts.superseded_at is not None or facts.revoked_at is not None)


def _settled(row: Row[Any], facts: Facts, seen: _Seen | None, judgement: Judgement, now: int) -> dict[str, Any]:
    last = None if seen is None else seen.used_at
    if seen is not None and last is None and facts.origin == "found":
        last = seen.listed_at
    return {
        "sha256": bytes(row.sha256), "version": row.version, "state": judgement.state, "due_at": judgement.due_at, "now": now,
        "open": facts.open, "last_seen_at": max(last or 0, row.last_seen_at), "not_after": facts.not_after,
    }  # fmt: skip


def is_apart(profile: str, obtained_by: str) -> bool:
    """Tell whether Handclasp itself holds a certificate: agents' own, with which they come here, and those of the server's listeners.

    Nothing that discovery reads need ever show them, and a fresh installation has one: that it was never seen would mean nothing.
    """
    return profile == "agent" or obtained_by == "server"
