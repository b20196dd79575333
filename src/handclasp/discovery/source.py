"""What a source is: the contract between the engine and the modules that read one kind of place each.

A module has one class with a ``name``, a ``Settings`` struct and three methods (:class:`SourceKind`), and one line in
:mod:`handclasp.discovery.kinds`. It reads and yields; it never writes to the inventory, keeps nothing between calls, and reads no private
key. Everything it needs from outside comes through its :class:`~handclasp.discovery.tools.Tools`, so that scope and egress guard hold for
every kind in the same way.
"""

from __future__ import annotations

import fnmatch
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeAlias

from msgspec import Meta, Struct
from msgspec import field as struct_field

from handclasp.wire.observations import Covered, Observed, unit_mark

if TYPE_CHECKING:
    from handclasp.discovery.tools import Tools

Runs: TypeAlias = Literal["server", "collector", "agents"]
"""Who reads a source: the server's own processes, a collector (``handclasp collect``) near it, or the agents on their hosts."""

Entries = Annotated[list[Annotated[str, Meta(min_length=1, max_length=512)]], Meta(max_length=10_000)]

__all__ = ["Count", "Covered", "Failed", "Observed", "Part", "Place", "Reading", "Runs", "Scope", "SourceKind"]


class Scope(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a source may read at all, whatever its settings ask for. A kind says in its ``summary`` what its entries are.

    For ``network`` they are addresses, CIDRs and host names; for clusters namespaces, for CT logs domains, for clouds regions or accounts.
    """

    allow: Entries = struct_field(default_factory=list)
    """Empty: everything that ``deny`` does not name (``network`` alone wants it filled)."""
    deny: Entries = struct_field(default_factory=list)
    """Wins over ``allow``."""
    loopback: bool = False
    """Whether connections may go to the machine that reads; never implied by a range. Metadata services and link-local never are."""

    @property
    def mark(self) -> str:
        """What to put into the name of a unit that is filtered by :meth:`admits`, see :func:`unit_mark`; empty without limits."""
        limits = (self.allow, self.deny)
        return unit_mark(repr(limits) if any(limits) else "")

    def admits(self, name: str) -> bool:
        """Tell whether a name (a namespace, a domain, a region) may be read: exact or with ``*``, lower and upper case alike; deny wins."""
        folded = name.casefold()

        def among(entries: list[str]) -> bool:
            return any(fnmatch.fnmatchcase(folded, entry.casefold()) for entry in entries)

        return not among(self.deny) and (not self.allow or among(self.allow))


@dataclass(frozen=True, slots=True)
class Part:
    """What one worker takes of a scan at a time, and what a dead worker's successor takes again: a minute or a few of work.

    ``spec`` is JSON of the kind's own shape, at most 64 KiB, without secrets: it is a row. Whatever two parts read may be read at once and
    in any order, by different processes on different machines.
    """

    spec: dict[str, Any] = field(default_factory=dict)
    places: int = 0
    """Places that it holds, where that can be said without looking: the scan then knows its total before it has begun every part. What
    :class:`Count` says while it is read is added to that."""


@dataclass(frozen=True, slots=True)
class Place:
    """How far a part is. Yield one every few hundred things or every few seconds.

    The engine keeps ``text`` (at most 64 KiB, of the kind's own shape) once everything that was yielded before it is durable. When the
    worker dies, the part is read again by another with the newest ``text`` as its ``place``: it goes on from there. Reading a little twice
    is harmless.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Count:
    """Numbers for the progress that people watch. All of them are added to what was counted before.

    Each :class:`Observed` counts itself: as failed where it has a ``problem``, else as read. ``total`` is how many more places there are to
    read, as soon as that is known; ``read`` are places that were read and held nothing worth a location (a closed port, a Secret without
    a certificate), ``failed`` those that could not be read and are no location either; one :class:`Failed` with a reason goes with them.
    """

    total: int = 0
    read: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """Something that could not be read and is not one location: a listing that was refused, a host that has no address.

    It counts as one failed place, and the scan is then not one that read everything. Yield no :class:`Covered` for its unit. A part that
    cannot go on at all raises instead.
    """

    what: str
    """Of what: ``namespace payments``, ``db-1.example.org``."""
    problem: str
    """Why, in a few words for people, without secrets: ``403, the service account may not list secrets``."""


Reading: TypeAlias = Observed | Covered | Place | Count | Failed
"""What a source yields. ``Covered`` only for a unit of which everything was yielded in this scan (``began_at=tools.began_at``)."""


class SourceKind(Protocol):
    """One kind of source. Instances hold no state: the same one serves every source of its kind, in any number of tasks at once."""

    name: str
    """As in ``handclasp source add NAME …`` and in the row: ``network``, ``kubernetes``; append-only."""
    summary: str
    """One line without a full stop: what it reads, and what its scope's entries are (``…; the scope's entries are namespaces``)."""
    privilege: str
    """One paragraph: the least it needs, exactly enough to set that up (role, verbs, policy, port)."""
    Settings: type[Struct]
    """Its settings: ``kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True``, every field with a docstring below it
    and a default where there is a sensible one. Fields of ``str``, ``int``, ``float``, ``bool``, ``list[str]`` or ``list[int]`` become
    options of ``handclasp source add`` by themselves (``ca_file`` is ``--ca-file``); durations are text such as ``30s``. Secrets are named
    by a file (``token_file``), which :meth:`Tools.secret <handclasp.discovery.tools.Tools.secret>` reads; they are never in settings. A
    field ``parallel: int`` bounds how many parts of one scan are read at once, over all processes."""
    runs: Runs
    """Who reads it unless the person who adds it says otherwise."""

    def check(self, settings: Any, scope: Scope) -> None:
        """Raise ``bad_setting`` when these cannot work together; no I/O. Called when a source is added or changed, and before each scan."""

    def plan(self, settings: Any, scope: Scope, tools: Tools) -> AsyncIterator[Part]:
        """Yield the parts of one scan, at most 100,000, each once; an ``async def`` with ``yield``.

        Called by one worker, and again from the beginning if that one dies. May list (namespaces, hosts, accounts) but does not read. Most
        kinds with one endpoint yield one part. Raises HandclaspError when it cannot be planned: the scan then failed, with that reason,
        after a few attempts.
        """

    def read(self, settings: Any, part: Part, place: str, tools: Tools) -> AsyncIterator[Reading]:
        """Yield what is there, from ``place`` on (empty: from the beginning); an ``async def`` with ``yield``.

        Memory is bounded by what one yields between two awaits: the engine takes things over in batches and makes the reader wait while
        they are recorded. What cannot be read is one :class:`Observed` with a ``problem`` or one :class:`Failed`, and the reading goes on;
        HandclaspError is raised only when nothing more can be read: the part is then tried again from its newest place, a few times, with
        pauses. ``tools.stop`` is set when the scan is stopped or the process ends: return soon (the generator is closed in any case).
        Everything that is awaited has a timeout. Times come from ``tools.clock``.
        """
