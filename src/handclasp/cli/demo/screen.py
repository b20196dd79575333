"""What is shown while the demo runs: a live table on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from handclasp.cli import terminal
from handclasp.cli.demo.traffic import Seen, Traffic

if TYPE_CHECKING:
    from rich.table import Table

LINE_EVERY = 10.0


def screen(traffic: Traffic, seconds: float, identities: Mapping[str, str], kind: str, *, draw: bool) -> None:
    """Show ``traffic`` for ``seconds``."""
    end = time.monotonic() + seconds
    seen = {identities["web"]: traffic.web, identities["caller"]: traffic.caller}
    if draw and terminal.is_terminal(sys.stderr):
        _live(traffic, seen, end, kind)
        return
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(LINE_EVERY, left))
        terminal.say(_line(traffic, seen, max(0.0, end - time.monotonic())))


def _line(traffic: Traffic, seen: Mapping[str, Seen], left: float) -> str:
    rotations = ", ".join(f"{identity} rotated {one.rotations} times" for identity, one in seen.items())
    caller = traffic.caller
    failure = f" ({caller.last_failure})" if caller.failed else ""
    return (
        f"{left:3.0f} s left: {rotations}; {caller.requests} requests, {caller.failed} failed{failure};"
        f" intruder {traffic.intrusions} attempts, {traffic.accepted} accepted"
    )


def _live(traffic: Traffic, seen: Mapping[str, Seen], end: float, kind: str) -> None:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), refresh_per_second=5, transient=False) as live:
        while time.monotonic() < end:
            live.update(_table(traffic, seen, end - time.monotonic(), kind))
            time.sleep(0.2)
        live.update(_table(traffic, seen, 0, kind))


def _table(traffic: Traffic, seen: Mapping[str, Seen], left: float, kind: str) -> Table:
    from rich.table import Table

    table = Table(
        title=f"{kind} and its client, {left:.0f} s left", caption=_caption(traffic), title_justify="left", caption_justify="left"
    )
    for column, justify in (("identity", "left"), ("certificate", "left"), ("age", "right"), ("rotations", "right"), ("requests", "right")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("failed", justify="right")
    for identity, one in seen.items():
        newest = one.certificates[-1][:16] if one.certificates else "-"
        age = f"{time.monotonic() - one.since:.0f} s" if one.certificates else "-"
        table.add_row(identity, newest, age, str(one.rotations), str(one.requests), str(one.failed))
    return table


def _caption(traffic: Traffic) -> str:
    return f"intruder with another CA's credentials: {traffic.intrusions} attempts, {traffic.accepted} accepted"
