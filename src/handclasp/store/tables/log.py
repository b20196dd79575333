"""The log."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, Table, Text

from handclasp.store.tables.schema import metadata

log_head = Table(
    "log_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("size", BigInteger, nullable=False, comment="entries committed; also the lock that orders commits"),
)

log_entry = Table(
    "log_entry",
    metadata,
    Column("index", BigInteger, primary_key=True, autoincrement=False, comment="the entry's place in the log, given in its transaction"),
    Column("entry", LargeBinary, nullable=False, comment="canonical JSON, the exact bytes that are hashed"),
)

log_personal = Table(
    "log_personal",
    metadata,
    Column("index", BigInteger, primary_key=True, autoincrement=False),
    Column("field", Text, primary_key=True),
    Column("salt", LargeBinary, nullable=False),
    Column("value", Text, nullable=False),
    comment="What the salted hashes in entries stand for; deleting a row erases the person from the log.",
)

log_subject = Table(
    "log_subject",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("index", BigInteger, primary_key=True, autoincrement=False),
    comment="Entries by what they are about, where the certificate table does not say it: token:ID, identity:NAME, agent:NAME.",
)
