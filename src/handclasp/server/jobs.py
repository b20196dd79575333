"""What the server does by itself, over and over: bring entries into the tree, publish CRLs, renew its own certificate, warn, clean up.

Jobs that one process must do alone run under a leader's lock in the database; when that process dies, another has the lock within a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

import structlog
from prometheus_client import Gauge
from sqlalchemy import delete

from handclasp.errors import HandclaspError
from handclasp.log.cosign import WitnessClient
from handclasp.log.sequencer import Sequencer
from handclasp.server.instance import Instance
from handclasp.server.own import OwnCertificate
from handclasp.store import tables
from handclasp.store.writes import Change, Write

SEQUENCE_EVERY = 0.5  # seconds; the budget from commit to checkpoint is one
CRL_EVERY = 0.5  # seconds; the budget from revocation to publication is two
WITNESS_EVERY = 5.0
HOUSEKEEPING_EVERY = 3600.0
REPLAY_LEEWAY = 300_000  # ms beyond a token's end for which its id is remembered: more than the clock skew that is accepted

LOG_SIZE = Gauge("handclasp_log_size", "Entries under the newest checkpoint this process published.")
JOB_FAILURES = Gauge("handclasp_job_failing", "1 while a job fails, by job.", ["job"])
_log = structlog.get_logger("handclasp.jobs")


class Jobs:
    """The jobs of one process."""

    def __init__(self, instance: Instance, own: OwnCertificate) -> None:
        self._instance = instance
        self._own = own
        self._tasks: list[asyncio.Task[None]] = []
        self._sequencer: Sequencer | None = None
        self._stopping = False

    def start(self) -> None:
        """Begin; from inside the event loop."""
        for name, work in (("own-certificate", self._renew_own), ("leader", self._lead)):
            self._tasks.append(asyncio.get_running_loop().create_task(work(), name=name))

    async def stop(self) -> None:
        """End every job, after one last step of the log so that what was committed is in the tree."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._sequencer is not None:
            with contextlib.suppress(HandclaspError):
                await self._sequencer.step()
            self._sequencer.close()

    async def _renew_own(self) -> None:
        while True:
            await asyncio.sleep(1)
            with _reported("own-certificate"):
                await self._own.renew_if_due()

    async def _lead(self) -> None:
        """Become the leader as soon as nobody else is, then run what one process does alone."""
        while True:
            with _reported("leader"):
                async with self._instance.store.leader("jobs") as leading:
                    if leading:
                        await self._run_alone()
            await asyncio.sleep(0.5 + random.random() / 2)  # noqa: S311  (spread, not secrecy)

    async def _run_alone(self) -> None:
        self._sequencer = await Sequencer.open(self._instance.store.entries, self._instance.services.tiles, self._instance.log_signer)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_every(SEQUENCE_EVERY, "log", self._sequence))
                group.create_task(_every(CRL_EVERY, "crl", self._publish_crls))
                group.create_task(_every(HOUSEKEEPING_EVERY, "housekeeping", self._housekeeping))
                if self._instance.witnesses:
                    group.create_task(_every(WITNESS_EVERY, "witness", self._witness()))
        finally:
            if not self._stopping:  # stop() takes the last step itself
                self._sequencer.close()
                self._sequencer = None

    async def _sequence(self) -> None:
        assert self._sequencer is not None
        step = asyncio.ensure_future(self._sequencer.step())
        try:
            await asyncio.shield(step)
        except asyncio.CancelledError:
            await asyncio.wait([step])  # its thread writes on: nobody takes the next step, or lets go of the log, before that has ended
            raise
        LOG_SIZE.set(self._sequencer.size)

    async def _publish_crls(self) -> None:
        services = self._instance.services
        await services.authorities.refresh()
        for name, shard in await services.crls.publish_dirty():
            _log.debug("crl published", authority=name, shard=shard)

    def _witness(self) -> Callable[[], Awaitable[None]]:
        clients = [WitnessClient(vkey, url, self._instance.fetcher.post) for vkey, url in self._instance.witnesses]

        async def ask() -> None:
            for name, problem in (await self._instance.services.cosignatures.request(clients)).items():
                if problem is not None:
                    _log.warning("no cosignature", witness=name, reason=problem.detail)

        return ask

    async def _housekeeping(self) -> None:
        services = self._instance.services
        await services.authorities.refresh()
        rules = await services.rulebook.current()
        for name in await services.authorities.warn_expiring(rules.longest_lifetime):
            _log.warning("authority ends soon", authority=name)
        old = tables.replay.c.expires_at < services.clock() - REPLAY_LEEWAY
        await self._instance.store.ledger.commit(Write([], [Change(delete(tables.replay).where(old))]))


async def _every(seconds: float, name: str, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        with _reported(name):
            await work()
        await asyncio.sleep(seconds)


@contextlib.contextmanager
def _reported(job: str):  # type: ignore[no-untyped-def]
    """Report a failure and go on: one bad minute must not end a job for good."""
    try:
        yield
    except HandclaspError as error:
        JOB_FAILURES.labels(job).set(1)
        _log.error("job failed", job=job, kind=error.kind.value, reason=error.detail)
    except Exception:  # a bug in one job must not stop the others
        JOB_FAILURES.labels(job).set(1)
        _log.exception("job failed", job=job)
    else:
        JOB_FAILURES.labels(job).set(0)
