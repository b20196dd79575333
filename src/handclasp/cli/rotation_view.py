"""What is seen while a rotation goes on: a bar with rates and counts on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from handclasp.cli import terminal
from handclasp.clock import parse_rfc3339

if TYPE_CHECKING:
    from handclasp.wire import Rotation, RotationPending

LINE_EVERY = 10_000
"""Milliseconds between lines where nobody sees a live view."""
RATE_OVER = 30_000
"""Milliseconds that the rate is taken over."""
NAMED = 8
"""Certificates that the live view names."""


class View:
    """Lines, for logs and pipes; :class:`LiveView` draws."""

    def __init__(self, found: Rotation) -> None:
        self._seen: deque[tuple[int, int]] = deque([(terminal.clock(), found.replaced)])
        self._said_at = 0

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, found: Rotation, problem: str = "") -> None:
        """Take note of how it stands, and say so when it is time; ``problem`` is why it could not be asked."""
        self._note(found)
        if terminal.clock() - self._said_at >= LINE_EVERY or found.state != "running":
            self._said_at = terminal.clock()
            terminal.say(self.line(found, problem))

    def _note(self, found: Rotation) -> None:
        now = terminal.clock()
        self._seen.append((now, found.replaced))
        while len(self._seen) > 2 and now - self._seen[0][0] > RATE_OVER:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Certificates replaced in a second, of late."""
        (then, before), (now, after) = self._seen[0], self._seen[-1]
        return (after - before) * 1000 / (now - then) if now > then else 0.0

    def line(self, found: Rotation, problem: str) -> str:
        """Return how it stands, in a line."""
        waiting = found.total - found.replaced - found.gone
        counts = f"{found.replaced} of {found.total} replaced, {waiting - found.late} waiting, {found.late} late, {found.gone} gone"
        return f"{counts}; {self.rate:.1f} a second; {remaining(found)}" + (f"; {problem}" if problem else "")


class LiveView(View):
    """A bar, drawn over and over on stderr."""

    def __init__(self, found: Rotation) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(found)
        console = Console(file=sys.stderr, force_terminal=True, highlight=False, emoji=False, no_color=not terminal.has_colour(sys.stderr))
        self._live = Live(self._draw(found, ""), console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> View:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, found: Rotation, problem: str = "") -> None:
        """Draw how it stands."""
        self._note(found)
        self._live.update(self._draw(found, problem), refresh=True)

    def _draw(self, found: Rotation, problem: str) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        done = found.replaced + found.gone
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(terminal.visible(found.what), style="bold"),
            ProgressBar(total=max(1, found.total), completed=done, width=40),
            Text(f"{done} of {found.total}"),
            Text(remaining(found)),
        )
        counts = Text.assemble(
            (f"{found.replaced} replaced", "green"),
            f"   {found.total - done - found.late} waiting   ",
            (f"{found.late} late", "red" if found.late else ""),
            f"   {found.gone} gone   {self.rate:.1f} a second",
        )
        parts: list[Any] = [head, counts]
        if problem:
            parts.append(Text(terminal.visible(problem), style="yellow"))
        if done * 10 >= found.total * 9 or terminal.clock() >= parse_rfc3339(found.ends_at):
            parts.append(_waiting(found.pending[:NAMED]))  # who is waited for is worth reading when few are left, or it is late
        return Group(*parts)


def make_view(found: Rotation, drawn: bool) -> View:
    """Return what shows a rotation: drawn where a person looks, lines elsewhere."""
    return LiveView(found) if drawn else View(found)


def remaining(found: Rotation) -> str:
    """Return in words where in its time a rotation is."""
    now = terminal.clock()
    begins, ends = parse_rfc3339(found.begins_at), parse_rfc3339(found.ends_at)
    if now < begins:
        return f"begins in {terminal.span((begins - now) / 1000)}"
    if now < ends:
        return f"{terminal.span((ends - now) / 1000)} left"
    return "its time is over, still waiting" if found.state == "running" else "its time is over"


def _waiting(pending: Sequence[RotationPending]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for one in pending:
        contact = f"last contact {terminal.relative(one.agent_last_contact)}" if one.agent_last_contact else ""
        table.add_row(Text("  " + terminal.visible(one.identity)), Text(terminal.visible(one.agent or "no agent")), Text(contact))
    return table
