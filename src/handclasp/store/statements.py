"""The ledger's own SQL, written once for each database: its statements run thousands of times a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert

from handclasp.store import tables
from handclasp.store.backend import Backend

CERTIFICATE_COLUMNS = [
    "sha256", "serial", "der", "authority_id", "identity_id", "profile", "names", "spki_sha256", "key_type", "not_before", "not_after",
    "renew_after", "renew_before", "line", "generation", "predecessor", "granted_by", "obtained_by", "crl_shard", "log_index",
]  # fmt: skip


class Statements:
    """The ledger's own SQL, in the placeholders of its database."""

    def __init__(self, backend: Backend) -> None:
        self._mark = "?" if backend.dialect.name == "sqlite" else "$"
        lock = backend.lock_suffix
        self.head = f"SELECT size FROM log_head WHERE id = 1{lock}"  # noqa: S608  (a constant of ours)
        self.set_head = self._text("UPDATE log_head SET size = ? WHERE id = 1")
        self.add_identity = self._text("INSERT INTO identity (name, owner, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
        self.add_key = self._text("INSERT INTO key (spki_sha256, identity_id, first_seen_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
        self.supersede = self._text("UPDATE certificate SET superseded_by = ?, superseded_at = COALESCE(superseded_at, ?) WHERE sha256 = ?")
        self.spend_token = self._text("UPDATE token SET used = used + ?, last_used_at = ? WHERE id = ?")
        self.spend_jwt = self._text("INSERT INTO replay (issuer, jti, expires_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
        self.bump = "UPDATE meta SET value = CAST(CAST(value AS BIGINT) + 1 AS TEXT) WHERE name = 'generation'"
        self.add_certificate = self._insert(tables.certificate, CERTIFICATE_COLUMNS, backend)
        self.add_entry = self._insert(tables.log_entry, ["index", "entry"], backend)
        self.add_personal = self._insert(tables.log_personal, ["index", "field", "salt", "value"], backend)
        self.add_subject = self._insert(tables.log_subject, ["subject", "index"], backend)

    def _text(self, sql: str) -> str:
        if self._mark == "?":
            return sql
        parts = sql.split("?")
        return "".join(part + (f"${number}" if number < len(parts) else "") for number, part in enumerate(parts, 1))

    @staticmethod
    def _insert(table: Any, columns: list[str], backend: Backend) -> str:
        return str(insert(table).compile(dialect=backend.dialect, column_keys=columns))

    def of_these(self, select: str, column: str, values: Sequence[Any]) -> tuple[str, Sequence[Any]]:
        """Add to ``select`` that ``column`` is one of ``values`` (which are all bytes or all text); return the query and its arguments."""
        if self._mark == "$":
            kind = "bytea" if isinstance(values[0], bytes) else "text"
            return f"{select} WHERE {column} = ANY($1::{kind}[])", [list(values)]
        return f"{select} WHERE {column} IN ({','.join('?' * len(values))})", values
