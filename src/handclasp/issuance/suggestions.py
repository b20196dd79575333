"""When certificates should be renewed, as things are now, for many at once; and the tag that says that nothing has changed.

Thousands of agents ask every minute. The tag is one row: it is read by key, and only when it is another than the caller's are certificates
looked up. It is a random text and no number that counts: a database that was restored from a backup must not give out a tag again that
meant something else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change

TAG = "renewals"
"""Row of ``meta`` that holds the tag."""
FEW = 20
"""Certificates that SQLite reads one by one sooner than a thread is woken for a query."""
_ONE = "SELECT sha256, renew_after, renew_before, not_after, superseded_at, revoked_at FROM certificate WHERE sha256 = ?"
_NONE = "0"  # the tag before anything ever changed


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The present renewal window of one certificate; times in ms."""

    sha256: bytes
    renew_after: int
    renew_before: int
    not_after: int
    superseded: bool
    revoked: bool

    def state(self, now: int) -> str:
        """Return ``valid``, ``superseded``, ``expired`` or ``revoked``."""
        if self.revoked:
            return "revoked"
        if self.not_after <= now:
            return "expired"
        return "superseded" if self.superseded else "valid"


class Suggestions:
    """Reads the renewal windows. Any number of tasks may use one."""

    def __init__(self, store: Store, random: Callable[[int], bytes] = os.urandom) -> None:
        self._store = store
        self._random = random

    async def tag(self) -> str:
        """Return the tag: another one after each rotation step and each revocation, in whatever process it happened.

        That a holder renewed does not change it: nobody else is concerned, and who renewed asks about another certificate from then on.
        """
        found = await self._store.meta(TAG)
        return found if found is not None else _NONE

    def changed(self) -> Change:
        """Return the change that gives the tag another value, to be part of the very write that changes a suggestion."""
        value = self._random(9).hex()
        insert = sqlite_insert if self._store.is_sqlite else postgres_insert
        statement = insert(tables.meta).values(name=TAG, value=value)
        return Change(statement.on_conflict_do_update(index_elements=["name"], set_={"value": value}))

    async def of(self, certificates: Sequence[bytes]) -> list[Suggestion]:
        """Return the suggestions of those of the certificates that were issued here."""
        if self._store.is_sqlite and len(certificates) <= FEW:
            found = [await self._store.point(_ONE, (sha256,)) for sha256 in certificates]
            return [
                Suggestion(bytes(one[0]), one[1], one[2], one[3], superseded=one[4] is not None, revoked=one[5] is not None)
                for one in found
                if one is not None
            ]
        certificate = tables.certificate.c
        rows = await self._store.rows(
            select(
                certificate.sha256, certificate.renew_after, certificate.renew_before, certificate.not_after,
                certificate.superseded_at, certificate.revoked_at,
            ).where(certificate.sha256.in_(certificates))
        )  # fmt: skip
        return [
            Suggestion(
                bytes(row.sha256),
                row.renew_after,
                row.renew_before,
                row.not_after,
                superseded=row.superseded_at is not None,
                revoked=row.revoked_at is not None,
            )
            for row in rows
        ]
