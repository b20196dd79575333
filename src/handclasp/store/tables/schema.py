"""What all tables have in common."""

from __future__ import annotations

from typing import Any

from sqlalchemy import MetaData, text

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

BESIDE = (
    "name_trigram", "ix_name_trigram", "ix_identity_prefix",
    "certificate_kept", "certificate_default", "certificate_2", "uq_certificate_serial",
)  # fmt: skip
"""What the migrations make besides: indexes over names that each database has in its own way, and no table of this schema; on PostgreSQL
the partitions of ``certificate`` (:mod:`handclasp.store.partitions`), where its keys are (sha256, not_after) and (serial, not_after)."""


def only_where(condition: str) -> dict[str, Any]:
    """Return what makes an index hold only the rows that fulfil a condition, which queries have to repeat to be answered from it."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}
