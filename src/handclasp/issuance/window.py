"""When a certificate should be renewed: a window for each certificate, spread so that a fleet started together does not renew together."""

from __future__ import annotations

from random import Random

EARLIEST = 0.50  # of the lifetime; before half of it a renewal only doubles the load
SPREAD = 0.15  # windows begin somewhere in this part of the lifetime, drawn for each certificate
LENGTH = 0.10  # of the lifetime: long enough for an agent to draw its own point in it
# What is left after the latest end, 25 %, is for retries while the server is away: 15 minutes of an hour, 6 hours of a day.


GRACE_PART = 4
"""The grace time is at most this part of the lifetime: over before the successor is due, so that a stolen key meets a closed door."""


def grace_after(limit: float, not_before: int, not_after: int) -> float:
    """Return for how many seconds a superseded certificate may still repeat its renewal: ``limit``, or less where it is short-lived."""
    return min(limit, (not_after - not_before) / 1000 / GRACE_PART)


def renewal_window(issued_at: int, not_after: int, draw: float) -> tuple[int, int]:
    """Return ``(renew_after, renew_before)`` in milliseconds for a certificate issued now, with ``draw`` uniform in [0, 1).

    Always ``issued_at <= renew_after <= renew_before < not_after`` for a certificate that is still valid.
    """
    lifetime = not_after - issued_at
    after = issued_at + int(lifetime * (EARLIEST + SPREAD * draw))
    return after, after + int(lifetime * LENGTH)


ROTATION_LENGTH = 0.10  # of a rotation's time: how long the window of one certificate is
POLL_SLACK = 90_000
"""Milliseconds in which every agent has asked at least once: the usual poll interval of 60 s, drawn out to 75, and an answer."""
LEAD_PART = 4
"""At most this part of a rotation's time passes before the first certificate is due."""


def rotation_span(begins_at: int, ends_at: int) -> tuple[int, int, int]:
    """Return ``(first, last, length)`` of the windows of a rotation, all in ms: the earliest and latest begin of one, and how long it is.

    Agents hear of a rotation when they next ask. The first windows begin when nearly all have asked, because what was due before would
    be renewed the moment its agent hears of it: a heap at the beginning, and windows that are over before anybody could know of them.
    """
    first = begins_at + min(POLL_SLACK, max(0, ends_at - begins_at) // LEAD_PART)
    length = int((ends_at - first) * ROTATION_LENGTH)
    return first, max(first, ends_at - length), length


def spread_points(count: int, first: int, last: int, random: Random) -> list[int]:
    """Return ``count`` moments from ``first`` to ``last`` (ms), in no order: one at a random point of each of ``count`` equal parts.

    So the rate is flat, and neighbours in a list (certificates of one host, say) do not have their time together.
    """
    parts = list(range(count))
    random.shuffle(parts)
    return [first + int((part + random.random()) / count * (last - first)) for part in parts]


def pulled_window(renew_after: int, renew_before: int, not_after: int, *, now: int, point: int, length: int) -> tuple[int, int]:
    """Return the window of a certificate (present window and end given) that a rotation wants renewed from ``point`` (>= ``now``) on.

    ``now <= after <= before < not_after``, and neither is later than it was (but ``after`` is not before ``now``). A window that is over
    stays: the renewal is overdue, and nothing may hide that.
    """
    latest = min(renew_before, not_after - 1)
    if latest <= now:
        return renew_after, renew_before
    return max(now, min(point, renew_after)), min(point + length, latest)
