"""Who owns what, and what says so."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, SmallInteger, Table, Text

from handclasp.store.tables.schema import metadata, only_where

owner = Table(
    "owner",
    metadata,
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False, comment="team | person | service"),
    Column("title", Text, nullable=False, server_default=""),
    Column("contact", Text, nullable=False, server_default="", comment="where it is reached: mail, channel, URL"),
    Column("escalation", Text, comment="the owner to turn to when this one does not answer"),
    Column(
        "directory", Text, nullable=False, server_default="", comment="where it came from: backstage, csv …; empty for one made by hand"
    ),
    Column("left_at", BigInteger, comment="since when the directory does not have it any more"),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

assignment = Table(
    "assignment",
    metadata,
    Column("identity_id", Integer, primary_key=True, autoincrement=False),
    Column(
        "evidence",
        Text,
        primary_key=True,
        comment="confirmed | token | workload | namespace | spiffe | cloud | catalogue | host | zone; denied: it is not this one's",
    ),
    Column("rule", Text, primary_key=True, comment="the rule that says so; confirmed and denied have none but their own name"),
    Column("owner", Text, primary_key=True, comment="empty where only tier or environment are said"),
    Column("tier", Text),
    Column("environment", Text),
    Column("detail", Text, nullable=False, server_default="", comment="what it matched, in words"),
    Column("confidence", SmallInteger, nullable=False, comment="percent"),
    Column("at", BigInteger, nullable=False),
    Column("due_at", BigInteger, comment="confirmed: when it is to be confirmed again"),
    Column(
        "stands",
        Text,
        nullable=False,
        server_default="",
        comment="owner: gives the owner; disputed: so too, and something weaker says otherwise; contested: so too, and something as "
        "strong says otherwise; guess: nothing gives the owner, and this is too weak to",
    ),
    comment="What says who owns an identity; the first in the order of evidence is the owner.",
)
Index("ix_assignment_owner", assignment.c.owner)
Index("ix_assignment_stands", assignment.c.stands, assignment.c.confidence, assignment.c.identity_id,
      **only_where("stands IN ('guess', 'disputed', 'contested')"))  # fmt: skip
Index("ix_assignment_due_at", assignment.c.due_at, **only_where("due_at IS NOT NULL"))

assignment_due = Table(
    "assignment_due",
    metadata,
    Column("identity_id", Integer, primary_key=True, autoincrement=False),
    Column("since_at", BigInteger, nullable=False),
    comment="Identities that are new, or of which the evidence changed: their owner is to be derived again.",
)

catalogue = Table(
    "catalogue",
    metadata,
    Column("directory", Text, primary_key=True),
    Column("kind", Text, primary_key=True, comment="component | path"),
    Column("name", Text, primary_key=True, comment="a component's name; a pattern of paths as CODEOWNERS writes it"),
    Column("place", Integer, nullable=False, comment="of a path in its file: the last one that covers a path counts"),
    Column("owners", Text, nullable=False, comment="JSON list of names"),
    Column("tier", Text),
    Column("environment", Text),
    comment="What directories say about components and paths; rules of ownership lead identities to them.",
)

confirmation = Table(
    "confirmation",
    metadata,
    Column("secret_sha256", LargeBinary, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("identities", Text, nullable=False, comment="JSON list of names that are asked about"),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("answered_at", BigInteger),
    comment="Links by which an owner confirms what it owns.",
)
