"""Authorities, bundles, rotations, agents."""

from __future__ import annotations

from handclasp.console.app import Page
from handclasp.console.fields import fields_of, list_query
from handclasp.console.turns import turns
from handclasp.console.visit import Answer, Shown, Visit, as_file


async def authorities(visit: Visit) -> Answer:
    """List the authorities, the trust domains with their bundles, and those that are federated."""
    context = {
        "listed": await visit.get("/v1/authorities"),
        "bundles": await visit.get("/v1/bundles"),
        "federation": await visit.find("federation:read", "/v1/federation"),
    }
    return Shown("authorities.html", context)


async def authority(visit: Visit) -> Answer:
    """Show one authority."""
    one = await visit.get(f"/v1/authorities/{visit.params['name']}")
    issued = await visit.find("certificates:read", "/v1/certificates", {"authority": one.name, "limit": "10"})
    return Shown("authority.html", {"one": one, "issued": issued.items if issued is not None else []})


async def authority_pem(visit: Visit) -> Answer:
    """Hand out the certificate of an authority as a file."""
    one = await visit.get(f"/v1/authorities/{visit.params['name']}")
    return as_file(one.certificate.strip() + "\n", f"{one.sha256[:16]}.pem")


async def rotations(visit: Visit) -> Answer:
    """List the rotations."""
    listed = await visit.get("/v1/rotations", list_query(visit, "/v1/rotations"))
    return Shown("rotations.html", {"listed": listed, "turns": turns(visit, listed.next_cursor, len(listed.items), 50)})


async def rotation(visit: Visit) -> Answer:
    """Show how far a rotation is."""
    return Shown("rotation.html", {"one": await visit.get(f"/v1/rotations/{visit.params['id']}")})


async def agents(visit: Visit) -> Answer:
    """List the agents."""
    path = "/v1/agents"
    listed = await visit.get(path, list_query(visit, path))
    shown = {"listed": listed, "turns": turns(visit, listed.next_cursor, len(listed.items), 50)}
    return Shown("agents.html", shown | {"fields": fields_of(visit.api.parameters(path))})


async def agent(visit: Visit) -> Answer:
    """Show one agent: what it looks after, where it delivers, what is wrong."""
    name = visit.query.get("name", "")
    entries = await visit.find("log:read", "/v1/log/entries", {"subject": f"agent:{name}", "limit": "10"})
    context = {"one": await visit.get(f"/v1/agents/{name}"), "entries": entries.items if entries is not None else []}
    return Shown("agent.html", context)


PAGES = (
    Page("GET", "authorities", authorities),
    Page("GET", "authorities/{name}", authority),
    Page("GET", "authorities/{name}/pem", authority_pem),
    Page("GET", "rotations", rotations),
    Page("GET", "rotations/{id}", rotation),
    Page("GET", "agents", agents),
    Page("GET", "agent", agent),
)
