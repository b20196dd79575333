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


def going_on(api: Api, source: str) -> Scan | None:
    """Return the scan of a source that goes on and records what it reads, None where there is none."""
    from handclasp.wire.discovery import ScanList

    newest = api.get("/v1/scans", ScanList, source=source, limit=1).items
    return next((scan for scan in newest if scan.state not in ENDED and not scan.dry), None)


def is_whole(scan: Scan) -> bool:
    """Tell whether a scan has read everything that it was to read."""
    return scan.state == "done" and not scan.failed


def follow(api: Api, scan: Scan) -> Scan:
    """Show how far a scan is until it has ended; return it as it is then. Ctrl-C ends the looking, and nothing else."""
    try:
        return _follow(api, scan)
    except KeyboardInterrupt:
        terminal.say(f"the scan goes on by itself: handclasp source scans --scan {scan.id} --watch")
        raise


def _follow(api: Api, scan: Scan) -> Scan:
    said, problem = 0, ""
    drawn = terminal.is_terminal(sys.stderr)
    try:
        while scan.state not in ENDED:
            if drawn:
                sys.stderr.write(f"\r\x1b[2K{_bar(scan, problem)}")
                sys.stderr.flush()
            elif terminal.clock() - said >= LINE_EVERY:
                said = terminal.clock()
                terminal.say(_line(scan, problem))
            sleep(EVERY)
            scan, problem = _look(api, scan)
    finally:
        if drawn:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
    return scan


def _look(api: Api, before: Scan) -> tuple[Scan, str]:
    """Return how a scan stands; what stood before, and why, while the server is away: it goes on with the scan when it is back."""
    from handclasp.errors import HandclaspError, Kind
    from handclasp.wire.discovery import Scan

    try:
        return api.get(f"/v1/scans/{before.id}", Scan), ""
    except HandclaspError as error:
        if error.kind not in (Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.RATE_LIMITED):
            raise
        return before, error.detail


def _line(scan: Scan, problem: str) -> str:
    if problem:
        return f"{scan.source}: {problem}"
    if scan.state == "planning":
        return f"{scan.source}: finding out what there is to read"
    if scan.kind == "files" and not scan.total:
        return f"{scan.source}: waiting for agents, which ask about once a minute"
    failed = f", {scan.failed} failed" if scan.failed else ""
    return f"{scan.source}: {scan.read} of {scan.total} read{failed}, {scan.certificates} certificates, {scan.fresh} new"


def _bar(scan: Scan, problem: str) -> str:
    done = min(1.0, (scan.read + scan.failed) / scan.total) if scan.total else 0.0
    filled = round(done * 24)
    bar = terminal.styled("━" * filled, "green", sys.stderr) + terminal.styled("━" * (24 - filled), "dim", sys.stderr)
    return f"{bar} {terminal.visible(_line(scan, problem))}"


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
