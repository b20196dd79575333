"""Sources and scans: what people ask for, what collectors lease, and what the server says of both."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, field

from handclasp.wire.base import Name, Request, Response
from handclasp.wire.observations import Facts, Sightings, Text

Every = Annotated[str, Meta(max_length=32, examples=["6h", "1d", ""])]
Worker = Annotated[str, Meta(min_length=1, max_length=128)]
Entries = Annotated[list[Annotated[str, Meta(min_length=1, max_length=512)]], Meta(max_length=10_000)]
Number = Annotated[int, Meta(ge=0, le=2**40)]


class SourceScope(Struct, kw_only=True, forbid_unknown_fields=True):
    """What a source may read at all; what its entries are is said by its kind."""

    allow: Entries = field(default_factory=list)
    deny: Entries = field(default_factory=list)
    """Wins over ``allow``."""
    loopback: bool = False
    """Whether connections may go to the machine that reads."""


class SourceRequest(Request, kw_only=True):
    """A source to be added."""

    name: Name
    kind: Annotated[str, Meta(min_length=1, max_length=64)]
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the kind's own shape; ``GET /v1/source-kinds`` has it. Secrets are named by files, never in here."""
    scope: SourceScope = field(default_factory=SourceScope)
    every: Every = ""
    """How long from one scan to the next; empty is: only when asked."""
    runs: Annotated[str, Meta(max_length=16)] | None = None
    """``server``, ``collector`` or ``agents``; what is usual for the kind when it is left out."""
    facts: Facts = field(default_factory=dict)
    """What is true of everything in it (environment, zone, tags): evidence of ownership."""
    paused: bool = False


class SourceChange(Request, kw_only=True):
    """A change of a source; what is left out stays as it is."""

    settings: dict[str, Any] | None = None
    scope: SourceScope | None = None
    every: Every | None = None
    runs: Annotated[str, Meta(max_length=16)] | None = None
    facts: Facts | None = None
    paused: bool | None = None


class Scan(Response, kw_only=True):
    """One run over a source."""

    id: str
    source: str
    kind: str
    state: str
    """``planning``, ``running``, ``done``, ``stopped`` or ``failed`` (nothing could be read)."""
    dry: bool
    """It reads, and records nothing: the numbers say what it would."""
    asked_by: str
    created_at: str
    ended_at: str | None
    total: int
    """Places to read, as far as is known."""
    read: int
    failed: int
    """Places that could not be read. What was seen there before is not gone for that."""
    certificates: int
    fresh: int
    """Certificates that nobody had seen before, but for those of chains."""
    gone: int
    """Sightings that ended."""
    problem: str | None
    parts: dict[str, int] | None = None
    """Parts of the work by state; of one scan, not in lists."""
    problems: list[str] | None = None
    """Why parts could not be read; of one scan, not in lists."""


class ScanList(Response, kw_only=True):
    """Scans, newest first."""

    items: list[Scan]
    next_cursor: str | None = None


class Source(Response, kw_only=True):
    """Something that discovery reads."""

    name: str
    kind: str
    state: str
    """``active`` or ``paused``."""
    runs: str
    settings: dict[str, Any]
    scope: SourceScope
    facts: dict[str, Any]
    every: str
    created_at: str
    created_by: str
    due_at: str | None
    """When its next scan begins."""
    success_at: str | None
    """When the last scan that read everything began."""
    problem: str | None
    """Why the last scan did not read everything."""
    locations: int | None = None
    """Places with certificates that are there now; of one source, not in lists."""
    scan: Scan | None = None
    """The scan that goes on, or else the last one."""


class SourceList(Response, kw_only=True):
    """Sources, by name."""

    items: list[Source]
    next_cursor: str | None = None


class SourceOption(Response, kw_only=True):
    """One setting of a kind of source."""

    name: str
    type: str
    """``text``, ``number``, ``flag``, ``list`` or ``json``."""
    help: str
    default: Any = None
    required: bool = False


class SourceKindInfo(Response, kw_only=True):
    """A kind of source."""

    name: str
    summary: str
    privilege: str
    """The least that it needs."""
    runs: str
    options: list[SourceOption]


class SourceKindList(Response, kw_only=True):
    """The kinds of sources that this server knows; those of which a library is missing are left out."""

    items: list[SourceKindInfo]


class RunRequest(Request, kw_only=True):
    """Begin a scan of a source now."""

    dry: bool = False


class LeaseRequest(Request, kw_only=True):
    """A collector asks for something to read."""

    worker: Worker
    """Its name, for people: the host's, or the pod's."""
    source: Name | None = None
    kinds: Annotated[list[str], Meta(max_length=64)] = field(default_factory=list)


class PartLease(Response, kw_only=True):
    """A part of a scan that a collector has for ``seconds`` from each word on. With ``scan`` None there is nothing to do."""

    scan: str | None = None
    part: int = 0
    """0 is the part that plans the others."""
    lease: str = ""
    source: str = ""
    kind: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    scope: SourceScope = field(default_factory=SourceScope)
    facts: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    place: str = ""
    began_at: int = 0
    """When the scan began, in ms by the server's clock."""
    dry: bool = False
    seconds: float = 60.0


class PartRecord(Request, kw_only=True):
    """What a collector read of a part since its last word; without anything in it, that it is still there."""

    lease: Annotated[str, Meta(min_length=1, max_length=256)]
    sightings: Sightings = field(default_factory=Sightings)
    place: Annotated[str, Meta(max_length=65_536)] | None = None
    """How far it is once this is recorded."""
    total: Number = 0
    """More places to read than were known before."""
    read: Number = 0
    """Places that were read and are no location; those in ``sightings`` count themselves."""
    failed: Number = 0
    parts: Annotated[list[dict[str, Any]], Meta(max_length=1000)] = field(default_factory=list)
    """Of the part that plans: the parts that it found, each once; ``place`` is then how many it found in all."""
    done: bool = False
    gives_up: bool = False
    """It cannot be read on: ``problem`` says why. It is tried again, a few times, unless ``final``."""
    final: bool = False
    released: bool = False
    """The collector ends, and somebody else is to go on at once."""
    problem: Text | None = None


class PartRecorded(Response, kw_only=True):
    """What came of it."""

    held: bool
    """False: the lease is lost, or the scan was stopped. Nothing was recorded; stop reading."""
    certificates: int = 0
    fresh: int = 0
    gone: int = 0


class ImportRequest(Request, kw_only=True):
    """Certificates that somebody hands in; see ``POST /v1/sources/{name}:import``."""

    sightings: Sightings
