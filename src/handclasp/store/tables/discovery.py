"""What is read: sources, scans over them, and their parts."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, SmallInteger, Table, Text, text

from handclasp.store.tables.schema import metadata, only_where

source = Table(
    "source",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column(
        "kind",
        Text,
        nullable=False,
        comment="network, files, kubernetes …: a module of discovery; agent: what agents report of their targets",
    ),
    Column(
        "settings",
        Text,
        nullable=False,
        server_default="{}",
        comment="JSON, of the kind's own shape; names files of secrets, never secrets",
    ),
    Column("scope", Text, nullable=False, server_default="{}", comment='JSON {"allow": […], "deny": […]}'),
    Column("every", BigInteger, nullable=False, comment="ms between scans; 0: only when asked"),
    Column("runs", Text, nullable=False, server_default="server", comment="server | collector | agents: who reads it"),
    Column("state", Text, nullable=False, server_default="active", comment="active | paused"),
    Column("facts", Text, nullable=False, server_default="{}", comment="JSON, true of everything that it reads: zone, environment, tags"),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("due_at", BigInteger, comment="when the next scan begins"),
    Column("success_at", BigInteger, comment="when the last scan that read everything began"),
    Column("problem", Text, comment="why the last scan did not read everything"),
    comment="What discovery reads.",
)

scan = Table(
    "scan",
    metadata,
    Column("id", Text, primary_key=True),
    Column("source_id", Integer, nullable=False),
    Column("state", Text, nullable=False, comment="planning | running | done | stopped | failed"),
    Column("dry", SmallInteger, nullable=False, server_default=text("0"), comment="1: reads, and records nothing"),
    Column("asked_by", Text, nullable=False, comment="the principal in words, or schedule"),
    Column("created_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("total", BigInteger, nullable=False, server_default=text("0"), comment="places to read, as far as is known"),
    Column("read", BigInteger, nullable=False, server_default=text("0"), comment="places that were read"),
    Column("failed", BigInteger, nullable=False, server_default=text("0"), comment="places that could not be read"),
    Column("certificates", BigInteger, nullable=False, server_default=text("0"), comment="certificates seen"),
    Column("fresh", BigInteger, nullable=False, server_default=text("0"), comment="certificates that nobody had seen before"),
    Column("gone", BigInteger, nullable=False, server_default=text("0"), comment="sightings that ended"),
    Column("problem", Text),
    comment="One run over a source.",
)
Index("ix_scan_source_id_created_at", scan.c.source_id, scan.c.created_at)
Index("ix_scan_created_at", scan.c.created_at, scan.c.id)

scan_part = Table(
    "scan_part",
    metadata,
    Column("scan_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("spec", Text, nullable=False, comment="JSON, what to read; of the kind's own shape"),
    Column("state", Text, nullable=False, comment="waiting | leased | done | failed"),
    Column("place", Text, nullable=False, server_default="", comment="how far it is: where a killed worker's successor goes on"),
    Column("leased_by", Text),
    Column("leased_until", BigInteger),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("problem", Text),
    comment="What one worker takes of a scan at a time.",
)
Index("ix_scan_part_open", scan_part.c.state, scan_part.c.leased_until,
      **only_where("state IN ('waiting', 'leased')"))  # fmt: skip
