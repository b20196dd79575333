"""Reading one part of a scan: some lanes, first listed one after the other, then watched all at once. Sources for meshes read so too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import msgspec

from handclasp.clock import parse_duration
from handclasp.discovery.kubernetes.access import Access, check_access
from handclasp.discovery.kubernetes.api import Api, StoppedError
from handclasp.discovery.kubernetes.lanes import Lane, Position, listed, watched
from handclasp.discovery.source import Failed, Place, Reading
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind

QUEUE = 64  # readings that wait to be taken over, of all watches together
MAX_WATCH = 24 * 3600.0


class Progress(msgspec.Struct, omit_defaults=True):
    """A part's place: where each lane is, and until when (ms) it watches."""

    lanes: dict[str, Position] = msgspec.field(default_factory=dict)
    until: int = 0


@dataclass(slots=True)
class Reader:
    """The lanes of a part, and where they are."""

    api: Api
    tools: Tools
    lanes: Sequence[Lane]
    watch: float = 0.0
    """Seconds to watch, once everything is listed."""
    progress: Progress = field(default_factory=Progress)

    def resume(self, place: str) -> None:
        """Go on from a place; from the beginning where it is none of ours."""
        with contextlib.suppress(msgspec.MsgspecError):
            self.progress = msgspec.json.decode(place, type=Progress)
        for lane in self.lanes:
            lane.position = self.progress.lanes.get(lane.name, lane.position)

    def place(self) -> Place:
        """Return where everything is, in the words of a place."""
        self.progress.lanes = {lane.name: lane.position for lane in self.lanes if lane.position != Position()}
        return Place(msgspec.json.encode(self.progress).decode())

    async def read(self) -> AsyncIterator[Reading]:
        """List what is not listed yet, then watch; returns when it is time to stop."""
        with contextlib.suppress(StoppedError):
            for lane in self.lanes:
                if not lane.position.done:
                    async for one in listed(lane, self.api, self.tools):
                        yield self.place() if isinstance(one, Place) else one
                    yield self.place()
            if self.watch:
                self.progress.until = self.progress.until or self.tools.clock() + round(self.watch * 1000)
                async for one in self._watch():
                    yield one

    async def _watch(self) -> AsyncIterator[Reading]:
        queue: asyncio.Queue[Reading | None] = asyncio.Queue()
        room, turn = asyncio.Semaphore(QUEUE), asyncio.Lock()

        async def follow(lane: Lane) -> None:
            try:
                async for one in watched(lane, self.api, self.tools, self.progress.until, turn):
                    await room.acquire()
                    # The place is taken here: what this lane saw before is in the queue before it, and so is what the others did.
                    queue.put_nowait(self.place() if isinstance(one, Place) else one)
            except StoppedError:
                pass
            except HandclaspError as error:
                queue.put_nowait(Failed(lane.name, error.detail))
            finally:
                queue.put_nowait(None)

        async def end() -> None:
            await self.tools.stop.wait()  # an event may not come for minutes
            queue.put_nowait(None)

        following = [asyncio.create_task(follow(lane)) for lane in self.lanes]
        stopping, left = asyncio.create_task(end()), len(following)
        try:
            while left and not self.tools.stop.is_set():
                one = await queue.get()
                if one is None:
                    left -= 1
                else:
                    yield one
                    room.release()
        finally:
            for task in (*following, stopping):
                task.cancel()
            done = await asyncio.gather(*following, stopping, return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, Exception):
                raise outcome


def check_watch(settings: Access, text: str) -> float:
    """Return the seconds of a ``watch`` setting. Raises ``bad_setting``, for the access too."""
    check_access(settings)
    try:
        seconds = parse_duration(text) if text else 0.0
    except HandclaspError as error:
        raise HandclaspError(Kind.BAD_SETTING, f"watch: {error.detail}", hint=error.hint) from error
    if seconds > MAX_WATCH:
        raise HandclaspError(Kind.BAD_SETTING, "watch is longer than a day", hint="a new scan lists everything again; let it be an hour")
    return seconds
