"""Revocation: row, dirty CRL shard and log entry in one transaction; a compromised key takes every certificate over it along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from handclasp.access.principals import CertificatePrincipal, Principal
from handclasp.authority.crls import mark_dirty
from handclasp.clock import Clock, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.request import Source
from handclasp.log.entries import Entry, make_entry
from handclasp.pki.crl import REASONS
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

_MAX_AT_ONCE = 10_000
"""Certificates over one key that one request revokes: far beyond any honest number, and still one transaction of a second or so."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """What a revocation did."""

    revoked: list[bytes]
    reason: str
    revoked_at: int
    log_entry: int | None


class Revoker:
    """Revokes certificates. Methods may run concurrently; the ledger orders them."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def revoke(
        self, sha256: bytes, reason: str, comment: str, principal: Principal, source: Source, *, any_certificate: bool
    ) -> Revocation:
        """Revoke one certificate; durable on return, and in the published CRL within two seconds.

        With ``any_certificate`` (the caller has the scope) any of ours; otherwise only the caller's own, over mutual TLS. With reason
        ``key_compromise`` its key is blocked for good and every unexpired certificate over it is revoked too. Revoking again changes
        nothing, except that a key compromise still blocks the key.

        Raises ``bad_request`` for an unknown reason, ``not_found``, ``not_allowed``.
        """
        code = REASONS.get(reason)
        if code is None:
            raise HandclaspError(Kind.BAD_REQUEST, f"{reason!r} is not a reason to revoke", hint=f"one of {', '.join(REASONS)}")
        if not any_certificate and not (isinstance(principal, CertificatePrincipal) and principal.sha256 == sha256):
            await self._refuse(sha256, principal, source)
        row = await self._row(sha256)
        compromised = reason == "key_compromise"
        if row.revoked_at is not None and not (compromised and row.revocation_reason != code):
            return Revocation([], _reason_name(row.revocation_reason), row.revoked_at, None)
        rows = await self._same_key(row) if compromised else [row]
        now = self._clock()
        write = Write(self._entries(rows, row, reason, comment, principal, source, now), self._changes(rows, code, now), bump=compromised)
        if compromised:
            write.changes = [*write.changes, Change(_block_key(self._store.is_sqlite, row, now))]
        index = await self._store.ledger.commit(write)
        return Revocation([bytes(one.sha256) for one in rows], reason, now, index)

    async def _refuse(self, sha256: bytes, principal: Principal, source: Source) -> None:
        entry = make_entry(
            "revocation.refused",
            at=self._clock(),
            who=principal.to_log(),
            what={"sha256": sha256.hex()},
            why={"kind": Kind.NOT_ALLOWED.value},
            source=source.to_log(),
        )
        await self._store.ledger.commit(Write([entry]))
        raise HandclaspError(
            Kind.NOT_ALLOWED, "only its holder or an operator may revoke a certificate", hint="use a token with certificates:revoke"
        )

    async def _row(self, sha256: bytes) -> Row[Any]:
        row = await self._store.row(_query().where(tables.certificate.c.sha256 == sha256))
        if row is None:
            raise HandclaspError(Kind.NOT_FOUND, "no certificate with this fingerprint was issued here")
        return row

    async def _same_key(self, row: Row[Any]) -> Sequence[Row[Any]]:
        """Every certificate over this key that a verifier could still accept. A key has one identity, so its index finds them."""
        certificate = tables.certificate.c
        return await self._store.rows(
            _query()
            .where(certificate.identity_id == row.identity_id, certificate.spki_sha256 == row.spki_sha256)
            .where((certificate.not_after > self._clock()) | (certificate.sha256 == row.sha256))
            .limit(_MAX_AT_ONCE)
        )

    def _changes(self, rows: Sequence[Row[Any]], code: int, now: int) -> list[Change]:
        certificate = tables.certificate
        changes = [
            Change(
                update(certificate)
                .where(certificate.c.sha256 == row.sha256)
                .values(revoked_at=row.revoked_at or now, revocation_reason=code),
                expect=1,
            )
            for row in rows
        ]
        shards = {(row.authority_id, row.crl_shard) for row in rows}
        return changes + [change for authority_id, shard in sorted(shards) for change in mark_dirty(authority_id, shard, now)]

    def _entries(
        self, rows: Sequence[Row[Any]], first: Row[Any], reason: str, comment: str, principal: Principal, source: Source, now: int
    ) -> list[Entry]:
        entries = []
        for row in rows:
            what = {"sha256": row.sha256.hex(), "serial": row.serial.hex().lstrip("0"), "identity": _public_name(row.name)}
            why = (
                {"reason": reason} if row is first or row.sha256 == first.sha256 else {"reason": reason, "same_key_as": first.sha256.hex()}
            )
            entries.append(
                make_entry(
                    "certificate.revoked",
                    at=now,
                    who=principal.to_log(),
                    what=what,
                    why=why,
                    source=source.to_log(),
                    personal={"comment": comment} if comment else None,
                    subjects=[f"certificate:{row.sha256.hex()}"],
                )
            )
        if reason == "key_compromise":
            what = {"key": first.spki_sha256.hex(), "since": rfc3339(now)}
            entries.append(make_entry("key.blocked", at=now, who=principal.to_log(), what=what, source=source.to_log()))
        return entries


def _query() -> Any:
    certificate = tables.certificate
    return select(
        certificate.c.sha256, certificate.c.serial, certificate.c.identity_id, certificate.c.spki_sha256, certificate.c.authority_id,
        certificate.c.crl_shard, certificate.c.revoked_at, certificate.c.revocation_reason, tables.identity.c.name,
    ).join(tables.identity, tables.identity.c.id == certificate.c.identity_id)  # fmt: skip


def _reason_name(code: int) -> str:
    return next((name for name, value in REASONS.items() if value == code), "unspecified")


def _public_name(identity: str) -> str:
    return "email" if identity.startswith("email:") else identity


def _block_key(sqlite: bool, row: Row[Any], now: int) -> Any:
    insert = sqlite_insert if sqlite else postgres_insert
    blocked = {"blocked_at": now, "blocked_reason": "key_compromise"}
    values = {"spki_sha256": row.spki_sha256, "identity_id": row.identity_id, "first_seen_at": now, **blocked}
    return insert(tables.key).values(**values).on_conflict_do_update(index_elements=["spki_sha256"], set_=blocked)
