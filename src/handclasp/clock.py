"""Time, passed in. Nothing below floor 4 reads the wall clock itself: it is given a :class:`Clock`.

Two units are used in the whole code and nothing else: a ``datetime`` with UTC in values people see, and integer **milliseconds since the
Unix epoch** (names end in ``_at``) in rows and pure functions over them. Durations are seconds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

from handclasp.errors import HandclaspError, Kind

Clock = Callable[[], int]
"""Returns now, in milliseconds since the Unix epoch."""

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


def system_clock() -> int:
    """Return the wall clock in milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def to_datetime(at: int) -> datetime:
    """Return milliseconds since the epoch as an aware UTC datetime."""
    return datetime.fromtimestamp(at / 1000, UTC)


def from_datetime(value: datetime) -> int:
    """Return an aware datetime as milliseconds since the epoch; a naive one is refused."""
    if value.tzinfo is None:
        raise ValueError("a datetime without a time zone is ambiguous")
    return round(value.timestamp() * 1000)


def rfc3339(at: int) -> str:
    """Return milliseconds since the epoch as RFC 3339 in UTC, with a fraction only when there is one."""
    seconds, fraction = divmod(at, 1000)
    return f"{_to_the_second(seconds)}.{fraction:03d}Z" if fraction else _to_the_second(seconds) + "Z"


@lru_cache(maxsize=4096)
def _to_the_second(seconds: int) -> str:
    """Format whole seconds. What happens in one second is many rows, entries and answers with the same few times in them."""
    year, *rest = time.gmtime(seconds)[:6]
    return "{:04d}-{:02d}-{:02d}T{:02d}:{:02d}:{:02d}".format(year, *rest)  # strftime writes the year 1 with one digit


def parse_rfc3339(text: str) -> int:
    """Return an RFC 3339 time as milliseconds since the epoch; raise ``bad_request`` for anything else."""
    try:
        return from_datetime(datetime.fromisoformat(text))
    except ValueError as error:
        raise HandclaspError(Kind.BAD_REQUEST, f"{text!r} is not an RFC 3339 time with a time zone") from error


def parse_duration(text: str) -> float:
    """Return ``90s``, ``1h30m``, ``24h``, ``7d`` as seconds; raise ``bad_request`` for anything else.

    A bare number is refused: nobody remembers which unit a product meant.
    """
    position, total = 0, 0.0
    for match in _PART.finditer(text):
        if match.start() != position:
            break
        total += float(match[1]) * _UNITS[match[2]]
        position = match.end()
    if position != len(text) or not text or total > 3.2e9:  # 100 years: beyond it is a slip of the finger
        raise HandclaspError(Kind.BAD_REQUEST, f"{text!r} is not a duration", hint="write it like 90s, 15m, 24h, 7d or 1h30m")
    return total


def format_duration(seconds: float) -> str:
    """Return seconds in the shortest form :func:`parse_duration` reads back: ``1h30m``, ``20s``, ``500ms``."""
    rest = round(seconds * 1000)
    parts = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
