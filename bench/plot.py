"""``python -m bench.plot``: draw ``docs/figures/inventory.svg`` from the figures that the benchmark of the inventory left beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from bench.inventory import BUDGETS, FIGURES, OVERVIEW_BUDGET

PICTURE = FIGURES.with_suffix(".svg")
WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 210, 46, 56
FEWEST, MOST = 7_000, 14_000_000
FASTEST, SLOWEST = 1.0, 500.0


@dataclass(frozen=True)
class Line:
    """One series: which points, what of them, and how it looks. Shape and dashes tell lines apart without colour."""

    database: str
    what: str
    title: str
    colour: str
    dashes: str = ""


LINES = (
    Line("sqlite", "p95_ms", "list, SQLite", "#0b5fa5"),
    Line("postgresql", "p95_ms", "list, PostgreSQL", "#b3450b"),
    Line("sqlite", "overview_ms", "overview, SQLite", "#0b5fa5", "6 4"),
    Line("postgresql", "overview_ms", "overview, PostgreSQL", "#b3450b", "6 4"),
)
LIMITS = (("list, SQLite", BUDGETS["sqlite"]), ("list, PostgreSQL", BUDGETS["postgresql"]), ("overview", OVERVIEW_BUDGET))


def across(certificates: float) -> float:
    """Return where on the page a number of certificates is."""
    part = math.log(certificates / FEWEST) / math.log(MOST / FEWEST)
    return LEFT + part * (WIDTH - LEFT - RIGHT)


def up(milliseconds: float) -> float:
    """Return where on the page a time is; what is beyond the edge is at the edge."""
    part = math.log(min(max(milliseconds, FASTEST), SLOWEST) / FASTEST) / math.log(SLOWEST / FASTEST)
    return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)


def draw(points: Sequence[Mapping[str, Any]]) -> str:
    """Return the picture of these points as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" role="img"'
        ' aria-label="Time of lists and overview against the number of certificates">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 24, "Inventory: 95th percentile against the number of certificates", size=14, weight="bold"),
    ]
    parts += _grid()
    for title, limit in LIMITS:
        y = up(limit)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#666666" stroke-dasharray="2 4"/>')
        parts.append(_text(WIDTH - RIGHT + 8, y + 4, f"budget: {title}, {limit:g} ms", colour="#555555", size=11))
    below = TOP + 150
    for line in LINES:
        mine = [(one["certificates"], one[line.what]) for one in points if one["database"] == line.database]
        if mine:
            parts += _series(line, mine, below)
            below += 20
    return "\n".join([*parts, "</svg>"]) + "\n"


def _grid() -> list[str]:
    found = []
    for exponent in range(4, 8):
        x = across(10**exponent)
        found.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#dddddd"/>')
        found.append(_text(x, HEIGHT - BOTTOM + 18, f"{10**exponent:,}", anchor="middle"))
    for value in (1, 2, 5, 10, 20, 50, 100, 200, 500):
        y = up(value)
        found.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#eeeeee"/>')
        found.append(_text(LEFT - 8, y + 4, f"{value} ms", anchor="end"))
    found.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "certificates", anchor="middle"))
    return found


def _series(line: Line, points: Sequence[tuple[int, float]], below: float) -> list[str]:
    places = [(across(number), up(took)) for number, took in sorted(points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dashes = f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
    look = f'fill="none" stroke="{line.colour}" stroke-width="2"{dashes}'
    found = [f'<polyline points="{path}" {look}/>']
    for (x, y), (number, took) in zip(places, sorted(points), strict=True):
        mark = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{line.colour}">'
        found.append(f"{mark}<title>{escape(line.title)}: {number:,} certificates, {took:.1f} ms</title></circle>")
    x = WIDTH - RIGHT + 10
    found.append(f'<line x1="{x}" y1="{below - 4}" x2="{x + 28}" y2="{below - 4}" {look}/>')
    found.append(_text(x + 36, below, line.title))
    return found


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#222222", size: int = 12, weight: str = "normal") -> str:
    look = f'text-anchor="{anchor}" fill="{colour}" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(text)}</text>'


def main() -> None:
    PICTURE.write_text(draw(json.loads(FIGURES.read_text())))
    print(PICTURE)


if __name__ == "__main__":
    main()
