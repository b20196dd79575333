"""Rows of certificates as the API shows them, a page at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography import x509
from sqlalchemy import Row, select
from sqlalchemy.sql import Select

from handclasp.clock import rfc3339
from handclasp.inventory.conditions import Key
from handclasp.pki.chains import to_pem
from handclasp.pki.crl import REASONS
from handclasp.store import tables
from handclasp.store.chunks import in_chunks
from handclasp.store.database import Store
from handclasp.wire import Certificate

_TOGETHER = 500

_STANDING = ("state", "since_at", "first_seen_at", "last_seen_at", "open")


def _standing_columns() -> list[Any]:
    return [tables.standing.c[name].label(f"standing_{name}") for name in _STANDING]


def _identity_columns() -> list[Any]:
    identity = tables.identity.c
    return [identity.name.label("identity"), identity.owner, identity.tier, identity.environment]


def _issued_query(der: bool) -> Select[Any]:
    certificate, identity, authority, standing = tables.certificate, tables.identity, tables.authority, tables.standing
    left_out = {"identity_id", "crl_shard", *(() if der else ("der",))}
    columns = [column for column in certificate.c if column.name not in left_out]
    return select(*columns, *_identity_columns(), authority.c.name.label("authority"), *_standing_columns()).select_from(
        certificate.join(identity, identity.c.id == certificate.c.identity_id)
        .join(authority, authority.c.id == certificate.c.authority_id)
        .outerjoin(standing, standing.c.sha256 == certificate.c.sha256)
    )


def _found_query(der: bool) -> Select[Any]:
    found, identity, authority, standing, issuer = tables.found, tables.identity, tables.authority, tables.standing, tables.issuer
    left_out = {"identity_id", "authority_id", "first_seen_at", *(() if der else ("der",))}
    columns = [column for column in found.c if column.name not in left_out]
    return select(
        *columns, found.c.first_seen_at.label("first_found_at"), *_identity_columns(), authority.c.name.label("authority"),
        issuer.c.name.label("issuer"), *_standing_columns()
    ).select_from(
        found.outerjoin(identity, identity.c.id == found.c.identity_id)
        .outerjoin(authority, authority.c.id == found.c.authority_id)
        .outerjoin(issuer, issuer.c.id == found.c.issuer_id)
        .outerjoin(standing, standing.c.sha256 == found.c.sha256)
    )  # fmt: skip


async def fetch(
    store: Store, wanted: Sequence[tuple[Key, str]], now: int, subjects: Mapping[int, tuple[str, str]], *, der: bool = False
) -> list[Certificate]:
    """Return the certificates (key, origin) in their order; what is gone meanwhile is left out.

    ``subjects`` are (name, subject) of our authorities. With ``der`` each has its PEM.
    """
    shown: dict[bytes, Certificate] = {}
    for origin, make, query, table in (
        ("issued", issued, _issued_query(der), tables.certificate),
        ("found", found, _found_query(der), tables.found),
    ):
        keys = [key for key, where in wanted if where == origin]
        for some in in_chunks(keys, _TOGETHER):
            # The ends too: they say in which months of the table to look.
            first, last = min(key[0] for key in some), max(key[0] for key in some)
            these = table.c.sha256.in_([key[1] for key in some])
            rows = await store.rows(query.where(these, table.c.not_after.between(first, last)))
            for row in rows:
                one = make(row, now, subjects)
                if der and row.der is not None:
                    one.certificate = to_pem(bytes(row.der))
                shown[bytes(row.sha256)] = one
    return [shown[key[1]] for key, _ in wanted if key[1] in shown]


def issued(row: Row[Any], now: int, subjects: Mapping[int, tuple[str, str]]) -> Certificate:
    """Return a row of ``certificate``."""
    names = json.loads(row.names)
    return Certificate(
        sha256=row.sha256.hex(),
        serial=f"{int.from_bytes(row.serial, 'big'):x}",
        identity=row.identity,
        dns=names.get("dns", []),
        ip=names.get("ip", []),
        email=names.get("email", []),
        profile=row.profile,
        authority=row.authority,
        not_before=rfc3339(row.not_before),
        not_after=rfc3339(row.not_after),
        renew_after=rfc3339(row.renew_after),
        renew_before=rfc3339(row.renew_before),
        state=state_of(row, now),
        key_sha256=row.spki_sha256.hex(),
        key_type=row.key_type,
        line=row.line.hex(),
        generation=row.generation,
        predecessor=row.predecessor.hex() if row.predecessor else None,
        superseded_by=row.superseded_by.hex() if row.superseded_by else None,
        revoked_at=_when(row.revoked_at),
        revocation_reason=_reason(row.revocation_reason),
        granted_by=row.granted_by,
        obtained_by=row.obtained_by,
        log_entry=row.log_index,
        issuer=subjects.get(row.authority_id, ("", ""))[1] or None,
        owner=row.owner,
        tier=row.tier,
        environment=row.environment,
        **_standing(row),
    )


def found(row: Row[Any], now: int, _subjects: Mapping[int, tuple[str, str]]) -> Certificate:
    """Return a row of ``found``."""
    names = json.loads(row.names)
    standing = _standing(row)
    return Certificate(
        sha256=row.sha256.hex(),
        serial=f"{int.from_bytes(row.serial, 'big'):x}" if row.serial else "",
        identity=row.identity,
        dns=names.get("dns", []),
        ip=names.get("ip", []),
        email=names.get("email", []),
        uri=names.get("uri", []),
        profile=None,
        authority=row.authority,
        not_before=rfc3339(row.not_before),
        not_after=rfc3339(row.not_after),
        renew_after=None,
        renew_before=None,
        state="valid" if row.not_after > now else "expired",
        key_sha256=row.spki_sha256.hex() if row.spki_sha256 else None,
        key_type=row.key_type,
        line=None,
        generation=None,
        predecessor=None,
        superseded_by=None,
        revoked_at=None,
        revocation_reason=None,
        granted_by=None,
        obtained_by=None,
        log_entry=None,
        origin="found",
        issuer=row.issuer,
        subject=row.subject,
        owner=row.owner,
        tier=row.tier,
        environment=row.environment,
        is_ca=bool(row.is_ca),
        signature=row.signature or None,
        triage=row.triage,
        triage_by=row.triage_by,
        triage_reason=row.triage_reason,
        problem=row.problem,
        **{**standing, "first_seen": standing["first_seen"] or rfc3339(row.first_found_at)},
    )


def _standing(row: Row[Any]) -> dict[str, Any]:
    return {
        "standing": row.standing_state,
        "standing_since": _when(row.standing_since_at),
        "first_seen": _when(row.standing_first_seen_at),
        "last_seen": _when(row.standing_last_seen_at),
        "locations": row.standing_open or 0,
    }


def state_of(row: Row[Any], now: int) -> str:
    """Return the state of an issued certificate: one of :data:`handclasp.inventory.filters.STATES`."""
    if row.revoked_at is not None:
        return "revoked"
    if row.not_after <= now:
        return "expired"
    return "superseded" if row.superseded_by is not None else "valid"


def subject_of(der: bytes) -> str | None:
    """Return the subject in a certificate of ours, which no row has."""
    return x509.load_der_x509_certificate(der).subject.rfc4514_string() or None


def _when(at: int | None) -> str | None:
    return None if at is None else rfc3339(at)


def _reason(code: int | None) -> str | None:
    return next((name for name, number in REASONS.items() if number == code), None) if code is not None else None
