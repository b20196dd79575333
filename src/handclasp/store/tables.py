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
    sqlite_where=text("revoked_at IS NOT NULL"),
    postgresql_where=text("revoked_at IS NOT NULL"),
)

# The same for what was revoked, which is rare: lists of it walk this one.
Index("ix_certificate_revoked_not_after", certificate.c.not_after, certificate.c.sha256, certificate.c.identity_id,
      certificate.c.authority_id, certificate.c.profile, certificate.c.key_type,
      sqlite_where=text("revoked_at IS NOT NULL"), postgresql_where=text("revoked_at IS NOT NULL"))  # fmt: skip

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

# --- the inventory: what was found, where, and what it means ------------------------------------------------------------------------------

issuer = Table(
    "issuer",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, comment="distinguished name, RFC 4514"),
    Column("key_id", LargeBinary, nullable=False, comment="authority key identifier as the certificates name it; empty where they do not"),
    Column("authority_id", Integer, comment="our authority that this is, by name and key identifier; null for a foreign one"),
    comment="Who signed what was found.",
)
Index("uq_issuer_name_key_id", issuer.c.name, issuer.c.key_id, unique=True)

found = Table(
    "found",
    metadata,
    Column("sha256", LargeBinary, primary_key=True),
    Column("der", LargeBinary, comment="null where a source knows only the fingerprint"),
    Column("serial", LargeBinary, nullable=False, comment="big-endian; empty when not known"),
    Column("issuer_id", Integer, comment="null when not known"),
    Column("identity_id", Integer, comment="null for a CA certificate, and for one without a name of a workload"),
    Column("subject", Text, nullable=False, comment="distinguished name, RFC 4514"),
    Column("names", Text, nullable=False, comment='JSON {"uri": […], "dns": […], "ip": […], "email": […]} without empty lists'),
    Column("spki_sha256", LargeBinary, comment="null when not known"),
    Column("key_type", Text, nullable=False, server_default=""),
    Column("signature", Text, nullable=False, server_default="", comment="signature algorithm, such as ecdsa-sha256"),
    Column("usages", Text, nullable=False, server_default="[]", comment="JSON list of extended key usages"),
    Column("is_ca", SmallInteger, nullable=False, server_default=text("0")),
    Column("not_before", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("authority_id", Integer, comment="our authority whose key verifies its signature, though it was never issued here"),
    Column("first_seen_at", BigInteger, nullable=False),
    Column("problem", Text, comment="why it cannot be read, where it cannot"),
    Column("triage", Text, nullable=False, server_default="unmanaged", comment="unmanaged | claimed | dismissed | investigate"),
    Column("triage_by", Text),
    Column("triage_at", BigInteger),
    Column("triage_reason", Text),
    comment="Certificates that were found and not issued here. Keyed by the SHA-256 of their bytes: issuer and serial may lie.",
)
Index("ix_found_not_after", found.c.not_after, found.c.sha256, found.c.identity_id, found.c.issuer_id, found.c.key_type, found.c.triage)
Index("ix_found_serial", found.c.serial)
Index("ix_found_identity_id_not_after", found.c.identity_id, found.c.not_after)
Index("ix_found_spki_sha256", found.c.spki_sha256)
Index("ix_found_issuer_id_not_after", found.c.issuer_id, found.c.not_after)

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
      sqlite_where=text("state IN ('waiting', 'leased')"), postgresql_where=text("state IN ('waiting', 'leased')"))  # fmt: skip

location = Table(
    "location",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("source_id", Integer, nullable=False),
    Column(
        "key",
        Text,
        nullable=False,
        comment="what it is called in its source: tls:HOST:PORT/SNI, file:AGENT:PATH, k8s:CLUSTER/NS/secret/NAME#KEY",
    ),
    Column("kind", Text, nullable=False, comment="endpoint | file | keystore | kubernetes | mesh | cloud | ca | ct | import"),
    Column(
        "unit",
        Text,
        nullable=False,
        server_default="",
        comment="what lists it: when that was read whole and this was not in it, it is gone",
    ),
    Column("shown", Text, nullable=False, comment="the same for people: host:port, path, namespace/name"),
    Column("host", Text, comment="host, node or agent that it is on, for look-ups"),
    Column(
        "details", Text, nullable=False, server_default="{}", comment="JSON, of the kind's own shape: protocol, permissions, acceptable CAs"
    ),
    Column("facts", Text, nullable=False, server_default="{}", comment="JSON, evidence of who owns it: namespace, labels, tags"),
    Column("content", LargeBinary, comment="SHA-256 over what was seen there: the same again costs one timestamp"),
    Column("key_sha256", LargeBinary, comment="SPKI of the private key that lies here; the key itself is never read into the server"),
    Column("anchors", LargeBinary, comment="SHA-256 over the sorted fingerprints of the anchors here: equal bundles have equal ones"),
    Column("first_seen_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger, comment="when it was last read; every open sighting here was seen then"),
    Column("tried_at", BigInteger, nullable=False),
    Column("problem", Text, comment="why it could not be read the last time; that is no absence"),
    Column("gone_at", BigInteger),
    comment="Where certificates can be seen.",
)
Index("uq_location_source_id_key", location.c.source_id, location.c.key, unique=True)
Index("ix_location_source_id_unit_seen_at", location.c.source_id, location.c.unit, location.c.seen_at)
Index("ix_location_host", location.c.host)
Index("ix_location_key_sha256", location.c.key_sha256,
      sqlite_where=text("key_sha256 IS NOT NULL"), postgresql_where=text("key_sha256 IS NOT NULL"))  # fmt: skip

sighting = Table(
    "sighting",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("location_id", Integer, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("role", Text, nullable=False, comment="served | stored | listed | chain | anchor"),
    Column("chain", Text, nullable=False, server_default="[]", comment="JSON list of fingerprints, as it came, without the leaf"),
    Column("how", Text, nullable=False, server_default="{}", comment="JSON: TLS version, SNI, alias, secret key"),
    Column("first_seen_at", BigInteger, nullable=False),
    Column("last_seen_at", BigInteger, nullable=False, comment="while it is open, the location's seen_at is newer"),
    Column("ended_at", BigInteger, comment="when the location was read without it"),
    comment="Certificate C was at location L from t1 to t2.",
)
Index("uq_sighting_open", sighting.c.location_id, sighting.c.sha256, sighting.c.role, unique=True,
      sqlite_where=text("ended_at IS NULL"), postgresql_where=text("ended_at IS NULL"))  # fmt: skip
Index("ix_sighting_sha256", sighting.c.sha256, sighting.c.ended_at)
Index("ix_sighting_ended_at", sighting.c.ended_at,
      sqlite_where=text("ended_at IS NOT NULL"), postgresql_where=text("ended_at IS NOT NULL"))  # fmt: skip
Index("ix_sighting_ended", sighting.c.location_id, sighting.c.ended_at,
      sqlite_where=text("ended_at IS NOT NULL"), postgresql_where=text("ended_at IS NOT NULL"))  # fmt: skip

standing = Table(
    "standing",
    metadata,
    Column("sha256", LargeBinary, primary_key=True),
    Column("origin", Text, nullable=False, comment="issued | found"),
    Column("state", Text, nullable=False, comment="inventory.states"),
    Column("since_at", BigInteger, nullable=False),
    Column("due_at", BigInteger, comment="when time alone may change the state"),
    Column("identity_id", Integer),
    Column("not_after", BigInteger, nullable=False),
    Column("open", Integer, nullable=False, comment="open sightings that are served or stored"),
    Column("first_seen_at", BigInteger, nullable=False),
    Column("last_seen_at", BigInteger, nullable=False),
    Column(
        "version",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="rises when the facts change: a judgement of older ones is void",
    ),
    comment="Where each certificate stands that was ever seen, or that was issued so long ago that it should have been.",
)
Index("ix_standing_state_not_after", standing.c.state, standing.c.not_after, standing.c.sha256)
Index("ix_standing_due_at", standing.c.due_at, sqlite_where=text("due_at IS NOT NULL"), postgresql_where=text("due_at IS NOT NULL"))
Index("ix_standing_identity_id", standing.c.identity_id)

name = Table(
    "name",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("text", Text, nullable=False, unique=True, comment="a name of an identity, lower case: SPIFFE ID, DNS name, address, subject"),
    Column("reversed", Text, nullable=False, comment="for suffixes"),
    comment="Every name that a certificate was seen or issued with, once; searched by substring (FTS5 trigrams, pg_trgm).",
)
Index("ix_name_reversed", name.c.reversed, postgresql_ops={"reversed": "text_pattern_ops"})

BESIDE = (
    "name_trigram", "ix_name_trigram", "ix_identity_prefix",
    "certificate_kept", "certificate_default", "certificate_2", "uq_certificate_serial",
)  # fmt: skip
"""What the migrations make besides: indexes over names that each database has in its own way, and no table of this schema; on PostgreSQL
the partitions of ``certificate`` (:mod:`handclasp.store.partitions`), where its keys are (sha256, not_after) and (serial, not_after)."""

identity_name = Table(
    "identity_name",
    metadata,
    Column("name_id", Integer, primary_key=True, autoincrement=False),
    Column("identity_id", Integer, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)
Index("ix_identity_name_identity_id", identity_name.c.identity_id)

tally = Table(
    "tally",
    metadata,
    Column("kind", Text, primary_key=True, comment="what is counted: state, issued, expiry …"),
    Column("bucket", Text, primary_key=True, comment="of what: a state, an hour"),
    Column("number", BigInteger, nullable=False),
    comment="Counters that are kept, so that no page has to count. Of states, expiry, renewal and owners by triggers: whoever writes.",
    sqlite_with_rowid=False,
)

summary = Table(
    "summary",
    metadata,
    Column("identity_id", Integer, primary_key=True, autoincrement=False),
    Column("issued", BigInteger, nullable=False, server_default=text("0"), comment="certificates issued so far"),
    Column("newest", LargeBinary, comment="its newest certificate, issued or else found"),
    Column("newest_not_before", BigInteger),
    Column("newest_not_after", BigInteger),
    Column("newest_renew_before", BigInteger, comment="null for a found one"),
    Column("newest_origin", Text, comment="issued | found"),
    comment="One row for each identity: what lists and the overview show of it without looking at certificates.",
)
Index("ix_summary_newest_not_after", summary.c.newest_not_after, summary.c.identity_id, summary.c.newest_renew_before)
Index("ix_summary_newest_renew_before", summary.c.newest_renew_before)

saved_view = Table(
    "saved_view",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("list", Text, nullable=False, comment="certificates | identities | locations"),
    Column("query", Text, nullable=False, comment="the filters, as in a URL"),
    Column("created_by", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    comment="Searches that somebody keeps.",
)

# --- ownership ----------------------------------------------------------------------------------------------------------------------------

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
      sqlite_where=text("stands IN ('guess', 'disputed', 'contested')"),
      postgresql_where=text("stands IN ('guess', 'disputed', 'contested')"))  # fmt: skip
Index("ix_assignment_due_at", assignment.c.due_at, sqlite_where=text("due_at IS NOT NULL"), postgresql_where=text("due_at IS NOT NULL"))

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

# --- the log ------------------------------------------------------------------------------------------------------------------------------

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
