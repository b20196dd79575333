"""Where a worker gets its parts and hands in what it read: the engine knows only this, so that it runs here and far away alike."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Protocol

from handclasp.discovery.leases import Leased, Leases, Progress, lost
from handclasp.discovery.patience import patiently
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import fault
from handclasp.wire.observations import Recorded, Sightings

Sink = Callable[[int, Sightings, str], Awaitable[Recorded]]
"""Takes what was read of a source (its row's id) in a scan; durable when it returns. Equal content again changes one timestamp."""
Probe = Callable[[Sightings], Awaitable[int]]
"""Says how many certificates among these nobody has seen before, and records nothing: for dry runs."""

_log = logging.getLogger("handclasp.discovery")


class Desk(Protocol):
    """Gives out parts, takes in what they hold. Every method raises ``unavailable`` where that cannot be done at the moment."""

    async def take(self) -> Leased | None:
        """Return a part to read, or None when there is none."""

    async def held(self, leased: Leased) -> bool:
        """Tell whether the part is still this worker's; cheap, asked every few seconds."""

    async def report(self, leased: Leased, sightings: Sightings, progress: Progress) -> None:
        """Hand in what was read, durable on return, with how far that is; lengthens the lease. Raises ``conflict`` when it is lost."""

    async def done(self, leased: Leased, sightings: Sightings, progress: Progress) -> None:
        """The same, and the part has ended."""

    async def failed(self, leased: Leased, sightings: Sightings, progress: Progress, problem: str, *, final: bool) -> None:
        """The same, and the part could not be read on."""

    async def release(self, leased: Leased) -> None:
        """Give the part back: this process ends."""

    def known(self, leased: Leased) -> Callable[[str], Awaitable[frozenset[str]]] | None:
        """Return what tells the keys of the locations that a unit of the source has; None where that cannot be asked."""


class LocalDesk:
    """Parts from this installation's own database, sightings into its own inventory.

    ``patience`` is for how many seconds what was read is kept while the database is away.
    """

    def __init__(
        self,
        leases: Leases,
        sink: Sink,
        probe: Probe,
        worker: str,
        *,
        runs: Collection[str] = ("server",),
        patience: float = 0.0,
    ) -> None:
        self._leases, self._sink, self._probe, self._worker, self._runs = leases, sink, probe, worker, runs
        self._patience = patience

    async def take(self) -> Leased | None:
        """See :class:`Desk`."""
        return await self._leases.take(self._worker, runs=self._runs)

    async def held(self, leased: Leased) -> bool:
        """See :class:`Desk`."""
        try:
            return await self._leases.held(leased)
        except HandclaspError as error:
            if error.kind is not Kind.UNAVAILABLE or not self._patience:
                raise
            return True  # nobody knows, and nobody else can take it: the next word is refused if it is lost

    async def report(self, leased: Leased, sightings: Sightings, progress: Progress) -> None:
        """See :class:`Desk`."""
        await self._leases.report(leased, await self.record(leased, sightings, progress))

    async def done(self, leased: Leased, sightings: Sightings, progress: Progress) -> None:
        """See :class:`Desk`."""
        await self._leases.done(leased, await self.record(leased, sightings, progress))

    async def failed(self, leased: Leased, sightings: Sightings, progress: Progress, problem: str, *, final: bool) -> None:
        """See :class:`Desk`."""
        await self._leases.failed(leased, await self.record(leased, sightings, progress), problem, final=final)

    async def release(self, leased: Leased) -> None:
        """See :class:`Desk`."""
        await self._leases.release(leased)

    def known(self, leased: Leased) -> Callable[[str], Awaitable[frozenset[str]]] | None:
        """See :class:`Desk`."""

        async def ask(unit: str) -> frozenset[str]:
            return await patiently(lambda: self._leases.known(leased.source_id, unit), self._patience)

        return ask

    async def record(self, leased: Leased, sightings: Sightings, progress: Progress) -> Progress:
        """Record sightings (in a dry run: only count them) and return the progress, with their numbers added to it."""
        if not sightings.observed and not sightings.covered:
            return progress
        recorded = await patiently(lambda: self._record(leased, sightings), self._patience)
        broken = [one for one in sightings.observed if one.problem is not None]
        progress.failed += len(broken)
        progress.read += len(sightings.observed) - len(broken)
        if broken and progress.problem is None:
            progress.problem = f"{broken[0].shown}: {broken[0].problem}"
        progress.certificates += sum(len(one.certificates) for one in sightings.observed)
        progress.fresh += recorded.fresh
        progress.gone += recorded.gone
        if recorded.refused:
            progress.failed += recorded.refused
            progress.read -= recorded.refused
            progress.problem = progress.problem or f"{recorded.refused} places were not recorded. {recorded.refusal}"
        fault("scan.recorded")
        return progress

    async def _record(self, leased: Leased, sightings: Sightings) -> Recorded:
        """Record sightings, or find out what a dry run asks, and return what came of it."""
        if not await self._leases.held(leased):  # of a source that was removed, nothing may be recorded any more
            raise lost()
        if leased.dry:
            return Recorded(locations=0, changed=0, failed=0, certificates=0, fresh=await self._probe(sightings), gone=0)
        return await self._sink(leased.source_id, with_facts(sightings, leased.facts), leased.scan)


def with_facts(sightings: Sightings, facts: dict[str, Any]) -> Sightings:
    """Return sightings with what is true of everything in their source; what was seen of a place itself wins."""
    if facts:
        for one in sightings.observed:
            one.facts = {**facts, **one.facts}
    return sightings
