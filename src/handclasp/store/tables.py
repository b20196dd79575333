"""The one schema, for SQLite and PostgreSQL.

Times are integer milliseconds since the Unix epoch (columns end in ``_at`` or are ``not_before``/``not_after``), fingerprints are 32 raw
bytes, lists and maps are JSON text. Columns are only ever added; a migration in ``store/migrations`` goes with each change
(a test compares the two).
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, MetaData, SmallInteger, Table, Text, text

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

meta = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    comment="Installation facts and generation numbers (one row each): instance id, trust domains, state generation.",
)

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
Index("ix_certificate_not_after", certificate.c.not_after)
# No index on the key or the line: a key belongs to one identity and a line to one identity, so both are found through it.
Index(
    "ix_certificate_revoked",
    certificate.c.authority_id,
    certificate.c.crl_shard,
    sqlite_where=text("revoked_at IS NOT NULL"),
    postgresql_where=text("revoked_at IS NOT NULL"),
)

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

document = Table(
    "document",
    metadata,
    Column("kind", Text, primary_key=True, comment="policy | profiles"),
    Column("text", Text, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("applied_at", BigInteger, nullable=False),
    Column("applied_by", Text, nullable=False),
)

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
