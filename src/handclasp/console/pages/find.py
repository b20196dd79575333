"""The search of every page: one text, looked for in every list; what it names exactly is opened at once."""

from __future__ import annotations

import re
from typing import Any

from handclasp import wire
from handclasp.console.app import Page
from handclasp.console.render import identity_link, link
from handclasp.console.visit import Answer, Go, Shown, Visit
from handclasp.errors import HandclaspError, Kind
from handclasp.wire.inventory import IdentityDetail

MOST = 6
"""Rows of each list."""
LONGEST = 512
"""Characters of a text that is looked for; no name is longer."""
_DIGITS = re.compile(r"[0-9a-f]{8,64}")
_LISTS: tuple[tuple[str, str, str, str], ...] = (
    ("Identities", "/v1/identities", "/console/identities", "certificates:read"),
    ("Certificates", "/v1/certificates", "/console/certificates", "certificates:read"),
    ("Locations", "/v1/locations", "/console/locations", "inventory:read"),
    ("Owners", "/v1/owners", "/console/owners", "owners:read"),
    ("Agents", "/v1/agents", "/console/agents", "agents:read"),
)
"""(title, list of the API, its page, the scope that it needs)."""


async def find(visit: Visit) -> Answer:
    """Look for a text in every list that the person may see."""
    text = visit.query.get("for", "").strip()[:LONGEST]
    if not text:
        return Shown("find.html", {"text": "", "found": []})
    digits = text.replace(":", "").lower()
    by_digits = _DIGITS.fullmatch(digits) is not None
    if len(digits) == 64 and by_digits and await _has(visit, "certificates:read", f"/v1/certificates/{digits}", wire.Certificate):
        return Go(f"/console/certificates/{digits}")
    if await _has(visit, "inventory:read", f"/v1/identities/{text}", IdentityDetail):
        return Go(identity_link(text))
    found = []
    for title, path, page, scope in _LISTS:
        listed = await _look(visit, scope, path, {"q": text})
        if listed:
            found.append((title, listed, link(page, q=text)))
    for name in ("sha256", "serial") if by_digits else ():
        listed = await _look(visit, "certificates:read", "/v1/certificates", {name: digits})
        if listed:
            found.append((f"Certificates by {'fingerprint' if name == 'sha256' else 'serial number'}", listed, _by(name, digits)))
    return Shown("find.html", {"text": text, "found": found})


def _by(name: str, digits: str) -> str:
    return link("/console/certificates", {name: digits})


async def _look(visit: Visit, scope: str, path: str, query: dict[str, str]) -> list[Any]:
    """Return the first rows of a list; none where it takes no such text."""
    try:
        listed = await visit.find(scope, path, query | {"limit": str(MOST)})
    except HandclaspError as error:
        if error.kind is not Kind.BAD_REQUEST:
            raise
        return []
    return list(listed.items) if listed is not None else []


async def _has(visit: Visit, scope: str, path: str, kind: type[Any]) -> bool:
    """Tell whether such a thing is at an address; what somebody typed may end like one of the routes below it."""
    try:
        return isinstance(await visit.find(scope, path), kind)
    except HandclaspError as error:
        if error.kind is not Kind.BAD_REQUEST:
            raise
        return False


PAGES = (Page("GET", "find", find),)
