"""Writes for the ledger made on the spot, and what must hold of a database whatever was written to it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, insert, select, update

from handclasp.clock import system_clock
from handclasp.log.entries import Entry, make_entry
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import CertificateRow, Change, Write

WEB = "spiffe://example.org/prod/web"


def log_entry(note: str = "", **more: Any) -> Entry:
    """An entry unlike any other."""
    return make_entry("policy.compared", at=system_clock(), who={"kind": "test"}, what={"note": note, "n": os.urandom(8).hex()}, **more)


def certificate_row(identity: str = WEB, *, spki: bytes | None = None, predecessor: CertificateRow | None = None) -> CertificateRow:
    """A certificate as the ledger sees it: columns, no X.509."""
    sha256, now = os.urandom(32), system_clock()
    return CertificateRow(
        sha256=sha256, serial=os.urandom(18), der=b"der", authority_id=1, identity=identity, owner=None, profile="workload", names="{}",
        spki_sha256=spki or os.urandom(32), key_type="p256", not_before=now, not_after=now + 3_600_000, renew_after=now + 1_800_000,
        renew_before=now + 2_000_000, line=predecessor.line if predecessor else sha256,
        generation=predecessor.generation + 1 if predecessor else 0, predecessor=predecessor.sha256 if predecessor else None,
        granted_by="token:a", obtained_by="token:a (a)", crl_shard=0,
    )  # fmt: skip


def certificate_write(row: CertificateRow, **more: Any) -> Write:
    """The write that issues it."""
    return Write([log_entry(row.sha256.hex())], certificate=row, **more)


def token_write(token_id: str, uses: int = 1) -> Write:
    """The write that makes a token."""
    row = {"id": token_id, "name": token_id, "secret_sha256": bytes(32), "grant": "{}", "uses": uses, "created_at": 1, "expires_at": 2**50}
    return Write([log_entry(token_id)], [Change(insert(tables.token).values(row), expect=1)])


def revoke_change(row: CertificateRow) -> Change:
    return Change(update(tables.certificate).where(tables.certificate.c.sha256 == row.sha256).values(revoked_at=1), expect=1)


def block_change(spki: bytes) -> Change:
    return Change(update(tables.key).where(tables.key.c.spki_sha256 == spki).values(blocked_at=1), expect=1)


async def count(store: Store, table: Any) -> int:
    row = await store.row(select(func.count().label("n")).select_from(table))
    assert row is not None
    return int(row.n)


async def check_whole(store: Store, committed: Sequence[tuple[int, Write]], refused: Sequence[Write]) -> None:
    """Fail unless the log is dense, and rows and log hold exactly what was committed (``(index, write)``), nothing of what was refused."""
    entries = {row.index: bytes(row.entry) for row in await store.rows(select(tables.log_entry))}
    head = await store.row(select(tables.log_head.c.size))
    assert head is not None
    assert sorted(entries) == list(range(head.size))
    for index, write in committed:
        assert [entries[index + offset] for offset in range(len(write.entries))] == [entry.data for entry in write.entries]
    logged = set(entries.values())
    assert not any(entry.data in logged for write in refused for entry in write.entries)

    rows = {bytes(row.sha256): row for row in await store.rows(select(tables.certificate))}
    issued = {write.certificate.sha256: index for index, write in committed if write.certificate is not None}
    assert {sha256: row.log_index for sha256, row in rows.items()} == issued
    keys = {bytes(row.spki_sha256): row.identity_id for row in await store.rows(select(tables.key))}
    assert {bytes(row.spki_sha256): row.identity_id for row in rows.values()} == keys
    identities = {row.id: row.name for row in await store.rows(select(tables.identity))}
    assert {row.identity_id for row in rows.values()} == set(identities)
    for _, write in committed:
        if write.certificate is not None:
            assert identities[rows[write.certificate.sha256].identity_id] == write.certificate.identity
    for row in rows.values():
        assert row.superseded_by is None or bytes(row.superseded_by) in rows
    for token in await store.rows(select(tables.token)):
        assert token.used == sum(write.spend_token == token.id for _, write in committed)
        assert not token.uses or token.used <= token.uses
    spent = [write.spend_jwt[1] for _, write in committed if write.spend_jwt is not None]
    assert sorted(spent) == sorted(row.jti for row in await store.rows(select(tables.replay)))
