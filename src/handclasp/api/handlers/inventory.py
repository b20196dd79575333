"""Read the inventory: certificates, identities, locations, sightings, where they stand; and keep views."""

from __future__ import annotations

from handclasp.api.paging import read_cursor, read_index, read_limit, read_sha256, read_text, write_cursor
from handclasp.api.routes import Call
from handclasp.errors import HandclaspError, Kind
from handclasp.inventory import filters, states, steps, tallies
from handclasp.inventory.conditions import Key
from handclasp.wire import Certificate, CertificateList, Done, IdentityList
from handclasp.wire.inventory import (
    IdentityDetail,
    Lineage,
    Location,
    LocationList,
    Overview,
    SightingList,
    Standings,
    Timeline,
    TriageRequest,
    View,
    ViewList,
    ViewRequest,
)

_SIGHTINGS = 100


async def list_certificates(call: Call) -> CertificateList:
    """List certificates, issued and found, those that end last first unless asked otherwise."""
    wanted = filters.parse("certificates", call.query, call.services.clock())
    found = await call.services.inventory.certificates.certificates(wanted, read_limit(call.query), _read_key(call))
    return CertificateList(items=found.items, next_cursor=_write_key(found.next))


def _read_key(call: Call) -> Key | None:
    after = read_cursor(call.query, int, str)
    return None if after is None else (after[0], read_sha256(after[1]))


def _write_key(key: Key | None) -> str | None:
    return None if key is None else write_cursor(key[0], key[1].hex())


async def show_certificate(call: Call) -> Certificate:
    """Show one certificate, issued or found, with its PEM where its bytes are known."""
    sha256 = read_sha256(call.path["sha256"])
    expand = read_text(call.query, "expand")
    if expand not in (None, "sightings"):
        raise HandclaspError(Kind.BAD_REQUEST, "expand: it is sightings")
    shown = await call.services.inventory.certificates.certificate(sha256)
    if expand is not None:
        shown.sightings = (await call.services.inventory.places.sightings(_SIGHTINGS, sha256=sha256)).items
    return shown


async def list_identities(call: Call) -> IdentityList:
    """List identities, each with its newest certificate."""
    wanted = filters.parse("identities", call.query, call.services.clock())
    by_name = wanted.sort in ("", "name")
    after = read_cursor(call.query, str) if by_name else read_cursor(call.query, int, int)
    found = await call.services.inventory.identities.page(wanted, read_limit(call.query), after)
    return IdentityList(items=found.items, next_cursor=None if found.next is None else write_cursor(*found.next))


async def show_identity(call: Call) -> IdentityDetail:
    """Show one identity: whose it is, its newest certificates, where they are, what may issue it, what to do next."""
    policy = (await call.services.rulebook.current()).policy
    return await call.services.inventory.details.identity(call.path["identity"], policy)


async def lineage(call: Call) -> Lineage:
    """Show every certificate of an identity, newest first, with where each was seen."""
    found = await call.services.inventory.details.lineage(call.path["identity"], read_limit(call.query), _read_key(call))
    found.lineage.next_cursor = _write_key(found.next)
    return found.lineage


async def list_locations(call: Call) -> LocationList:
    """List locations."""
    wanted = filters.parse("locations", call.query, call.services.clock())
    after = read_cursor(call.query, int)
    found = await call.services.inventory.places.locations(wanted, read_limit(call.query), after[0] if after else None)
    return LocationList(items=found.items, next_cursor=None if found.next is None else write_cursor(found.next))


async def show_location(call: Call) -> Location:
    """Show one location, with what is there and what was."""
    return await call.services.inventory.places.location(_number(call.path["id"], "a location"))


async def list_sightings(call: Call) -> SightingList:
    """List sightings, newest first."""
    before = read_cursor(call.query, int)
    sha256, location = read_text(call.query, "sha256"), read_text(call.query, "location")
    now = read_text(call.query, "now")
    if now not in (None, "true", "false"):
        raise HandclaspError(Kind.BAD_REQUEST, "now: it is true or false")
    found = await call.services.inventory.places.sightings(
        read_limit(call.query),
        before[0] if before else None,
        sha256=None if sha256 is None else read_sha256(sha256),
        location=None if location is None else _number(location, "a location"),
        now=None if now is None else now == "true",
    )
    return SightingList(items=found.items, next_cursor=None if found.next is None else write_cursor(found.next))


def _number(text: str, what: str) -> int:
    number = read_index(text)
    if number >= 1 << 31:
        raise HandclaspError(Kind.NOT_FOUND, f"{what} has no such number")
    return number


async def standings(call: Call) -> Standings:
    """Show how many certificates are in each state; the counters are kept, and not counted."""
    counts = await tallies.of_kind(call.services.store, "state")
    return Standings(items=[steps.describe(state, counts.get(state, 0)) for state in states.STATES])


async def list_views(call: Call) -> ViewList:
    """List saved views by name."""
    return ViewList(items=await call.services.inventory.views.every())


async def save_view(call: Call) -> View:
    """Keep a search under a name."""
    body: ViewRequest = call.body
    return await call.services.inventory.views.save(body, call.principal.describe())


async def remove_view(call: Call) -> View:
    """Forget a view, and show what it was."""
    return await call.services.inventory.views.remove(call.path["id"])


async def triage(call: Call) -> Done:
    """Decide what becomes of a certificate that was found."""
    body: TriageRequest = call.body
    sha256 = read_sha256(call.path["sha256"])
    return Done(log_entry=await call.services.inventory.triage.decide(sha256, body.decision, body.reason, call.principal))


async def overview(call: Call) -> Overview:
    """Show how everything stands."""
    return await call.services.inventory.overviews.overview()


async def timeline(call: Call) -> Timeline:
    """Show what happened and what is to come, by hours or days."""
    now = call.services.clock()
    since = filters.read_moment("since", call.query.get("since", "-1d"), now)
    until = filters.read_moment("until", call.query.get("until", "7d"), now)
    return await call.services.inventory.overviews.timeline(since, until, call.query.get("by", ""))
