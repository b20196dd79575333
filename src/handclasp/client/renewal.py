"""When to renew, and when to try again: pure functions that the agent and :class:`handclasp.client.TLSContext` share.

Times are milliseconds since the epoch. ``random`` returns a float in [0, 1).
"""

from __future__ import annotations

from collections.abc import Callable

SHORTEST_RETRY = 500
"""Never try more often than this, whatever the lifetime: certificates of 20 s exist."""
LONGEST_RETRY = 600_000
"""Never wait longer than this for the next try: an hour's certificate has to survive a server that was away for a while."""
_SETTLE = 30_000


def draw_renewal(renew_after: int, renew_before: int, not_after: int, now: int, random: Callable[[], float]) -> int:
    """Return the moment at which a certificate obtained ``now`` is to be renewed: once drawn, it is kept.

    It lies in the server's window. Where the local clock is so wrong that the window is already over, a quarter of what seems to remain
    (1 s to 30 s) passes first, so that a wrong clock does not make a loop of requests.
    """
    drawn = renew_after + int(max(0, renew_before - renew_after) * random())
    return max(drawn, settle_until(not_after, now))


def settle_until(not_after: int, now: int) -> int:
    """Return the earliest moment of any new request after a certificate was obtained ``now``.

    One that has ended when it arrives says that our clock is ahead: then the longest time passes, or it would be a request each second.
    """
    if not_after <= now:
        return now + _SETTLE
    return now + min(_SETTLE, max(1000, (not_after - now) // 4))


def retry_at(
    now: int,
    *,
    renew_after: int,
    renew_before: int,
    not_after: int,
    random: Callable[[], float],
    retry_after: float | None = None,
    longest: float | None = None,
) -> int:
    """Return when to try again after a failed renewal: one try in each interval of the server's spread, at a random point of it.

    Towards the certificate's end the interval shrinks to a quarter of the time that remains, so that a server that comes back late still
    finds its clients before they expire. After the end it is the spread again. ``retry_after`` (seconds) is the server's own wish;
    ``longest`` (seconds) is a limit of the caller's for the interval.
    """
    spread = max(renew_before - renew_after, SHORTEST_RETRY)
    if not_after > now:
        spread = min(spread, (not_after - now) // 4)
    spread = min(max(spread, SHORTEST_RETRY), LONGEST_RETRY if longest is None else int(longest * 1000))
    wait = int(spread * (0.5 + random()))
    if retry_after is not None:
        wait = max(wait, min(int(retry_after * 1000), LONGEST_RETRY))
    return now + wait


def back_off(now: int, failures: int, random: Callable[[], float], *, longest: float = 60, retry_after: float | None = None) -> int:
    """Return when to try again after the ``failures``-th failure in a row where there is no window: about 1, 2, 4 … ``longest`` seconds."""
    seconds = min(longest, 2.0 ** min(max(failures - 1, 0), 20)) * (0.5 + random())
    if retry_after is not None:
        seconds = max(seconds, min(retry_after, LONGEST_RETRY / 1000))
    return now + max(SHORTEST_RETRY, int(seconds * 1000))


def is_due(at: int, now: int) -> bool:
    """Tell whether a scheduled retry is due; also when it lies further ahead than any retry is ever scheduled (the clock went back)."""
    return at <= now or at - now > 2 * LONGEST_RETRY
