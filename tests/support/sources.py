"""Reads one source as the engine would, without a database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from handclasp.discovery.source import Part, Place, Reading, Scope
from handclasp.discovery.tools import Tools
from handclasp.wire.observations import Covered, Observed

BEGAN = 1_700_000_000_000


def tools(*, scope: Scope | None = None, secrets: Path | None = None, known: Collection[str] | None = None) -> Tools:
    """Tools for loopback; ``known`` are keys that the inventory has."""

    async def ask(_unit: str) -> frozenset[str]:
        return frozenset(known or ())

    made = Tools(lambda: BEGAN + 1000, BEGAN, scope or Scope(loopback=True), [secrets] if secrets else [])
    made.known = ask if known is not None else None
    return made


async def parts(kind: Any, settings: Any, with_: Tools) -> list[dict[str, Any]]:
    """Plan."""
    kind.check(settings, with_.scope)
    return [part.spec async for part in kind.plan(settings, with_.scope, with_)]


def read(kind: Any, settings: Any, with_: Tools, place: str = "", *, most: int = 0) -> list[Reading]:
    """Read every part of a source and return what it yields; after ``most`` items it is cut off, as by a death."""

    async def run() -> list[Reading]:
        found: list[Reading] = []
        for spec in await parts(kind, settings, with_):
            async with contextlib.aclosing(kind.read(settings, Part(spec), place, with_)) as reading:
                async for item in reading:
                    found.append(item)
                    if most and len(found) >= most:
                        return found
        return found

    return asyncio.run(run())


def observed(items: list[Reading]) -> dict[str, Observed]:
    return {one.key: one for one in items if isinstance(one, Observed)}


def covered(items: list[Reading]) -> list[str]:
    return [one.unit for one in items if isinstance(one, Covered)]


def last_place(items: list[Reading]) -> str:
    return [one.text for one in items if isinstance(one, Place)][-1]
