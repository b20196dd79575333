"""A scan while it goes on, and what came of it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from handclasp.cli import terminal
from handclasp.cli.terminal import When

if TYPE_CHECKING:
    from handclasp.cli.command import State
    from handclasp.cli.connection import Api
    from handclasp.wire.discovery import Scan

EVERY = 0.5
"""Seconds between two looks."""
LINE_EVERY = 10_000
"""Milliseconds between lines where nobody sees a live view."""
ENDED = ("done", "stopped", "failed")
sleep = time.sleep
"""What waiting is; tests set it."""


def follow(api: Api, scan: Scan) -> Scan:
    """Show how far a scan is until it has ended; return it as it is then."""
    from handclasp.wire.discovery import Scan

    said = 0
    drawn = terminal.is_terminal(sys.stderr)
    try:
        while scan.state not in ENDED:
            if drawn:
                sys.stderr.write(f"\r\x1b[2K{_bar(scan)}")
                sys.stderr.flush()
            elif terminal.clock() - said >= LINE_EVERY:
                said = terminal.clock()
                terminal.say(_line(scan))
            sleep(EVERY)
            scan = api.get(f"/v1/scans/{scan.id}", Scan)
    finally:
        if drawn:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
    return scan


def _line(scan: Scan) -> str:
    if scan.state == "planning":
        return f"{scan.source}: finding out what there is to read"
    failed = f", {scan.failed} failed" if scan.failed else ""
    return f"{scan.source}: {scan.read} of {scan.total} read{failed}, {scan.certificates} certificates, {scan.fresh} new"


def _bar(scan: Scan) -> str:
    done = min(1.0, (scan.read + scan.failed) / scan.total) if scan.total else 0.0
    filled = round(done * 24)
    bar = terminal.styled("━" * filled, "green", sys.stderr) + terminal.styled("━" * (24 - filled), "dim", sys.stderr)
    return f"{bar} {terminal.visible(_line(scan))}"


def show_scan(state: State, scan: Scan) -> None:
    """Write a scan."""
    if state.json:
        terminal.write_json(scan)
        return
    fields: list[tuple[str, Any]] = [
        ("scan", scan.id),
        ("source", scan.source),
        ("state", scan.state),
        ("dry run", "nothing was recorded; this is what it would have come to" if scan.dry else None),
        ("asked by", scan.asked_by),
        ("began", When(scan.created_at)),
        ("ended", When(scan.ended_at) if scan.ended_at else None),
        ("read", f"{scan.read} of {scan.total}"),
        ("failed", scan.failed),
        ("certificates", scan.certificates),
        ("new", scan.fresh),
        ("gone", scan.gone),
        ("parts", [f"{number} {name}" for name, number in sorted((scan.parts or {}).items())]),
        ("problem", scan.problem),
    ]
    terminal.write_fields(fields)
    for problem in dict.fromkeys(scan.problems or []):
        if problem != scan.problem:
            terminal.warn(problem)
