"""Sources and scans: what discovery reads, how far it is, what failed."""

from __future__ import annotations

from urllib.parse import quote

from handclasp.console.app import Page
from handclasp.console.fields import list_query
from handclasp.console.turns import turns
from handclasp.console.visit import Answer, Go, Shown, Visit


async def sources(visit: Visit) -> Answer:
    """List the sources, with what they cover and what failed."""
    listed = await visit.get("/v1/sources", list_query(visit, "/v1/sources"))
    return Shown("sources.html", {"listed": listed, "turns": turns(visit, listed.next_cursor, len(listed.items), 50)})


async def source(visit: Visit) -> Answer:
    """Show one source with its scans."""
    name = visit.params["name"]
    one = await visit.get(f"/v1/sources/{name}")
    scans = await visit.get("/v1/scans", {"source": name, "limit": "20"})
    places = await visit.find("inventory:read", "/v1/locations", {"source": name, "limit": "10"})
    failed = await visit.find("inventory:read", "/v1/locations", {"source": name, "state": "failed", "limit": "10"})
    context = {
        "one": one,
        "scans": scans.items,
        "places": places.items if places is not None else [],
        "failed": failed.items if failed is not None else [],
    }
    return Shown("source.html", context)


async def run(visit: Visit) -> Answer:
    """Read a source now."""
    name = visit.params["name"]
    scan = await visit.send("POST", f"/v1/sources/{quote(name, safe='')}:run", {"dry": bool(visit.form.get("dry"))})
    return Go(f"/console/scans/{scan.id}")


async def scan(visit: Visit) -> Answer:
    """Show how far a scan is; htmx asks again while it runs."""
    one = await visit.get(f"/v1/scans/{visit.params['id']}")
    read_by = ""
    if one.state in ("planning", "running") and not one.read + one.failed:  # why it does not move may be that nobody is there who reads it
        source = await visit.find("sources:read", f"/v1/sources/{one.source}")
        read_by = source.runs if source is not None else ""
    return Shown("scan.html", {"one": one, "read_by": read_by})


async def stop(visit: Visit) -> Answer:
    """Stop a scan; what it recorded stays."""
    await visit.send("POST", f"/v1/scans/{visit.params['id']}:stop")
    return Go(f"/console/scans/{visit.params['id']}", "Stopped. What it had recorded stays.")


PAGES = (
    Page("GET", "sources", sources),
    Page("GET", "sources/{name}", source),
    Page("POST", "sources/{name}/run", run),
    Page("GET", "scans/{id}", scan),
    Page("POST", "scans/{id}/stop", stop),
)
