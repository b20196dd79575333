"""The time by which an agent decides: the server's, kept going by a clock that nobody can set.

A host's own clock jumps: somebody sets it, NTP steps it, a guest is resumed from a snapshot. The dates in a certificate are the server's:
what counts is what the server's clock says, and every answer of the server says it (``Date``). Between two answers CLOCK_BOOTTIME counts,
which goes on while the host sleeps and is never set. While nothing is known of the server, the host's clock has to do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

from handclasp.clock import Clock, system_clock

TOLERANCE = 5_000
"""Milliseconds by which the host's clock may differ before the server's counts: ``Date`` has whole seconds, and answers take a while."""
WRONG = 60_000
"""Milliseconds from which a host's clock is something that a person should see to: TLS fails with certificates that live minutes."""


def boot_clock() -> int:
    """Return milliseconds since some moment, sleep included; never set by anybody."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) // 1_000_000


class Hours:
    """A :class:`handclasp.clock.Clock` that follows the server's. May be called from any thread."""

    def __init__(self, wall: Clock = system_clock, boot: Callable[[], int] = boot_clock) -> None:
        self._wall, self.boot = wall, boot
        """The clock that nobody sets, for whatever only needs to know how much time has passed (milliseconds)."""
        self._lock = threading.Lock()
        self._server: int | None = None
        self._jump = wall() - boot()

    def __call__(self) -> int:
        """Return now, in milliseconds since the epoch."""
        wall, server = self._wall(), self._server
        if server is None or abs(wall - (self.boot() + server)) <= TOLERANCE:
            return wall
        return self.boot() + server

    @property
    def ahead(self) -> int:
        """Milliseconds by which this host's clock is ahead of the server's (negative: behind); 0 within the tolerance, or if unknown."""
        return self._wall() - self()

    @property
    def problem(self) -> str:
        """What a person should know about this host's clock, or an empty string."""
        ahead = self.ahead
        if abs(ahead) < WRONG:
            return ""
        which = "ahead of" if ahead > 0 else "behind"
        return f"this host's clock is {abs(ahead) // 1000} s {which} the server's: set it right, or TLS will fail here"

    def answered(self, date: str, took: float = 0.0) -> None:
        """Take the ``Date`` of an answer of the server that took ``took`` seconds; what is not a date is passed over."""
        try:
            at = int(parsedate_to_datetime(date).timestamp() * 1000)
        except (ValueError, TypeError, OverflowError):
            return
        # The second that it names has gone by in part, and so has the way back.
        with self._lock:
            self._server = at + 500 + int(took * 500) - self.boot()

    def jumped(self) -> bool:
        """Tell whether this host's clock was set since the last call (by more than the tolerance), or time has passed unseen."""
        jump = self._wall() - self.boot()
        with self._lock:
            before, self._jump = self._jump, jump
        return abs(jump - before) > TOLERANCE
