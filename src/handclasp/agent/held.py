"""What is held, as :mod:`handclasp.agent.decide` sees it: when it is to be renewed, and when to try again. Pure.

Times are milliseconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Callable

from handclasp.agent.decide import Held
from handclasp.agent.state import IdentityState, Obtained
from handclasp.client import renewal

_SOON = 300.0
"""Seconds within which a renewal is tried again the first time: the answer may have been lost, and the server forgives that for a while."""


def what_is_held(obtained: Obtained | None, state: IdentityState, now: int) -> Held | None:
    """Return what decides of what was obtained; None while there is nothing."""
    if obtained is None:
        return None
    return Held(obtained.sha256, obtained.not_after, renew_at(obtained, state, now), obtained.renew_before, obtained.wanted)


def renew_at(obtained: Obtained, state: IdentityState, now: int) -> int:
    """Return when a certificate is to be renewed: at the point that was drawn, or the earlier one that the server asked for.

    A point after the whole window was drawn under a clock that was ahead. Once the clock is right again it does not count, but a point of
    the window that follows from the certificate, the same each time.
    """
    at = min(obtained.renew_at, state.renew_at) if state.renew_at_of == obtained.sha256 else obtained.renew_at
    if at > obtained.renew_before > now and now < obtained.obtained_at:
        at = obtained.renew_after + (obtained.renew_before - obtained.renew_after) * int(obtained.sha256[:4], 16) // 65536
    return at


def next_try(obtained: Obtained | None, failures: int, now: int, random: Callable[[], float], *, wish: float | None) -> int:
    """Return when to try again to obtain a certificate, after the ``failures``-th failure in a row; ``wish`` (seconds) is the server's."""
    if obtained is None or now >= obtained.not_after:
        return renewal.back_off(now, failures, random, retry_after=wish)
    return renewal.retry_at(
        now,
        renew_after=obtained.renew_after,
        renew_before=obtained.renew_before,
        not_after=obtained.not_after,
        random=random,
        retry_after=wish,
        longest=_SOON if failures == 1 else None,
    )
