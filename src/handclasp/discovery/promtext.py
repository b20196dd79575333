"""Prometheus' text format, as far as gauges of expiry need it: some metrics by name, with their labels."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

MAX_SAMPLES = 1000
_LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{([^\n]*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t]*")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One value."""

    name: str
    labels: dict[str, str]
    value: float

    @property
    def shown(self) -> str:
        """Name and labels in one line."""
        inner = ",".join(f"{name}={value}" for name, value in sorted(self.labels.items()))
        return f"{self.name}{{{inner}}}" if inner else self.name


def samples(text: str, wanted: Collection[str]) -> list[Sample]:
    """Return the samples of the wanted metrics; lines that are none, and values that are no finite numbers, are passed over."""
    found: list[Sample] = []
    for line in text.splitlines():
        if line.startswith("#") or not line.startswith(tuple(wanted)):
            continue
        match = _LINE.fullmatch(line)
        if match is None or match[1] not in wanted:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        if math.isfinite(value):
            found.append(Sample(match[1], _labels(match[2] or ""), value))
        if len(found) == MAX_SAMPLES:
            break
    return found


def _labels(text: str) -> dict[str, str]:
    found, position = {}, 0
    while (match := _LABEL.match(text, position)) is not None:
        found[match[1]] = re.sub(r"\\.", lambda escape: _ESCAPES.get(escape[0], escape[0]), match[2])[:500]
        if match.end() == position:
            break
        position = match.end()
    return found
