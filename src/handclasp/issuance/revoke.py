"""Revocation: row, dirty CRL shard and log entry in one transaction; a compromised key takes every certificate over it along."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from handclasp.access.authorize import Allowed, Circumstances, authorize
from handclasp.access.principals import CertificatePrincipal, OidcPrincipal, Principal, TokenPrincipal
from handclasp.authority.crls import mark_dirty
from handclasp.clock import Clock, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.request import Source
from handclasp.issuance.rulebook import Rulebook
from handclasp.issuance.suggestions import Suggestions
from handclasp.log.entries import Entry, make_entry
from handclasp.pki.crl import REASONS
from handclasp.pki.names import Names, make_names
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

_AT_ONCE = 1_000
"""Certificates over one key that one transaction revokes: all that an honest key has, and not so many that others wait for it."""
_SPENT = frozenset({Kind.TOKEN_SPENT, Kind.TOKEN_REVOKED, Kind.REPLAYED})
"""What the ledger says of a credential that serves no more."""


@dataclass(frozen=True, slots=True)
class _Profile:
    name: str


@dataclass(frozen=True, slots=True)
class _ToRevoke:
    """A certificate in the place of a plan, for the question whether it may be revoked."""

    names: Names
    profile: _Profile
    not_after: int


@dataclass(frozen=True, slots=True)
class Revocation:
    """What a revocation did."""

    revoked: list[bytes]
    reason: str
    revoked_at: int
    log_entry: int | None


class Revoker:
    """Revokes certificates. Methods may run concurrently; the ledger orders them."""

    def __init__(self, store: Store, rulebook: Rulebook, clock: Clock) -> None:
        self._store = store
        self._rulebook = rulebook
        self._clock = clock
        self._suggestions = Suggestions(store)

    async def revoke(
        self, sha256: bytes, reason: str, comment: str, principal: Principal, source: Source, *, any_certificate: bool
    ) -> Revocation:
        """Revoke one certificate; durable on return, and in the published CRL within two seconds.

        With ``any_certificate`` (the caller has the scope) any of ours; otherwise the caller's own, over mutual TLS, and those that a grant
        of the policy lets it revoke. With reason ``key_compromise`` its key is blocked for good and every unexpired certificate over it is
        revoked too, in several transactions where they are many: the first one blocks the key, and asking again goes on where one was
        stopped. Revoking again changes nothing, except that a key compromise still blocks the key.

        Raises ``bad_request`` for an unknown reason, ``not_found``, ``not_allowed``.
        """
        code = REASONS.get(reason)
        if code is None:
            raise HandclaspError(Kind.BAD_REQUEST, f"{reason!r} is not a reason to revoke", hint=f"one of {', '.join(REASONS)}")
        row = await self._store.row(_query().where(tables.certificate.c.sha256 == sha256))
        by_policy = None
        if not any_certificate and not (isinstance(principal, CertificatePrincipal) and principal.sha256 == sha256):
            by_policy = await self._authorize(sha256, row, principal, source)
        if row is None:
            raise HandclaspError(Kind.NOT_FOUND, "no certificate with this fingerprint was issued here")
        compromised = reason == "key_compromise"
        if row.revoked_at is not None and not compromised:
            return Revocation([], _reason_name(row.revocation_reason), row.revoked_at, None)
        now = self._clock()
        revoked: list[bytes] = []
        index = None
        while rows := await self._same_key(row, code) if compromised else [row]:
            write = Write(self._entries(rows, row, reason, comment, principal, source, now), self._changes(rows, code, now))
            if index is None:
                self._begin(write, row, compromised, by_policy, principal, source, now)
            try:
                first = await self._store.ledger.commit(write)
            except HandclaspError as error:
                if error.kind in _SPENT:
                    await self._log_refusal(sha256, error.kind, principal, source)
                raise
            index = first if index is None else index
            revoked += [bytes(one.sha256) for one in rows]
            if not compromised:
                break
        return Revocation(revoked, reason, now if revoked else row.revoked_at, index)

    def _begin(
        self, write: Write, row: Row[Any], compromised: bool, by_policy: Allowed | None, principal: Principal, source: Source, now: int
    ) -> None:
        """Add to the first write what happens once: the key is blocked, and what the policy grants by a token uses that token."""
        if compromised:
            # From this commit on no certificate over the key is issued, so that the search for more of them ends.
            what = {"key": row.spki_sha256.hex(), "since": rfc3339(now)}
            blocked = make_entry("key.blocked", at=now, who=principal.to_log(), what=what, source=source.to_log())
            write.entries = [*write.entries, blocked]
            write.changes = [*write.changes, Change(_block_key(self._store.is_sqlite, row, now))]
            write.bump = True
        if by_policy is not None and isinstance(principal, TokenPrincipal):
            write.spend_token = principal.id
        if by_policy is not None and by_policy.single_use and isinstance(principal, OidcPrincipal) and principal.jti:
            write.spend_jwt = (principal.issuer, principal.jti, principal.expires_at)

    async def _authorize(self, sha256: bytes, row: Row[Any] | None, principal: Principal, source: Source) -> Allowed:
        """Return the policy's permission, or log and raise its refusal, which is the same for a certificate that is not there."""
        if row is not None:
            others = json.loads(row.names)
            spiffe = row.name if row.name.startswith("spiffe://") else None
            names = make_names(spiffe, others.get("dns", ()), others.get("ip", ()), others.get("email", ()))
            circumstances = Circumstances("revoke", source.address, None, None, self._clock())
            policy = (await self._rulebook.current()).policy
            decision = authorize(principal, _ToRevoke(names, _Profile(row.profile), row.not_after), circumstances, policy)
            if isinstance(decision, Allowed):
                return decision
        raise await self._refusal(sha256, principal, source)

    async def _refusal(self, sha256: bytes, principal: Principal, source: Source) -> HandclaspError:
        await self._log_refusal(sha256, Kind.NOT_ALLOWED, principal, source)
        return HandclaspError(
            Kind.NOT_ALLOWED,
            "only its holder, an operator, and whom the policy lets may revoke a certificate",
            hint="use a token with certificates:revoke",
        )

    async def _log_refusal(self, sha256: bytes, kind: Kind, principal: Principal, source: Source) -> None:
        entry = make_entry(
            "revocation.refused",
            at=self._clock(),
            who=principal.to_log(),
            what={"sha256": sha256.hex()},
            why={"kind": kind.value},
            source=source.to_log(),
        )
        await self._store.ledger.commit(Write([entry]))

    async def _same_key(self, row: Row[Any], code: int) -> Sequence[Row[Any]]:
        """Some of the certificates over this key that a verifier could still accept and that are not yet revoked for this reason.

        A key has one identity, so its index finds them.
        """
        certificate = tables.certificate.c
        return await self._store.rows(
            _query()
            .where(certificate.identity_id == row.identity_id, certificate.spki_sha256 == row.spki_sha256)
            .where((certificate.not_after > self._clock()) | (certificate.sha256 == row.sha256))
            .where(certificate.revoked_at.is_(None) | (certificate.revocation_reason != code))
            .limit(_AT_ONCE)
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
        changes += [change for authority_id, shard in sorted(shards) for change in mark_dirty(authority_id, shard, now)]
        return [*changes, self._suggestions.changed()]

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
        return entries


def _query() -> Any:
    certificate = tables.certificate
    return select(
        certificate.c.sha256, certificate.c.serial, certificate.c.identity_id, certificate.c.spki_sha256, certificate.c.authority_id,
        certificate.c.crl_shard, certificate.c.revoked_at, certificate.c.revocation_reason, tables.identity.c.name,
        certificate.c.names, certificate.c.profile, certificate.c.not_after,
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
