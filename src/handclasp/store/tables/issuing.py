"""What is issued here: authorities, identities, keys, certificates, how they are revoked, and how they are replaced before their time."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, SmallInteger, Table, Text

from handclasp.store.tables.schema import metadata, only_where

authority = Table(
    "authority",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False, comment="root | issuing"),
    Column("trust_domain", Text, nullable=False),
    Column("sha256", LargeBinary, nullable=False, unique=True),
    Column("der", LargeBinary, nullable=False),
    Column("chain", LargeBinary, nullable=False, comment="concatenated DER of the certificates above it, nearest first, root last"),
    Column("key_uri", Text, comment="file:… or pkcs11:…; null when the key is elsewhere (an offline root)"),
    Column("dns_zones", Text, nullable=False, server_default="[]"),
    Column("crl_shards", Integer, nullable=False, server_default="1"),
    Column("crl_base", Text, nullable=False, server_default="", comment="URL prefix baked into distribution points"),
    Column("state", Text, nullable=False, comment="active | retired"),
    Column("created_at", BigInteger, nullable=False),
)

identity = Table(
    "identity",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True, comment="SPIFFE ID, or dns:NAME, ip:ADDRESS, email:ADDRESS"),
    Column("owner", Text),
    Column("tier", Text),
    Column("environment", Text),
    Column("created_at", BigInteger, nullable=False),
)

Index("ix_identity_owner", identity.c.owner)

key = Table(
    "key",
    metadata,
    Column("spki_sha256", LargeBinary, primary_key=True),
    Column("identity_id", Integer, ForeignKey("identity.id"), comment="null for a key blocked before we ever certified it"),
    Column("first_seen_at", BigInteger, nullable=False),
    Column("blocked_at", BigInteger),
    Column("blocked_reason", Text),
    sqlite_with_rowid=False,
)

certificate = Table(
    "certificate",
    metadata,
    Column("sha256", LargeBinary, primary_key=True),
    Column("serial", LargeBinary, nullable=False, unique=True, comment="big-endian, as in the certificate"),
    Column("der", LargeBinary, nullable=False),
    Column("authority_id", Integer, nullable=False),
    Column("identity_id", Integer, nullable=False),
    Column("profile", Text, nullable=False),
    Column("names", Text, nullable=False, comment='JSON {"dns": […], "ip": […], "email": […]} without empty lists'),
    Column("spki_sha256", LargeBinary, nullable=False),
    Column("key_type", Text, nullable=False),
    Column("not_before", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("renew_after", BigInteger, nullable=False),
    Column("renew_before", BigInteger, nullable=False),
    Column("line", LargeBinary, nullable=False, comment="sha256 of the first certificate of the line"),
    Column("generation", Integer, nullable=False),
    Column("predecessor", LargeBinary),
    Column("superseded_by", LargeBinary),
    Column("superseded_at", BigInteger),
    Column("granted_by", Text, nullable=False, comment="token:ID or policy:NAME, the grant the line began with"),
    Column("obtained_by", Text, nullable=False, comment="the principal, in words"),
    Column("revoked_at", BigInteger),
    Column("revocation_reason", SmallInteger, comment="RFC 5280 CRLReason"),
    Column("crl_shard", Integer, nullable=False),
    Column("log_index", BigInteger, nullable=False),
    sqlite_with_rowid=True,
)
Index("ix_certificate_identity_id_not_after", certificate.c.identity_id, certificate.c.not_after)
# What lists walk: all that it covers can be filtered without a look at the rows. None of it changes while a certificate is renewed.
Index("ix_certificate_not_after", certificate.c.not_after, certificate.c.sha256, certificate.c.identity_id,
      certificate.c.authority_id, certificate.c.profile, certificate.c.key_type)  # fmt: skip
# No index on the key or the line: a key belongs to one identity and a line to one identity, so both are found through it.
Index(
    "ix_certificate_revoked",
    certificate.c.authority_id,
    certificate.c.crl_shard,
    **only_where("revoked_at IS NOT NULL"),
)

# The same for what was revoked, which is rare: lists of it walk this one.
Index("ix_certificate_revoked_not_after", certificate.c.not_after, certificate.c.sha256, certificate.c.identity_id,
      certificate.c.authority_id, certificate.c.profile, certificate.c.key_type,
      **only_where("revoked_at IS NOT NULL"))  # fmt: skip

crl = Table(
    "crl",
    metadata,
    Column("authority_id", Integer, primary_key=True),
    Column("shard", Integer, primary_key=True),
    Column("number", BigInteger, nullable=False, comment="CRL number, only ever rises"),
    Column("der", LargeBinary, nullable=False),
    Column("this_update", BigInteger, nullable=False),
    Column("next_update", BigInteger, nullable=False),
)

crl_dirty = Table(
    "crl_dirty",
    metadata,
    Column("authority_id", Integer, primary_key=True),
    Column("shard", Integer, primary_key=True),
    Column("since_at", BigInteger, nullable=False),
    comment="Shards with a revocation that their published CRL does not hold yet.",
)

jwt_key = Table(
    "jwt_key",
    metadata,
    Column("kid", Text, primary_key=True),
    Column("trust_domain", Text, nullable=False),
    Column("key_uri", Text, nullable=False),
    Column("jwk", Text, nullable=False, comment="JSON, the public key"),
    Column("created_at", BigInteger, nullable=False),
    Column("active_at", BigInteger, nullable=False, comment="signs from here on: published well before"),
    Column("retired_at", BigInteger, comment="signs no more from here on"),
    Column("removed_at", BigInteger, comment="left the bundle"),
    comment="Keys that sign JWT-SVIDs.",
)
Index("ix_jwt_key_trust_domain", jwt_key.c.trust_domain)

rotation = Table(
    "rotation",
    metadata,
    Column("id", Text, primary_key=True),
    Column("what", Text, nullable=False, comment="JSON {all | identity | authority}"),
    Column("reason", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("ends_at", BigInteger, nullable=False),
    Column("total", Integer, nullable=False),
    Column("log_index", BigInteger),
    Column("place", Text, comment="NOT_AFTER:SHA256 of the last certificate that was told, empty before the first; null when all were"),
    Column("replaced", Integer, comment="the final count, when every certificate has been replaced or is gone and the items were dropped"),
)
Index("ix_rotation_created_at", rotation.c.created_at, rotation.c.id)

rotation_item = Table(
    "rotation_item",
    metadata,
    Column("rotation_id", Text, primary_key=True),
    Column("sha256", LargeBinary, primary_key=True),
    comment="The certificates that a rotation is to replace.",
    sqlite_with_rowid=False,
)
