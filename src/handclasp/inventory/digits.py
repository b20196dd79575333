"""Certificates by the beginning of their fingerprint or serial number, as people paste it into a search."""

from __future__ import annotations

import re

from sqlalchemy import select

from handclasp.inventory.conditions import Condition
from handclasp.inventory.filters import fingerprint_range
from handclasp.store import tables
from handclasp.store.database import Store

_DIGITS = re.compile(r"[0-9a-f]{8,64}")
_MOST = 200


async def with_digits(store: Store, text: str) -> list[bytes]:
    """Return certificates whose fingerprint or serial number begins with the digits in ``text``; none when it is not that."""
    digits = text.replace(":", "")
    if _DIGITS.fullmatch(digits) is None:
        return []
    found: list[bytes] = []
    for table in (tables.certificate, tables.found):
        lowest, highest = fingerprint_range(digits)
        column = table.c.sha256
        ranges: list[Condition] = [column.between(lowest, highest)]
        ranges += [table.c.serial.between(*ends) for ends in _serial_ranges(digits)]
        for condition in ranges:
            found += [row.sha256 for row in await store.rows(select(column).where(condition).limit(_MOST))]
    return list(dict.fromkeys(found))


def _serial_ranges(digits: str) -> list[tuple[bytes, bytes]]:
    """Return the ranges of serials, as rows have them, that are written with these digits at their beginning.

    A row's serial has whole bytes and a zero byte before a set top bit, and what is written has no leading zero.
    """
    digits = digits.lstrip("0")[:40]
    if not digits:
        return []
    prefixes = ["0" + digits, digits if digits[0] < "8" else "00" + digits]
    return [(bytes.fromhex(p + "0" * (len(p) % 2)), bytes.fromhex(p.ljust(44, "f"))) for p in prefixes]
