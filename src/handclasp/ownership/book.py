"""The rules of ownership in force, with what directories know: read when they changed, and applied."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from handclasp.clock import Clock
from handclasp.log.entries import make_entry
from handclasp.ownership.catalogue import Catalogue
from handclasp.ownership.document import EMPTY, OwnershipRules, diff, parse_ownership, read_ownership
from handclasp.ownership.due import SWEEP, sweep
from handclasp.ownership.owners import Owners
from handclasp.ownership.rules import Known
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write
from handclasp.wire import PolicyChange, PolicyDiff

KIND = "ownership"


@dataclass(frozen=True, slots=True)
class Applied:
    """The document as it was applied; ``text`` is empty when none ever was."""

    text: str
    sha256: str
    applied_at: int | None
    applied_by: str | None


@dataclass(frozen=True, slots=True)
class Book:
    """One consistent state of rules and owners."""

    rules: OwnershipRules
    known: Known
    version: str


class OwnershipBook:
    """Reads rules, owners and catalogue when they changed, and applies new rules."""

    def __init__(self, store: Store, owners: Owners, clock: Clock) -> None:
        self._store = store
        self._owners = owners
        self._clock = clock
        self._book = Book(EMPTY, Known(), "")
        self._reading = asyncio.Lock()

    async def version(self) -> str:
        """Return what changes whenever rules, owners or catalogue do."""
        return (await self._store.meta(SWEEP) or "").partition(":")[0]

    async def current(self) -> Book:
        """Return the rules and owners in force."""
        version = await self.version()
        async with self._reading:  # one at a time: each takes a thread for as long as the documents are large
            if version != self._book.version:
                # What is read now is at least as new as its version: when it is newer, that version comes next, and all is derived again.
                names = frozenset(row.name for row in await self._store.rows(select(tables.owner.c.name)))
                known = Known(names, await asyncio.to_thread(Catalogue, await self._owners.catalogue()))
                self._book = Book(await asyncio.to_thread(read_ownership, (await self.document()).text), known, version)
            return self._book

    async def document(self) -> Applied:
        """Return the applied text."""
        row = await self._store.row(select(tables.document).where(tables.document.c.kind == KIND))
        if row is None:
            return Applied("", hashlib.sha256(b"").hexdigest(), None, None)
        return Applied(row.text, bytes(row.sha256).hex(), row.applied_at, row.applied_by)

    async def compare(self, text: str) -> PolicyDiff:
        """Return what applying ``text`` would change. Raises ``bad_policy``."""
        changes = await self._changes((await self.document()).text, text)
        return PolicyDiff(changes=changes, sha256=hashlib.sha256(text.encode()).hexdigest())

    async def read(self, text: str) -> OwnershipRules:
        """Return the rules in a text. Raises ``bad_policy``.

        In a thread, and one at a time: whoever may read may send a megabyte of rules, and reading that takes seconds.
        """
        async with self._reading:
            return await asyncio.to_thread(parse_ownership, text)

    async def _changes(self, before: str, text: str) -> list[PolicyChange]:
        async with self._reading:
            return await asyncio.to_thread(lambda: diff(read_ownership(before), parse_ownership(text)))

    async def apply(self, text: str, who: Mapping[str, str], by: str) -> PolicyDiff:
        """Put ``text`` in force; durable and logged on return, and every identity is derived again from now on."""
        digest = hashlib.sha256(text.encode())
        before = await self.document()
        changes = await self._changes(before.text, text)
        if before.sha256 == digest.hexdigest():
            return PolicyDiff(changes=[], sha256=before.sha256)
        now = self._clock()
        subjects = [f"{change.change} {change.subject}" for change in changes[:200]]
        what = {"sha256": digest.hexdigest(), "before": before.sha256, "changes": subjects, "count": len(changes)}
        entry = make_entry("ownership.applied", at=now, who=who, what=what)
        document = tables.document
        row = {"kind": KIND, "text": text, "sha256": digest.digest(), "applied_at": now, "applied_by": by}
        statements = [delete(document).where(document.c.kind == KIND), insert(document).values(row)]
        changes_ = [*(Change(statement) for statement in statements), sweep(self._store)]
        index = await self._store.ledger.commit(Write([entry], changes_))
        return PolicyDiff(changes=changes, sha256=digest.hexdigest(), applied=True, log_entry=index)
