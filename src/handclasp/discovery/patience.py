"""Waiting for a database that is away: what was read is kept meanwhile, and handed in when it is back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from handclasp.errors import HandclaspError, Kind

FIRST, LONGEST = 0.2, 5.0
"""Seconds between the first two attempts, and at most."""
T = TypeVar("T")


async def patiently(attempt: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Return what ``attempt`` does, made again and again while it raises ``unavailable``, for so many seconds; then that is raised.

    ``attempt`` must do no harm when it is made twice, or know by itself what the one before did: a database that goes away in a commit
    does not say whether it happened.
    """
    deadline, wait = time.monotonic() + seconds, FIRST
    while True:
        try:
            return await attempt()
        except HandclaspError as error:
            if error.kind is not Kind.UNAVAILABLE or time.monotonic() + wait > deadline:
                raise
        await asyncio.sleep(wait)
        wait = min(2 * wait, LONGEST)
