"""What the server does by itself, over and over: bring entries into the tree, publish CRLs, renew its own certificate, warn, clean up.

Jobs that one process must do alone run under a leader's lock in the database; when that process dies, another has the lock within a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import structlog
from prometheus_client import Gauge
from sqlalchemy import delete, select

from handclasp.authority.expiring import warn_expiring
from handclasp.errors import HandclaspError, Kind
from handclasp.inventory.follow import AT_ONCE as FOLLOW_AT_ONCE
from handclasp.log.cosign import WitnessClient
from handclasp.log.sequencer import Sequencer
from handclasp.server.console import make_sessions
from handclasp.server.federate import FederationJob
from handclasp.server.fleet import FleetWatch
from handclasp.server.health import LAG_LIMIT, Health
from handclasp.server.instance import Instance
from handclasp.server.own import OwnCertificate
from handclasp.server.retain import RetentionJob
from handclasp.server.scrub import Scrub
from handclasp.server.web import WebCertificate
from handclasp.store import tables
from handclasp.store.writes import Change, Write

SEQUENCE_EVERY = 0.5  # seconds; the budget from commit to checkpoint is one
CRL_EVERY = 0.5  # seconds; the budget from revocation to publication is two
WITNESS_EVERY = 5.0
SCRUB_EVERY = 60.0
WATCH_EVERY = 1.0
ROTATE_EVERY = 1.0
AGENTS_EVERY = 30.0
AGENTS_REST = 50  # times as long as the last count of agents took: never more than 2 % of the time
JWT_KEYS_EVERY = 0.5
OWNERS_EVERY = 0.5
FOLLOW_EVERY = 0.5  # and at once where there is more: names, summaries and counters of what is issued
RECONCILE_EVERY = 1.0
STANDINGS_EVERY = 5.0
RECOUNT_EVERY = 3600.0  # looks whether a day is over: what triggers count cannot drift, unless somebody changes rows by hand
FEDERATION_EVERY = 2.0  # looks at what is due; each trust domain says how often it is
SCANS_EVERY = 1.0
SOURCES_EVERY = 20.0
FILE_SCANS_EVERY = 1.0
HOUSEKEEPING_EVERY = 3600.0
MONTHS_EVERY = 600.0  # months are made weeks ahead, so there is time to try again
RETENTION_EVERY = 3600.0
REPLAY_LEEWAY = 300_000  # ms beyond a token's end for which its id is remembered: more than the clock skew that is accepted
LEADING = ".leading"
"""File in the log's directory that the leader holds a lock on."""

LOG_SIZE = Gauge("handclasp_log_size", "Entries under the newest checkpoint this process published.")
WITNESS_DISAGREES = Gauge("handclasp_witness_disagrees", "1 while a witness says it has seen another history of the log.", ["witness"])
AUTHORITY_END = Gauge("handclasp_authority_not_after_seconds", "End of an active authority, seconds since the epoch.", ["authority"])
_log = structlog.get_logger("handclasp.jobs")


class Jobs:
    """The jobs of one process."""

    def __init__(self, instance: Instance, own: OwnCertificate, web: WebCertificate | None = None) -> None:
        self._instance = instance
        self._own = own
        self._web = web
        self._health = instance.health
        self._tasks: list[asyncio.Task[None]] = []
        self._sequencer: Sequencer | None = None
        self._stopping = False

    def start(self) -> None:
        """Begin; from inside the event loop."""
        for name, work in (
            ("own-certificate", self._renew_own),
            ("leader", self._lead),
            ("watch", self._keep_watching),
            ("agents", self._keep_judging),
            ("discovery", self._discover),
        ):
            self._tasks.append(asyncio.get_running_loop().create_task(work(), name=name))

    async def stop(self) -> None:
        """End every job, after one last step of the log so that what was committed is in the tree."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        for task, end in zip(self._tasks, ends, strict=True):
            if isinstance(end, Exception):  # none ends before it is told to; one that did must not keep the last step from being taken
                _log.error("job ended", job=task.get_name(), exc_info=end)
        if self._sequencer is not None:
            with contextlib.suppress(HandclaspError):
                await self._sequencer.step()
            self._sequencer.close()

    async def _renew_own(self) -> None:
        while True:
            await asyncio.sleep(1)
            with _reported("own-certificate", self._health):
                await self._own.renew_if_due()
            if self._web is not None:
                with _reported("web-certificate", self._health):
                    await self._web.refresh()

    async def _lead(self) -> None:
        """Become the leader as soon as nobody else is, then run what one process does alone."""
        while True:
            with _reported("leader", self._health):
                async with self._instance.store.leader("jobs") as leading:
                    if leading:
                        await self._run_alone()
            await asyncio.sleep(0.5 + random.random() / 2)  # noqa: S311  (spread, not secrecy)

    async def _keep_watching(self) -> None:
        await every(WATCH_EVERY, "watch", self._watch, self._health)

    async def _keep_judging(self) -> None:
        """Count agents and missed renewals, less often where that takes long."""
        watch = FleetWatch(self._instance.store, self._instance.services.clock)
        while True:
            began = time.monotonic()
            with _reported("agents", self._health):
                await watch.run()
            await asyncio.sleep(max(AGENTS_EVERY, AGENTS_REST * (time.monotonic() - began)))

    async def _discover(self) -> None:
        """Read parts of scans, in every process: the database says who reads which."""
        settings = self._instance.settings
        if not settings.discovery_workers:
            return
        room = self._instance.services.discovery
        worker = f"{socket.gethostname()}/{os.getpid()}"
        secrets = [settings.discovery_files or settings.data / "sources"]
        while True:
            with _reported("discovery", self._health):
                if self._instance.store.is_sqlite:
                    await room.leases.recover()  # there is one process, and nothing is being read in it: whoever had them is dead
                self._health.job_done("discovery")  # it runs on from here, and does not come back to say so
                await room.engine(worker, workers=settings.discovery_workers, secrets=secrets).run()
            await asyncio.sleep(1)

    async def _begin_scans(self) -> None:
        """Begin the scans that are due, and end those of which nothing is left to read."""
        for name in await self._instance.services.discovery.scans.step():
            _log.debug("scan begun", source=name)

    async def _tidy_sources(self) -> None:
        """Forget what removed sources saw, and what is left of scans that have ended."""
        room = self._instance.services.discovery
        await room.sources.forget_removed(room.forget)
        await room.scans.tidy()

    async def _run_alone(self) -> None:
        """Run what one process does alone. Nothing here waits for anything else: revocations are published whatever the log is like."""
        services = self._instance.services
        scrub = Scrub(self._instance.store.entries, services.tiles, services.cosignatures)
        retention = RetentionJob(self._instance.store, services.clock, self._instance.settings.retention)
        work: list[tuple[float, str, Callable[[], Awaitable[None]]]] = [
            (SEQUENCE_EVERY, "log", self._sequence),
            (CRL_EVERY, "crl", self._publish_crls),
            (SCRUB_EVERY, "scrub", scrub.run),
            (ROTATE_EVERY, "rotation", self._rotate),
            (JWT_KEYS_EVERY, "jwt-keys", self._keep_jwt_keys),
            (FEDERATION_EVERY, "federation", FederationJob(services.federation, services.clock).run),
            (FOLLOW_EVERY, "follow", self._follow),
            (RECONCILE_EVERY, "reconcile", self._reconcile),
            (STANDINGS_EVERY, "standings", services.inventory.overviews.gauges),
            (RECOUNT_EVERY, "recount", self._recount),
            (OWNERS_EVERY, "owners", self._derive_owners),
            (SCANS_EVERY, "scans", self._begin_scans),
            (SOURCES_EVERY, "sources", self._tidy_sources),
            (FILE_SCANS_EVERY, "file-scans", services.file_scans.step),
            (HOUSEKEEPING_EVERY, "housekeeping", self._housekeeping),
            (MONTHS_EVERY, "months", retention.months),
            (RETENTION_EVERY, "retention", retention.remove),
        ]
        if self._instance.witnesses:
            work.append((WITNESS_EVERY, "witness", self._witness()))
        leading = await _take_lead(self._instance.services.tiles.directory)
        try:
            async with asyncio.TaskGroup() as group:
                for seconds, name, job in work:
                    group.create_task(every(seconds, name, job, self._health), name=name)
        finally:
            os.close(leading)
            for _, name, _ in work:
                self._health.job_done(name)  # whoever leads next says how it is
            if not self._stopping and self._sequencer is not None:  # stop() takes the last step itself
                self._sequencer.close()
                self._sequencer = None

    async def _sequence(self) -> None:
        if self._sequencer is None:
            self._sequencer = await Sequencer.open(self._instance.store.entries, self._instance.services.tiles, self._instance.log_signer)
        step = asyncio.ensure_future(self._sequencer.step())
        try:
            await asyncio.shield(step)
        except asyncio.CancelledError:
            await asyncio.wait([step])  # its thread writes on: nobody takes the next step, or lets go of the log, before that has ended
            raise
        LOG_SIZE.set(self._sequencer.size)

    async def _watch(self) -> None:
        """Look at what every process can see, whoever leads: how far the log's checkpoint and the revocation lists have come."""
        services = self._instance.services
        if self._health.commits_fail:
            await services.store.ledger.commit(Write([]))  # no request may come to find out that it works again
        try:
            size = (await asyncio.to_thread(services.cosignatures.newest)).checkpoint.size
        except HandclaspError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            size = 0
        head = await services.store.point("SELECT size FROM log_head WHERE id = ?", (1,))  # after the checkpoint, so never behind it
        committed = int(head[0]) if head is not None else 0
        # Where the leader writes another directory, on another machine, the checkpoint here is an old one or none, and says nothing.
        leader_is_here = await asyncio.to_thread(_is_led, services.tiles.directory)
        self._health.saw_log(committed, size if leader_is_here else committed)
        waiting = select(tables.crl_dirty.c.authority_id).where(tables.crl_dirty.c.since_at < services.clock() - 1000 * LAG_LIMIT)
        late = {row.authority_id for row in await services.store.rows(waiting)}
        self._health.saw_waiting_revocations(any(one.id in late and one.key_uri is not None for one in services.authorities.all()))
        for authority in services.authorities.all():
            if authority.state == "active":
                AUTHORITY_END.labels(authority.name).set(authority.not_after / 1000)
        if size > committed:
            raise HandclaspError(Kind.TAMPERED, f"the log has {size} entries, and the database only {committed} of them")

    async def _publish_crls(self) -> None:
        services = self._instance.services
        await services.authorities.refresh()
        for name, shard in await services.crls.publish_dirty():
            _log.debug("crl published", authority=name, shard=shard)

    async def _rotate(self) -> None:
        """Go on with rotations that were begun, and are not told to all their certificates."""
        for rotation in await self._instance.services.rotations.resume():
            _log.info("rotation told", rotation=rotation)

    async def _keep_jwt_keys(self) -> None:
        """Make, take turns with, and take out the keys of JWT-SVIDs."""
        services = self._instance.services
        await services.authorities.refresh()
        for what in await services.jwt_keys.step(services.authorities.trust_domains):
            _log.info("jwt key", what=what)

    async def _follow(self) -> None:
        """Follow the log to its end; over an installation that was there before, with a rest after each batch for everybody else."""
        while True:
            if await self._instance.services.inventory.follower.step() < FOLLOW_AT_ONCE:
                return
            await asyncio.sleep(0.005)

    async def _reconcile(self) -> None:
        """Judge what is due, and go on at once where there is more."""
        while True:
            if await self._instance.services.inventory.reconciler.step(1000) < 1000:
                return
            await asyncio.sleep(0.005)

    async def _recount(self) -> None:
        for (kind, bucket), number in (await self._instance.services.inventory.reconciler.recount_if_due()).items():
            _log.warning("a counter was wrong", kind=kind, bucket=bucket, by=number)

    async def _derive_owners(self) -> None:
        """Derive who owns what is new or changed; all of it after a change of rules, with a rest after each step for everybody else."""
        assigner = self._instance.services.ownership.assigner
        while True:
            if not await assigner.step():
                return
            await asyncio.sleep(0.01)

    def _witness(self) -> Callable[[], Awaitable[None]]:
        clients = [WitnessClient(vkey, url, self._instance.fetcher.post) for vkey, url in self._instance.witnesses]

        async def ask() -> None:
            rollback: HandclaspError | None = None
            for name, problem in (await self._instance.services.cosignatures.request(clients)).items():
                disagrees = problem is not None and problem.kind is Kind.TAMPERED
                WITNESS_DISAGREES.labels(name).set(disagrees)
                if disagrees:
                    rollback = problem
                elif problem is not None:
                    _log.warning("no cosignature", witness=name, reason=problem.detail)
            if rollback is not None:
                raise rollback  # what one witness has seen counts, whatever the others say

        return ask

    async def _housekeeping(self) -> None:
        services = self._instance.services
        await services.authorities.refresh()
        rules = await services.rulebook.current()
        for name in await warn_expiring(services.store, services.authorities, services.clock(), rules.longest_lifetime):
            _log.warning("authority ends soon", authority=name)
        await services.progress.settle()
        await services.ownership.people.forget()
        await make_sessions(self._instance).sweep()
        old = tables.replay.c.expires_at < services.clock() - REPLAY_LEEWAY
        await self._instance.store.ledger.commit(Write([], [Change(delete(tables.replay).where(old))]))


async def _take_lead(directory: Path) -> int:
    """Mark the log's directory as the leader's until the file that is returned is closed, for the other processes that use it."""
    try:
        await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
        descriptor = os.open(directory / LEADING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:  # the log cannot be continued, which its job reports; the others go on
        _log.warning("the log's directory cannot be written", reason=error.strerror)
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for _ in range(100):  # whoever is looking holds it for a moment
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        await asyncio.sleep(0.01)
    return descriptor


def _is_led(directory: Path) -> bool:
    """Tell whether some process, this one too, brings entries into the tree in this directory."""
    try:
        descriptor = os.open(directory / LEADING, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


async def every(seconds: float, name: str, work: Callable[[], Awaitable[None]], health: Health) -> None:
    """Do something over and over, with a rest after each time, until this is cancelled; a failure is reported, and the next time comes."""
    while True:
        with _reported(name, health):
            await work()
        await asyncio.sleep(seconds)


@contextlib.contextmanager
def _reported(job: str, health: Health) -> Iterator[None]:
    """Report a failure and go on: one bad minute must not end a job for good."""
    try:
        yield
    except HandclaspError as error:
        if health.job_failed(job, error.kind, error.detail):
            _log.error("job failed", job=job, kind=error.kind.value, reason=error.detail)
    except Exception as error:  # a bug in one job must not stop the others
        if health.job_failed(job, Kind.INTERNAL, repr(error)):
            _log.exception("job failed", job=job)
    else:
        health.job_done(job)
