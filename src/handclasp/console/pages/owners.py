"""Owners, and what waits for a person to say whose it is."""

from __future__ import annotations

from typing import Any

from handclasp.console.app import Page
from handclasp.console.fields import fields_of, list_query
from handclasp.console.turns import turns
from handclasp.console.visit import Answer, Shown, Visit

QUEUES = {
    "owner": "Nobody owns it",
    "new_owner": "Its owner has left",
    "decision": "Evidence is equally strong",
    "confirmation": "To be confirmed again",
    "look": "Evidence disagrees",
    "found": "Found, and undecided",
}
"""What waits: the needs that the API knows (see handclasp.ownership.views.NEEDS), and certificates that nobody has decided about."""
_FOUND = ("unissued", "foreign")


async def owners(visit: Visit) -> Answer:
    """List the owners."""
    listed = await visit.get("/v1/owners", list_query(visit, "/v1/owners"))
    context = {
        "listed": listed,
        "turns": turns(visit, listed.next_cursor, len(listed.items), 50),
        "fields": fields_of(visit.api.parameters("/v1/owners")),
        "standing": await visit.find("owners:read", "/v1/ownership"),
    }
    return Shown("owners.html", context)


async def owner(visit: Visit) -> Answer:
    """Show one owner with its identities."""
    name = visit.query.get("name", "")
    mine = await visit.find("inventory:read", "/v1/identities", {"owner": name, "limit": "50"})
    return Shown("owner.html", {"one": await visit.get(f"/v1/owners/{name}"), "identities": mine})


async def triage(visit: Visit) -> Answer:
    """Show what waits for a decision, one queue at a time."""
    queue = visit.query.get("queue", "owner")
    queue = queue if queue in QUEUES else "owner"
    listed: Any
    if queue == "found":
        standing = visit.query.get("standing", _FOUND[0])
        query = {"standing": standing if standing in _FOUND else _FOUND[0], "triage": "unmanaged", "limit": "25"}
        listed = await visit.get("/v1/certificates", query | visit.picked("cursor"))
    else:
        listed = await visit.get("/v1/ownership/needing", {"need": queue, "limit": "25"} | visit.picked("cursor"))
    owners = await visit.find("owners:read", "/v1/owners", {"limit": "500"})
    context = {
        "listed": listed,
        "turns": turns(visit, listed.next_cursor, len(listed.items), 25),
        "queue": queue,
        "queues": QUEUES,
        "standing": visit.query.get("standing", _FOUND[0]),
        "standings": _FOUND,
        "owners": [one.name for one in owners.items] if owners is not None else [],
        "ownership": await visit.find("owners:read", "/v1/ownership"),
        "here": visit.url(visit.path),
    }
    return Shown("triage.html", context)


async def rules(visit: Visit) -> Answer:
    """Show the rules of ownership in force."""
    return Shown("ownership.html", {"one": await visit.get("/v1/ownership")})


PAGES = (
    Page("GET", "owners", owners),
    Page("GET", "owner", owner),
    Page("GET", "triage", triage),
    Page("GET", "ownership", rules),
)
