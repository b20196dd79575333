"""How fast: a number of connections a second, spread evenly. For one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Pace:
    """Lets callers through one after the other, ``rate`` a second; 0 is without limit."""

    def __init__(self, rate: float, now: Callable[[], float] | None = None) -> None:
        self._interval = 1 / rate if rate > 0 else 0.0
        self._now = now or asyncio.get_running_loop().time
        self._next = 0.0

    def reserve(self) -> float:
        """Take the next turn, and return the seconds until it comes."""
        now = self._now()
        turn = max(now, self._next)
        self._next = turn + self._interval
        return turn - now

    async def turn(self) -> None:
        """Wait for one's turn."""
        if self._interval and (wait := self.reserve()) > 0:
            await asyncio.sleep(wait)
