"""A discovery engine on a database, with a kind of source that does what a test says, and an inventory that only remembers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from handclasp.access.grants import Grant
from handclasp.access.principals import TokenPrincipal
from handclasp.clock import Clock, system_clock
from handclasp.discovery.desk import LocalDesk
from handclasp.discovery.engine import Engine
from handclasp.discovery.leases import Leases
from handclasp.discovery.scans import Scans
from handclasp.discovery.source import Count, Covered, Observed, Part, Place, Reading, Scope
from handclasp.discovery.sources import Sources, Wanted
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind
from handclasp.store.database import Store
from handclasp.wire.observations import Recorded, Seen, Sightings

PERSON = TokenPrincipal("t1", "tester", None, Grant("token:t1"))
ORIGIN = {"door": "test"}
NOW = 1_800_000_000_000


class Now:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.at = NOW

    def __call__(self) -> int:
        return self.at


def with_store(url: str, body: Callable[[Store], Awaitable[None]]) -> None:
    """Run a test's body with a store on a migrated database."""

    async def run() -> None:
        store = await Store.open(url, migrate=False)
        try:
            await body(store)
        finally:
            await store.close()

    asyncio.run(run())


class Numbers(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Settings of the numbers."""

    count: int = 10
    """How many there are."""
    size: int = 5
    """How many are in a part."""
    broken: list[int] = []
    """Numbers that cannot be read."""
    fatal: int = -1
    """The number at which a part fails."""
    words: str = "count"
    """What it does: count."""
    parallel: int = 4
    """Parts at once."""


class NumbersKind:
    """Reads numbers: each is a location with one certificate."""

    name = "numbers"
    summary = "Numbers."
    privilege = "None."
    Settings = Numbers
    runs = "server"

    def __init__(self, before: Callable[[int], Any] | None = None) -> None:
        self.before = before
        self.read_numbers: list[int] = []

    def check(self, settings: Numbers, scope: Scope) -> None:
        if settings.count < 0:
            raise HandclaspError(Kind.BAD_SETTING, "count is negative")

    async def plan(self, settings: Numbers, scope: Scope, tools: Tools) -> AsyncIterator[Part]:
        for first in range(0, settings.count, settings.size):
            yield Part({"first": first, "end": min(first + settings.size, settings.count)})

    async def read(self, settings: Numbers, part: Part, place: str, tools: Tools) -> AsyncIterator[Reading]:
        first, end = part.spec["first"], part.spec["end"]
        if not place:
            yield Count(total=end - first)
        for number in range(int(place or first), end):
            if self.before is not None and asyncio.iscoroutine(result := self.before(number)):
                await result
            if number == settings.fatal:
                raise HandclaspError(Kind.UNAVAILABLE, "the number is not there")
            self.read_numbers.append(number)
            problem = "it is broken" if number in settings.broken else None
            seen = [] if problem else [Seen(der=b"certificate %d" % number)]
            yield Observed(
                key=f"number:{number}", kind="file", shown=str(number), unit=f"from {first}", at=tools.clock(), certificates=seen,
                problem=problem,
            )  # fmt: skip
            yield Place(str(number + 1))
        if not any(first <= number < end for number in settings.broken):
            yield Covered(unit=f"from {first}", began_at=tools.began_at)


class Remembered:
    """An inventory that remembers what it was told."""

    def __init__(self) -> None:
        self.observed: list[tuple[int, Observed]] = []
        self.covered: list[Covered] = []
        self.known: set[bytes] = set()
        self.batches: list[int] = []
        self.forgotten: list[int] = []

    async def record(self, source_id: int, sightings: Sightings, scan_id: str = "") -> Recorded:
        self.batches.append(len(sightings.observed))
        self.observed += [(source_id, one) for one in sightings.observed]
        self.covered += sightings.covered
        ders = [bytes(one.der or b"") for each in sightings.observed for one in each.certificates]
        fresh = len(set(ders) - self.known)
        self.known.update(ders)
        read = [one for one in sightings.observed if one.problem is None]
        return Recorded(
            locations=len(read), changed=len(read), failed=len(sightings.observed) - len(read), certificates=len(ders), fresh=fresh, gone=0
        )

    async def probe(self, sightings: Sightings) -> int:
        return len({bytes(one.der or b"") for each in sightings.observed for one in each.certificates} - self.known)

    async def forget(self, source_id: int) -> None:
        self.forgotten.append(source_id)

    @property
    def keys(self) -> list[str]:
        return [one.key for _, one in self.observed]


class Discovery:
    """Everything of one process."""

    def __init__(self, store: Store, kind: NumbersKind | None = None, clock: Clock = system_clock, worker: str = "worker") -> None:
        self.store, self.kind, self.inventory = store, kind or NumbersKind(), Remembered()

        def kinds(name: str) -> Any:
            if name != "numbers":
                raise HandclaspError(Kind.BAD_SETTING, f"there is no source of the kind {name!r}")
            return self.kind

        self.sources = Sources(store, clock, kinds)
        self.scans = Scans(store, clock)
        self.leases = Leases(store, clock)
        self.desk = LocalDesk(self.leases, self.inventory.record, self.inventory.probe, worker)
        self.engine = Engine(self.desk, clock, kinds=kinds)

    async def add(self, name: str = "numbers", every: float = 0.0, **settings: Any) -> Any:
        return await self.sources.add(name, "numbers", Wanted(settings=settings, every=every), PERSON, ORIGIN)

    async def begin(self, source: Any, *, dry: bool = False) -> str:
        return await self.scans.begin(source, PERSON, ORIGIN, dry=dry)

    async def finish(self) -> None:
        """Read everything that can be read now."""
        while await self.engine.step():
            pass
