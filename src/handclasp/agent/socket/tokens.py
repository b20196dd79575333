"""JWT-SVIDs that were obtained for callers, kept in memory until half of their life is over.

Whether a caller may have one is decided before it is asked for here, each time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from handclasp import wire
from handclasp.clock import Clock, parse_rfc3339
from handclasp.errors import HandclaspError, Kind

MAX_HELD = 1000
_AWAY = frozenset({Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.RATE_LIMITED})
_MARGIN = 1_000
"""Milliseconds that a token must still have: one that ends on its way is worth nothing."""

_Key = tuple[str, tuple[str, ...]]


class Tokens:
    """``ask`` asks the server. Callers who want the same token at once share one question."""

    def __init__(self, ask: Callable[[wire.JwtSvidRequest], Awaitable[wire.JwtSvid]], clock: Clock) -> None:
        self._ask, self._clock = ask, clock
        self._held: OrderedDict[_Key, tuple[int, int, str]] = OrderedDict()
        self._asking: dict[_Key, asyncio.Task[str]] = {}

    async def get(self, identity: str, audience: list[str]) -> str:
        """Return a token. Raises what the server answers; while that is away, an earlier token is given as long as it counts."""
        key = (identity, tuple(sorted(set(audience))))
        found = self._held.get(key)
        if found is not None and self._clock() < found[0]:
            self._held.move_to_end(key)
            return found[2]
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.get_running_loop().create_task(self._obtain(key))
            task.add_done_callback(lambda done: self._asked(key, done))
        try:
            # Shielded: one caller that gives up does not take the answer from the others.
            return await asyncio.shield(task)
        except HandclaspError as error:
            if found is not None and error.kind in _AWAY and self._clock() + _MARGIN < found[1]:
                return found[2]
            raise

    def _asked(self, key: _Key, done: asyncio.Task[str]) -> None:
        self._asking.pop(key, None)
        if not done.cancelled():
            done.exception()  # seen: there may be nobody left who waits

    async def _obtain(self, key: _Key) -> str:
        answer = await self._ask(wire.JwtSvidRequest(identity=key[0], audience=list(key[1])))
        now, ends = self._clock(), parse_rfc3339(answer.expires_at)
        self._held[key] = (now + (ends - now) // 2, ends, answer.token)
        while len(self._held) > MAX_HELD:
            self._held.popitem(last=False)
        return answer.token
