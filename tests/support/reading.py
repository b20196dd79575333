"""Reading a source in a test as the engine does: what it yields, as lists."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from handclasp.clock import Clock, system_clock
from handclasp.discovery.source import Count, Covered, Failed, Observed, Part, Place, Reading, Scope, SourceKind
from handclasp.discovery.tools import Tools


@dataclass
class Read:
    """What came of reading."""

    observed: list[Observed] = field(default_factory=list)
    covered: list[Covered] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    total: int = 0
    empty: int = 0

    def add(self, one: Reading) -> None:
        if isinstance(one, Observed):
            self.observed.append(one)
        elif isinstance(one, Covered):
            self.covered.append(one)
        elif isinstance(one, Failed):
            self.failed.append(one)
        elif isinstance(one, Place):
            self.places.append(one.text)
        else:
            assert isinstance(one, Count)
            self.total, self.empty = self.total + one.total, self.empty + one.read

    @property
    def keys(self) -> list[str]:
        return [one.key for one in self.observed]

    def __getitem__(self, key: str) -> Observed:
        """The newest observation of a location, after a round trip through JSON."""
        one = next(one for one in reversed(self.observed) if one.key == key)
        return msgspec.json.decode(msgspec.json.encode(one), type=Observed)


def tools(home: Path, *, scope: Scope | None = None, clock: Clock = system_clock) -> Tools:
    return Tools(clock, clock(), scope or Scope(loopback=True), [home])


def settings_of(kind: SourceKind, given: dict[str, Any]) -> Any:
    return msgspec.convert(given, kind.Settings)


async def parts(kind: SourceKind, settings: Any, using: Tools) -> list[Part]:
    kind.check(settings, using.scope)
    return [part async for part in kind.plan(settings, using.scope, using)]


def read(kind: SourceKind, given: dict[str, Any], home: Path, *, scope: Scope | None = None) -> Read:
    """Read everything."""
    using, settings, found = tools(home, scope=scope), settings_of(kind, given), Read()

    async def run() -> None:
        for part in await parts(kind, settings, using):
            async for one in kind.read(settings, msgspec.json.decode(msgspec.json.encode(part), type=Part), "", using):
                found.add(one)

    asyncio.run(asyncio.wait_for(run(), 60))
    return found


def counts(found: Read) -> Iterator[int]:
    """How many locations, certificates, units and failures."""
    yield len(found.observed)
    yield sum(len(one.certificates) for one in found.observed)
    yield len(found.covered)
    yield len(found.failed)
