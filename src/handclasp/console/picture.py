"""The line of an identity's certificates on a time axis, as places for the template to draw: no script is needed to see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from handclasp.clock import parse_rfc3339, to_datetime

ROW = 18  # pixels
MOST = 20
_HOUR, _DAY = 3600, 86_400
_STEPS = (60, 300, 900, _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR, *(days * _DAY for days in (1, 2, 7, 14, 30, 91, 365, 1825, 7300)))
"""Seconds between two marks."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One certificate; places in percent of the width."""

    sha256: str
    left: float
    width: float
    top: int
    tone: str
    label: str
    seen: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """A time axis with bars."""

    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    now: float | None
    height: int


def line_picture(items: Sequence[Any], now: int) -> Picture | None:
    """Return the picture of some :class:`handclasp.wire.inventory.LineItem`, newest first; None for none."""
    shown = [(item, parse_rfc3339(item.certificate.not_before), parse_rfc3339(item.certificate.not_after)) for item in items[:MOST]]
    if not shown:
        return None
    first, last = min(begins for _, begins, _ in shown), max(ends for _, _, ends in shown)
    first, last = min(first, now), max(last, now)
    span = max(last - first, 60_000)
    first, span = first - span // 40, span + span // 20

    def place(at: int) -> float:
        return round(100 * (at - first) / span, 3)

    bars = tuple(
        Bar(
            item.certificate.sha256,
            place(begins),
            max(place(ends) - place(begins), 0.4),
            number * ROW + 4,
            _tone(item.certificate),
            _label(item.certificate),
            bool(item.sightings),
        )
        for number, (item, begins, ends) in enumerate(shown)
    )
    return Picture(bars, _ticks(first, span, place), place(now) if 0 <= place(now) <= 100 else None, len(bars) * ROW + 26)


def _tone(certificate: Any) -> str:
    if certificate.state == "revoked":
        return "bad"
    if certificate.origin == "found":
        return "foreign"
    return "good" if certificate.state == "valid" else ""


def _label(certificate: Any) -> str:
    issued = "found" if certificate.origin == "found" else f"issued, {certificate.state}"
    return f"{certificate.sha256[:12]} {issued}: {certificate.not_before} to {certificate.not_after}"


def _ticks(first: int, span: int, place: Any) -> tuple[tuple[float, str], ...]:
    step = next((one for one in _STEPS if span / 1000 / one <= 6), _STEPS[-1]) * 1000
    at = (first // step + 1) * step
    made = []
    while at < first + span:
        moment = to_datetime(at)
        shown = f"{moment:%H:%M}" if step < 86_400_000 and moment.hour + moment.minute else f"{moment:%d %b}"
        made.append((place(at), f"{moment:%b %Y}" if step >= 30 * 86_400_000 else shown))
        at += step
    return tuple(made)
