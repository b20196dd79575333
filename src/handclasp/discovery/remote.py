"""Parts from a server far away: what the engine of a collector has instead of a database."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import msgspec

from handclasp.discovery.leases import Leased, Progress, lost
from handclasp.errors import HandclaspError, Kind
from handclasp.wire.discovery import LeaseRequest, PartLease, PartRecord, PartRecorded
from handclasp.wire.observations import Observed, Sightings

if TYPE_CHECKING:
    from handclasp.client.api import ApiClient

PORTION = 600 * 1024
"""Bytes of sightings in one request, about: a server takes 1 MiB unless it is told otherwise."""
ASK_EVERY = 5.0
"""Seconds between two questions for something to do, of all workers together."""
_PASSING = frozenset({Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.RATE_LIMITED, Kind.INTERNAL})

_log = logging.getLogger("handclasp.discovery")
T = TypeVar("T")


class RemoteDesk:
    """See :class:`handclasp.discovery.desk.Desk`. For one event loop; any number of workers at once.

    ``client`` returns the connection to use now: its token may be another than a minute ago.
    """

    def __init__(
        self,
        client: Callable[[], ApiClient],
        worker: str,
        *,
        source: str | None = None,
        kinds: Collection[str] = (),
        ask_every: float = ASK_EVERY,
    ) -> None:
        self._client, self._ask_every = client, ask_every
        self._request = LeaseRequest(worker=worker, source=source, kinds=list(kinds))
        self._asking = asyncio.Lock()
        self._nothing_at = float("-inf")
        self._heard: dict[str, float] = {}
        self.refused: HandclaspError | None = None
        """Why the server gave nothing to do the last time it was asked, where it did not just have nothing."""
        self.given_up = 0
        """Parts that could not be read to their end."""
        self.busy_at = time.monotonic()
        """When there was something to do the last time (monotonic seconds)."""

    @property
    def is_refused(self) -> bool:
        """Whether the server will not give this collector anything, however long it waits."""
        return self.refused is not None and self.refused.kind not in _PASSING

    @property
    def busy(self) -> bool:
        """Whether a part is being read."""
        return bool(self._heard)

    async def take(self) -> Leased | None:
        """See :class:`~handclasp.discovery.desk.Desk`. While there is nothing, the server is asked every few seconds and not more."""
        async with self._asking:
            if time.monotonic() - self._nothing_at < self._ask_every:
                return None
            try:
                found = await self._call("POST", "/v1/scans:lease", self._request, PartLease)
            except HandclaspError as error:
                self.refused, self._nothing_at = error, time.monotonic()
                raise
            self.refused = None
            if found.scan is None:
                self._nothing_at = time.monotonic()
                return None
        leased = _leased(found.scan, found)
        self._heard[leased.lease] = self.busy_at = time.monotonic()
        return leased

    async def held(self, leased: Leased) -> bool:
        """See :class:`~handclasp.discovery.desk.Desk`. The server is asked when a third of the lease is over without a word."""
        if time.monotonic() - self._heard.get(leased.lease, float("-inf")) < leased.seconds / 3:
            return True
        try:
            is_held = (await self._record(leased, PartRecord(lease=leased.lease))).held
        except HandclaspError as error:
            if error.kind not in _PASSING:
                raise
            return True  # nobody knows; the server will say when it is back
        if not is_held:
            self._forget(leased)
        return is_held

    async def report(self, leased: Leased, sightings: Sightings, progress: Progress) -> None:
        """See :class:`~handclasp.discovery.desk.Desk`."""
        await self._hand_in(leased, sightings, progress, {})

    async def done(self, leased: Leased, sightings: Sightings, progress: Progress) -> None:
        """See :class:`~handclasp.discovery.desk.Desk`."""
        await self._hand_in(leased, sightings, progress, {"done": True})

    async def failed(self, leased: Leased, sightings: Sightings, progress: Progress, problem: str, *, final: bool) -> None:
        """See :class:`~handclasp.discovery.desk.Desk`."""
        self.given_up += 1
        _log.warning("a part of %s could not be read: %s", leased.source, problem)
        try:
            await self._hand_in(leased, sightings, progress, {"gives_up": True, "final": final, "problem": problem[:4096]})
        finally:
            self._forget(leased)  # also when the server does not hear of it: nobody reads this part here any more

    async def release(self, leased: Leased) -> None:
        """See :class:`~handclasp.discovery.desk.Desk`."""
        try:
            await self._record(leased, PartRecord(lease=leased.lease, released=True))
        finally:
            self._forget(leased)

    def known(self, leased: Leased) -> None:
        """See :class:`~handclasp.discovery.desk.Desk`. A collector does not know what the inventory holds, and cannot ask."""

    # --- requests ---------------------------------------------------------------------------------------------------------------------

    async def _hand_in(self, leased: Leased, sightings: Sightings, progress: Progress, ending: dict[str, Any]) -> None:
        """Send everything in portions: place, numbers and what was covered with the last one, when all before it is durable."""
        *before, last = portions(sightings)
        for portion in before:
            await self._send(leased, PartRecord(lease=leased.lease, sightings=portion))
        problem = {"problem": progress.problem[:4096]} if progress.problem else {}
        record = PartRecord(
            lease=leased.lease,
            sightings=last,
            place=progress.place,
            total=progress.total,
            read=progress.read,
            failed=progress.failed,
            parts=progress.parts,
            **(problem | ending),
        )
        await self._send(leased, record)
        if ending:
            self._forget(leased)

    async def _send(self, leased: Leased, record: PartRecord) -> None:
        """Send one portion until it is durable; a second time does no harm. Raises ``conflict`` when the part is lost."""
        deadline, wait = time.monotonic() + 2 * leased.seconds, 0.2
        while True:
            try:
                answer = await self._record(leased, record)
            except HandclaspError as error:
                if error.kind not in _PASSING or time.monotonic() + wait > deadline:
                    raise
                _log.info("the server does not take what was read, once more in a moment: %s", error.detail)
                await asyncio.sleep(max(wait, min(error.retry_after or 0, 30.0)))
                wait = min(wait * 2, 15.0)
                continue
            if not answer.held:
                self._forget(leased)
                raise lost()
            return

    async def _record(self, leased: Leased, record: PartRecord) -> PartRecorded:
        path = f"/v1/scans/{quote(leased.scan, safe='')}/parts/{leased.number}:record"
        answer = await self._call("POST", path, record, PartRecorded)
        if leased.lease in self._heard:
            self._heard[leased.lease] = self.busy_at = time.monotonic()
        return answer

    async def _call(self, method: str, path: str, body: msgspec.Struct, response: type[T]) -> T:
        client = self._client()
        return await asyncio.to_thread(client.call, method, path, body=body, response=response)

    def _forget(self, leased: Leased) -> None:
        self._heard.pop(leased.lease, None)


def _leased(scan: str, found: PartLease) -> Leased:
    return Leased(
        scan=scan,
        number=found.part,
        lease=found.lease,
        source_id=0,
        source=found.source,
        kind=found.kind,
        settings=found.settings,
        scope=msgspec.to_builtins(found.scope),
        facts=found.facts,
        spec=found.spec,
        place=found.place,
        began_at=found.began_at,
        dry=found.dry,
        seconds=found.seconds,
    )


def portions(sightings: Sightings, size: int = PORTION) -> Iterator[Sightings]:
    """Yield sightings in portions of at most about ``size`` bytes, at least one; what was covered is in the last."""
    held: list[Observed] = []
    bytes_held = 0
    for one in sightings.observed:
        weight = len(msgspec.json.encode(one))
        if held and bytes_held + weight > size:
            yield Sightings(observed=held)
            held, bytes_held = [], 0
        held.append(one)
        bytes_held += weight
    yield Sightings(observed=held, covered=sightings.covered)
