"""The overview, and the load of expiry and renewal over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from handclasp.clock import parse_rfc3339, rfc3339
from handclasp.console.app import Page
from handclasp.console.nav import nav_for
from handclasp.console.visit import Answer, Go, Shown, Visit

SPANS = {"day": (86_400, "hour"), "week": (7 * 86_400, "hour"), "month": (30 * 86_400, "day"), "year": (365 * 86_400, "day")}
"""How many seconds before and after now are shown, and by what length of time they are counted."""


async def overview(visit: Visit) -> Answer:
    """Show how everything stands: figures, each of which leads to its list."""
    nav = nav_for(visit.can)
    if nav and not visit.can("inventory:read"):
        return Go(nav[0][1][0][1])  # the first page that they may see
    shown = await visit.get("/v1/overview")
    context = {"shown": shown, "issuance": chart(shown.issuance, ("issued", "renewed", "refused"))}
    return Shown("overview.html", context)


async def timeline(visit: Visit) -> Answer:
    """Show when certificates end and are renewed."""
    span = visit.query.get("span", "week")
    span = span if span in SPANS else "week"
    half, by = SPANS[span]
    query = {"since": rfc3339(visit.now - half * 1000), "until": rfc3339(visit.now + half * 1000), "by": by}
    found = await visit.get("/v1/timeline", query)
    step = 3_600_000 if by == "hour" else 86_400_000
    context = {
        "timeline": found,
        "span": span,
        "spans": SPANS,
        "past": chart(found.items, ("issued", "renewed", "refused"), until=visit.now),
        "coming": chart(found.items, ("expiring", "renewing"), since=visit.now - step),
        "busy": [(one, rfc3339(parse_rfc3339(one.at) + step)) for one in _busiest(found.items, visit.now, step)],
    }
    return Shown("timeline.html", context)


def chart(loads: Sequence[Any], names: Sequence[str], *, since: int = 0, until: int = 1 << 62) -> dict[str, Any]:
    """Return what the picture of some loads shows: a series for each name, points as [ms, number]."""
    shown = [(parse_rfc3339(load.at), load) for load in loads]
    return {
        "series": [
            {"name": name, "stack": "all", "points": [[at, getattr(load, name)] for at, load in shown if since <= at <= until]}
            for name in names
        ]
    }


def _busiest(loads: Sequence[Any], now: int, step: int) -> list[Any]:
    """Return the times to come with the most to renew or to end, the busiest first."""
    coming = [load for load in loads if parse_rfc3339(load.at) + step > now and load.expiring + load.renewing]
    return sorted(coming, key=lambda load: load.expiring + load.renewing, reverse=True)[:12]


PAGES = (Page("GET", "", overview), Page("GET", "timeline", timeline))
