"""What a method of evidence returns when it is satisfied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from handclasp.access.principals import Once
from handclasp.errors import HandclaspError, Kind

MAX_FACT = 1024
"""Characters of one fact: nothing that names a machine is longer."""
MAX_LIST = 100


@dataclass(frozen=True, slots=True)
class Proven:
    """What one piece of evidence proves."""

    subject: str
    """Who it is about, the same each time."""
    facts: Mapping[str, Any]
    expires_at: int
    """Milliseconds."""
    spends: tuple[Once, ...] = ()


def facts_of(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return what can be kept as a fact: texts, whole numbers, truth values, short lists of texts; the rest is as if it were not there."""
    return {name: value for name, value in values if _is_fact(value)}


def _is_fact(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= MAX_LIST and all(isinstance(item, str) and len(item) <= MAX_FACT for item in value)
    if isinstance(value, str):
        return 0 < len(value) <= MAX_FACT and value.isprintable()
    return isinstance(value, bool) or (isinstance(value, int) and abs(value) < 1 << 53)


def refused(why: str, hint: str = "") -> HandclaspError:
    """Return the refusal of evidence that does not prove anything."""
    return HandclaspError(Kind.NOT_AUTHENTICATED, f"the evidence is refused: {why}", hint=hint)
