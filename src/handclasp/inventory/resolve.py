"""What filters mean in numbers: which identities, authorities, issuers and sources they speak of, as far as those are few.

A filter over names is turned into the identities that have such names, by the index that finds them fastest. Where more of them fit than
are worth listing, nothing is listed, and each certificate that is looked at is asked for its names instead: then they are not rare.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from sqlalchemy import func, or_, select
from sqlalchemy.sql import Select

from handclasp.errors import HandclaspError, Kind
from handclasp.inventory.conditions import Condition, among, begins, holds, name_trigram
from handclasp.inventory.filters import NOBODY, Filters, NamePattern, fingerprint_range
from handclasp.inventory.names import own_name
from handclasp.store import tables
from handclasp.store.database import Store

FEW = 4000
"""Names or identities that are listed at most."""

PATIENCE = 0.04
"""Seconds that an index of names may take: trigrams that all names have in common can take long to tell a rare name from the others."""

_DIGITS = re.compile(r"[0-9a-f]{8,64}")
_DIRECT = 200


@dataclass(slots=True)
class Meaning:
    """Filters, resolved."""

    ids: list[int] | None = None
    """The identities that everything wanted belongs to; None where that says nothing, or they are not few."""
    met: frozenset[str] = frozenset()
    """The filters that ``ids`` stand for."""
    authority: int | None = None
    authorities: list[int] = field(default_factory=list)
    """Authorities that the filter ``issuer`` speaks of."""
    issuers: list[int] = field(default_factory=list)
    q_authorities: list[int] = field(default_factory=list)
    q_issuers: list[int] = field(default_factory=list)
    q_owners: list[str] = field(default_factory=list)
    direct: list[bytes] = field(default_factory=list)
    """Certificates of whose fingerprint or serial number ``q`` is the beginning: then it means those."""
    source: int | None = None
    nothing: bool = False
    """Whether nothing can fit, because what a filter names is not there."""


class Resolver:
    """Reads what filters speak of. What an authority is called never changes, so it is remembered."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sqlite = store.is_sqlite
        self._called: dict[int, tuple[str, str]] = {}

    async def resolve(self, filters: Filters) -> Meaning:
        """Return what the filters mean now."""
        meaning = Meaning()
        if filters.authority is not None or filters.issuer is not None or filters.q is not None:
            await self._authorities(filters, meaning)
        if filters.source is not None:
            row = await self._store.row(select(tables.source.c.id).where(tables.source.c.name == filters.source))
            meaning.source = row.id if row is not None else None
            meaning.nothing |= row is None
        if filters.issuer is not None:
            meaning.issuers = await self._issuers(filters.issuer)
            meaning.nothing |= not meaning.issuers and not meaning.authorities
        if filters.q is not None:
            meaning.direct = await self._direct(filters.q)
            if not meaning.direct:
                meaning.q_issuers = await self._issuers(filters.q)
                meaning.q_owners = await self._owners(filters.q)
        if not meaning.nothing:
            await self._identities(filters, meaning)
        return meaning

    async def names_of_authorities(self) -> dict[int, tuple[str, str]]:
        """Return the name and the subject (RFC 4514) of each authority."""
        authority = tables.authority.c
        missing = await self._store.rows(select(authority.id))
        if any(row.id not in self._called for row in missing):
            for row in await self._store.rows(select(authority.id, authority.name, authority.der)):
                self._called[row.id] = (row.name, _subject(row.der))
        return self._called

    async def _authorities(self, filters: Filters, meaning: Meaning) -> None:
        for number, (name, subject) in (await self.names_of_authorities()).items():
            words = (name.lower(), subject.lower())
            if filters.authority == name:
                meaning.authority = number
            if filters.issuer is not None and any(filters.issuer in word for word in words):
                meaning.authorities.append(number)
            if filters.q is not None and any(filters.q in word for word in words):
                meaning.q_authorities.append(number)
        meaning.nothing |= filters.authority is not None and meaning.authority is None

    async def _issuers(self, text: str) -> list[int]:
        """Issuers are some hundreds where certificates are millions: they are read through."""
        issuer = tables.issuer.c
        rows = await self._store.rows(select(issuer.id).where(holds(func.lower(issuer.name), text, self._sqlite)).limit(FEW))
        return [row.id for row in rows]

    async def _owners(self, text: str) -> list[str]:
        tally = tables.tally.c
        query = select(tally.bucket).where(tally.kind == "owner", holds(func.lower(tally.bucket), text, self._sqlite)).limit(_DIRECT)
        return [row.bucket for row in await self._store.rows(query)]

    async def _direct(self, q: str) -> list[bytes]:
        digits = q.replace(":", "")
        if _DIGITS.fullmatch(digits) is None:
            return []
        found: list[bytes] = []
        for table in (tables.certificate, tables.found):
            lowest, highest = fingerprint_range(digits)
            column = table.c.sha256
            ranges: list[Condition] = [column.between(lowest, highest)]
            ranges += [table.c.serial.between(*ends) for ends in _serial_ranges(digits)]
            for condition in ranges:
                found += [row.sha256 for row in await self._store.rows(select(column).where(condition).limit(_DIRECT))]
        return list(dict.fromkeys(found))

    # --- identities -----------------------------------------------------------------------------------------------------------------------

    async def _identities(self, filters: Filters, meaning: Meaning) -> None:
        """List identities by the first filter that few of them meet."""
        identity = tables.identity.c
        if filters.identity is not None:
            await self._list(meaning, "identity", select(identity.id).where(identity.name == filters.identity))
            return
        if filters.name is not None and await self._named(meaning, "name", filters.name):
            return
        if filters.spiffe is not None and await self._list(meaning, "spiffe", self._below(filters.spiffe)):
            return
        if filters.q is not None and not meaning.direct and await self._by_text(filters.q, meaning):
            return
        if filters.owner is not None:
            owner = identity.owner.is_(None) if filters.owner == NOBODY else identity.owner == filters.owner
            await self._list(meaning, "owner", select(identity.id).where(owner))

    def _below(self, spiffe: str) -> Select[Any]:
        name = tables.identity.c.name
        return select(tables.identity.c.id).where(or_(name == spiffe, begins(name, f"{spiffe}/", self._sqlite)))

    async def _list(self, meaning: Meaning, which: str, query: Select[Any]) -> bool:
        rows = await self._try(query.limit(FEW + 1))
        if rows is None or len(rows) > FEW:
            return False
        meaning.ids = [row[0] for row in rows]
        meaning.met = frozenset((which,))
        meaning.nothing |= not rows
        return True

    async def _named(self, meaning: Meaning, which: str, pattern: NamePattern) -> bool:
        ids = await self._of_names(pattern)
        if ids is None:
            return False
        meaning.ids, meaning.met = ids, frozenset((which,))
        meaning.nothing |= not ids
        return True

    async def _by_text(self, q: str, meaning: Meaning) -> bool:
        """List the identities that have ``q`` in a name, or in their owner. Others may still fit by their issuer."""
        ids = await self._of_names(NamePattern("part", q))
        if ids is None:
            return False
        if meaning.q_owners:
            query = select(tables.identity.c.id).where(tables.identity.c.owner.in_(meaning.q_owners)).limit(FEW + 1)
            rows = await self._store.rows(query)
            if len(rows) > FEW:
                return False
            ids = list({*ids, *(row.id for row in rows)})
        meaning.ids, meaning.met = ids, frozenset(("q",))
        return True

    async def _of_names(self, pattern: NamePattern) -> list[int] | None:
        """Return the identities with such a name; None when they are not few, or cannot be told in time."""
        query = self._names(pattern)
        if query is None:
            return None
        names = await self._try(query.limit(FEW + 1))
        if names is None or len(names) > FEW:
            return None
        link = tables.identity_name.c
        wanted = among(link.name_id, [row[0] for row in names], self._sqlite)
        ids = await self._store.rows(select(link.identity_id).where(wanted).limit(4 * FEW))
        if len(ids) >= 4 * FEW:
            return None
        return list({row.identity_id for row in ids} | await self._newcomers(pattern))

    async def _newcomers(self, pattern: NamePattern) -> set[int]:
        """Return identities whose own name fits, of those whose names are not listed yet: that takes a moment after the first issuance."""
        identity, link = tables.identity.c, tables.identity_name.c
        row = await self._store.row(select(func.max(link.identity_id).label("last")))
        last = row.last if row is not None and row.last is not None else 0
        rows = await self._store.rows(select(identity.id, identity.name).where(identity.id > last).order_by(identity.id.desc()).limit(FEW))
        return {row.id for row in rows if _fits(own_name(row.name).lower(), pattern)}

    def _names(self, pattern: NamePattern) -> Select[Any] | None:
        name = tables.name.c
        if pattern.kind == "exact":
            return select(name.id).where(name.text == pattern.text)
        if pattern.kind == "suffix":
            return select(name.id).where(begins(name.reversed, pattern.text[::-1], self._sqlite))
        if len(pattern.text) < 3:  # it has no trigram, and it is no rare text
            return None
        if self._sqlite:
            phrase = '"' + pattern.text.replace('"', '""') + '"'
            return select(name_trigram.c.rowid).where(name_trigram.c.name_trigram.match(phrase))
        return select(name.id).where(name.text.contains(pattern.text, autoescape=True))

    async def _try(self, query: Select[Any]) -> Sequence[Any] | None:
        try:
            return await self._store.rows(query, within=PATIENCE)
        except HandclaspError as error:
            if error.kind is not Kind.TIMEOUT:
                raise
            return None


def _fits(name: str, pattern: NamePattern) -> bool:
    if pattern.kind == "exact":
        return name == pattern.text
    return name.endswith(pattern.text) if pattern.kind == "suffix" else pattern.text in name


def _subject(der: bytes) -> str:
    return x509.load_der_x509_certificate(der).subject.rfc4514_string()


def _serial_ranges(digits: str) -> list[tuple[bytes, bytes]]:
    """Return the ranges of serials, as rows have them, that are written with these digits at their beginning.

    A row's serial has whole bytes and a zero byte before a set top bit, and what is written has no leading zero.
    """
    digits = digits.lstrip("0")[:40]
    if not digits:
        return []
    prefixes = ["0" + digits, digits if digits[0] < "8" else "00" + digits]
    return [(bytes.fromhex(p + "0" * (len(p) % 2)), bytes.fromhex(p.ljust(44, "f"))) for p in prefixes]
