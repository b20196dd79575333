"""The engine: takes parts of scans, lets their kind read them, and hands on what comes out, in batches and with bounds.

A part's reader runs ahead of what is recorded by one batch and no further. What it says about how far it is (:class:`Place`) is kept after
what it yielded before that is durable, so a worker that dies costs the few things read since. A worker that loses its lease stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from handclasp.clock import Clock
from handclasp.discovery.desk import Desk
from handclasp.discovery.kinds import load_kind
from handclasp.discovery.leases import MAX_PARTS, PLAN, Leased, Progress
from handclasp.discovery.source import Count, Covered, Failed, Observed, Part, Place, Reading, Scope, SourceKind
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind
from handclasp.wire.observations import Sightings

BATCH = 500
"""Locations that are handed in at a time."""
BATCH_BYTES = 4 * 1024 * 1024
"""Of certificates in one batch: what a part may have in memory is about twice that."""
FLUSH_EVERY = 2.0
"""Seconds after which what was read is handed in, however little."""
LOOK_EVERY = 2.0
"""Seconds between looks at whether a part is still ours."""
IDLE = 1.0
"""Seconds between looks for something to do."""
MAX_SPEC = 65_536

_log = logging.getLogger("handclasp.discovery")


class Lost(Exception):  # noqa: N818  (it is what happened)
    """The part is not ours any more."""


class Engine:
    """Reads parts, up to ``workers`` at once, for one event loop."""

    def __init__(
        self,
        desk: Desk,
        clock: Clock,
        *,
        workers: int = 4,
        secrets: Sequence[Path] = (),
        kinds: Callable[[str], SourceKind] = load_kind,
    ) -> None:
        self._desk, self._clock, self._workers, self._secrets, self._kinds = desk, clock, workers, tuple(secrets), kinds

    async def run(self) -> None:
        """Read parts as they come, until this is cancelled; parts that are begun then are given back."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._keep_working())

    async def step(self) -> bool:
        """Read one part to its end, or return False when there is none."""
        leased = await self._desk.take()
        if leased is None:
            return False
        await self._work(leased)
        return True

    async def _keep_working(self) -> None:
        while True:
            try:
                if await self.step():
                    continue
            except HandclaspError as error:  # the database or the server is away
                _log.warning("no part can be taken: %s", error.detail)
            await asyncio.sleep(IDLE)

    async def _work(self, leased: Leased) -> None:
        """Read one part. Whatever happens in it ends with the part done, failed, given back or lost, never with this worker."""
        reading = _Reading(leased, self._desk)
        try:
            kind, settings, tools = self._prepare(leased)
            reading.tools = tools
            if leased.number == PLAN:
                await self._plan(reading, kind.plan(settings, tools.scope, tools))
            else:
                await self._read(reading, kind.read(settings, Part(leased.spec), leased.place, tools))
        except Lost:
            _log.info("part %s of scan %s is not ours any more", leased.number, leased.scan)
        except asyncio.CancelledError:
            await self._give_back(leased)
            raise
        except HandclaspError as error:
            await self._fail(reading, error.detail, final=error.kind in (Kind.BAD_SETTING, Kind.NOT_ALLOWED))
        except Exception as error:  # a mistake in one kind of source ends this part, and nothing else
            _log.exception("a part of a scan failed")
            await self._fail(reading, f"an error of ours: {type(error).__name__}", final=False)

    def _prepare(self, leased: Leased) -> tuple[SourceKind, Any, Tools]:
        kind = self._kinds(leased.kind)
        settings, scope = read_settings(kind, leased.settings), msgspec.convert(leased.scope, Scope)
        kind.check(settings, scope)
        clock, began_at = self._clock, leased.began_at
        tools = Tools(lambda: max(clock(), began_at), began_at, scope, self._secrets, leased.facts, known=self._desk.known(leased))
        return kind, settings, tools

    async def _plan(self, reading: _Reading, parts: AsyncIterator[Part]) -> None:
        async with contextlib.aclosing(self._pumped(reading, parts)) as pumped:
            async for part in pumped:
                if part is None:
                    await reading.flush()
                    continue
                if len(msgspec.json.encode(part.spec)) > MAX_SPEC:
                    raise HandclaspError(Kind.INTERNAL, "a part of a scan is described by more than 64 KiB")
                await reading.add_part(part)
        await reading.end()

    async def _read(self, reading: _Reading, items: AsyncIterator[Reading]) -> None:
        async with contextlib.aclosing(self._pumped(reading, items)) as pumped:
            async for item in pumped:
                if item is None:
                    await reading.flush()
                else:
                    await reading.add(item)
        await reading.end()

    async def _pumped(self, reading: _Reading, items: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        """Yield what a source yields, and None whenever it is time to hand in; the source runs ahead by one batch at most.

        Looks every few seconds whether the part is still ours, and raises :class:`Lost` when not.
        """
        queue: asyncio.Queue[Any] = asyncio.Queue(BATCH)
        pump = asyncio.create_task(_pump(items, queue), name="discovery source")
        looked = time.monotonic()
        try:
            while True:
                if time.monotonic() - looked > LOOK_EVERY:
                    if not await self._desk.held(reading.leased):
                        raise Lost
                    looked = time.monotonic()
                item = await _next(queue, FLUSH_EVERY / 2)
                if item is _END:
                    await pump  # raises what the source raised
                    return
                if item is not None or reading.is_due:
                    yield item
        finally:
            if reading.tools is not None:
                reading.tools.stop.set()
            pump.cancel()
            await asyncio.wait([pump])
            if not pump.cancelled():
                pump.exception()  # it was told above, or nobody wants to know any more

    async def _fail(self, reading: _Reading, problem: str, *, final: bool) -> None:
        try:
            await reading.fail(problem, final=final)
        except (HandclaspError, Lost) as error:
            _log.info("part %s of scan %s: %s", reading.leased.number, reading.leased.scan, error)

    async def _give_back(self, leased: Leased) -> None:
        with contextlib.suppress(HandclaspError):  # its lease will end by itself
            await asyncio.shield(self._desk.release(leased))


def read_settings(kind: SourceKind, settings: dict[str, Any]) -> Any:
    """Return a kind's settings from their JSON form; raise ``bad_setting`` with the field that is wrong."""
    try:
        return msgspec.convert(settings, kind.Settings)
    except msgspec.ValidationError as error:
        why, hint = f"{str(error)[:1].lower()}{str(error)[1:]}", f"handclasp source add {kind.name} --help has its settings"
        raise HandclaspError(Kind.BAD_SETTING, f"settings of {kind.name}: {why}", hint=hint) from error


class _Reading:
    """One part while it is read: what is not handed in yet."""

    def __init__(self, leased: Leased, desk: Desk) -> None:
        self.leased = leased
        self.tools: Tools | None = None
        self._desk = desk
        self._sightings, self._progress, self._bytes = Sightings(), Progress(), 0
        self._parts = 0
        self._has_places = False
        self._handed_in = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether something should be handed in, or at least be heard of this worker."""
        waited = time.monotonic() - self._handed_in
        return waited > self.leased.seconds / 3 or (waited > FLUSH_EVERY and self._progress != Progress())

    async def add(self, item: Reading) -> None:
        """Take one thing that the source yielded."""
        progress = self._progress
        if isinstance(item, Observed):
            self._sightings.observed.append(item)
            self._bytes += sum(len(one.der or b"") + sum(map(len, one.chain)) for one in item.certificates) + 200
        elif isinstance(item, Covered):
            self._sightings.covered.append(item)
        elif isinstance(item, Place):
            progress.place, self._has_places = item.text, True
        elif isinstance(item, Count):
            progress.total += item.total
            progress.read += item.read
            progress.failed += item.failed
        elif isinstance(item, Failed):
            progress.failed += 1
            progress.problem = progress.problem or f"{item.what}: {item.problem}"
        full = len(self._sightings.observed) >= BATCH or self._bytes >= BATCH_BYTES or len(self._sightings.covered) >= BATCH
        if full or self._is_time(at_place=isinstance(item, Place)):
            await self.flush()

    def _is_time(self, *, at_place: bool) -> bool:
        """Tell whether to hand in what there is: at a place where there are some, so that nothing is counted twice after a death."""
        waited = time.monotonic() - self._handed_in
        return waited > self.leased.seconds / 3 or (waited > FLUSH_EVERY and (at_place or not self._has_places))

    async def add_part(self, part: Part) -> None:
        """Take one part that the plan yielded."""
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise HandclaspError(Kind.BAD_SETTING, f"this source has more than {MAX_PARTS} parts", hint="make several sources of it")
        self._progress.parts.append(part.spec)
        self._progress.total += part.places
        self._progress.place = str(self._parts)
        if len(self._progress.parts) >= BATCH:
            await self.flush()

    async def flush(self) -> None:
        """Hand in what there is, durable on return, and lengthen the lease."""
        await self._hand_in(self._desk.report)

    async def end(self) -> None:
        """Hand in the rest, and say that this was all."""
        await self._hand_in(self._desk.done)

    async def fail(self, problem: str, *, final: bool) -> None:
        """Hand in what was read before it failed."""
        if self.leased.number == PLAN:
            self._progress.parts, self._progress.total = [], 0  # the next planner finds them again
        await self._hand_in(lambda leased, sightings, progress: self._desk.failed(leased, sightings, progress, problem, final=final))

    async def _hand_in(self, how: Callable[[Leased, Sightings, Progress], Any]) -> None:
        sightings, progress = self._sightings, self._progress
        self._sightings, self._progress, self._bytes = Sightings(), Progress(), 0
        try:
            await how(self.leased, sightings, progress)
        except HandclaspError as error:
            if error.kind is Kind.CONFLICT:
                raise Lost from error
            raise
        self._handed_in = time.monotonic()


_END: Any = object()


async def _pump(items: AsyncIterator[Any], queue: asyncio.Queue[Any]) -> None:
    """Move what a source yields to the queue, and then the mark of its end, however it ended."""
    try:
        async with contextlib.aclosing(items) if isinstance(items, AsyncGenerator) else contextlib.nullcontext():
            async for item in items:
                await queue.put(item)
    except Exception:  # whatever it is, whoever takes from the queue must not wait for more: it is raised to them by this task
        await queue.put(_END)
        raise
    await queue.put(_END)


async def _next(queue: asyncio.Queue[Any], seconds: float) -> Any:
    """Return the next item, None when none comes in time."""
    with contextlib.suppress(asyncio.QueueEmpty):
        return queue.get_nowait()
    try:
        async with asyncio.timeout(seconds):
            return await queue.get()
    except TimeoutError:
        return None
