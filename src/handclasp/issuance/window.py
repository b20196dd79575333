"""When a certificate should be renewed: a window for each certificate, spread so that a fleet started together does not renew together."""

from __future__ import annotations

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
