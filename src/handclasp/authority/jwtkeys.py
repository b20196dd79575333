"""Keys that sign JWT-SVIDs: one at a time for each trust domain, made ahead of use, published until nothing they signed is alive.

.. code-block:: text

    created_at        active_at           successor's active_at              removed_at
        |---- lead -----|------ signs ----------|-- longest token + leeway ----|
        |---------------------------- in the bundle ---------------------------|

A verifier that fetches the bundle as often as it is told to has a key before it meets a token signed by it (SPIFFE Federation 4.2: three to
five times the refresh hint), and keeps it for as long as there may be one. All of these times are in the rows, so that every process acts
on them at the same moment, whenever it came to know them.

The private half lies in the row, sealed under the installation's passphrase: every machine can sign with a key that the leader made, and
no file has to be copied. It is not kept on a PKCS#11 token, which could not be told to make one every week on its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import insert, select, update

from handclasp.authority.keystore import KeyStore
from handclasp.clock import Clock, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.log.entries import make_entry
from handclasp.pki import keys
from handclasp.pki.bundles import jwk_of
from handclasp.pki.jwt_svid import thumbprint
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

MAX_LIFETIME = 3600.0
"""Longest life of a JWT-SVID, in seconds: a key stays published for as long after its last signature."""
LEEWAY = 300.0
"""Seconds on top of that, for clocks that differ."""
LEAD_HINTS = 4
"""A key is published for this many refresh hints before it signs: SPIFFE Federation 4.2 says three to five."""


@dataclass(frozen=True, slots=True)
class JwtKey:
    """One key, without its private half. Times in ms."""

    kid: str
    trust_domain: str
    key_uri: str
    jwk: Mapping[str, Any]
    created_at: int
    active_at: int
    retired_at: int | None
    """When it stops to sign: known as soon as there is a successor."""
    removed_at: int | None

    def signs(self, now: int) -> bool:
        """Return whether it is the one to sign with at ``now``."""
        return self.removed_at is None and self.active_at <= now and (self.retired_at is None or now < self.retired_at)

    def has_ended(self, now: int) -> bool:
        """Return whether the last token that it signed has ended, so that nobody needs it."""
        return self.retired_at is not None and now >= self.retired_at + round((MAX_LIFETIME + LEEWAY) * 1000)


class JwtKeys:
    """The keys of one installation, as of the last :meth:`refresh`. For one event loop; changes are durable on return."""

    def __init__(
        self,
        store: Store,
        keystore: KeyStore,
        clock: Clock,
        *,
        refresh_hint: float = 300.0,
        period: float = 604_800.0,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """``refresh_hint`` is that of the bundles, ``period`` how long a key signs; both in seconds."""
        self._store = store
        self._keystore = keystore
        self._clock = clock
        self._lead = round(refresh_hint * LEAD_HINTS * 1000)
        self._period = round(period * 1000)
        self._random = random
        self._all: tuple[JwtKey, ...] = ()
        self._opened: dict[str, ec.EllipticCurvePrivateKey] = {}
        self._opening = asyncio.Lock()
        self._generation = -1

    # --- looking up ---------------------------------------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Read the keys again if anything may have changed in any process."""
        if self._generation == self._store.generation:
            return
        generation = self._store.generation
        rows = await self._store.rows(select(tables.jwt_key).order_by(tables.jwt_key.c.created_at, tables.jwt_key.c.kid))
        self._all = tuple(
            JwtKey(
                row.kid, row.trust_domain, row.key_uri, msgspec.json.decode(row.jwk), row.created_at, row.active_at, row.retired_at,
                row.removed_at,
            )
            for row in rows
        )  # fmt: skip
        self._generation = generation

    def published(self, trust_domain: str) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the keys to put into the trust domain's bundle, oldest first, as ``kid`` and JWK."""
        return [(key.kid, key.jwk) for key in self._of(trust_domain) if key.removed_at is None]

    def sequence(self, trust_domain: str) -> int:
        """Return a number that rises whenever a published key comes or goes, the same in every process: rows are never deleted."""
        return sum(1 if key.removed_at is None else 2 for key in self._of(trust_domain))

    async def signer(self, trust_domain: str) -> tuple[str, ec.EllipticCurvePrivateKey]:
        """Return the key to sign with now, and its ``kid``.

        Raises ``unavailable`` while there is none (the leader makes the first one when it starts), ``internal`` when it cannot be opened:
        that is nothing the caller did.
        """
        await self.refresh()
        now = self._clock()
        current = max((key for key in self._of(trust_domain) if key.signs(now)), key=lambda key: key.active_at, default=None)
        if current is None:
            words = f"trust domain {trust_domain} has no key for JWT-SVIDs yet"
            raise HandclaspError(Kind.UNAVAILABLE, words, hint="it is made within seconds", retry_after=2)
        if current.kid not in self._opened:
            async with self._opening:
                if current.kid not in self._opened:
                    self._opened = {current.kid: await asyncio.to_thread(self._open, current)}
        return current.kid, self._opened[current.kid]

    def _of(self, trust_domain: str) -> list[JwtKey]:
        return [key for key in self._all if key.trust_domain == trust_domain]

    def _open(self, wanted: JwtKey) -> ec.EllipticCurvePrivateKey:
        try:
            key = self._keystore.load(wanted.key_uri)
        except HandclaspError as error:
            raise HandclaspError(Kind.INTERNAL, f"the key of JWT-SVIDs {wanted.kid}: {error.detail}", hint=error.hint) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or thumbprint(jwk_of(key.public_key())) != wanted.kid:
            raise HandclaspError(Kind.INTERNAL, f"the key of JWT-SVIDs {wanted.kid} is not the one that was published")
        return key

    # --- the job ------------------------------------------------------------------------------------------------------------------------

    async def step(self, trust_domains: Sequence[str]) -> list[str]:
        """Do what is due for each trust domain: make the first key or a successor, take out what has ended. Return what was done, in words.

        The leader's job. Safe to call from several processes at once: the rows decide, and who was second changes nothing.
        """
        await self.refresh()
        done = []
        now = self._clock()
        for trust_domain in trust_domains:
            there = [key for key in self._of(trust_domain) if key.removed_at is None]
            newest = max(there, key=lambda key: key.active_at, default=None)
            if newest is None:
                done += await self._make(trust_domain, None, now)
            elif now >= newest.active_at + self._period - self._lead:
                done += await self._make(trust_domain, newest, now)
            for key in there:
                if key.has_ended(now):
                    done += await self._remove(key, now)
        return done

    async def _make(self, trust_domain: str, before: JwtKey | None, now: int) -> list[str]:
        """Make a key: the very first signs at once, as nobody can have another one's bundle; a successor after its lead."""
        active_at = now if before is None else now + self._lead
        key, sealed = await asyncio.to_thread(self._generate)
        jwk = jwk_of(key.public_key())
        kid = thumbprint(jwk)
        table = tables.jwt_key
        conflict = HandclaspError(Kind.CONFLICT, "another process made the key")
        if before is None:
            guard = Change(insert(tables.meta).values(name=f"jwt_key:{trust_domain}", value=kid), expect=1, conflict=conflict)
        else:
            ends = update(table).where(table.c.kid == before.kid, table.c.retired_at.is_(None)).values(retired_at=active_at)
            guard = Change(ends, expect=1, conflict=conflict)
        text = msgspec.json.encode(jwk).decode()
        values = {"kid": kid, "trust_domain": trust_domain, "key_uri": sealed, "jwk": text, "created_at": now, "active_at": active_at}
        what = {"kid": kid, "trust_domain": trust_domain, "active_at": rfc3339(active_at)}
        if before is not None:
            what["before"] = before.kid
        return await self._commit("jwt_key.created", what, [guard, Change(insert(table).values(**values))], now)

    def _generate(self) -> tuple[ec.EllipticCurvePrivateKey, str]:
        key = keys.generate("p256")
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key, self._keystore.seal(key)

    async def _remove(self, key: JwtKey, now: int) -> list[str]:
        """Take a key out of the bundle, and its private half out of the world."""
        table = tables.jwt_key
        gone = update(table).where(table.c.kid == key.kid, table.c.removed_at.is_(None)).values(removed_at=now, key_uri="")
        conflict = HandclaspError(Kind.CONFLICT, "another process removed the key")
        what = {"kid": key.kid, "trust_domain": key.trust_domain}
        return await self._commit("jwt_key.retired", what, [Change(gone, expect=1, conflict=conflict)], now)

    async def _commit(self, type_: str, what: Mapping[str, str], changes: Sequence[Change], now: int) -> list[str]:
        subjects = [f"jwt_key:{what['kid']}"]
        entry = make_entry(type_, at=now, who={"kind": "server"}, what=what, subjects=subjects, random=self._random)
        try:
            await self._store.ledger.commit(Write([entry], changes, bump=True))
        except HandclaspError as error:
            if error.kind is not Kind.CONFLICT:
                raise
            return []
        await self.refresh()
        return [f"{type_} {what['kid']} of {what['trust_domain']}"]
