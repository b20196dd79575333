"""What one process knows about how it is: failing jobs, commits that fail, a log that was altered or lags. ``/readyz`` asks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from prometheus_client import Counter, Gauge, Histogram
from sqlalchemy import func, select

from handclasp.authority.authorities import Authorities
from handclasp.errors import HandclaspError, Kind
from handclasp.store.database import Store
from handclasp.store.writes import Write

LAG_LIMIT = 10.0
"""Seconds after which what was committed must be under a checkpoint, and a revocation in a CRL."""

MIN_FREE = 64 * 1024 * 1024
"""Bytes that must be free where the data directory is."""

SAY_AGAIN = 60.0
"""Seconds after which a job that fails as before is reported again."""

NO_TRIGRAMS = (
    "searches by part of a name are slow, because PostgreSQL has no index for them: as an administrator of the database,"
    " CREATE EXTENSION pg_trgm, and then CREATE INDEX CONCURRENTLY ix_name_trigram ON name USING gin (text gin_trgm_ops)"
)

_HAS_INDEX = select(func.to_regclass("ix_name_trigram").label("found"))

JOB_FAILURES = Gauge("handclasp_job_failing", "1 while a job fails, by job.", ["job"])
LOG_LAG = Gauge("handclasp_log_lag_seconds", "Time that the oldest entry that is not under a checkpoint has waited; 0 when there is none.")
ISSUED = Counter("handclasp_issued_total", "Certificates issued and renewed, by profile.", ["profile"])
COMMITS = Histogram(
    "handclasp_commit_seconds", "Time until a write is durable.", buckets=(0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
)
_log = structlog.get_logger("handclasp.health")

_TELLING = {
    "log": "the log cannot be continued",
    "crl": "revocation lists cannot be published",
    "witness": "a witness has seen another history of the log",
    "scrub": "the database's copy of the log was altered",
    "watch": "the log's checkpoint cannot be used",
}
"""What a failing job means, without telling an outsider more. Jobs that are not here fail without making the process unready."""

_ONLY_TAMPERED = frozenset({"log", "witness", "scrub", "watch"})
"""Jobs whose other failures pass, or show as lag: a disk that is full for a moment must not take the process out of service."""


class Health:
    """One process's view. For one event loop."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._failing: dict[str, tuple[Kind, str, float]] = {}
        self._altered = False
        self.commits_fail = False
        """Whether the last commit failed because the database could not take it."""
        self._goal = 0
        self._goal_since = now()
        self._size = 0
        self._lag = 0.0
        self._waiting_revocations = False

    # --- jobs ---

    def job_failed(self, job: str, kind: Kind, reason: str) -> bool:
        """Note that a job failed; return whether that is news (another reason, or a minute since it was last said)."""
        JOB_FAILURES.labels(job).set(1)
        before = self._failing.get(job)
        if before is not None and before[:2] == (kind, reason) and self._now() - before[2] < SAY_AGAIN:
            return False
        self._failing[job] = (kind, reason, self._now())
        return True

    def job_done(self, job: str) -> None:
        """Note that a job is well."""
        JOB_FAILURES.labels(job).set(0)
        self._failing.pop(job, None)

    # --- the log ---

    def saw_log(self, head: int, size: int) -> None:
        """Note how many entries are committed, and how many are under the checkpoint.

        Under load the head is always ahead; the log lags when the checkpoint does not reach, in time, a head that was seen before.
        """
        if size >= self._goal:
            self._goal, self._goal_since = head, self._now()
        self._size = size
        self._lag = self._now() - self._goal_since if size < self._goal else 0.0
        LOG_LAG.set(self._lag)

    def saw_waiting_revocations(self, waiting: bool) -> None:
        """Note whether revocations wait for their CRL longer than they may."""
        self._waiting_revocations = waiting

    def report(self, error: HandclaspError) -> None:
        """Take note of an error that a request ran into. A log that was altered stays altered until somebody has looked and restarts."""
        if error.kind is Kind.TAMPERED:
            self._altered = True

    # --- commits ---

    def committed(self, write: Write, seconds: float, refused: HandclaspError | None) -> None:
        """Take note of a commit of this process (:attr:`handclasp.store.ledger.Ledger.observe`)."""
        if refused is not None:
            self.commits_fail = refused.kind is Kind.UNAVAILABLE
            return
        self.commits_fail = False
        COMMITS.observe(seconds)
        if write.certificate is not None:
            ISSUED.labels(write.certificate.profile).inc()

    def problems(self) -> list[str]:
        """Return one line for each thing that is not well."""
        found = [
            line
            for job, line in _TELLING.items()
            if (failing := self._failing.get(job)) is not None and (failing[0] is Kind.TAMPERED or job not in _ONLY_TAMPERED)
        ]
        if self._altered:
            found.append("a part of the log that was asked for is not what was signed")
        if self._lag > LAG_LIMIT:
            found.append(f"the log's checkpoint is {self._lag:.0f} s behind")
        if self._waiting_revocations:
            found.append("revocations wait for their revocation list")
        if self.commits_fail:
            found.append("the database cannot be written")
        return found


class Readiness:
    """Says what keeps an instance from doing its work."""

    def __init__(self, store: Store, authorities: Authorities, health: Health, data: Path) -> None:
        self._store = store
        self._authorities = authorities
        self._health = health
        self._data = data
        self._has_names_index = self._said = False

    async def __call__(self) -> list[str]:
        """Return one line for each thing that is not well; nothing that tells an outsider more than that."""
        problems = []
        try:
            await self._store.point("SELECT size FROM log_head WHERE id = ?", (1,))
        except HandclaspError:
            problems.append("the database cannot be read")
        if not self._can_issue():
            problems.append("there is no issuing authority")
        try:
            if shutil.disk_usage(self._data).free < MIN_FREE:
                problems.append("the data directory's disk is almost full")
        except OSError:
            problems.append("the data directory cannot be read")
        return problems + self._health.problems()

    async def warnings(self) -> list[str]:
        """Return one line for each thing that is not as it should be, and keeps nobody from work. Each is in the server's log once."""
        if not self._has_names_index:
            try:
                row = None if self._store.is_sqlite else await self._store.row(_HAS_INDEX)
            except HandclaspError:
                return []
            self._has_names_index = row is None or row.found is not None
        if self._has_names_index:
            return []
        if not self._said:
            self._said = True
            _log.warning("names are searched without an index", reason=NO_TRIGRAMS)
        return [NO_TRIGRAMS]

    def _can_issue(self) -> bool:
        """Whether any trust domain has a signer: an authority that is not retired, has not ended, and whose key is here."""
        for trust_domain in self._authorities.trust_domains:
            try:
                self._authorities.get(trust_domain=trust_domain)
            except HandclaspError:
                continue
            return True
        return False
