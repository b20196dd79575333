"""Keyset pagination: a cursor is the sort key of the last row, so a page costs the same wherever it is and nothing is shown twice."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from handclasp.api.routes import Parameter
from handclasp.clock import parse_rfc3339
from handclasp.errors import HandclaspError, Kind

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000

LIMIT = Parameter("limit", f"Rows in a page, at most {MAX_LIMIT}.", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT})
CURSOR = Parameter("cursor", "`next_cursor` of the page before.")


def read_limit(query: Mapping[str, str]) -> int:
    """Return the page size asked for."""
    text = query.get("limit")
    if text is None:
        return DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= MAX_LIMIT):
        raise HandclaspError(Kind.BAD_REQUEST, f"limit must be a number from 1 to {MAX_LIMIT}")
    return int(text)


def write_cursor(*key: str | int) -> str:
    """Return a sort key as an opaque cursor."""
    return base64.urlsafe_b64encode(json.dumps(key, separators=(",", ":")).encode()).decode().rstrip("=")


def read_cursor(query: Mapping[str, str], *types: type) -> tuple[Any, ...] | None:
    """Return the sort key in the request's cursor, or None for the first page; raise ``bad_request`` when it is not one of ours."""
    text = query.get("cursor")
    if text is None:
        return None
    try:
        key = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
        if not isinstance(key, list) or len(key) != len(types):
            raise ValueError("another shape")
        for value, type_ in zip(key, types, strict=True):
            if type(value) is not type_:
                raise ValueError("another shape")
            if (isinstance(value, int) and not -(2**63) <= value < 2**63) or (isinstance(value, str) and not _is_text(value)):
                raise ValueError("another range")
        return tuple(key)
    except (ValueError, binascii.Error, RecursionError) as error:
        raise HandclaspError(Kind.BAD_REQUEST, "cursor is not one this server gave out", hint="begin again without it") from error


def _is_text(value: str) -> bool:
    """Tell whether a database can hold it: JSON can escape NUL and halves of characters, which are no text."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def page(rows: Sequence[Any], limit: int) -> tuple[Sequence[Any], bool]:
    """Split ``limit + 1`` fetched rows into the page and whether there are more."""
    return rows[:limit], len(rows) > limit


def read_text(query: Mapping[str, str], name: str) -> str | None:
    """Return a text parameter; NUL is refused because PostgreSQL has no text with it."""
    text = query.get(name)
    if text is not None and ("\0" in text or len(text) > 2048):
        raise HandclaspError(Kind.BAD_REQUEST, f"{name} is too long or has a NUL in it")
    return text


def read_sha256(text: str) -> bytes:
    """Return a fingerprint parameter as bytes; upper case and colons, as other tools print them, are understood."""
    try:
        value = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        value = b""
    if len(value) != 32:
        raise HandclaspError(Kind.BAD_REQUEST, "a fingerprint is the SHA-256 of the certificate's DER: 64 hexadecimal digits")
    return value


def read_time(query: Mapping[str, str], name: str) -> int | None:
    """Return a time parameter in milliseconds."""
    text = query.get(name)
    return None if text is None else parse_rfc3339(text.replace(" ", "+"))


def read_index(text: str) -> int:
    """Return a log index."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise HandclaspError(Kind.BAD_REQUEST, "a log index is a number from 0")
    return int(text)
