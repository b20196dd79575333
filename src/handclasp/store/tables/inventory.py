"""What was found, where, and what it means."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, SmallInteger, Table, Text, text

from handclasp.store.tables.schema import metadata, only_where

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
      **only_where("key_sha256 IS NOT NULL"))  # fmt: skip

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
      **only_where("ended_at IS NULL"))  # fmt: skip
Index("ix_sighting_sha256", sighting.c.sha256, sighting.c.ended_at)
Index("ix_sighting_ended_at", sighting.c.ended_at,
      **only_where("ended_at IS NOT NULL"))  # fmt: skip
Index("ix_sighting_ended", sighting.c.location_id, sighting.c.ended_at,
      **only_where("ended_at IS NOT NULL"))  # fmt: skip

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
Index("ix_standing_due_at", standing.c.due_at, **only_where("due_at IS NOT NULL"))
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
