"""Removes what is old and makes the months of certificates on PostgreSQL, over and over, and says in figures how far it is."""

from __future__ import annotations

import structlog
from prometheus_client import Counter, Gauge

from handclasp.clock import Clock
from handclasp.inventory.retention import Retention
from handclasp.store.database import Store

REMOVED = Counter("handclasp_retention_removed_total", "Rows that retention removed, by table.", ["table"])
DONE = Gauge("handclasp_retention_done_seconds", "When everything old was last removed, seconds since the epoch; 0 before the first time.")
MONTHS = Gauge("handclasp_certificate_months", "Months into which the certificate table is divided; 0 on SQLite.")
_log = structlog.get_logger("handclasp.retention")


class RetentionJob:
    """The leader's two jobs about what is old. ``keep`` is in seconds; 0 keeps everything."""

    def __init__(self, store: Store, clock: Clock, keep: float) -> None:
        self._retention = Retention(store, clock, keep, removed=lambda table, number: REMOVED.labels(table).inc(number))
        self._clock = clock

    async def months(self) -> None:
        """Make the months that certificates will end in. Raises ``unavailable``, and is tried again."""
        for month in await self._retention.make_months():
            _log.info("month made", table=month.table)
        MONTHS.set(await self._retention.count_months())

    async def remove(self) -> None:
        """Remove what is old. It takes as long as it takes: most of that are pauses. Raises ``unavailable``, and goes on the next time."""
        gone = await self._retention.run()
        DONE.set(self._clock() / 1000)
        if gone:
            _log.info("old rows removed", **gone)
