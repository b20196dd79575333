"""How fast: a number of connections a second, spread evenly. For one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LATE = 0.01
"""Seconds by which a turn may come late and the next ones catch up; whatever is later than that is not made up for."""


class Pace:
    """Lets callers through one after the other, ``rate`` a second; 0 is without limit.

    A turn is taken when it has come, and not before: a process that stood still for a while does not let through all at once who waited.
    """

    def __init__(self, rate: float, now: Callable[[], float] | None = None) -> None:
        self._interval = 1 / rate if rate > 0 else 0.0
        self._now = now or asyncio.get_running_loop().time
        self._next = float("-inf")
        self._first = asyncio.Lock()

    async def turn(self) -> None:
        """Wait for one's turn."""
        if not self._interval:
            return
        async with self._first:
            if (wait := self._next - self._now()) > 0:
                await asyncio.sleep(wait)
            self._next = max(self._next, self._now() - LATE) + self._interval
