"""Who may come in: tokens, agents, people at the console."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, Table, Text

from handclasp.store.tables.schema import metadata

token = Table(
    "token",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("secret_sha256", LargeBinary, nullable=False),
    Column("owner", Text),
    Column("grant", Text, nullable=False, comment="JSON, access.tokens.TokenGrant"),
    Column("uses", Integer, nullable=False, comment="0: without limit"),
    Column("used", Integer, nullable=False, server_default="0"),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("last_used_at", BigInteger),
    Column("revoked_at", BigInteger),
)
Index("ix_token_created_at", token.c.created_at, token.c.id)

replay = Table(
    "replay",
    metadata,
    Column("issuer", Text, primary_key=True),
    Column("jti", Text, primary_key=True),
    Column("expires_at", BigInteger, nullable=False),
    comment="OIDC token ids that were used where policy allows one use.",
)
Index("ix_replay_expires_at", replay.c.expires_at)

agent = Table(
    "agent",
    metadata,
    Column("identity_id", Integer, ForeignKey("identity.id"), primary_key=True),
    Column("hostname", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("labels", Text, nullable=False, server_default="{}"),
    Column("enrolled_at", BigInteger, nullable=False),
    Column("last_contact_at", BigInteger),
    Column("address", Text),
    Column("report", Text, nullable=False, server_default="[]", comment="JSON list of wire.AgentIdentity"),
    Column("evidence", Text, comment="what it last enrolled with: JSON {rule, method, subject, facts}; null for a token"),
    Column("holder", Text, comment="who enrolled as it last: token:ID, or METHOD:SUBJECT"),
)

session = Table(
    "session",
    metadata,
    Column("secret_sha256", LargeBinary, primary_key=True),
    Column("principal", Text, nullable=False, comment="JSON, access.sessions.ConsoleUser"),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("used_at", BigInteger, nullable=False),
    comment="Who is signed in to the console.",
)
Index("ix_session_expires_at", session.c.expires_at)
