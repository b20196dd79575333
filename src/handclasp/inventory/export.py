"""Certificates as a document of any size: CSV, JSON, or a CycloneDX bill of materials, made a page at a time.

Memory does not grow with the number of certificates. What does not change while it is written is in the document exactly once; what comes
or goes meanwhile may be in it or not. A document that was broken off shows it: JSON is not closed, and CSV has no last line.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import msgspec

from handclasp.clock import rfc3339
from handclasp.inventory.cbom import cbom
from handclasp.inventory.filters import Filters
from handclasp.wire import Certificate

Pages = AsyncIterator[list[Certificate]]

CSV_COLUMNS = (
    "sha256", "serial", "identity", "owner", "tier", "environment", "origin", "state", "standing", "profile", "authority", "issuer",
    "subject", "dns", "ip", "email", "uri", "key_type", "key_sha256", "not_before", "not_after", "renew_before", "revoked_at", "locations",
    "first_seen", "last_seen", "is_ca", "triage", "triage_reason", "problem", "granted_by", "obtained_by", "log_entry",
)  # fmt: skip

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What makes a spreadsheet calculate; the last four are full-width forms, which some take for the same."""
_SECOND = re.compile(r"(;[ \"]*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])")
"""Where a spreadsheet begins another cell, in countries that write 0,5: there it takes semicolons for what parts cells."""


async def to_csv(pages: Pages, _filters: Filters, _now: int) -> AsyncIterator[bytes]:
    """Yield CSV (RFC 4180, UTF-8) with a header. Lists are joined with spaces.

    A cell that a spreadsheet would take for a formula gets an apostrophe before it: names in a certificate are whatever its maker wrote
    (CWE-1236). The last line is ``# N certificates``, so that a part is not taken for the whole.
    """
    yield _lines([CSV_COLUMNS])
    count = 0
    async for page in pages:
        count += len(page)
        yield _lines([[_cell(getattr(one, name)) for name in CSV_COLUMNS] for one in page])
    yield _lines([[f"# {count} certificates"]])


def _lines(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = " ".join(value) if isinstance(value, list) else str(value)
    if ";" in text:
        text = _SECOND.sub(r"\1'", text)
    return "'" + text if text.startswith(_FORMULA) else text


async def to_json(pages: Pages, filters: Filters, now: int) -> AsyncIterator[bytes]:
    """Yield one JSON document: ``at``, ``filters``, ``items`` as in ``/v1/certificates``, and at its end ``count``."""
    head = msgspec.json.encode({"at": rfc3339(now), "filters": dict(filters.given)})
    yield head[:-1] + b',"items":['
    count = 0
    encode = msgspec.json.Encoder().encode
    async for page in pages:
        yield (b",\n" if count else b"\n") + b",\n".join(encode(one) for one in page)
        count += len(page)
    yield b'\n],"count":%d}\n' % count


Writer = Callable[[Pages, Filters, int], AsyncIterator[bytes]]

FORMATS: Mapping[str, tuple[Writer, str, str]] = {
    "csv": (to_csv, "text/csv; charset=utf-8", "csv"),
    "json": (to_json, "application/json", "json"),
    "cbom": (cbom, "application/vnd.cyclonedx+json; version=1.7", "cdx.json"),
}
"""Format -> (writer, media type, ending of a file's name)."""
