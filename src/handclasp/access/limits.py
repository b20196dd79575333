"""Rate limits: the generic cell rate algorithm (ATM Forum TM 4.0, section 4.4), one number for each key, in memory."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind

MAX_KEYS = 100_000  # about 15 MB; the least recently used go first
LONGEST_DEBT = 60_000.0  # milliseconds; also what a clock that was set back can cost anybody at most


def network_key(address: str) -> str:
    """Return what an address counts as: an IPv6 one its /64, which one host has all of (RFC 6177); an IPv4 one itself, however written."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{ipaddress.IPv6Address(int(parsed) >> 64 << 64)}/64"


class Limiter:
    """Allows ``rate_per_second`` on average and ``burst`` at once, for each key by itself.

    For one event loop and one process; each process counts for itself. Nothing is kept over a restart.
    """

    def __init__(self, rate_per_second: float, burst: int, clock: Clock, *, max_keys: int = MAX_KEYS) -> None:
        if rate_per_second <= 0 or burst < 1 or max_keys < 1:
            raise HandclaspError(Kind.BAD_SETTING, "a rate limit is a rate above 0 and a burst of 1 or more")
        self._interval = 1000 / rate_per_second
        self._window = self._interval * burst
        self._clock = clock
        self._max_keys = max_keys
        self._free_at: OrderedDict[str, float] = OrderedDict()

    def check(self, key: str, cost: int = 1) -> None:
        """Count ``cost`` requests for ``key``; when too many, count none and raise ``rate_limited`` with ``retry_after`` in seconds.

        A cost above the burst counts as the burst, so that a large batch waits for a full window and is not refused for ever.
        """
        now = float(self._clock())
        # A clock that was set back must not lock anybody out for as long as the step was.
        start = min(max(self._free_at.pop(key, now), now), now + self._window)
        free_at = start + min(cost * self._interval, self._window)
        if free_at - now > self._window + 1e-6:
            self._free_at[key] = start
            wait = (free_at - now - self._window) / 1000
            raise HandclaspError(Kind.RATE_LIMITED, f"too many requests; wait {wait:.1f} s", retry_after=wait)
        self._free_at[key] = free_at
        if len(self._free_at) > self._max_keys:
            self._free_at.popitem(last=False)

    def owe(self, key: str, cost: int = 1) -> None:
        """Count ``cost`` for ``key`` after the fact, however much that is: whoever owes has to wait in :meth:`settle`, 60 s at most."""
        now = float(self._clock())
        self._free_at[key] = min(max(self._free_at.pop(key, now), now) + cost * self._interval, now + self._window + LONGEST_DEBT)
        if len(self._free_at) > self._max_keys:
            self._free_at.popitem(last=False)

    def settle(self, key: str) -> None:
        """Count nothing, and raise ``rate_limited`` while more than the burst is owed for ``key``."""
        free_at = self._free_at.get(key)
        if free_at is None:
            return
        wait = free_at - self._clock() - self._window
        if 0 < wait <= LONGEST_DEBT:
            raise HandclaspError(Kind.RATE_LIMITED, f"too many refused requests; wait {wait / 1000:.1f} s", retry_after=wait / 1000)
