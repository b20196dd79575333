"""The inventory as the API shows it: what is issued and what is found, where, since when, whose, and what to do about it.

Lists are :class:`handclasp.wire.CertificateList` and :class:`handclasp.wire.IdentityList` too: what was issued here and what was found
stand in the same lists. Filters are query parameters, the same for the API, the command line, the console and saved views;
``docs/inventory.md`` names them.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, field

from handclasp.wire.base import Request, Response
from handclasp.wire.certificates import Certificate, Identity, Sighting
from handclasp.wire.ownership import Assignment

Words = Annotated[str, Meta(max_length=1000)]

# --- reading: where certificates are ------------------------------------------------------------------------------------------------------


class Location(Response, kw_only=True):
    """Where certificates can be seen."""

    id: int
    source: str
    """The name of the source that reads it."""
    key: str
    """What it is called in its source: ``tls:HOST:PORT/SNI``, ``file:AGENT:PATH``."""
    kind: str
    shown: str
    """The same for people."""
    unit: str = ""
    host: str | None = None
    state: str
    """``read``, ``failed`` (the last try could not read it: what was seen before still stands) or ``gone``."""
    first_seen: str
    last_seen: str | None = None
    """When it was last read."""
    last_tried: str
    problem: str | None = None
    gone_at: str | None = None
    key_sha256: str | None = None
    """SPKI of the private key that lies there; the key itself is never read into the server."""
    anchors: str | None = None
    """SHA-256 over the anchors that are trusted there; the same where the same are trusted."""
    details: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    sightings: list[Sighting] | None = None
    """What is there now, and what was; only where one location is asked for."""


class LocationList(Response, kw_only=True):
    """One page of locations, by their number; it may have fewer items than asked for, or none, and still a ``next_cursor``."""

    items: list[Location]
    next_cursor: str | None = None


class SightingList(Response, kw_only=True):
    """One page of sightings, newest first."""

    items: list[Sighting]
    next_cursor: str | None = None


# --- reading: where certificates stand ----------------------------------------------------------------------------------------------------


class Standing(Response, kw_only=True):
    """One reconciliation state, with how many certificates are in it."""

    standing: str
    """``unissued revoked_served expired_served old_served foreign gone seen unseen``."""
    count: int
    title: str
    """What it is, in a few words."""
    meaning: str
    advice: str
    """What to do about it; empty where nothing is to be done."""
    level: str
    """``alarm``, ``attention`` or ``fine``."""


class Standings(Response, kw_only=True):
    """Every state, the one to look at first first."""

    items: list[Standing]


# --- reading: one identity ----------------------------------------------------------------------------------------------------------------


class MayIssue(Response, kw_only=True):
    """A grant that lets somebody obtain certificates for an identity."""

    grant: str
    """``policy:NAME``, ``token:ID``, or ``server`` for the certificate of the server's own listeners."""
    who: str
    """Who may use it, in words."""
    profiles: list[str]
    max_ttl: str | None
    renew: bool
    ends: str | None = None
    """When a token ends."""
    uses_left: int | None = None
    """How many certificates a token may still obtain; null is without limit."""


class LineItem(Response, kw_only=True):
    """One certificate of an identity, with where it was seen."""

    certificate: Certificate
    sightings: list[Sighting]
    """Newest first, at most 20 of them; ``more_sightings`` says that there are others."""
    more_sightings: bool = False


class Lineage(Response, kw_only=True):
    """The certificates of an identity, newest first: who obtained each by which grant, what it replaced, and where it was seen."""

    identity: str
    items: list[LineItem]
    next_cursor: str | None = None


class NextStep(Response, kw_only=True):
    """What is to be done about an identity."""

    kind: str
    """``overdue expired unowned unissued foreign revoked_served expired_served old_served gone unseen denied conflict confirm nobody``."""
    level: str
    """``alarm`` or ``attention``."""
    text: str
    command: str = ""
    """The command that does it, where there is one."""
    sha256: str | None = None
    """The certificate that it is about."""


class IdentityDetail(Response, kw_only=True):
    """One identity: what it is, who owns it and why, its certificates, where they are now, what may issue it, and what to do next."""

    identity: Identity
    names: list[str]
    """Every name that it has been seen or issued with."""
    evidence: list[Assignment]
    """Everything that says who owns it, the strongest first."""
    line: list[LineItem]
    """Its newest certificates, at most 20; ``/v1/identities/{identity}:lineage`` has all."""
    more: bool = False
    """Whether it has more certificates than ``line`` shows."""
    served: list[Sighting]
    """Where its certificates are now, at most 100 places."""
    grants: list[MayIssue]
    agents: list[str]
    """Agents that look after it."""
    next_steps: list[NextStep]
    log_subject: str
    """``subject`` of its entries in the log, for ``/v1/log/entries``."""


# --- saved views --------------------------------------------------------------------------------------------------------------------------


class ViewRequest(Request, kw_only=True):
    """Keep a search under a name."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    list: str
    """``certificates``, ``identities`` or ``locations``."""
    query: Annotated[str, Meta(max_length=4096)] = ""
    """The filters, as in a URL: ``state=valid&expires_before=7d``."""


class View(Response, kw_only=True):
    """A search that somebody keeps."""

    id: str
    name: str
    list: str
    query: str
    created_by: str
    created_at: str


class ViewList(Response, kw_only=True):
    """Every saved view, by name."""

    items: list[View]


# --- decisions, overview and timeline -----------------------------------------------------------------------------------------------------


class TriageRequest(Request, kw_only=True):
    """Decide what becomes of a certificate that was found; ``unmanaged`` takes a decision back."""

    decision: str
    """``claimed`` (it is ours, and known), ``dismissed`` (it is nobody's concern), ``investigate`` or ``unmanaged``."""
    reason: Annotated[str, Meta(max_length=1000)] = ""


class Figure(Response, kw_only=True):
    """One number, and the list of what it counts."""

    name: str
    """What is counted: ``seen``, ``24h``, ``overdue``, ``failing`` …"""
    title: str
    """The same for people."""
    number: int
    list: str
    """The request that lists it: ``/v1/certificates?standing=foreign``."""
    level: str = "fine"
    """``alarm`` or ``attention`` where the number is not 0 and somebody should look; otherwise ``fine``."""


class Load(Response, kw_only=True):
    """What happened, or will happen, in one hour or one day."""

    at: str
    """When it begins."""
    issued: int
    """Certificates issued anew."""
    renewed: int
    refused: int
    """Issuances and renewals that were refused."""
    expiring: int
    """Identities whose newest certificate ends then, or ended."""
    renewing: int
    """Identities whose newest certificate is to be renewed by then, or was not renewed by then."""


class Overview(Response, kw_only=True):
    """How everything stands now. Each figure leads to its list; none of them is counted when it is asked for."""

    at: str
    identities: list[Figure]
    """``all``, ``owned``, ``unowned``."""
    expiring: list[Figure]
    """``24h``, ``7d``, ``30d``: identities whose newest certificate ends within that time."""
    overdue: Figure
    """Identities whose certificate is past the moment by which it was to be renewed, and still serves."""
    expired: Figure
    """Identities whose newest certificate has ended."""
    standings: list[Figure]
    """Every state of reconciliation, the one to look at first first."""
    sources: list[Figure]
    """``ok``, ``failing``, ``never`` (not read yet), ``paused``."""
    locations: list[Figure]
    """``read``, ``failed``, ``gone``."""
    agents: list[Figure]
    issuance: list[Load]
    """The last 24 hours, the oldest first; the last one is not over."""
    issued_24h: Figure
    refused_24h: Figure
    followed: int
    """Entries of the log that these figures do not have yet."""


class Timeline(Response, kw_only=True):
    """What happened and what is to come, by hours or days."""

    since: str
    until: str
    by: str
    """``hour`` or ``day``."""
    now: str
    items: list[Load]
    """Every hour or day, also those of which there is nothing to tell."""
