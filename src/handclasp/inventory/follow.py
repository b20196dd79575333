"""Following the log: what is issued, renewed, revoked and refused becomes names, summaries and counters.

Issuance itself writes none of these: it must stay fast, and everything that it says is in the log anyway. One process follows, in batches;
its place in the log is written together with what the entries mean, so each entry counts once, whatever is killed when. Over an existing
installation it begins at the first entry.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Row, select

from handclasp.clock import Clock, parse_rfc3339
from handclasp.faults import declare, fault
from handclasp.inventory import statements, tallies
from handclasp.inventory.adopt import Adoption
from handclasp.inventory.names import name_rows
from handclasp.inventory.reconcile import Reconciler, is_apart
from handclasp.ownership.due import DUE_BY_ID
from handclasp.store import tables
from handclasp.store.chunks import in_chunks
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

declare("follow.read", "follow.written")

PLACE, MISSED = "inventory.followed", "inventory.missed"
"""Where in the log following is, and where looking for what was never seen is: that waits until certificates have an age."""
AT_ONCE = 1000
"""Entries in one write."""
MAX_REMEMBERED = 200_000
_READ = 500

_REFUSED = frozenset({"issuance.refused", "renewal.refused"})
_ISSUED = frozenset({"certificate.issued", "certificate.renewed"})


class _What(msgspec.Struct):
    sha256: str = ""
    predecessor: str = ""
    instead_of: str = ""


class _Entry(msgspec.Struct):
    """What following reads of an entry. Those of other types may have anything in ``what``, which is then not looked at."""

    at: str
    type: str
    what: msgspec.Raw = msgspec.Raw(b"{}")


_DECODER = msgspec.json.Decoder(_Entry)
_WHAT = msgspec.json.Decoder(_What)


@dataclass(slots=True)
class _Batch:
    """What some entries mean."""

    issued: list[bytes] = field(default_factory=list)
    changed: set[bytes] = field(default_factory=set)
    """Certificates of which a fact changed: superseded or revoked."""
    revoked: dict[bytes, int] = field(default_factory=dict)
    """When each was."""
    counters: Counter[tuple[str, str]] = field(default_factory=Counter)
    authorities: bool = False
    """Whether there is an authority that was not there before."""


class Follower:
    """Follows the log. For one caller at a time, in one process at a time (a leader's job)."""

    def __init__(self, store: Store, clock: Clock, reconciler: Reconciler) -> None:
        self._store = store
        self._clock = clock
        self._reconciler = reconciler
        self._identities: OrderedDict[int, tuple[str, str]] = OrderedDict()
        """What was last written for an identity: its names, and who it is granted by."""
        self._adoption, self._adopt = Adoption(store, clock, reconciler), True
        self._next_at = 0
        """When the first certificate was issued that is not old enough yet."""

    async def step(self) -> int:
        """Follow one batch of entries and look for what should have been seen by now; return how many entries. Durable on return.

        When it returns fewer than :data:`AT_ONCE` there is nothing more for now. Raises ``unavailable``.
        """
        place = await self._place(PLACE)
        entries = await self._store.entries(place, AT_ONCE)
        if entries:
            await self._follow(place, entries)
        if self._adopt:
            await self._adoption.step()
            self._adopt = False
        missed = await self._miss(place + len(entries))
        return max(len(entries), missed)

    async def _place(self, name: str) -> int:
        return int(await self._store.meta(name) or 0)

    # --- entries --------------------------------------------------------------------------------------------------------------------------

    async def _follow(self, place: int, entries: Sequence[bytes]) -> None:
        batch = read_entries(entries)
        self._adopt = self._adopt or batch.authorities
        rows = await self._certificates(batch.issued)
        fault("follow.read")
        changes = self._summaries(batch.issued, rows)
        if batch.revoked:
            changes.append(Change(statements.sum_revoked, rows=[{"sha256": one, "at": at} for one, at in sorted(batch.revoked.items())]))
        if batch.counters:
            changes.append(Change(statements.count, rows=tallies.rows_of(batch.counters)))
        if batch.changed:
            changes.append(Change(statements.doubt, rows=[{"sha256": one} for one in sorted(batch.changed)]))
        changes.append(_kept(PLACE, place + len(entries)))
        await self._store.ledger.commit(Write([], changes))
        fault("follow.written")
        self._remember([rows[one] for one in batch.issued if one in rows])
        await self._reconciler.judge(batch.changed)

    async def _certificates(self, wanted: Iterable[bytes]) -> dict[bytes, Row[Any]]:
        """Return the rows of certificates; retention may have taken some, whose entries are then only counted."""
        certificate, identity = tables.certificate.c, tables.identity.c
        columns = (
            certificate.sha256, certificate.identity_id, certificate.names, certificate.not_before, certificate.not_after,
            certificate.renew_before, certificate.granted_by, identity.name,
        )  # fmt: skip
        query = select(*columns).join_from(tables.certificate, tables.identity, identity.id == certificate.identity_id)
        found: dict[bytes, Row[Any]] = {}
        for some in in_chunks(list(wanted), _READ):
            found |= {bytes(row.sha256): row for row in await self._store.rows(query.where(certificate.sha256.in_(some)))}
        return found

    def _summaries(self, issued: Sequence[bytes], rows: dict[bytes, Row[Any]]) -> list[Change]:
        """Return the changes to summaries, names, and to whose owner is due: one row an identity, however often it was issued to."""
        newest: dict[int, Row[Any]] = {}
        number: Counter[int] = Counter()
        for sha256 in issued:
            row = rows.get(sha256)
            if row is not None:
                newest[row.identity_id] = row  # the later entry is the newer certificate
                number[row.identity_id] += 1
        summaries = [
            {
                "identity_id": identity_id, "issued": number[identity_id], "sha256": bytes(row.sha256), "not_before": row.not_before,
                "not_after": row.not_after, "renew_before": row.renew_before,
            }
            for identity_id, row in newest.items()
        ]  # fmt: skip
        news = {(row.identity_id, *said): row for row in map(rows.get, issued) if row is not None and (said := self._news(row))}
        texts, links = name_rows((row.name, _names_of(row.names)) for row in news.values())
        due = [{"identity_id": one, "at": self._clock()} for one in sorted({row.identity_id for row in news.values()})]
        todo = (
            (statements.sum_issued, summaries),
            (statements.add_name, texts),
            (statements.name_identity, links),
            (DUE_BY_ID, due),
        )
        return [Change(statement, rows=values) for statement, values in todo if values]

    def _news(self, row: Row[Any]) -> tuple[str, str] | None:
        """Return names and grant where they are others than the last time, or this process does not know the last time."""
        said = (row.names, row.granted_by)
        return said if self._identities.get(row.identity_id) != said else None

    def _remember(self, rows: Sequence[Row[Any]]) -> None:
        """Remember what was written; only now that it is, or a write that failed would never be made up for."""
        for row in rows:
            self._identities[row.identity_id] = (row.names, row.granted_by)
            if len(self._identities) > MAX_REMEMBERED:
                self._identities.popitem(last=False)

    # --- what was never seen --------------------------------------------------------------------------------------------------------------

    async def _miss(self, followed: int) -> int:
        """Give a standing to certificates that are old enough to have been seen, and are still the ones to use; return how many entries.

        Those that live shortly are superseded by then, and cost nothing.
        """
        old_enough = self._clock() - self._reconciler.graces.unseen
        if self._next_at > old_enough:
            return 0
        place = await self._place(MISSED)
        entries = await self._store.entries(place, min(AT_ONCE, followed - place)) if place < followed else []
        old: list[bytes] = []
        issued: list[bytes] = []
        for data in entries:
            entry = _DECODER.decode(data)
            if (at := parse_rfc3339(entry.at)) > old_enough:
                self._next_at = at
                break
            old.append(data)
            if entry.type in _ISSUED:
                issued.append(bytes.fromhex(_WHAT.decode(entry.what).sha256))
        if not old:
            return 0
        rows = [{"sha256": one, "now": self._clock()} for one in await self._missing(issued)]
        changes = [Change(statements.miss, rows=rows)] if rows else []
        await self._store.ledger.commit(Write([], [*changes, _kept(MISSED, place + len(old))]))
        return len(old)

    async def _missing(self, issued: Sequence[bytes]) -> list[bytes]:
        certificate, standing = tables.certificate.c, tables.standing.c
        query = (
            select(certificate.sha256, certificate.profile, certificate.obtained_by)
            .join_from(tables.certificate, tables.standing, standing.sha256 == certificate.sha256, isouter=True)
            .where(standing.sha256.is_(None), certificate.superseded_at.is_(None), certificate.revoked_at.is_(None))
            .where(certificate.not_after > self._clock())
        )
        found: list[bytes] = []
        for some in in_chunks(issued, _READ):
            rows = await self._store.rows(query.where(certificate.sha256.in_(some)))
            found += [bytes(row.sha256) for row in rows if not is_apart(row.profile, row.obtained_by)]
        return found


def read_entries(entries: Sequence[bytes]) -> _Batch:
    """Return what entries of the log mean for the inventory."""
    batch = _Batch()
    for data in entries:
        entry = _DECODER.decode(data)
        if entry.type in _ISSUED:
            what = _WHAT.decode(entry.what)
            batch.issued.append(bytes.fromhex(what.sha256))
            batch.changed.update(bytes.fromhex(one) for one in (what.predecessor, what.instead_of) if one)
            batch.counters[entry.type.partition(".")[2], _hour(entry.at)] += 1
        elif entry.type in _REFUSED:
            batch.counters["refused", _hour(entry.at)] += 1
        elif entry.type == "certificate.revoked":
            sha256 = bytes.fromhex(_WHAT.decode(entry.what).sha256)
            batch.changed.add(sha256)
            batch.revoked[sha256] = parse_rfc3339(entry.at)
        elif entry.type == "authority.created":
            batch.authorities = True
    return batch


def _hour(at: str) -> str:
    """Return the bucket of an entry's time, which is RFC 3339 in UTC."""
    return at[:13]


def _kept(name: str, place: int) -> Change:
    return Change(statements.keep_place, rows=[{"name": name, "value": str(place)}])


def _names_of(names: str) -> list[str]:
    kinds: dict[str, list[str]] = msgspec.json.decode(names)
    return [name for values in kinds.values() for name in values]
