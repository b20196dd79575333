"""Which certificates are known, and rows for those that are not: the half of recording that is about certificates and not about places.

A certificate is either issued here or found, never both. What is new is read from its bytes, held against our authorities' keys, and gets
its issuer, its identity and its names. One that an authority of ours signed and that was never issued here is recorded with a log entry, in
one write that happens once, whoever sees it first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from handclasp.errors import HandclaspError, Kind
from handclasp.inventory import statements
from handclasp.inventory.issuers import OurAuthorities
from handclasp.inventory.names import name_rows
from handclasp.inventory.rows import CHAIN, FoundRow, Look, found_row, told_row
from handclasp.inventory.states import Graces
from handclasp.log.entries import Entry, make_entry
from handclasp.store import tables
from handclasp.store.chunks import in_chunks
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

_AT_ONCE = 400


@dataclass(frozen=True, slots=True)
class Known:
    """What recording has to know of a certificate."""

    origin: str
    """``issued`` or ``found``."""
    identity: str
    """Its identity's name; empty where it has none."""
    not_after: int
    is_ca: bool = False
    is_unissued: bool = False
    """An authority of ours signed it, and it was never issued here."""
    superseded_at: int | None = None
    revoked_at: int | None = None
    is_ours: bool = False
    """It is the certificate of an authority of ours."""
    is_seen: bool = True
    """For an issued one: whether it was ever seen."""

    @property
    def is_rogue_authority(self) -> bool:
        """Whether it is a CA certificate that our authority's key signed, and none of ours: that stands for something, wherever it is."""
        return self.is_ca and self.is_unissued


class Newcomers:
    """Looks up the certificates of one write, and makes the rows of those that are new."""

    def __init__(self, store: Store, ours: OurAuthorities, now: int, graces: Graces) -> None:
        self._store = store
        self._ours = ours
        self._now = now
        self._graces = graces
        self._new: list[FoundRow] = []
        self._filled: list[FoundRow] = []
        self.fresh = 0
        """Certificates found here that nobody had seen before, but for those that only came along in a chain."""
        self.unreadable = 0
        self.brought: dict[bytes, Look] = {}
        """Where each certificate is that nobody had seen before, those of chains too."""
        self.learnt: set[bytes] = set()
        """Certificates that were known by their fingerprint, and of which the bytes came now."""

    async def look_up(self, looks: Sequence[Look], besides: Iterable[bytes] = ()) -> dict[bytes, Known]:
        """Return everything that these locations hold, and of ``besides`` what is known."""
        ders: dict[bytes, bytes | None] = {}
        first: dict[bytes, Look] = {}
        for look in looks:
            for sha256, data in look.ders.items():
                if ders.get(sha256) is None:
                    ders[sha256] = data
                first.setdefault(sha256, look)
        known, without = await self._known([*ders, *(one for one in besides if one not in ders)])
        for sha256, data in ders.items():
            if sha256 in known and not (data is not None and sha256 in without):
                continue
            look = first[sha256]
            at = min(look.at, self._now)
            row = told_row(sha256, look.told[sha256], at) if data is None else found_row(data, at)
            known[sha256] = self._judge(row)
            (self._filled if sha256 in without else self._new).append(row)
            if sha256 not in without:
                self.brought[sha256] = look
            if sha256 in without:
                self.learnt.add(sha256)
        themselves = {sha256 for look in looks for sha256, role in look.sightings if role != CHAIN}
        self.fresh += sum(row.sha256 in themselves for row in self._new)
        return known

    async def record_unissued(self, scan_id: str | None) -> None:
        """Record what our authorities signed and never issued here, each with its log entry; durable on return."""
        for row in [one for one in (*self._new, *self._filled) if self._is_unissued(one.values, one.sha256)]:
            if not self._may_be_forgotten(row.values):
                await self._record_unissued(row, scan_id)

    def changes(self) -> list[Change]:
        """Return the changes that make the rows of what is new."""
        return _row_changes(self._new, self._filled, self._ours, self._now)

    # --- what is known --------------------------------------------------------------------------------------------------------------------

    async def _known(self, wanted: Sequence[bytes]) -> tuple[dict[bytes, Known], set[bytes]]:
        """Return what has a row, and the fingerprints of those whose bytes nobody has seen yet: they were only told of."""
        known: dict[bytes, Known] = {}
        without: set[bytes] = set()
        for some in in_chunks(wanted, _AT_ONCE):
            for row in await self._store.rows(_issued(some)):
                known[bytes(row.sha256)] = Known(
                    "issued",
                    row.name,
                    row.not_after,
                    superseded_at=row.superseded_at,
                    revoked_at=row.revoked_at,
                    is_seen=bool(row.first_seen_at),
                )
            others = [one for one in some if one not in known]
            if not others:
                continue
            for row in await self._store.rows(_found(others)):
                sha256 = bytes(row.sha256)
                rogue = row.authority_id is not None and sha256 not in self._ours.certificates
                is_ours = sha256 in self._ours.certificates
                known[sha256] = Known("found", row.name or "", row.not_after, bool(row.is_ca), rogue, is_ours=is_ours)
                if row.bare:
                    without.add(sha256)
        return known, without

    # --- what is new ----------------------------------------------------------------------------------------------------------------------

    def _judge(self, row: FoundRow) -> Known:
        values = row.values
        if row.reading is not None and row.reading.problem is not None:
            self.unreadable += 1
        authority = self._ours.certificates.get(row.sha256)
        if authority is None and row.reading is not None:
            authority = self._ours.signer_of(row.reading, values["der"])
        values["authority_id"] = authority
        is_ours = row.sha256 in self._ours.certificates
        return Known("found", row.identity, values["not_after"], row.is_ca, self._is_unissued(values, row.sha256), is_ours=is_ours)

    def _is_unissued(self, values: dict[str, Any], sha256: bytes) -> bool:
        return values["authority_id"] is not None and sha256 not in self._ours.certificates

    def _may_be_forgotten(self, values: dict[str, Any]) -> bool:
        """Tell whether it ended so long ago that it may have been issued here, and retention took it: the log must not say otherwise."""
        horizon = self._graces.horizon
        return bool(horizon and values["not_after"] and values["first_seen_at"] > values["not_after"] + horizon)

    async def _record_unissued(self, row: FoundRow, scan_id: str | None) -> None:
        authority = self._ours.names[row.values["authority_id"]]
        entry = unissued_entry(row.sha256, row.values["serial"], row.identity, authority, row.is_ca, self._now, scan_id)
        is_new = row in self._new
        changes = _row_changes([row] if is_new else [], [] if is_new else [row], self._ours, self._now)
        for change in changes:
            if change.statement in (statements.add_found, statements.fill_found):
                assert change.rows is not None
                values = {name: value for name, value in change.rows[0].items() if name in change.statement.compile().params}
                change.statement, change.rows, change.expect = change.statement.bindparams(**values), None, 1
        try:
            await self._store.ledger.commit(Write([entry], changes))
        except HandclaspError as error:
            if error.kind is not Kind.CONFLICT:
                raise  # otherwise another process recorded it this very moment, with its entry
        (self._new if is_new else self._filled).remove(row)


def unissued_entry(sha256: bytes, serial: bytes, identity: str, authority: str, is_ca: bool, now: int, scan_id: str | None = None) -> Entry:
    """Return the log entry for a certificate that an authority of ours signed, and that was never issued here."""
    what: dict[str, Any] = {
        "sha256": sha256.hex(),
        "serial": serial.hex().lstrip("0"),
        "identity": "email" if identity.startswith("email:") else identity,
        "authority": authority,
        "is_ca": is_ca,
    }
    why = {"scan": scan_id} if scan_id else None
    return make_entry("certificate.unissued", at=now, who={"kind": "server"}, what=what, why=why, subjects=[f"certificate:{sha256.hex()}"])


def _issued(wanted: Sequence[bytes]) -> Any:
    certificate, identity, standing = tables.certificate.c, tables.identity.c, tables.standing.c
    columns = (certificate.sha256, certificate.not_after, certificate.superseded_at, certificate.revoked_at, identity.name)
    return (
        select(*columns, standing.first_seen_at)
        .join_from(tables.certificate, tables.identity, identity.id == certificate.identity_id)
        .join(tables.standing, standing.sha256 == certificate.sha256, isouter=True)
        .where(certificate.sha256.in_(wanted))
    )


def _found(wanted: Sequence[bytes]) -> Any:
    found, identity = tables.found.c, tables.identity.c
    return (
        select(found.sha256, found.not_after, found.is_ca, found.authority_id, found.der.is_(None).label("bare"), identity.name)
        .join_from(tables.found, tables.identity, identity.id == found.identity_id, isouter=True)
        .where(found.sha256.in_(wanted))
    )


def _row_changes(new: Sequence[FoundRow], filled: Sequence[FoundRow], ours: OurAuthorities, now: int) -> list[Change]:
    rows = [*new, *filled]
    issuers = {row.issuer: row for row in rows if row.issuer is not None}
    identities = sorted({row.identity for row in rows if row.identity})
    texts, links = name_rows((row.identity, row.names) for row in rows if row.identity)
    newest = [
        {"identity": row.identity, "sha256": row.sha256, "not_before": row.values["not_before"], "not_after": row.values["not_after"]}
        for row in rows
        if row.identity and row.values["not_after"]
    ]
    todo: list[tuple[Any, list[dict[str, Any]]]] = [
        (
            statements.add_issuer,
            [
                {"name": name, "key_id": key_id, "authority_id": ours.named(row.reading) if row.reading is not None else None}
                for (name, key_id), row in sorted(issuers.items(), key=lambda item: item[0])
            ],
        ),
        (statements.add_identity, [{"name": name, "at": now} for name in identities]),
        (statements.add_name, texts),
        (statements.name_identity, links),
        (statements.add_found, [_values(row) for row in new]),
        (statements.unsum_told, [{"sha256": row.sha256} for row in filled]),
        (statements.fill_found, [_values(row) for row in filled]),
        (statements.doubt, [{"sha256": row.sha256} for row in filled]),
        (statements.sum_found, newest),
    ]
    return [Change(statement, rows=values) for statement, values in todo if values]


def _values(row: FoundRow) -> dict[str, Any]:
    name, key_id = row.issuer if row.issuer is not None else (None, None)
    return {**row.values, "issuer_name": name, "issuer_key_id": key_id, "identity": row.identity or None}
