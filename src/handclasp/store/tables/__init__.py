"""The one schema, for SQLite and PostgreSQL.

Times are integer milliseconds since the Unix epoch (columns end in ``_at`` or are ``not_before``/``not_after``), fingerprints are 32 raw
bytes, lists and maps are JSON text. Columns are only ever added; a migration in ``store/migrations`` goes with each change
(a test compares the two).
"""

from __future__ import annotations

from handclasp.store.tables.access import agent, replay, session, token
from handclasp.store.tables.discovery import scan, scan_part, source
from handclasp.store.tables.installation import document, federation, meta
from handclasp.store.tables.inventory import (
    found,
    identity_name,
    issuer,
    location,
    name,
    saved_view,
    sighting,
    standing,
    summary,
    tally,
)
from handclasp.store.tables.issuing import authority, certificate, crl, crl_dirty, identity, jwt_key, key, rotation, rotation_item
from handclasp.store.tables.log import log_entry, log_head, log_personal, log_subject
from handclasp.store.tables.ownership import assignment, assignment_due, catalogue, confirmation, owner
from handclasp.store.tables.schema import BESIDE, metadata

__all__ = [
    "BESIDE",
    "agent",
    "assignment",
    "assignment_due",
    "authority",
    "catalogue",
    "certificate",
    "confirmation",
    "crl",
    "crl_dirty",
    "document",
    "federation",
    "found",
    "identity",
    "identity_name",
    "issuer",
    "jwt_key",
    "key",
    "location",
    "log_entry",
    "log_head",
    "log_personal",
    "log_subject",
    "meta",
    "metadata",
    "name",
    "owner",
    "replay",
    "rotation",
    "rotation_item",
    "saved_view",
    "scan",
    "scan_part",
    "session",
    "sighting",
    "source",
    "standing",
    "summary",
    "tally",
    "token",
]
