"""Identities, certificates and locations: the lists with the API's searches, and one of each."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from handclasp.console.app import Page
from handclasp.console.fields import fields_of, list_command, list_query
from handclasp.console.picture import line_picture
from handclasp.console.render import identity_link
from handclasp.console.turns import turns
from handclasp.console.visit import Answer, Go, Raw, Shown, Visit, as_file
from handclasp.errors import HandclaspError, Kind
from handclasp.wire.inventory import IdentityDetail

PAGE = 50
"""Rows on a page of a list."""
HISTORY = 8
"""Certificates of an identity's line, and decisions about it, of which its page shows the entries of the log."""
OF_HISTORY = 20
"""Certificates on one page of an identity's whole history."""
DECISIONS = ("claimed", "dismissed", "investigate", "unmanaged")
REASONS = ("unspecified", "key_compromise", "affiliation_changed", "superseded", "cessation_of_operation", "privilege_withdrawn")
FORMATS = {"csv": "csv", "json": "json", "cbom": "cdx.json"}
"""Formats of an export, and how a file of each is called."""


async def identities(visit: Visit) -> Answer:
    """List identities."""
    return await _list(visit, "/v1/identities", "identities.html", ("q", "state", "owner", "environment"), "identities")


async def certificates(visit: Visit) -> Answer:
    """List certificates, issued and found."""
    first = ("q", "state", "standing", "owner", "expires_before")
    return await _list(visit, "/v1/certificates", "certificates.html", first, "certificates")


async def locations(visit: Visit) -> Answer:
    """List the places where certificates can be seen."""
    return await _list(visit, "/v1/locations", "locations.html", ("q", "kind", "state", "source", "host"), "locations")


async def _list(visit: Visit, path: str, template: str, first: tuple[str, ...], name: str) -> Shown:
    listed = await visit.get(path, list_query(visit, path, PAGE))
    views = await visit.find("inventory:read", "/v1/views")
    known = {one.name for one in visit.api.parameters(path)}
    context = {
        "listed": listed,
        "fields": fields_of(visit.api.parameters(path)),
        "first": first,
        "views": [view for view in views.items if view.list == name] if views is not None else [],
        "list_name": name,
        "turns": turns(visit, listed.next_cursor, len(listed.items), PAGE),
        "command": list_command(name, {key: value for key, value in visit.search.items() if key in known}),
    }
    return Shown(template, context)


async def identity(visit: Visit) -> Answer:
    """Show one identity: what it is, whose, its certificates over time, where they are, and what to do next."""
    name = visit.query.get("name", "")
    detail = await visit.get(f"/v1/identities/{name}")
    if not isinstance(detail, IdentityDetail):  # a name that ends like one of the routes below an identity
        raise HandclaspError(Kind.NOT_FOUND, "there is no such identity")
    owners = await visit.find("owners:read", "/v1/owners", {"limit": "500"})
    context = {
        "detail": detail,
        "entries": await _history(visit, detail),
        "picture": line_picture(detail.line, visit.now),
        "owners": [one.name for one in owners.items] if owners is not None else [],
        "here": identity_link(name),
    }
    return Shown("identity.html", context)


async def _history(visit: Visit, detail: Any) -> list[Any]:
    """Return the newest entries of the log about an identity: how its certificates came to be, and what people did with it and them."""
    if not visit.can("log:read"):
        return []
    found: dict[int, Any] = {}
    line = [item.certificate for item in detail.line[:HISTORY]]
    listed = await visit.get("/v1/log/entries", {"subject": detail.log_subject, "limit": str(HISTORY)})
    found |= {entry.index: entry for entry in listed.items}
    for one in line:
        found |= await _entries_of(visit, one)
    return [found[index] for index in sorted(found, reverse=True)[: 2 * HISTORY]]


async def history(visit: Visit) -> Answer:
    """Show everything in the log about an identity's certificates, a page of certificates at a time: entries have no index by identity."""
    name = visit.query.get("name", "")
    query = {"identity": name, "limit": str(OF_HISTORY)} | visit.picked("cursor")
    listed = await visit.get("/v1/certificates", query)
    entries = []
    for one in listed.items:
        found = await _entries_of(visit, one)
        entries += [found[index] for index in sorted(found, reverse=True)]
    context = {"name": name, "entries": entries, "turns": turns(visit, listed.next_cursor, len(listed.items), OF_HISTORY)}
    return Shown("history.html", context)


async def _entries_of(visit: Visit, one: Any) -> dict[int, Any]:
    """Return the entries about one certificate, by index."""
    found: dict[int, Any] = {}
    if one.state == "revoked" or one.origin == "found":
        listed = await visit.get("/v1/log/entries", {"subject": f"certificate:{one.sha256}", "limit": str(HISTORY)})
        found |= {entry.index: entry for entry in listed.items}
    if one.log_entry is not None:
        found[one.log_entry] = await visit.get(f"/v1/log/entries/{one.log_entry}")
    return found


async def certificate(visit: Visit) -> Answer:
    """Show one certificate."""
    shown = await visit.get(f"/v1/certificates/{visit.params['sha256']}", {"expand": "sightings"})
    context = {"one": shown, "reasons": REASONS, "decisions": DECISIONS, "chain": await _chain(visit, shown)}
    return Shown("certificate.html", context)


async def _chain(visit: Visit, one: Any) -> str:
    """Return the certificate of the authority that issued one here, PEM; empty where that is not known, or not for the person to see."""
    if one.origin != "issued" or not one.authority:
        return ""
    authority = await visit.find("authorities:read", f"/v1/authorities/{quote(one.authority, safe='')}")
    return authority.certificate if authority is not None else ""


async def pem(visit: Visit) -> Answer:
    """Hand out one certificate as a file, with its authority's where that is asked for."""
    one = await visit.get(f"/v1/certificates/{visit.params['sha256']}")
    if not one.certificate:
        raise HandclaspError(Kind.NOT_FOUND, "only the fingerprint of this certificate is known")
    parts = [one.certificate] + ([await _chain(visit, one)] if visit.query.get("chain") else [])
    return as_file("".join(part.strip() + "\n" for part in parts if part), f"{one.sha256[:16]}.pem")


async def location(visit: Visit) -> Answer:
    """Show one location: what is there, and what was."""
    return Shown("location.html", {"one": await visit.get(f"/v1/locations/{visit.params['id']}")})


async def export(visit: Visit) -> Answer:
    """Hand the list of certificates out as a file, by the filters that the page has."""
    path = "/v1/certificates:export"
    wanted = visit.query.get("format", "csv")
    if wanted not in FORMATS:
        raise HandclaspError(Kind.BAD_REQUEST, f"a format is one of {', '.join(FORMATS)}")
    query = {name: value for name, value in list_query(visit, path).items() if name not in ("limit", "cursor")} | {"format": wanted}
    answer = await visit.get(path, query)
    return Raw(answer.parts, answer.media_type, f"certificates.{FORMATS[wanted]}")


# --- actions ----------------------------------------------------------------------------------------------------------------------------


async def revoke(visit: Visit) -> Answer:
    """Revoke a certificate."""
    sha256 = visit.params["sha256"]
    body = {"reason": visit.form.get("why", "unspecified"), "comment": visit.form.get("reason", "")}
    done = await visit.send("POST", f"/v1/certificates/{sha256}:revoke", body)
    count = len(done.revoked)
    said = f"Revoked {count} certificate{'s' if count != 1 else ''}." if count else f"It was revoked before ({done.reason})."
    return Go(f"/console/certificates/{sha256}", said)


async def triage(visit: Visit) -> Answer:
    """Claim, dismiss or investigate a certificate that was found."""
    sha256 = visit.params["sha256"]
    body = {"decision": visit.form.get("decision", ""), "reason": visit.form.get("reason", "")}
    done = await visit.send("POST", f"/v1/certificates/{sha256}:triage", body)
    return Go(_back(visit, f"/console/certificates/{sha256}"), f"Decided: {body['decision']}. Log entry {done.log_entry}.")


async def rotate(visit: Visit) -> Answer:
    """Have the certificates of one identity replaced."""
    name = visit.form.get("identity", "")
    body = {"identity": name, "within": visit.form.get("within") or "10m", "reason": visit.form.get("reason", "")}
    done = await visit.send("POST", "/v1/rotations", body)
    to = f"/console/rotations/{done.id}" if visit.can("certificates:rotate") else identity_link(name)
    return Go(to, f"{done.total} certificate{'s' if done.total != 1 else ''} will be replaced.")


async def assign(visit: Visit) -> Answer:
    """Say who owns an identity."""
    name = visit.form.get("identity", "")
    body: dict[str, Any] = {"reason": visit.form.get("reason", "")}
    body |= {key: visit.form[key].strip() for key in ("owner", "tier", "environment") if visit.form.get(key, "").strip()}
    await visit.send("POST", f"/v1/identities/{name}:assign", body)
    return Go(_back(visit, identity_link(name)), f"Assigned to {body.get('owner', 'nobody')}.")


def _back(visit: Visit, otherwise: str) -> str:
    """Return the page on which the form was, where it says so: a page of ours, and nothing else."""
    wanted = visit.form.get("back", "")
    return wanted if wanted.startswith("/console/") and "\\" not in wanted and wanted.isprintable() else otherwise


# --- saved views ------------------------------------------------------------------------------------------------------------------------


async def views(visit: Visit) -> Answer:
    """List the saved views."""
    return Shown("views.html", {"listed": await visit.get("/v1/views")})


async def save_view(visit: Visit) -> Answer:
    """Keep the search of a list under a name."""
    name, listed, query = visit.form.get("name", ""), visit.form.get("list", ""), visit.form.get("query", "")
    await visit.send("POST", "/v1/views", {"name": name, "list": listed, "query": query})
    return Go(_back(visit, "/console/views"), f"Saved as {name}.")


async def remove_view(visit: Visit) -> Answer:
    """Forget a saved view."""
    await visit.send("DELETE", f"/v1/views/{quote(visit.params['id'], safe='')}")
    return Go("/console/views", "Removed.")


PAGES = (
    Page("GET", "identities", identities),
    Page("GET", "identity", identity),
    Page("GET", "identity/history", history),
    Page("POST", "identity/rotate", rotate),
    Page("POST", "identity/assign", assign),
    Page("GET", "certificates", certificates),
    Page("GET", "certificates/export", export),
    Page("GET", "certificates/{sha256}", certificate),
    Page("GET", "certificates/{sha256}/pem", pem),
    Page("POST", "certificates/{sha256}/revoke", revoke),
    Page("POST", "certificates/{sha256}/triage", triage),
    Page("GET", "locations", locations),
    Page("GET", "locations/{id}", location),
    Page("GET", "views", views),
    Page("POST", "views", save_view),
    Page("POST", "views/{id}/remove", remove_view),
)
