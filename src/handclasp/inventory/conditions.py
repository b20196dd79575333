"""Small pieces of SQL that mean the same on both databases, and are evaluated in the order in which they are cheap.

A condition written over ``value(column)`` is never answered by an index of that column: which index is read is decided here and not by a
planner that has no statistics (SQLite) or those of yesterday (PostgreSQL).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Select,
    and_,
    any_,
    bindparam,
    column,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    table,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql import ColumnElement

from handclasp.inventory.filters import NOBODY, Filters, NamePattern
from handclasp.store import tables

Key = tuple[int, bytes]
"""Where a certificate stands in a list: (end, fingerprint)."""

Condition = ColumnElement[bool]

name_trigram = table("name_trigram", column("rowid"), column("name_trigram"))
"""The index of names on SQLite; ``rowid`` is ``name.id``."""


def value(col: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a number's column as an expression that no index has."""
    return col + literal(0)


def among(col: ColumnElement[Any], numbers: Sequence[int], sqlite: bool) -> Condition:
    """Return that ``col`` is one of these numbers, in one parameter however many there are."""
    if sqlite:
        import json

        each = func.json_each(json.dumps(list(numbers))).table_valued("value", name="wanted")
        return col.in_(select(each.c.value))
    return col == any_(bindparam(None, list(numbers), type_=ARRAY(BigInteger)))


def holds(col: ColumnElement[str], text: str, sqlite: bool) -> Condition:
    """Return that the text is in ``col``, letter for letter."""
    return (func.instr if sqlite else func.strpos)(col, text) > 0


def begins(col: ColumnElement[str], prefix: str, sqlite: bool) -> Condition:
    """Return that ``col`` begins with ``prefix``, so that an index over it can answer (on PostgreSQL one with text_pattern_ops)."""
    if sqlite:
        last = chr(ord(prefix[-1]) + 1)
        return and_(col >= prefix, col < prefix[:-1] + last)
    return col.startswith(prefix, autoescape=True)


def begins_here(col: ColumnElement[str], prefix: str) -> Condition:
    """The same for one row that is looked at anyway."""
    return func.substr(col, 1, len(prefix)) == prefix


def below(col: ColumnElement[str], spiffe: str) -> Condition:
    """Return that a SPIFFE ID is this one or below it, for a row that is looked at anyway."""
    return or_(col == spiffe, begins_here(col, f"{spiffe}/"))


def matches(col: ColumnElement[str], reverse: ColumnElement[str], pattern: NamePattern, sqlite: bool) -> Condition:
    """Return that a name fits the pattern, for a row that is looked at anyway."""
    if pattern.kind == "exact":
        return col == pattern.text
    if pattern.kind == "suffix":
        return begins_here(reverse, pattern.text[::-1])
    return holds(col, pattern.text, sqlite)


def name_exists(identity_id: ColumnElement[Any], condition: Condition, *, by_row: bool = False) -> Condition:
    """Return that the identity has a name for which ``condition`` (over ``tables.name``) is true; for ``by_row`` see :func:`_each`."""
    link, name = tables.identity_name.c, tables.name.c
    query = select(literal(1)).where(link.identity_id == identity_id, name.id == link.name_id, condition)
    return exists(_each(query, by_row).correlate_except(tables.identity_name, tables.name))


def identity_exists(identity_id: ColumnElement[Any], *conditions: Condition, by_row: bool = False) -> Condition:
    """Return that the identity's own row meets ``conditions`` (over ``tables.identity``); for ``by_row`` see :func:`_each`."""
    query = select(literal(1)).where(tables.identity.c.id == identity_id, *conditions)
    return exists(_each(query, by_row).correlate_except(tables.identity))


def _each(query: Select[Any], by_row: bool) -> Select[Any]:
    """Have PostgreSQL ask the question for each row, as one of several that are joined by OR.

    Else it may answer it for all rows there are, beforehand, into a hash table: by reading whole tables for a page of fifty.
    """
    return query.offset(literal_column("0")) if by_row else query


def of_identity(filters: Filters, skip: frozenset[str] = frozenset()) -> list[Condition]:
    """Return the conditions over an identity's own row."""
    identity = tables.identity.c
    found: list[Condition] = []
    for name in ("tier", "environment"):
        wanted = getattr(filters, name)
        if wanted is not None:
            found.append(identity[name] == wanted)
    if filters.owner is not None and "owner" not in skip:
        found.append(identity.owner.is_(None) if filters.owner == NOBODY else identity.owner == filters.owner)
    if filters.identity is not None and "identity" not in skip:
        found.append(identity.name == filters.identity)
    if filters.spiffe is not None and "spiffe" not in skip:
        found.append(below(identity.name, filters.spiffe))
    return found


def one_of(col: ColumnElement[Any], numbers: Sequence[int], sqlite: bool) -> Condition:
    """The same for rows that are looked at anyway: PostgreSQL makes a hash table of the numbers, however it plans the query.

    It is ``IS TRUE``, or it were a join, which may be made by comparing each row with each number.
    """
    if sqlite:
        return among(value(col), numbers, sqlite)
    return value(col).in_(select(func.unnest(bindparam(None, list(numbers), type_=ARRAY(BigInteger))))).is_(true())


def seen_by(sha256: ColumnElement[bytes], source_id: int) -> Condition:
    """Return that the certificate is seen now at a place that the source reads."""
    sighting, location = tables.sighting.c, tables.location.c
    query = select(literal(1)).where(
        sighting.sha256 == sha256, sighting.ended_at.is_(None), location.id == sighting.location_id, location.source_id == source_id
    )
    return exists(query.correlate_except(tables.sighting, tables.location))


def stands(sha256: ColumnElement[bytes], *conditions: Condition) -> Condition:
    """Return that the certificate was ever seen, and stands so."""
    standing = tables.standing
    return exists(select(literal(1)).where(standing.c.sha256 == sha256, *conditions).correlate_except(standing))


class Order:
    """The order of a list of certificates: by their end, then by their fingerprint, both the same way."""

    def __init__(self, descending: bool) -> None:
        self.descending = descending

    def by(self, not_after: ColumnElement[int], sha256: ColumnElement[bytes]) -> tuple[ColumnElement[Any], ...]:
        """Return what to order by, as an index has it."""
        return (not_after.desc(), sha256.desc()) if self.descending else (not_after, sha256)

    def sorted_by(self, not_after: ColumnElement[int], sha256: ColumnElement[bytes]) -> tuple[ColumnElement[Any], ...]:
        """Return what to sort by when few rows are read by another index."""
        return self.by(value(not_after), sha256)

    def after(self, not_after: ColumnElement[int], sha256: ColumnElement[bytes], key: Key | None) -> list[Condition]:
        """Return that a row comes after ``key``."""
        if key is None:
            return []
        pair, place = tuple_(not_after, sha256), tuple_(literal(key[0], BigInteger), literal(key[1]))
        return [not_after <= key[0], pair < place] if self.descending else [not_after >= key[0], pair > place]

    def until(self, not_after: ColumnElement[int], sha256: ColumnElement[bytes], key: Key) -> list[Condition]:
        """Return that a row does not come after ``key``."""
        pair, place = tuple_(not_after, sha256), tuple_(literal(key[0], BigInteger), literal(key[1]))
        return [not_after >= key[0], pair >= place] if self.descending else [not_after <= key[0], pair <= place]

    def rank(self, key: Key) -> tuple[int, int]:
        """Return what Python sorts by."""
        number = int.from_bytes(key[1], "big")
        return (-key[0], -number) if self.descending else (key[0], number)


def exists_standing(identity_id: ColumnElement[Any], state: str) -> Condition:
    """Return that the identity has a certificate that stands so."""
    standing = tables.standing
    query = select(literal(1)).where(standing.c.identity_id == identity_id, standing.c.state == state)
    return exists(query.correlate_except(standing))
