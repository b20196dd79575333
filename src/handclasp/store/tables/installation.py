"""The installation itself: its facts, its documents, and the other trust domains that it takes bundles from."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, Table, Text

from handclasp.store.tables.schema import metadata

meta = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    comment="Installation facts and generation numbers (one row each): instance id, trust domains, state generation.",
)

document = Table(
    "document",
    metadata,
    Column("kind", Text, primary_key=True, comment="policy | profiles"),
    Column("text", Text, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("applied_at", BigInteger, nullable=False),
    Column("applied_by", Text, nullable=False),
)

federation = Table(
    "federation",
    metadata,
    Column("trust_domain", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("profile", Text, nullable=False, comment="https_web | https_spiffe"),
    Column("endpoint_id", Text),
    Column("bundle", Text, nullable=False, server_default="", comment="JWKS; empty until there is one"),
    Column("sequence", BigInteger),
    Column("refresh_hint", Integer, nullable=False, comment="seconds"),
    Column("fetched_at", BigInteger),
    Column("tried_at", BigInteger),
    Column("problem", Text),
    Column("created_at", BigInteger, nullable=False),
    comment="Other trust domains whose bundles are fetched and handed to agents; never merged with ours.",
)
