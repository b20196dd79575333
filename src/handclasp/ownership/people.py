"""What people say of ownership: assignments, and confirmations by link. Every word is logged.

A link is a secret of 256 random bits, stored as its hash, for a limited time, answered once. Looking at it changes nothing, for mail
programs look at links before people do. Whoever has it answers for the owner that it was made for, and learns no more than the names that
it asks about.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Row, bindparam, delete, insert, or_, select, update

from handclasp.clock import Clock, parse_duration, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.log.entries import make_entry
from handclasp.ownership.assign import Assigner
from handclasp.ownership.due import due
from handclasp.ownership.owners import Owners
from handclasp.ownership.rules import DENIED
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write
from handclasp.wire.ownership import (
    Asked,
    AskedIdentity,
    AskRequest,
    AssignRequest,
    Confirmation,
    ConfirmationAnswer,
    Confirmed,
)

MOST = 200
"""Identities that one link asks about: a person answers it."""
LONGEST = 90 * 86400.0
PREFIX = "hcc_"
"""Of every link's secret, so that it is known, and masked, wherever it turns up (:func:`handclasp.access.tokens.masked`)."""
_SECRET = re.compile(r"hcc_[A-Za-z0-9_-]{43}")


class _Word(NamedTuple):
    """What is confirmed about one identity."""

    identity_id: int
    owner: str
    tier: str | None
    environment: str | None


class People:
    """Assignments and confirmations. For one event loop; any number of calls at once."""

    def __init__(
        self,
        store: Store,
        owners: Owners,
        assigner: Assigner,
        clock: Clock,
        *,
        confirm_every: float,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """``confirm_every``: seconds after which a confirmation is over."""
        self._store = store
        self._owners = owners
        self._assigner = assigner
        self._clock = clock
        self._every = round(confirm_every * 1000)
        self._random = random

    async def assign(self, name: str, wanted: AssignRequest, who: Mapping[str, str], by: str) -> int:
        """Say who owns an identity; return the log entry. Durable, logged and in effect on return.

        Raises ``not_found`` for an identity or owner that is not there, ``conflict`` for an owner that has left.
        """
        if wanted.owner is None and wanted.tier is None and wanted.environment is None:
            raise HandclaspError(Kind.BAD_REQUEST, "say an owner, a tier or an environment")
        identity = await self.identity(name)
        if wanted.owner is not None:
            owner = await self._owners.find(wanted.owner)
            if owner.left_at is not None:
                raise HandclaspError(Kind.CONFLICT, f"{wanted.owner} is in no directory any more", hint="give it to somebody else")
        before = await self._confirmed(identity.id)
        said = _Word(
            identity.id,
            wanted.owner or (before.owner if before is not None else ""),
            wanted.tier or (before.tier if before is not None else None),
            wanted.environment or (before.environment if before is not None else None),
        )
        now = self._clock()
        what = {"identity": name, "owner": said.owner or None, "tier": said.tier, "environment": said.environment}
        entry = make_entry("identity.assigned", at=now, who=who, what=what, why={"reason": wanted.reason}, subjects=[f"identity:{name}"])
        changes = self._confirm([said], f"{by}: {wanted.reason}", now)
        index = await self._store.ledger.commit(Write([entry], changes))
        await self._assigner.derive([identity.id])
        return index

    def _confirm(self, words: Sequence[_Word], detail: str, now: int) -> list[Change]:
        """Return the changes by which owners are confirmed; a denial by the same owner is over with that."""
        table = tables.assignment
        old = or_(table.c.evidence == "confirmed", (table.c.evidence == DENIED) & (table.c.owner == bindparam("who")))
        rows = [
            {
                "one": word.identity_id,
                "who": word.owner,
                "new_tier": word.tier,
                "new_environment": word.environment,
                "until": now + self._every if word.owner else None,
            }
            for word in words
        ]
        values = {
            "identity_id": bindparam("one"),
            "evidence": "confirmed",
            "rule": "confirmed",
            "owner": bindparam("who"),
            "tier": bindparam("new_tier"),
            "environment": bindparam("new_environment"),
            "due_at": bindparam("until"),
            "detail": detail[:1000],
            "confidence": 100,
            "at": now,
        }
        changes = [
            Change(delete(table).where(table.c.identity_id == bindparam("one"), old), rows=rows),
            Change(insert(table).values(values), rows=rows),
        ]
        again = due([word.identity_id for word in words], now)
        return [*changes, again] if again is not None else changes

    def _deny(self, ids: Sequence[int], owner: str, detail: str, now: int) -> list[Change]:
        table = tables.assignment
        theirs = (table.c.owner == owner) & or_(table.c.evidence == "confirmed", table.c.evidence == DENIED)
        row = {"evidence": DENIED, "rule": DENIED, "owner": owner, "confidence": 100, "at": now, "detail": detail[:1000]}
        changes = [
            Change(delete(table).where(table.c.identity_id == bindparam("one"), theirs), rows=[{"one": one} for one in ids]),
            Change(insert(table).values(identity_id=bindparam("one"), **row), rows=[{"one": one} for one in ids]),
        ]
        again = due(ids, now)
        return [*changes, again] if again is not None else changes

    async def identity(self, name: str) -> Row[Any]:
        """Return an identity's row; raise ``not_found``."""
        row = await self._store.row(select(tables.identity).where(tables.identity.c.name == name))
        if row is None:
            raise HandclaspError(Kind.NOT_FOUND, f"there is no identity {name[:300]}", hint="handclasp identity list")
        return row

    async def _confirmed(self, identity_id: int) -> Row[Any] | None:
        table = tables.assignment.c
        return await self._store.row(select(tables.assignment).where(table.identity_id == identity_id, table.evidence == "confirmed"))

    # --- by link ----------------------------------------------------------------------------------------------------------------------

    async def ask(self, owner: str, wanted: AskRequest, who: Mapping[str, str]) -> Asked:
        """Make a link that asks an owner; the answer is the only place where its secret ever is. Durable and logged on return.

        Raises ``not_found`` for an unknown owner, ``conflict`` for one that left or owns nothing that is to be asked about.
        """
        row = await self._owners.find(owner)
        lifetime = parse_duration(wanted.expires)
        if not 0 < lifetime <= LONGEST:
            raise HandclaspError(Kind.BAD_REQUEST, "a link lives longer than nothing and at most 90d")
        if row.left_at is not None:
            raise HandclaspError(Kind.CONFLICT, f"{owner} is in no directory any more", hint="its identities need a new owner")
        names = await self._asked_about(owner, wanted.identities)
        if not names:
            raise HandclaspError(
                Kind.CONFLICT, f"{owner} owns nothing that is to be confirmed now", hint="name identities to ask about them"
            )
        now = self._clock()
        secret = PREFIX + base64.urlsafe_b64encode(self._random(32)).decode().rstrip("=")
        asked, more = names[:MOST], len(names) - MOST
        values: dict[str, Any] = {
            "secret_sha256": _hash(secret),
            "owner": owner,
            "identities": json.dumps(asked),
            "created_at": now,
            "expires_at": now + round(lifetime * 1000),
        }
        entry = make_entry(
            "identity.asked",
            at=now,
            who=who,
            what={"owner": owner, "identities": len(asked), "link": _hash(secret).hex()[:16], "expires_at": rfc3339(values["expires_at"])},
            subjects=[f"owner:{owner}"],
        )
        statement = insert(tables.confirmation).values(values)
        index = await self._store.ledger.commit(Write([entry], [Change(statement)]))
        return Asked(
            owner=owner,
            contact=row.contact,
            secret=secret,
            path=f"/confirm/{secret}",
            identities=asked,
            more=max(0, more),
            expires_at=rfc3339(values["expires_at"]),
            log_entry=index,
        )

    async def _asked_about(self, owner: str, names: Sequence[str]) -> list[str]:
        identity, table = tables.identity, tables.assignment
        confirmed = select(table.c.identity_id).where(
            table.c.evidence == "confirmed", table.c.due_at > self._clock(), table.c.owner == owner
        )
        query = select(identity.c.name).where(identity.c.owner == owner)
        query = query.where(identity.c.name.in_(names)) if names else query.where(identity.c.id.not_in(confirmed))
        found = [row.name for row in await self._store.rows(query.order_by(identity.c.name).limit(10 * MOST))]
        missing = sorted(set(names) - set(found))
        if missing:
            raise HandclaspError(
                Kind.CONFLICT, f"{owner} does not own {missing[0][:300]}", hint=f"handclasp identity owners {missing[0][:300]}"
            )
        return found

    async def show(self, secret: str) -> Confirmation:
        """Return what a link asks; changes nothing. Raises ``not_found`` for a link that is none, or is over."""
        row = await self._link(secret)
        names = json.loads(row.identities)
        identity = tables.identity.c
        known = {one.name: one for one in await self._store.rows(select(tables.identity).where(identity.name.in_(names)))}
        return Confirmation(
            owner=row.owner,
            identities=[
                AskedIdentity(identity=name, tier=known[name].tier, environment=known[name].environment) for name in names if name in known
            ],
            expires_at=rfc3339(row.expires_at),
            answered_at=rfc3339(row.answered_at) if row.answered_at is not None else None,
        )

    async def answer(self, secret: str, said: ConfirmationAnswer, source: Mapping[str, str]) -> Confirmed:
        """Take an owner's answer, once. Durable, logged and in effect on return.

        Raises ``not_found`` for a link that is none, ``conflict`` for one that was answered, ``bad_request`` for what it did not ask.
        """
        row = await self._link(secret)
        asked = set(json.loads(row.identities))
        both = set(said.confirmed) & set(said.denied)
        if both or not (set(said.confirmed) | set(said.denied)) <= asked or not (said.confirmed or said.denied):
            raise HandclaspError(Kind.BAD_REQUEST, "answer with identities that were asked about, each confirmed or denied")
        now = self._clock()
        yes, no, changed = await self._split(row, said)
        link = _hash(secret).hex()[:16]
        changes = [
            Change(
                update(tables.confirmation)
                .where(tables.confirmation.c.secret_sha256 == _hash(secret), tables.confirmation.c.answered_at.is_(None))
                .values(answered_at=now),
                expect=1,
                conflict=HandclaspError(Kind.CONFLICT, "this link was answered already", hint="ask for a new one"),
            )
        ]
        if yes:
            changes += self._confirm(await self._kept(list(yes), row.owner), f"confirmed by link {link}", now)
        if no:
            changes += self._deny(list(no), row.owner, f"denied by link {link}", now)
        what = {"owner": row.owner, "link": link, "confirmed": sorted(yes.values())[:MOST], "denied": sorted(no.values())[:MOST]}
        who = {"kind": "link", "owner": row.owner, "link": link}
        subjects = [f"owner:{row.owner}", *(f"identity:{name}" for name in sorted((*yes.values(), *no.values())))]
        entry = make_entry("identity.confirmed", at=now, who=who, what=_fitting(what), source=source, subjects=subjects)
        index = await self._store.ledger.commit(Write([entry], changes))
        await self._assigner.derive([*yes, *no])
        return Confirmed(confirmed=len(yes), denied=len(no), changed=changed, log_entry=index)

    async def _kept(self, ids: Sequence[int], owner: str) -> list[_Word]:
        """Return what is confirmed about identities: their owner, with the tier and environment that people gave them before."""
        table = tables.assignment.c
        query = select(tables.assignment).where(table.identity_id.in_(ids), table.evidence == "confirmed")
        before = {row.identity_id: row for row in await self._store.rows(query)}
        return [
            _Word(one, owner, before[one].tier, before[one].environment) if one in before else _Word(one, owner, None, None) for one in ids
        ]

    async def _split(self, row: Row[Any], said: ConfirmationAnswer) -> tuple[dict[int, str], dict[int, str], list[str]]:
        """Return what is confirmed and denied, by number, and the names that have another owner by now."""
        identity = tables.identity.c
        names = [*said.confirmed, *said.denied]
        known = {one.name: one for one in await self._store.rows(select(tables.identity).where(identity.name.in_(names)))}
        mine = {name: one.id for name, one in known.items() if one.owner == row.owner}
        yes = {mine[name]: name for name in said.confirmed if name in mine}
        no = {mine[name]: name for name in said.denied if name in mine}
        return yes, no, sorted(set(names) - set(mine))

    async def _link(self, secret: str) -> Row[Any]:
        link = tables.confirmation.c
        row = None
        if _SECRET.fullmatch(secret):
            # Who left the directory since may still have the link, and speaks for nobody any more.
            there = select(tables.owner.c.name).where(tables.owner.c.name == link.owner, tables.owner.c.left_at.is_(None))
            row = await self._store.row(select(tables.confirmation).where(link.secret_sha256 == _hash(secret), there.exists()))
        if row is None or row.expires_at <= self._clock():
            raise HandclaspError(Kind.NOT_FOUND, "there is no such link, or it is over", hint="ask for a new one")
        return row

    async def forget(self) -> None:
        """Drop links that are over for more than a month; what was answered is in the log."""
        link = tables.confirmation
        old = link.c.expires_at < self._clock() - 30 * 86_400_000
        await self._store.ledger.commit(Write([], [Change(delete(link).where(old))]))


def _fitting(what: dict[str, Any]) -> dict[str, Any]:
    """Leave names out of an entry that would be too large with them (its subjects have them), and say how many there were."""
    if sum(len(name.encode()) + 4 for key in ("confirmed", "denied") for name in what[key]) <= 50_000:
        return what
    return what | {key: [f"{len(what[key])} identities"] for key in ("confirmed", "denied")}


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
