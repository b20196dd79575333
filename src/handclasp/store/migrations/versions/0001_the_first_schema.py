"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "authority",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False, comment="root | issuing"),
        sa.Column("trust_domain", sa.Text(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.Column(
            "chain", sa.LargeBinary(), nullable=False, comment="concatenated DER of the certificates above it, nearest first, root last"
        ),
        sa.Column("key_uri", sa.Text(), nullable=True, comment="file:… or pkcs11:…; null when the key is elsewhere (an offline root)"),
        sa.Column("dns_zones", sa.Text(), server_default="[]", nullable=False),
        sa.Column("crl_shards", sa.Integer(), server_default="1", nullable=False),
        sa.Column("crl_base", sa.Text(), server_default="", nullable=False, comment="URL prefix baked into distribution points"),
        sa.Column("state", sa.Text(), nullable=False, comment="active | retired"),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_authority")),
        sa.UniqueConstraint("name", name=op.f("uq_authority_name")),
        sa.UniqueConstraint("sha256", name=op.f("uq_authority_sha256")),
    )
    op.create_table(
        "certificate",
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("serial", sa.LargeBinary(), nullable=False, comment="big-endian, as in the certificate"),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.Column("authority_id", sa.Integer(), nullable=False),
        sa.Column("identity_id", sa.Integer(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=False),
        sa.Column("names", sa.Text(), nullable=False, comment='JSON {"dns": […], "ip": […], "email": […]} without empty lists'),
        sa.Column("spki_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("key_type", sa.Text(), nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("renew_after", sa.BigInteger(), nullable=False),
        sa.Column("renew_before", sa.BigInteger(), nullable=False),
        sa.Column("line", sa.LargeBinary(), nullable=False, comment="sha256 of the first certificate of the line"),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("predecessor", sa.LargeBinary(), nullable=True),
        sa.Column("superseded_by", sa.LargeBinary(), nullable=True),
        sa.Column("superseded_at", sa.BigInteger(), nullable=True),
        sa.Column("granted_by", sa.Text(), nullable=False, comment="token:ID or policy:NAME, the grant the line began with"),
        sa.Column("obtained_by", sa.Text(), nullable=False, comment="the principal, in words"),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("revocation_reason", sa.SmallInteger(), nullable=True, comment="RFC 5280 CRLReason"),
        sa.Column("crl_shard", sa.Integer(), nullable=False),
        sa.Column("log_index", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_certificate")),
        sa.UniqueConstraint("serial", name=op.f("uq_certificate_serial")),
        sqlite_with_rowid=True,
    )
    with op.batch_alter_table("certificate", schema=None) as batch_op:
        batch_op.create_index("ix_certificate_identity_id_not_after", ["identity_id", "not_after"], unique=False)
        batch_op.create_index("ix_certificate_not_after", ["not_after"], unique=False)
        batch_op.create_index(
            "ix_certificate_revoked",
            ["authority_id", "crl_shard"],
            unique=False,
            sqlite_where=sa.text("revoked_at IS NOT NULL"),
            postgresql_where=sa.text("revoked_at IS NOT NULL"),
        )

    op.create_table(
        "crl",
        sa.Column("authority_id", sa.Integer(), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False, comment="CRL number, only ever rises"),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.Column("this_update", sa.BigInteger(), nullable=False),
        sa.Column("next_update", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("authority_id", "shard", name=op.f("pk_crl")),
    )
    op.create_table(
        "crl_dirty",
        sa.Column("authority_id", sa.Integer(), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("since_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("authority_id", "shard", name=op.f("pk_crl_dirty")),
        comment="Shards with a revocation that their published CRL does not hold yet.",
    )
    op.create_table(
        "document",
        sa.Column("kind", sa.Text(), nullable=False, comment="policy | profiles"),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("applied_at", sa.BigInteger(), nullable=False),
        sa.Column("applied_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("kind", name=op.f("pk_document")),
    )
    op.create_table(
        "identity",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="SPIFFE ID, or dns:NAME, ip:ADDRESS, email:ADDRESS"),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("tier", sa.Text(), nullable=True),
        sa.Column("environment", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_identity")),
        sa.UniqueConstraint("name", name=op.f("uq_identity_name")),
    )
    op.create_table(
        "log_entry",
        sa.Column(
            "index",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="the entry's place in the log, given in its transaction",
        ),
        sa.Column("entry", sa.LargeBinary(), nullable=False, comment="canonical JSON, the exact bytes that are hashed"),
        sa.PrimaryKeyConstraint("index", name=op.f("pk_log_entry")),
    )
    op.create_table(
        "log_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="entries committed; also the lock that orders commits"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_log_head")),
    )
    op.create_table(
        "log_personal",
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("field", sa.Text(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("index", "field", name=op.f("pk_log_personal")),
        comment="What the salted hashes in entries stand for; deleting a row erases the person from the log.",
    )
    op.create_table(
        "log_subject",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("subject", "index", name=op.f("pk_log_subject")),
        comment="Entries by what they are about, where the certificate table does not say it: token:ID, identity:NAME, agent:NAME.",
    )
    op.create_table(
        "meta",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_meta")),
        comment="Installation facts and generation numbers (one row each): instance id, trust domains, state generation.",
    )
    op.create_table(
        "replay",
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("jti", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("issuer", "jti", name=op.f("pk_replay")),
        comment="OIDC token ids that were used where policy allows one use.",
    )
    with op.batch_alter_table("replay", schema=None) as batch_op:
        batch_op.create_index("ix_replay_expires_at", ["expires_at"], unique=False)

    op.create_table(
        "token",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("grant", sa.Text(), nullable=False, comment="JSON, access.tokens.TokenGrant"),
        sa.Column("uses", sa.Integer(), nullable=False, comment="0: without limit"),
        sa.Column("used", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token")),
    )
    with op.batch_alter_table("token", schema=None) as batch_op:
        batch_op.create_index("ix_token_created_at", ["created_at", "id"], unique=False)

    op.create_table(
        "agent",
        sa.Column("identity_id", sa.Integer(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), server_default="{}", nullable=False),
        sa.Column("enrolled_at", sa.BigInteger(), nullable=False),
        sa.Column("last_contact_at", sa.BigInteger(), nullable=True),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("report", sa.Text(), server_default="[]", nullable=False, comment="JSON list of wire.AgentIdentity"),
        sa.ForeignKeyConstraint(["identity_id"], ["identity.id"], name=op.f("fk_agent_identity_id")),
        sa.PrimaryKeyConstraint("identity_id", name=op.f("pk_agent")),
    )
    op.create_table(
        "key",
        sa.Column("spki_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("identity_id", sa.Integer(), nullable=True, comment="null for a key blocked before we ever certified it"),
        sa.Column("first_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("blocked_at", sa.BigInteger(), nullable=True),
        sa.Column("blocked_reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["identity_id"], ["identity.id"], name=op.f("fk_key_identity_id")),
        sa.PrimaryKeyConstraint("spki_sha256", name=op.f("pk_key")),
        sqlite_with_rowid=False,
    )

    # What everything else relies on: the head that orders commits, and the number that tells processes to look again.
    op.execute("INSERT INTO log_head (id, size) VALUES (1, 0)")
    op.execute("INSERT INTO meta (name, value) VALUES ('generation', '1')")
