"""What one user may have of the socket, so that nobody can take it from the others."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

CONNECTIONS = 1000
"""All users together: each connection is a descriptor or three of the agent's."""
STREAMS = 1000
RATE = 100.0
"""New calls a second, in the long run: one costs a look at ``/proc`` and perhaps a question to the kubelet."""
BURST = 1000.0
_USERS = 4096


class Limits:
    """Counts connections and calls by user; all calls from one thread. ``clock`` in seconds."""

    def __init__(self, per_user: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_user, self._clock = per_user, clock
        self._connections: Counter[int] = Counter()
        self._streams: Counter[int] = Counter()
        self._tokens: dict[int, tuple[float, float]] = {}

    def connect(self, uid: int) -> bool:
        """Count a connection, and return whether it may be."""
        if self._connections[uid] >= self._per_user or self._connections.total() >= CONNECTIONS:
            return False
        self._connections[uid] += 1
        return True

    def disconnect(self, uid: int) -> None:
        """Count it no longer."""
        self._less(self._connections, uid)

    def begin(self, uid: int) -> bool:
        """Count a call, and return whether it may be."""
        if self._streams[uid] >= STREAMS or not self._spend(uid):
            return False
        self._streams[uid] += 1
        return True

    def end(self, uid: int) -> None:
        """Count it no longer."""
        self._less(self._streams, uid)

    def _spend(self, uid: int) -> bool:
        now = self._clock()
        if len(self._tokens) > _USERS:
            self._tokens.clear()
        tokens, at = self._tokens.get(uid, (BURST, now))
        tokens = min(BURST, tokens + (now - at) * RATE)
        self._tokens[uid] = (tokens - 1 if tokens >= 1 else tokens, now)
        return tokens >= 1

    @staticmethod
    def _less(counter: Counter[int], uid: int) -> None:
        counter[uid] -= 1
        if counter[uid] <= 0:
            del counter[uid]


class Turns:
    """How many processes of one user are looked at at once: each takes a worker thread for as long as the user's executable is large, or
    the kubelet slow, and the others' must not wait behind all of them. For one event loop."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._waiting: Counter[int] = Counter()
        self._slots: dict[int, asyncio.Semaphore] = {}

    @asynccontextmanager
    async def of(self, uid: int) -> AsyncIterator[None]:
        """Wait for a turn of that user, and have it."""
        slots = self._slots.setdefault(uid, asyncio.Semaphore(self._at_once))
        self._waiting[uid] += 1
        try:
            async with slots:
                yield
        finally:
            self._waiting[uid] -= 1
            if not self._waiting[uid]:
                del self._waiting[uid], self._slots[uid]
