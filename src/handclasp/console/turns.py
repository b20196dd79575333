"""From page to page of a list: forward, back, and which rows these are.

A cursor leads forward only, so the address of a page carries the cursors of the pages before it (``was``), and the number of its first row
(``row``). Both are for the eye: what a page shows is decided by its cursor and its filters alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from handclasp.console.visit import Visit

_LONGEST = 3000
"""Characters of cursors in an address; those of the earliest pages are left out."""


@dataclass(frozen=True, slots=True)
class Turns:
    """Addresses of other pages of a list, None where there is none, and the rows of this one."""

    first: str | None
    before: str | None
    after: str | None
    begin: int
    end: int

    @property
    def words(self) -> str:
        """Which rows are shown, for people."""
        if self.end < self.begin:
            return "No rows"
        if self.begin == 1 and self.after is None:
            return f"{self.end} row{'s' if self.end != 1 else ''}"
        return f"Rows {self.begin} to {self.end}" + (", and more" if self.after is not None else ", the last")


def turns(visit: Visit, next_cursor: str | None, shown: int, size: int) -> Turns:
    """Return the ways from a page of ``shown`` rows, of a list with ``size`` rows on a page."""
    here = visit.query.get("cursor", "")
    given = visit.query.get("row", "")
    begin = int(given) if here and given.isascii() and given.isdigit() and len(given) < 10 else 1
    was = visit.query.get("was", "").split(".") if here and visit.query.get("was") else []

    def to(cursor: str | None, before: list[str], row: int) -> str:
        while len(".".join(before)) > _LONGEST:
            before = before[1:]
        first = cursor is None
        return visit.url(visit.path, cursor=cursor, was=".".join(before) or None, row=None if first else str(row))

    first = to(None, [], 1) if here else None
    before = None
    if was:
        before = to(was[-1], was[:-1], max(begin - size, 1))
    elif here and begin <= size + 1:
        before = first
    after = to(next_cursor, [*was, here] if here else [], begin + shown) if next_cursor else None
    return Turns(first, before, after, begin, begin + shown - 1)
