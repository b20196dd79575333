"""Evidence of agents, keys of JWT-SVIDs, federated trust domains, rotations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("agent") as batch_op:
        batch_op.add_column(
            sa.Column(
                "evidence",
                sa.Text(),
                nullable=True,
                comment="what it last enrolled with: JSON {rule, method, subject, facts}; null for a token",
            )
        )
        batch_op.add_column(sa.Column("holder", sa.Text(), nullable=True, comment="who enrolled as it last: token:ID, or METHOD:SUBJECT"))
    op.create_table(
        "jwt_key",
        sa.Column("kid", sa.Text(), nullable=False),
        sa.Column("trust_domain", sa.Text(), nullable=False),
        sa.Column("key_uri", sa.Text(), nullable=False),
        sa.Column("jwk", sa.Text(), nullable=False, comment="JSON, the public key"),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("active_at", sa.BigInteger(), nullable=False, comment="signs from here on: published well before"),
        sa.Column("retired_at", sa.BigInteger(), nullable=True, comment="signs no more from here on"),
        sa.Column("removed_at", sa.BigInteger(), nullable=True, comment="left the bundle"),
        sa.PrimaryKeyConstraint("kid", name=op.f("pk_jwt_key")),
    )
    op.create_index("ix_jwt_key_trust_domain", "jwt_key", ["trust_domain"])
    op.create_table(
        "federation",
        sa.Column("trust_domain", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=False, comment="https_web | https_spiffe"),
        sa.Column("endpoint_id", sa.Text(), nullable=True),
        sa.Column("bundle", sa.Text(), server_default="", nullable=False, comment="JWKS; empty until there is one"),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.Column("refresh_hint", sa.Integer(), nullable=False, comment="seconds"),
        sa.Column("fetched_at", sa.BigInteger(), nullable=True),
        sa.Column("tried_at", sa.BigInteger(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("trust_domain", name=op.f("pk_federation")),
    )
    op.create_table(
        "rotation",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("what", sa.Text(), nullable=False, comment="JSON {all | identity | authority}"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("log_index", sa.BigInteger(), nullable=True),
        sa.Column(
            "place",
            sa.Text(),
            nullable=True,
            comment="NOT_AFTER:SHA256 of the last certificate that was told, empty before the first; null when all were",
        ),
        sa.Column(
            "replaced",
            sa.Integer(),
            nullable=True,
            comment="the final count, when every certificate has been replaced or is gone and the items were dropped",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rotation")),
    )
    op.create_index("ix_rotation_created_at", "rotation", ["created_at", "id"])
    op.create_table(
        "rotation_item",
        sa.Column("rotation_id", sa.Text(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("rotation_id", "sha256", name=op.f("pk_rotation_item")),
        sqlite_with_rowid=False,
    )
