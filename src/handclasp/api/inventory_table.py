"""The routes of the inventory's reading side; part of the one table in :mod:`handclasp.api.table`."""

from __future__ import annotations

from handclasp import wire
from handclasp.api.handlers import exports, inventory
from handclasp.api.paging import CURSOR, LIMIT
from handclasp.api.routes import Parameter, Route
from handclasp.errors import Kind
from handclasp.inventory import filters
from handclasp.inventory.export import FORMATS
from handclasp.wire import inventory as types

READ = "inventory:read"


def parameters(which: str) -> tuple[Parameter, ...]:
    """Return the filters of a list as query parameters."""
    return tuple(Parameter(one.name, one.description, one.schema) for one in filters.LISTS[which])


INVENTORY: tuple[Route, ...] = (
    Route("GET", "/v1/certificates", inventory.list_certificates, "certificates:read", "List certificates, issued and found",
          response=wire.CertificateList, parameters=(*parameters("certificates"), LIMIT, CURSOR)),
    Route("GET", "/v1/certificates:export", exports.export, READ, "Export certificates, all that the filters leave",
          media_type="", media_types=tuple(media_type for _, media_type, _ in FORMATS.values()),
          parameters=(Parameter("format", "What to write.", {"type": "string", "enum": list(FORMATS)}), *parameters("certificates"))),
    Route("GET", "/v1/certificates/{sha256}", inventory.show_certificate, "certificates:read", "Show a certificate",
          response=wire.Certificate, kinds=(Kind.NOT_FOUND,),
          parameters=(Parameter("expand", "Show where it was seen too.", {"type": "string", "enum": ["sightings"]}),)),
    Route("GET", "/v1/identities", inventory.list_identities, "certificates:read", "List identities", response=wire.IdentityList,
          parameters=(*parameters("identities"), LIMIT, CURSOR)),
    Route("GET", "/v1/identities/{identity:path}:lineage", inventory.lineage, READ,
          "The certificates of an identity, and where each was seen", response=types.Lineage, parameters=(LIMIT, CURSOR),
          kinds=(Kind.NOT_FOUND,)),
    Route("GET", "/v1/identities/{identity:path}", inventory.show_identity, READ, "Show an identity", response=types.IdentityDetail,
          kinds=(Kind.NOT_FOUND,)),
    Route("GET", "/v1/locations", inventory.list_locations, READ, "List locations", response=types.LocationList,
          parameters=(*parameters("locations"), LIMIT, CURSOR)),
    Route("GET", "/v1/locations/{id}", inventory.show_location, READ, "Show a location", response=types.Location,
          kinds=(Kind.NOT_FOUND,)),
    Route("GET", "/v1/sightings", inventory.list_sightings, READ, "List sightings, newest first", response=types.SightingList,
          parameters=(Parameter("sha256", "Of this certificate."), Parameter("location", "At the location of this number."),
                      Parameter("now", "Those that are (`true`), or that were (`false`).", {"type": "boolean"}), LIMIT, CURSOR)),
    Route("GET", "/v1/standings", inventory.standings, READ, "How many certificates stand how", response=types.Standings),
    Route("GET", "/v1/views", inventory.list_views, READ, "List saved views", response=types.ViewList),
    Route("POST", "/v1/views", inventory.save_view, "inventory:write", "Save a view", types.ViewRequest, types.View, status=201,
          kinds=(Kind.CONFLICT,)),
    Route("DELETE", "/v1/views/{id}", inventory.remove_view, "inventory:write", "Remove a saved view", response=types.View,
          kinds=(Kind.NOT_FOUND,)),
    Route("POST", "/v1/certificates/{sha256}:triage", inventory.triage, "inventory:write",
          "Decide what becomes of a certificate that was found", types.TriageRequest, wire.Done, kinds=(Kind.NOT_FOUND, Kind.CONFLICT),
          own_scope="inventory:write"),
    Route("GET", "/v1/overview", inventory.overview, READ, "How everything stands", response=types.Overview),
    Route("GET", "/v1/timeline", inventory.timeline, READ, "What happened and what is to come, by hours or days",
          response=types.Timeline,
          parameters=(Parameter("since", "From then on: a time, a date, or a duration from now; a day ago without it."),
                      Parameter("until", "Up to then; in seven days without it."),
                      Parameter("by", "How long each item is; as fits without it.", {"type": "string", "enum": ["hour", "day"]}))),
)  # fmt: skip
