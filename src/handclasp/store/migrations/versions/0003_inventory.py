"""The inventory: what was found and where, sources and scans, owners, and who is signed in to the console."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import sqlalchemy as sa
from alembic import op

from handclasp.store import counters

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    _discovery()
    _found()
    _kept()
    _ownership()
    _people()
    _count_from_now_on()
    _index_for_lists()
    if op.get_bind().dialect.name == "sqlite":
        _trigrams_on_sqlite()
    else:
        _trigrams_on_postgresql()
        _certificates_by_month()


def _only_where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def _discovery() -> None:
    """What is read: sources, scans over them, and their parts."""
    op.create_table(
        "source",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column(
            "kind",
            sa.Text,
            nullable=False,
            comment="network, files, kubernetes …: a module of discovery; agent: what agents report of their targets",
        ),
        sa.Column(
            "settings",
            sa.Text,
            server_default="{}",
            nullable=False,
            comment="JSON, of the kind's own shape; names files of secrets, never secrets",
        ),
        sa.Column("scope", sa.Text, server_default="{}", nullable=False, comment='JSON {"allow": […], "deny": […]}'),
        sa.Column("every", sa.BigInteger, nullable=False, comment="ms between scans; 0: only when asked"),
        sa.Column("runs", sa.Text, server_default="server", nullable=False, comment="server | collector | agents: who reads it"),
        sa.Column("state", sa.Text, server_default="active", nullable=False, comment="active | paused"),
        sa.Column(
            "facts", sa.Text, server_default="{}", nullable=False, comment="JSON, true of everything that it reads: zone, environment, tags"
        ),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("due_at", sa.BigInteger, comment="when the next scan begins"),
        sa.Column("success_at", sa.BigInteger, comment="when the last scan that read everything began"),
        sa.Column("problem", sa.Text, comment="why the last scan did not read everything"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_source")),
        sa.UniqueConstraint("name", name=op.f("uq_source_name")),
        comment="What discovery reads.",
    )
    op.create_table(
        "scan",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("source_id", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False, comment="planning | running | done | stopped | failed"),
        sa.Column("dry", sa.SmallInteger, server_default=sa.text("0"), nullable=False, comment="1: reads, and records nothing"),
        sa.Column("asked_by", sa.Text, nullable=False, comment="the principal in words, or schedule"),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("total", sa.BigInteger, server_default=sa.text("0"), nullable=False, comment="places to read, as far as is known"),
        sa.Column("read", sa.BigInteger, server_default=sa.text("0"), nullable=False, comment="places that were read"),
        sa.Column("failed", sa.BigInteger, server_default=sa.text("0"), nullable=False, comment="places that could not be read"),
        sa.Column("certificates", sa.BigInteger, server_default=sa.text("0"), nullable=False, comment="certificates seen"),
        sa.Column("fresh", sa.BigInteger, server_default=sa.text("0"), nullable=False, comment="certificates that nobody had seen before"),
        sa.Column("gone", sa.BigInteger, server_default=sa.text("0"), nullable=False, comment="sightings that ended"),
        sa.Column("problem", sa.Text),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scan")),
        comment="One run over a source.",
    )
    op.create_index("ix_scan_created_at", "scan", ["created_at", "id"])
    op.create_index("ix_scan_source_id_created_at", "scan", ["source_id", "created_at"])
    op.create_table(
        "scan_part",
        sa.Column("scan_id", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("spec", sa.Text, nullable=False, comment="JSON, what to read; of the kind's own shape"),
        sa.Column("state", sa.Text, nullable=False, comment="waiting | leased | done | failed"),
        sa.Column("place", sa.Text, server_default="", nullable=False, comment="how far it is: where a killed worker's successor goes on"),
        sa.Column("leased_by", sa.Text),
        sa.Column("leased_until", sa.BigInteger),
        sa.Column("attempts", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("problem", sa.Text),
        sa.PrimaryKeyConstraint("scan_id", "number", name=op.f("pk_scan_part")),
        comment="What one worker takes of a scan at a time.",
    )
    op.create_index("ix_scan_part_open", "scan_part", ["state", "leased_until"], **_only_where("state IN ('waiting', 'leased')"))


def _found() -> None:
    """What was found, and where."""
    op.create_table(
        "issuer",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False, comment="distinguished name, RFC 4514"),
        sa.Column(
            "key_id",
            sa.LargeBinary,
            nullable=False,
            comment="authority key identifier as the certificates name it; empty where they do not",
        ),
        sa.Column("authority_id", sa.Integer, comment="our authority that this is, by name and key identifier; null for a foreign one"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_issuer")),
        comment="Who signed what was found.",
    )
    op.create_index("uq_issuer_name_key_id", "issuer", ["name", "key_id"], unique=True)
    op.create_table(
        "found",
        sa.Column("sha256", sa.LargeBinary, nullable=False),
        sa.Column("der", sa.LargeBinary, comment="null where a source knows only the fingerprint"),
        sa.Column("serial", sa.LargeBinary, nullable=False, comment="big-endian; empty when not known"),
        sa.Column("issuer_id", sa.Integer, comment="null when not known"),
        sa.Column("identity_id", sa.Integer, comment="null for a CA certificate, and for one without a name of a workload"),
        sa.Column("subject", sa.Text, nullable=False, comment="distinguished name, RFC 4514"),
        sa.Column("names", sa.Text, nullable=False, comment='JSON {"uri": […], "dns": […], "ip": […], "email": […]} without empty lists'),
        sa.Column("spki_sha256", sa.LargeBinary, comment="null when not known"),
        sa.Column("key_type", sa.Text, server_default="", nullable=False),
        sa.Column("signature", sa.Text, server_default="", nullable=False, comment="signature algorithm, such as ecdsa-sha256"),
        sa.Column("usages", sa.Text, server_default="[]", nullable=False, comment="JSON list of extended key usages"),
        sa.Column("is_ca", sa.SmallInteger, server_default=sa.text("0"), nullable=False),
        sa.Column("not_before", sa.BigInteger, nullable=False),
        sa.Column("not_after", sa.BigInteger, nullable=False),
        sa.Column("authority_id", sa.Integer, comment="our authority whose key verifies its signature, though it was never issued here"),
        sa.Column("first_seen_at", sa.BigInteger, nullable=False),
        sa.Column("problem", sa.Text, comment="why it cannot be read, where it cannot"),
        sa.Column("triage", sa.Text, server_default="unmanaged", nullable=False, comment="unmanaged | claimed | dismissed | investigate"),
        sa.Column("triage_by", sa.Text),
        sa.Column("triage_at", sa.BigInteger),
        sa.Column("triage_reason", sa.Text),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_found")),
        comment="Certificates that were found and not issued here. Keyed by the SHA-256 of their bytes: issuer and serial may lie.",
    )
    op.create_index("ix_found_identity_id_not_after", "found", ["identity_id", "not_after"])
    op.create_index("ix_found_issuer_id_not_after", "found", ["issuer_id", "not_after"])
    columns = ["not_after", "sha256", "identity_id", "issuer_id", "key_type", "triage"]
    op.create_index("ix_found_not_after", "found", columns)
    op.create_index("ix_found_serial", "found", ["serial"])
    op.create_index("ix_found_spki_sha256", "found", ["spki_sha256"])
    op.create_table(
        "location",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("source_id", sa.Integer, nullable=False),
        sa.Column(
            "key",
            sa.Text,
            nullable=False,
            comment="what it is called in its source: tls:HOST:PORT/SNI, file:AGENT:PATH, k8s:CLUSTER/NS/secret/NAME#KEY",
        ),
        sa.Column("kind", sa.Text, nullable=False, comment="endpoint | file | keystore | kubernetes | mesh | cloud | ca | ct | import"),
        sa.Column(
            "unit",
            sa.Text,
            server_default="",
            nullable=False,
            comment="what lists it: when that was read whole and this was not in it, it is gone",
        ),
        sa.Column("shown", sa.Text, nullable=False, comment="the same for people: host:port, path, namespace/name"),
        sa.Column("host", sa.Text, comment="host, node or agent that it is on, for look-ups"),
        sa.Column(
            "details",
            sa.Text,
            server_default="{}",
            nullable=False,
            comment="JSON, of the kind's own shape: protocol, permissions, acceptable CAs",
        ),
        sa.Column("facts", sa.Text, server_default="{}", nullable=False, comment="JSON, evidence of who owns it: namespace, labels, tags"),
        sa.Column("content", sa.LargeBinary, comment="SHA-256 over what was seen there: the same again costs one timestamp"),
        sa.Column(
            "key_sha256", sa.LargeBinary, comment="SPKI of the private key that lies here; the key itself is never read into the server"
        ),
        sa.Column(
            "anchors", sa.LargeBinary, comment="SHA-256 over the sorted fingerprints of the anchors here: equal bundles have equal ones"
        ),
        sa.Column("first_seen_at", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, comment="when it was last read; every open sighting here was seen then"),
        sa.Column("tried_at", sa.BigInteger, nullable=False),
        sa.Column("problem", sa.Text, comment="why it could not be read the last time; that is no absence"),
        sa.Column("gone_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_location")),
        comment="Where certificates can be seen.",
    )
    op.create_index("ix_location_host", "location", ["host"])
    op.create_index("ix_location_key_sha256", "location", ["key_sha256"], **_only_where("key_sha256 IS NOT NULL"))
    op.create_index("ix_location_source_id_unit_seen_at", "location", ["source_id", "unit", "seen_at"])
    op.create_index("uq_location_source_id_key", "location", ["source_id", "key"], unique=True)
    op.create_table(
        "sighting",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("location_id", sa.Integer, nullable=False),
        sa.Column("sha256", sa.LargeBinary, nullable=False),
        sa.Column("role", sa.Text, nullable=False, comment="served | stored | listed | chain | anchor"),
        sa.Column("chain", sa.Text, server_default="[]", nullable=False, comment="JSON list of fingerprints, as it came, without the leaf"),
        sa.Column("how", sa.Text, server_default="{}", nullable=False, comment="JSON: TLS version, SNI, alias, secret key"),
        sa.Column("first_seen_at", sa.BigInteger, nullable=False),
        sa.Column("last_seen_at", sa.BigInteger, nullable=False, comment="while it is open, the location's seen_at is newer"),
        sa.Column("ended_at", sa.BigInteger, comment="when the location was read without it"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sighting")),
        comment="Certificate C was at location L from t1 to t2.",
    )
    op.create_index("ix_sighting_ended", "sighting", ["location_id", "ended_at"], **_only_where("ended_at IS NOT NULL"))
    op.create_index("ix_sighting_sha256", "sighting", ["sha256", "ended_at"])
    op.create_index("ix_sighting_ended_at", "sighting", ["ended_at"], **_only_where("ended_at IS NOT NULL"))
    op.create_index("uq_sighting_open", "sighting", ["location_id", "sha256", "role"], unique=True, **_only_where("ended_at IS NULL"))


def _kept() -> None:
    """What it means, kept so that no page has to work it out: states, names, summaries, counters."""
    op.create_table(
        "standing",
        sa.Column("sha256", sa.LargeBinary, nullable=False),
        sa.Column("origin", sa.Text, nullable=False, comment="issued | found"),
        sa.Column("state", sa.Text, nullable=False, comment="inventory.states"),
        sa.Column("since_at", sa.BigInteger, nullable=False),
        sa.Column("due_at", sa.BigInteger, comment="when time alone may change the state"),
        sa.Column("identity_id", sa.Integer),
        sa.Column("not_after", sa.BigInteger, nullable=False),
        sa.Column("open", sa.Integer, nullable=False, comment="open sightings that are served or stored"),
        sa.Column("first_seen_at", sa.BigInteger, nullable=False),
        sa.Column("last_seen_at", sa.BigInteger, nullable=False),
        sa.Column(
            "version",
            sa.BigInteger,
            server_default=sa.text("0"),
            nullable=False,
            comment="rises when the facts change: a judgement of older ones is void",
        ),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_standing")),
        comment="Where each certificate stands that was ever seen, or that was issued so long ago that it should have been.",
    )
    op.create_index("ix_standing_due_at", "standing", ["due_at"], **_only_where("due_at IS NOT NULL"))
    op.create_index("ix_standing_identity_id", "standing", ["identity_id"])
    op.create_index("ix_standing_state_not_after", "standing", ["state", "not_after", "sha256"])
    op.create_table(
        "name",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False, comment="a name of an identity, lower case: SPIFFE ID, DNS name, address, subject"),
        sa.Column("reversed", sa.Text, nullable=False, comment="for suffixes"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_name")),
        sa.UniqueConstraint("text", name=op.f("uq_name_text")),
        comment="Every name that a certificate was seen or issued with, once; searched by substring (FTS5 trigrams, pg_trgm).",
    )
    op.create_index("ix_name_reversed", "name", ["reversed"], postgresql_ops={"reversed": "text_pattern_ops"})
    op.create_table(
        "identity_name",
        sa.Column("name_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("identity_id", sa.Integer, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("name_id", "identity_id", name=op.f("pk_identity_name")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_identity_name_identity_id", "identity_name", ["identity_id"])
    op.create_table(
        "summary",
        sa.Column("identity_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("issued", sa.BigInteger, server_default=sa.text("0"), nullable=False, comment="certificates issued so far"),
        sa.Column("newest", sa.LargeBinary, comment="its newest certificate, issued or else found"),
        sa.Column("newest_not_before", sa.BigInteger),
        sa.Column("newest_not_after", sa.BigInteger),
        sa.Column("newest_renew_before", sa.BigInteger, comment="null for a found one"),
        sa.Column("newest_origin", sa.Text, comment="issued | found"),
        sa.PrimaryKeyConstraint("identity_id", name=op.f("pk_summary")),
        comment="One row for each identity: what lists and the overview show of it without looking at certificates.",
    )
    op.create_index("ix_summary_newest_not_after", "summary", ["newest_not_after", "identity_id", "newest_renew_before"])
    op.create_index("ix_summary_newest_renew_before", "summary", ["newest_renew_before"])
    op.create_table(
        "tally",
        sa.Column("kind", sa.Text, nullable=False, comment="what is counted: state, issued, expiry …"),
        sa.Column("bucket", sa.Text, nullable=False, comment="of what: a state, an hour"),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("kind", "bucket", name=op.f("pk_tally")),
        comment="Counters that are kept, so that no page has to count. Of states, expiry, renewal and owners by triggers: whoever writes.",
        sqlite_with_rowid=False,
    )


def _ownership() -> None:
    """Who owns what, and what says so."""
    op.create_table(
        "owner",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False, comment="team | person | service"),
        sa.Column("title", sa.Text, server_default="", nullable=False),
        sa.Column("contact", sa.Text, server_default="", nullable=False, comment="where it is reached: mail, channel, URL"),
        sa.Column("escalation", sa.Text, comment="the owner to turn to when this one does not answer"),
        sa.Column(
            "directory",
            sa.Text,
            server_default="",
            nullable=False,
            comment="where it came from: backstage, csv …; empty for one made by hand",
        ),
        sa.Column("left_at", sa.BigInteger, comment="since when the directory does not have it any more"),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_owner")),
    )
    op.create_table(
        "assignment",
        sa.Column("identity_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column(
            "evidence",
            sa.Text,
            nullable=False,
            comment="confirmed | token | workload | namespace | spiffe | cloud | catalogue | host | zone; denied: it is not this one's",
        ),
        sa.Column("rule", sa.Text, nullable=False, comment="the rule that says so; confirmed and denied have none but their own name"),
        sa.Column("owner", sa.Text, nullable=False, comment="empty where only tier or environment are said"),
        sa.Column("tier", sa.Text),
        sa.Column("environment", sa.Text),
        sa.Column("detail", sa.Text, server_default="", nullable=False, comment="what it matched, in words"),
        sa.Column("confidence", sa.SmallInteger, nullable=False, comment="percent"),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("due_at", sa.BigInteger, comment="confirmed: when it is to be confirmed again"),
        sa.Column(
            "stands",
            sa.Text,
            server_default="",
            nullable=False,
            comment="owner: gives the owner; disputed: so too, and something weaker says otherwise; contested: so too, and something as "
            "strong says otherwise; guess: nothing gives the owner, and this is too weak to",
        ),
        sa.PrimaryKeyConstraint("identity_id", "evidence", "rule", "owner", name=op.f("pk_assignment")),
        comment="What says who owns an identity; the first in the order of evidence is the owner.",
    )
    op.create_index("ix_assignment_due_at", "assignment", ["due_at"], **_only_where("due_at IS NOT NULL"))
    op.create_index("ix_assignment_owner", "assignment", ["owner"])
    op.create_index(
        "ix_assignment_stands",
        "assignment",
        ["stands", "confidence", "identity_id"],
        **_only_where("stands IN ('guess', 'disputed', 'contested')"),
    )
    op.create_table(
        "assignment_due",
        sa.Column("identity_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("since_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("identity_id", name=op.f("pk_assignment_due")),
        comment="Identities that are new, or of which the evidence changed: their owner is to be derived again.",
    )
    op.create_table(
        "catalogue",
        sa.Column("directory", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False, comment="component | path"),
        sa.Column("name", sa.Text, nullable=False, comment="a component's name; a pattern of paths as CODEOWNERS writes it"),
        sa.Column("place", sa.Integer, nullable=False, comment="of a path in its file: the last one that covers a path counts"),
        sa.Column("owners", sa.Text, nullable=False, comment="JSON list of names"),
        sa.Column("tier", sa.Text),
        sa.Column("environment", sa.Text),
        sa.PrimaryKeyConstraint("directory", "kind", "name", name=op.f("pk_catalogue")),
        comment="What directories say about components and paths; rules of ownership lead identities to them.",
    )
    op.create_table(
        "confirmation",
        sa.Column("secret_sha256", sa.LargeBinary, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("identities", sa.Text, nullable=False, comment="JSON list of names that are asked about"),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("answered_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("secret_sha256", name=op.f("pk_confirmation")),
        comment="Links by which an owner confirms what it owns.",
    )


def _people() -> None:
    """Who is signed in to the console, and the searches that they keep."""
    op.create_table(
        "session",
        sa.Column("secret_sha256", sa.LargeBinary, nullable=False),
        sa.Column("principal", sa.Text, nullable=False, comment="JSON, access.sessions.ConsoleUser"),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("used_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("secret_sha256", name=op.f("pk_session")),
        comment="Who is signed in to the console.",
    )
    op.create_index("ix_session_expires_at", "session", ["expires_at"])
    op.create_table(
        "saved_view",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("list", sa.Text, nullable=False, comment="certificates | identities | locations"),
        sa.Column("query", sa.Text, nullable=False, comment="the filters, as in a URL"),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_saved_view")),
        sa.UniqueConstraint("name", name=op.f("uq_saved_view_name")),
        comment="Searches that somebody keeps.",
    )


def _count_from_now_on() -> None:
    for statement in counters.triggers(op.get_bind().dialect.name):
        op.execute(statement)
    op.execute("INSERT INTO tally (kind, bucket, number) SELECT 'owner', COALESCE(owner, ''), count(*) FROM identity GROUP BY 2")


def _index_for_lists() -> None:
    op.drop_index("ix_certificate_not_after", "certificate")
    columns = ["not_after", "sha256", "identity_id", "authority_id", "profile", "key_type"]
    op.create_index("ix_certificate_not_after", "certificate", columns)
    op.create_index("ix_certificate_revoked_not_after", "certificate", columns, **_only_where("revoked_at IS NOT NULL"))
    op.create_index("ix_identity_owner", "identity", ["owner"])


def _trigrams_on_sqlite() -> None:
    """Names by any three letters of theirs. The texts stay where they are: this holds the index only, kept by triggers."""
    op.execute(
        "CREATE VIRTUAL TABLE name_trigram USING fts5(text, content='name', content_rowid='id', tokenize='trigram case_sensitive 1')"
    )
    remove = "INSERT INTO name_trigram (name_trigram, rowid, text) VALUES ('delete', old.id, old.text);"
    add = "INSERT INTO name_trigram (rowid, text) VALUES (new.id, new.text);"
    op.execute(f"CREATE TRIGGER name_added AFTER INSERT ON name BEGIN {add} END")
    op.execute(f"CREATE TRIGGER name_removed AFTER DELETE ON name BEGIN {remove} END")
    op.execute(f"CREATE TRIGGER name_changed AFTER UPDATE OF text ON name BEGIN {remove} {add} END")


def _trigrams_on_postgresql() -> None:
    """The same with pg_trgm, which an owner of a database may install (it is a trusted extension since PostgreSQL 13).

    Where it may not be installed, names are searched without an index; see "Search on PostgreSQL" in docs/inventory.md.
    """
    op.execute("CREATE INDEX ix_identity_prefix ON identity (name text_pattern_ops)")
    op.execute("""
        DO $$ BEGIN
            CREATE EXTENSION IF NOT EXISTS pg_trgm;
            CREATE INDEX ix_name_trigram ON name USING gin (text gin_trgm_ops);
        EXCEPTION WHEN insufficient_privilege OR undefined_file OR feature_not_supported OR undefined_object THEN
            RAISE NOTICE 'names are searched without an index: %', SQLERRM;
        END $$
    """)


def _certificates_by_month() -> None:
    """Make ``certificate`` a table partitioned by the certificates' ends; a server makes months, and moves what has none yet into them.

    A table with rows gets the months of these rows at once, so that nobody has to move them. The columns keep their order.
    """
    run = op.get_bind().execute
    indexes = run(
        sa.text(
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema() AND tablename = 'certificate'"
            " AND indexname NOT IN ('pk_certificate', 'uq_certificate_serial')"
        )
    ).all()
    for index in indexes:
        op.execute(f'DROP INDEX "{index.indexname}"')
    op.execute("ALTER TABLE certificate DROP CONSTRAINT pk_certificate, DROP CONSTRAINT uq_certificate_serial")
    op.execute("ALTER TABLE certificate RENAME TO certificate_before")
    op.execute("CREATE TABLE certificate (LIKE certificate_before INCLUDING DEFAULTS INCLUDING COMMENTS) PARTITION BY RANGE (not_after)")
    op.execute("CREATE TABLE certificate_default PARTITION OF certificate DEFAULT")
    of_rows = "date_trunc('month', to_timestamp(not_after / 1000) AT TIME ZONE 'UTC')"
    horizon = "date_trunc('month', now() AT TIME ZONE 'UTC') + interval '3 months'"
    months = (
        f"SELECT first, first + interval '1 month' AS next FROM (SELECT DISTINCT {of_rows} AS first FROM certificate_before) AS of "  # noqa: S608
        f"WHERE first <= {horizon} ORDER BY first"
    )
    for row in run(sa.text(months)).all():
        begin, end = (int(at.replace(tzinfo=UTC).timestamp()) * 1000 for at in (row.first, row.next))
        op.execute(f"CREATE TABLE certificate_{row.first:%Y_%m} PARTITION OF certificate FOR VALUES FROM ({begin}) TO ({end})")
    op.execute("INSERT INTO certificate SELECT * FROM certificate_before")
    op.execute("DROP TABLE certificate_before")
    op.execute("ALTER TABLE certificate ADD CONSTRAINT pk_certificate PRIMARY KEY (sha256, not_after)")
    op.execute("ALTER TABLE certificate ADD CONSTRAINT uq_certificate_serial UNIQUE (serial, not_after)")
    for index in indexes:
        op.execute(index.indexdef)
