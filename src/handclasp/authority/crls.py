"""Revocation lists: one for each shard of each authority, rebuilt when something in it changed or its end comes near.

A shard's list is the unexpired revoked certificates whose distribution point names that shard. `mark_dirty` goes into the same ledger write
as the revocation; `publish_dirty` builds what is marked and takes the mark away only if no further revocation came meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Integer, Row, case, delete, exists, insert, literal, or_, select, update

from handclasp.authority.authorities import Authorities, By
from handclasp.authority.facts import Authority
from handclasp.authority.offline import crl_der, crl_pem, next_number, read_entries
from handclasp.clock import Clock, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault
from handclasp.log.entries import make_entry
from handclasp.pki import ca, crl, keys
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

declare("crl.built", "crl.published")

VALIDITY = 86400.0  # seconds from this update to the next; renewed when less than half of it is left

Shard = tuple[int, int]
"""(authority id, shard)"""


def mark_dirty(authority_id: int, shard: int, now: int) -> list[Change]:
    """Return the changes that go into a revocation's own write: its shard has something that the published CRL does not hold.

    The mark always rises, also for two revocations in one millisecond, so that a publisher that read between them cannot take the second
    one's mark away. (Update, then insert where there was nothing: the ledger lets no other writer in between.)
    """
    table = tables.crl_dirty
    here = (table.c.authority_id == authority_id) & (table.c.shard == shard)
    risen = case((table.c.since_at >= now, table.c.since_at + 1), else_=now)
    new = select(literal(authority_id, Integer), literal(shard, Integer), literal(now, BigInteger)).where(~exists().where(here))
    return [
        Change(update(table).where(here).values(since_at=risen)),
        Change(insert(table).from_select(["authority_id", "shard", "since_at"], new)),
    ]


@dataclass(frozen=True, slots=True)
class _Published:
    number: int
    this_update: int
    next_update: int


class CrlPublisher:
    """Builds, publishes and hands out CRLs. Several processes may publish at once: the first to commit wins, the other's is dropped."""

    def __init__(self, store: Store, authorities: Authorities, clock: Clock, *, validity: float = VALIDITY) -> None:
        self._store = store
        self._authorities = authorities
        self._clock = clock
        self._validity = int(validity * 1000)
        self._one: dict[Shard, tuple[int, bytes, str]] = {}
        self._bundles: dict[str, tuple[tuple[tuple[int, int, int], ...], str, str]] = {}

    # --- publishing ---------------------------------------------------------------------------------------------------------------------

    async def publish_dirty(self) -> list[tuple[str, int]]:
        """Publish every shard that is dirty, was never published, or has less than half its time left; return (authority, shard) of each.

        Durable on return. Cheap when there is nothing to do (two small queries). Raises ``unavailable``, and what a token raises, after
        having tried every authority; what was published before stays published, and a shard that failed stays dirty.
        """
        await self._authorities.refresh()
        now, done = self._clock(), []
        dirty = {(row.authority_id, row.shard): row.since_at for row in await self._store.rows(select(tables.crl_dirty))}
        published = await self._numbers()
        failed: HandclaspError | None = None
        for authority in self._mine():
            due = [
                shard
                for shard in range(authority.crl_shards)
                if (place := (authority.id, shard)) in dirty
                or (last := published.get(place)) is None
                or last.next_update - now < self._validity / 2
            ]
            try:
                for shard in due:
                    place = (authority.id, shard)
                    if await self._publish(authority, shard, dirty.get(place), published.get(place)):
                        done.append((authority.name, shard))
            except HandclaspError as error:  # one authority's token is away: the others' revocations do not wait for it
                failed = failed or error
        if failed is not None:
            raise failed
        return done

    async def import_crl(self, name: str, data: bytes, *, by: By) -> int | None:
        """Publish a CRL (PEM or DER) that an offline root made; durable on return. The one that is published already changes nothing.

        Returns the place of the log entry, or None when nothing changed.

        Raises ``conflict`` when this authority's key is here, ``verify_failed`` when the authority did not sign it, ``bad_certificate``
        when it is not a CRL, is older than the one published, has ended, or covers only a part.
        """
        authority = self._authorities.find(name)
        if authority.key_uri is not None:
            raise HandclaspError(Kind.CONFLICT, f"the CRLs of {name!r} are made here", hint="its key is in the key store")
        der = crl_der(data)
        crl.verify_crl(der, authority.der)
        found = crl.read_crl(der)
        last = (await self._numbers()).get((authority.id, 0))
        if found.number is None or found.next_update is None or found.next_update <= self._clock():
            raise HandclaspError(Kind.BAD_CERTIFICATE, "the CRL has no number, or its time is over")
        if found.url not in (None, authority.crl_url(0)):
            raise HandclaspError(Kind.BAD_CERTIFICATE, f"the CRL is for {found.url}, which no certificate of {name!r} names")
        if last is not None and found.number == last.number and (await self.get(name, 0))[0] == der:
            return None
        if last is not None and found.number <= last.number:
            words = f"CRL number {found.number} is not above {last.number}, the one published"
            raise HandclaspError(Kind.BAD_CERTIFICATE, words, hint="import the newest root.crl")
        what = {"authority": name, "number": str(found.number), "next_update": rfc3339(found.next_update)}
        entry = make_entry("crl.imported", at=self._clock(), who=by, what=what)
        return await self._store.ledger.commit(Write([entry], self._changes(authority, 0, der, last, None)))

    async def problems(self) -> list[str]:
        """Return a sentence for each CRL that nobody here will renew in time, or that is late; for readiness and alarms."""
        now, published, found = self._clock(), await self._numbers(), []
        for authority in self._authorities.all():
            if not self._alive(authority):
                continue
            ends = [last.next_update if (last := published.get((authority.id, shard))) else 0 for shard in range(authority.crl_shards)]
            end = min(ends)
            left = 0.25 * self._validity if authority.key_uri is not None else 30 * 86_400_000  # offline: somebody must go there
            if end == 0 and authority.key_uri is None:
                found.append(f"root {authority.name!r} has no CRL here: make one where its key is and import it")
            elif end - now < left:
                found.append(f"a CRL of {authority.name!r} ends at {rfc3339(end)}" if end else f"a CRL of {authority.name!r} is missing")
        return found

    # --- handing out --------------------------------------------------------------------------------------------------------------------

    async def get(self, authority_name: str, shard: int) -> tuple[bytes, str]:
        """Return one published CRL (DER) and its strong ETag. Raises ``not_found``."""
        authority = next((one for one in self._authorities.all() if one.name == authority_name), None)
        found = None
        if authority is not None and 0 <= shard < authority.crl_shards:
            found = await self._store.point("SELECT number FROM crl WHERE authority_id = ? AND shard = ?", (authority.id, shard))
        if authority is None or found is None:
            raise HandclaspError(Kind.NOT_FOUND, f"there is no CRL {authority_name[:64]}/{shard}")
        place, number = (authority.id, shard), found[0]
        if place not in self._one or self._one[place][0] != number:
            table = tables.crl.c
            row = await self._store.row(select(tables.crl).where(table.authority_id == authority.id, table.shard == shard))
            assert row is not None  # rows of this table are replaced and never removed
            self._one[place] = (row.number, bytes(row.der), _etag(bytes(row.der)))
        return self._one[place][1:]

    async def get_bundle_pem(self, trust_domain: str) -> tuple[str, str]:
        """Return all CRLs of a trust domain, the roots' too, as one PEM text (what nginx and OpenSSL want), and its ETag.

        Raises ``not_found`` for a trust domain that is not served here.
        """
        if trust_domain not in self._authorities.trust_domains:
            raise HandclaspError(Kind.NOT_FOUND, f"trust domain {trust_domain[:255]!r} is not served here")
        wanted = [one.id for one in self._authorities.all() if one.trust_domain == trust_domain and self._alive(one)]
        column = tables.crl.c
        query = select(column.authority_id, column.shard, column.number).where(column.authority_id.in_(wanted))
        rows = await self._store.rows(query.order_by(column.authority_id, column.shard))
        mark = tuple((row.authority_id, row.shard, row.number) for row in rows)
        cached = self._bundles.get(trust_domain)
        if cached is None or cached[0] != mark:
            full = select(tables.crl).where(column.authority_id.in_(wanted)).order_by(column.authority_id, column.shard)
            text = await asyncio.to_thread(_pem_of_all, await self._store.rows(full))
            cached = self._bundles[trust_domain] = (mark, text, _etag(text.encode()))
        return cached[1], cached[2]

    # --- parts --------------------------------------------------------------------------------------------------------------------------

    def _alive(self, authority: Authority) -> bool:
        """Whether anything below this authority may be valid: certificates outlive a retired issuing authority, never a retired root."""
        return authority.not_after > self._clock() and (not authority.is_root or authority.state == "active")

    def _mine(self) -> list[Authority]:
        return [one for one in self._authorities.all() if one.key_uri is not None and self._alive(one)]

    async def _numbers(self) -> dict[Shard, _Published]:
        column = tables.crl.c
        rows = await self._store.rows(select(column.authority_id, column.shard, column.number, column.this_update, column.next_update))
        return {(row.authority_id, row.shard): _Published(row.number, row.this_update, row.next_update) for row in rows}

    async def _publish(self, authority: Authority, shard: int, since: int | None, last: _Published | None) -> bool:
        """Build and commit one shard; return False when another process was first. ``since`` was read before the certificates are."""
        key = self._authorities.crl_key(authority)
        assert key is not None
        entries = await (self._carried(authority) if authority.is_root else self._revoked(authority, shard, last))
        der = await asyncio.to_thread(self._build, authority, key, shard, entries, last)
        fault("crl.built")
        try:
            await self._store.ledger.commit(Write([], self._changes(authority, shard, der, last, since)))
        except HandclaspError as error:
            if error.kind is Kind.CONFLICT:
                return False
            raise
        fault("crl.published")
        return True

    async def _revoked(self, authority: Authority, shard: int, last: _Published | None) -> list[crl.Revoked]:
        """Return what the shard must hold: a certificate leaves after one CRL that was made after its end still had it (RFC 5280 3.3)."""
        column = tables.certificate.c
        query = select(column.serial, column.revoked_at, column.revocation_reason).where(
            column.authority_id == authority.id, column.crl_shard == shard, column.revoked_at.is_not(None)
        )
        if last is not None:
            seen = min(last.this_update, self._clock())  # another process's clock may be ahead of ours
            query = query.where(or_(column.not_after >= seen, column.revoked_at >= seen))
        rows = await self._store.rows(query)
        return [crl.Revoked(int.from_bytes(row.serial), row.revoked_at, row.revocation_reason or 0) for row in rows]

    async def _carried(self, root: Authority) -> list[crl.Revoked]:
        """Return what the root's last CRL held: authorities are few and their revocations have no other place."""
        row = await self._store.row(select(tables.crl.c.der).where(tables.crl.c.authority_id == root.id, tables.crl.c.shard == 0))
        return [] if row is None else read_entries(bytes(row.der), root.der)[0]

    def _build(self, authority: Authority, key: keys.PrivateKey, shard: int, entries: list[crl.Revoked], last: _Published | None) -> bytes:
        now = self._clock()
        number = next_number(0 if last is None else last.number, now)
        # A root's CRL covers everything that the root signed, so it needs no distribution point and imported ones have none.
        url = None if authority.is_root else authority.crl_url(shard) or None
        return crl.build_crl(authority.der, key, entries, number, now - int(ca.BACKDATE * 1000), now + self._validity, url)

    def _changes(self, authority: Authority, shard: int, der: bytes, last: _Published | None, since: int | None) -> list[Change]:
        """Return the changes that publish a CRL unless another was published since ``last``, and take away the mark that was read."""
        table, dirty = tables.crl, tables.crl_dirty
        found = crl.read_crl(der)
        values = {"number": found.number, "der": der, "this_update": found.this_update, "next_update": found.next_update}
        conflict = HandclaspError(Kind.CONFLICT, "another CRL was published at the same moment", retry_after=1)
        if last is None:
            changes = [Change(insert(table).values(authority_id=authority.id, shard=shard, **values), expect=1, conflict=conflict)]
        else:
            here = (table.c.authority_id == authority.id) & (table.c.shard == shard) & (table.c.number == last.number)
            changes = [Change(update(table).where(here).values(**values), expect=1, conflict=conflict)]
        if since is not None:
            read = (dirty.c.authority_id == authority.id) & (dirty.c.shard == shard) & (dirty.c.since_at == since)
            changes.append(Change(delete(dirty).where(read)))
        return changes


def _etag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def _pem_of_all(rows: Sequence[Row[Any]]) -> str:
    return "".join(crl_pem(row.der) for row in rows)
