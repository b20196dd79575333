"""Figures, their limits, and how they are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

FILE = Path(__file__).parent / "results.json"


@dataclass(frozen=True)
class Result:
    """One figure beside its limit; ``budget`` is the ratio it should keep to."""

    name: str
    figure: float
    unit: str
    limit: float | None = None
    budget: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Figure over limit."""
        return self.figure / self.limit if self.limit else None

    @property
    def verdict(self) -> str:
        """Whether the budget was held."""
        if self.ratio is None or self.budget is None:
            return ""
        held = self.ratio >= self.budget if self.at_least else self.ratio <= self.budget
        return "held" if held else "missed"

    def row(self) -> str:
        """Return it as a line of the table."""
        limit = f"{self.limit:12,.1f}" if self.limit else " " * 12
        ratio = f"{self.ratio:7.2f}" if self.ratio else " " * 7
        budget = f"{'>=' if self.at_least else '<='} {self.budget:g}" if self.budget is not None else ""
        return f"{self.name:34} {self.figure:12,.1f} {self.unit:4} {limit} {ratio} {budget:>8} {self.verdict:7} {self.note}".rstrip()


HEAD = f"{'name':34} {'figure':>12} {'':4} {'limit':>12} {'ratio':>7} {'budget':>8}"


def write(results: Sequence[Result]) -> None:
    """Write them for programs."""
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    rows = [{"name": one.name, "figure": one.figure, "unit": one.unit, "limit": one.limit, "ratio": one.ratio, "at": at} for one in results]
    FILE.write_text(json.dumps(rows, indent=1) + "\n")
