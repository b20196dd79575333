"""Much at a time, and not too much: a statement takes only so many values, and a write must not hold up the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def in_chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield ``items`` in their order, at most ``size`` at a time; nothing for no items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
