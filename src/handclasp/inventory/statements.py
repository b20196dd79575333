"""The inventory's writes as SQL, each run for many rows at once. One text for both databases wherever there can be one.

Rows that others refer to are made by name and found again by name inside the same transaction, so that a write needs to know no row number,
and two processes that find the same thing at the same moment make one row of it.
"""

from __future__ import annotations

from sqlalchemy import text

from handclasp.inventory.states import RECHECK_MAX

SKEW = 600_000
"""Milliseconds by which the clocks of two servers may differ. A time that is further ahead than this is none: the clock of whoever wrote it
was wrong, and must not make all that is seen since look old."""


def _not_after(column: str, at: str) -> str:
    """Return that a time in a row is not after ``at``, or is none (``:future`` is now and :data:`SKEW`)."""
    return f"({column} <= {at} OR {column} > :future)"


def _before(column: str, at: str) -> str:
    return f"({column} < {at} OR {column} > :future)"


add_issuer = text("INSERT INTO issuer (name, key_id, authority_id) VALUES (:name, :key_id, :authority_id) ON CONFLICT DO NOTHING")

add_identity = text("INSERT INTO identity (name, created_at) VALUES (:name, :at) ON CONFLICT DO NOTHING")

add_name = text("INSERT INTO name (text, reversed) VALUES (:text, :reversed) ON CONFLICT DO NOTHING")

name_identity = text(
    "INSERT INTO identity_name (name_id, identity_id) SELECT n.id, i.id FROM name n, identity i"
    " WHERE n.text = :text AND i.name = :identity ON CONFLICT DO NOTHING"
)

_FOUND = (
    "sha256", "der", "serial", "subject", "names", "spki_sha256", "key_type", "signature", "usages", "is_ca", "not_before", "not_after",
    "authority_id", "first_seen_at", "problem",
)  # fmt: skip
_ISSUER_ID = "(SELECT id FROM issuer WHERE name = :issuer_name AND key_id = :issuer_key_id)"
_IDENTITY_ID = "(SELECT id FROM identity WHERE name = :identity)"

add_found = text(
    f"INSERT INTO found ({', '.join(_FOUND)}, issuer_id, identity_id)"  # noqa: S608  (constants of ours)
    f" VALUES ({', '.join(f':{column}' for column in _FOUND)}, {_ISSUER_ID}, {_IDENTITY_ID}) ON CONFLICT (sha256) DO NOTHING"
)
"""Makes a certificate's row; who has it already leaves it as it is."""

_LEARNT = [column for column in _FOUND if column not in ("sha256", "first_seen_at")]
fill_found = text(
    f"UPDATE found SET {', '.join(f'{column} = :{column}' for column in _LEARNT)}, issuer_id = {_ISSUER_ID}, identity_id = {_IDENTITY_ID}"  # noqa: S608
    " WHERE sha256 = :sha256 AND der IS NULL"
)
"""Fills the row of a certificate of which only the fingerprint was known, when its bytes come."""

unsum_told = text(
    "UPDATE summary SET (newest, newest_not_before, newest_not_after, newest_origin) = (SELECT other.sha256, other.not_before,"
    " other.not_after, 'found' FROM found other WHERE other.identity_id = summary.identity_id AND other.sha256 <> :sha256"
    " AND other.not_after <> 0 ORDER BY other.not_before DESC LIMIT 1) WHERE newest = :sha256 AND newest_origin = 'found'"
    " AND identity_id = (SELECT identity_id FROM found WHERE sha256 = :sha256 AND der IS NULL)"
)
"""Before that: whose a source said that it is has another newest one, or none. Its bytes say whose it is."""

sum_found = text(
    "INSERT INTO summary (identity_id, newest, newest_not_before, newest_not_after, newest_origin)"
    " SELECT id, :sha256, :not_before, :not_after, 'found' FROM identity WHERE name = :identity"
    " ON CONFLICT (identity_id) DO UPDATE SET newest = excluded.newest, newest_not_before = excluded.newest_not_before,"
    " newest_not_after = excluded.newest_not_after, newest_origin = excluded.newest_origin"
    " WHERE summary.newest IS NULL OR (summary.newest_origin = 'found' AND excluded.newest_not_before > summary.newest_not_before)"
)
"""The newest certificate of an identity: what was found counts only where nothing was issued."""

sum_issued = text(
    "INSERT INTO summary (identity_id, issued, newest, newest_not_before, newest_not_after, newest_renew_before, newest_origin)"
    " VALUES (:identity_id, :issued, :sha256, :not_before, :not_after, :renew_before, 'issued')"
    " ON CONFLICT (identity_id) DO UPDATE SET issued = summary.issued + excluded.issued, newest = excluded.newest,"
    " newest_not_before = excluded.newest_not_before, newest_not_after = excluded.newest_not_after,"
    " newest_renew_before = excluded.newest_renew_before, newest_origin = excluded.newest_origin"
)

sum_revoked = text(
    "UPDATE summary SET newest_renew_before = :at WHERE newest = :sha256 AND newest_renew_before > :at"
    " AND identity_id = (SELECT identity_id FROM certificate WHERE sha256 = :sha256)"
)
"""An identity whose newest certificate is revoked needs another one from then on."""

# --- locations ----------------------------------------------------------------------------------------------------------------------------

add_location = text(
    "INSERT INTO location (source_id, key, kind, unit, shown, host, first_seen_at, tried_at)"
    " VALUES (:source_id, :key, :kind, :unit, :shown, :host, :at, :at) ON CONFLICT (source_id, key) DO NOTHING"
)

_PLACE = ("kind", "unit", "shown", "host", "details", "facts", "content", "key_sha256", "anchors")
read_location = text(
    f"UPDATE location SET {', '.join(f'{column} = :{column}' for column in _PLACE)}, seen_at = :at, tried_at = :at, problem = NULL,"  # noqa: S608
    f" gone_at = NULL WHERE source_id = :source_id AND key = :key AND (seen_at IS NULL OR {_not_after('seen_at', ':at')})"
)

READ_LOCATIONS_TYPES = {
    "key": "text", "kind": "text", "unit": "text", "shown": "text", "host": "text", "details": "text", "facts": "text", "content": "bytea",
    "key_sha256": "bytea", "anchors": "bytea", "at": "bigint", "before": "bytea",
}  # fmt: skip
read_locations = text(
    f"UPDATE location SET {', '.join(f'{column} = n.{column}' for column in _PLACE)}, seen_at = n.at, tried_at = n.at, problem = NULL,"  # noqa: S608
    " gone_at = NULL FROM unnest("
    + ", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in READ_LOCATIONS_TYPES.items())
    + f") AS n({', '.join(READ_LOCATIONS_TYPES)}) WHERE location.source_id = CAST(:source_id AS integer) AND location.key = n.key"
    f" AND (location.seen_at IS NULL OR {_not_after('location.seen_at', 'n.at')})"
    " AND location.content IS NOT DISTINCT FROM n.before"
)
"""The same for many at once on PostgreSQL, only while each holds what it did when it was read (``before``): run with ``expect``."""

touch_location = text(
    "UPDATE location SET seen_at = :at, tried_at = :at, problem = NULL WHERE id = :id AND content = :content"  # noqa: S608  (constants)
    f" AND {_not_after('seen_at', ':at')}"
)
touch_locations = text(
    "UPDATE location SET seen_at = n.at, tried_at = n.at, problem = NULL"  # noqa: S608  (constants)
    " FROM unnest(CAST(:ids AS integer[]), CAST(:contents AS bytea[]), CAST(:ats AS bigint[])) AS n(id, content, at)"
    f" WHERE location.id = n.id AND location.content = n.content AND {_not_after('location.seen_at', 'n.at')}"
)
"""Seen again as it was. Not where somebody saw something else there meanwhile."""

wake = text(
    f"UPDATE standing SET version = version + 1, due_at = 0 WHERE sha256 IN"  # noqa: S608  (a number of ours)
    " (SELECT sha256 FROM sighting WHERE location_id = :id AND ended_at IS NULL)"
    f" AND +due_at BETWEEN 1 AND :at + {RECHECK_MAX} AND +state IN ('seen', 'foreign', 'old_served')"  # +: by fingerprint, not by due_at
)
wake_many = text(
    f"UPDATE standing SET version = version + 1, due_at = 0 WHERE due_at BETWEEN 1 AND :at + {RECHECK_MAX}"  # noqa: S608
    " AND state IN ('seen', 'foreign', 'old_served') AND sha256 IN"
    " (SELECT sha256 FROM sighting WHERE ended_at IS NULL AND location_id = ANY(CAST(:ids AS integer[])))"
)
"""What stands as it did only because its place had not been read again: now it was, and is judged."""

fail_location = text(
    "UPDATE location SET tried_at = :at, problem = :problem WHERE source_id = :source_id AND key = :key"  # noqa: S608  (constants)
    f" AND {_not_after('tried_at', ':at')}"
)

_STILL_OLD = f"{_before('tried_at', ':began_at')} AND (seen_at IS NULL OR {_before('seen_at', ':began_at')}) AND gone_at IS NULL"
end_sightings_of_absent = text(
    "UPDATE sighting SET ended_at = :began_at, last_seen_at = (SELECT COALESCE(seen_at, sighting.last_seen_at) FROM location"  # noqa: S608
    f" WHERE id = :id) WHERE location_id = (SELECT id FROM location WHERE id = :id AND {_STILL_OLD}) AND ended_at IS NULL"
)
touch_standings_of_absent = text(
    "UPDATE standing SET version = version + 1, due_at = 0 WHERE sha256 IN (SELECT sha256 FROM sighting WHERE location_id ="  # noqa: S608
    f" (SELECT id FROM location WHERE id = :id AND {_STILL_OLD}) AND ended_at = :began_at)"
)
end_absent = text(f"UPDATE location SET gone_at = :began_at, content = NULL WHERE id = :id AND {_STILL_OLD}")  # noqa: S608

# --- sightings and standings --------------------------------------------------------------------------------------------------------------

open_sighting = text(
    "INSERT INTO sighting (location_id, sha256, role, chain, how, first_seen_at, last_seen_at)"
    " SELECT id, :sha256, :role, :chain, :how, :at, :at FROM location WHERE source_id = :source_id AND key = :key"
    " ON CONFLICT (location_id, sha256, role) WHERE ended_at IS NULL DO UPDATE SET chain = excluded.chain, how = excluded.how"
)
end_sighting = text(
    "UPDATE sighting SET ended_at = :at, last_seen_at = :last WHERE location_id = :location_id AND sha256 = :sha256 AND role = :role"
    " AND ended_at IS NULL"
)

stand = text(
    "INSERT INTO standing (sha256, origin, state, since_at, due_at, identity_id, not_after, open, first_seen_at, last_seen_at, version)"
    " VALUES (:sha256, :origin, :state, :now, 0, (SELECT id FROM identity WHERE name = CAST(:identity AS TEXT)), :not_after, :open,"
    " :at, :at, 1)"
    " ON CONFLICT (sha256) DO UPDATE SET version = standing.version + 1, due_at = 0,"
    " first_seen_at = CASE WHEN standing.first_seen_at = 0 OR excluded.first_seen_at < standing.first_seen_at"
    " THEN excluded.first_seen_at ELSE standing.first_seen_at END"
)
"""A certificate is seen somewhere that it was not: it stands for something from now on, and is judged next."""

doubt = text("UPDATE standing SET version = version + 1, due_at = 0 WHERE sha256 = :sha256")
"""A fact about a certificate changed: judge it again. One that was never seen has no row, and needs none."""

forget_gone = text(
    "UPDATE standing SET state = 'past' WHERE sha256 = :sha256 AND state = 'gone' AND NOT EXISTS"
    " (SELECT 1 FROM sighting WHERE sighting.sha256 = standing.sha256 AND role IN ('served', 'stored'))"
)
"""Nobody knows any more that it was in use somewhere."""

doubt_gone = text(
    "UPDATE standing SET version = version + 1, due_at = 0 WHERE state = 'gone' AND sha256 IN"
    " (SELECT sha256 FROM sighting WHERE location_id = :location_id AND ended_at IS NOT NULL)"
)
"""Something came: what disappeared there before is replaced by it."""

settle = text(
    "UPDATE standing SET since_at = CASE WHEN state = :state THEN since_at ELSE :now END, state = :state, due_at = :due_at, open = :open,"
    " last_seen_at = :last_seen_at, not_after = :not_after, identity_id = :identity_id WHERE sha256 = :sha256 AND version = :version"
)
"""The judgement, if no fact changed since they were read."""

unsettle = text("DELETE FROM standing WHERE sha256 = :sha256 AND version = :version")

miss = text(
    "INSERT INTO standing (sha256, origin, state, since_at, due_at, identity_id, not_after, open, first_seen_at, last_seen_at, version)"
    " SELECT sha256, 'issued', 'unseen', :now, not_after, identity_id, not_after, 0, 0, 0, 1 FROM certificate"
    " WHERE sha256 = :sha256 AND superseded_at IS NULL AND revoked_at IS NULL AND not_after > :now ON CONFLICT (sha256) DO NOTHING"
)
"""An issued certificate should have been seen by now, and never was."""

# --- counters and places ------------------------------------------------------------------------------------------------------------------

count = text(
    "INSERT INTO tally (kind, bucket, number) VALUES (:kind, :bucket, :number)"
    " ON CONFLICT (kind, bucket) DO UPDATE SET number = tally.number + excluded.number"
)

keep_place = text("INSERT INTO meta (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = excluded.value")
