"""Every rule of what this program writes to a terminal or a pipe. No other module of the command line prints.

1.  Data goes to stdout, words go to stderr. ``handclasp … > file`` never loses a sentence and never writes one into the file.
2.  With ``--json``, stdout holds exactly one JSON value, with the keys of :mod:`handclasp.wire`: on one line when piped, indented on a
    terminal. An error is then a JSON problem on stdout as well.
3.  A list is a drawn table with a header on a terminal, without the columns that nothing is in; piped it is one line per row,
    tab-separated, every column, without header, nothing shortened, times as RFC 3339. ``cut`` and ``sort`` need no options to read it.
4.  Times are said relative to now on a terminal ("in 40 minutes"), and as RFC 3339 everywhere else.
5.  Errors are ``error: sentence (kind)`` and, where something can be done, ``hint: …``. Warnings start with ``warning:``.
6.  Colour only on a terminal, never with ``NO_COLOR`` or ``TERM=dumb``, and never as the only carrier of a meaning.
7.  Names from outside (certificate subjects, server answers, file names) may hold escape sequences: control and direction characters are
    shown as ``\\x1b`` and never sent to a terminal (CVE-2003-0063 and its many children).
8.  A secret is printed once, alone on stdout, and only by the command that was asked to make it.
9.  Progress is drawn on stderr, only when it is a terminal, and leaves nothing behind.
10. Nothing is asked interactively: what is missing is an error that names the option. Two commands ask whether they are meant, on a
    terminal and without ``--yes``: one replaces certificates, one forgets a source.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from handclasp.clock import Clock, system_clock

clock: Clock = system_clock
"""What "now" is for everything the command line shows; tests set it."""

_STYLES = {"red": "31", "yellow": "33", "green": "32", "bold": "1", "dim": "2"}
_READABLE = 12
"""The longest word that is not broken in a column while others can be."""
_WORD_OF_KIND = {"ok": "green", "warn": "yellow", "fail": "red"}

Cell = str | int | float | bool | None | Sequence[str]
"""One value in a table or field list; a sequence of strings is joined with commas."""


class When(str):
    """An RFC 3339 time that people see relative to now."""

    __slots__ = ()


def out() -> TextIO:
    """Return the stream that data goes to."""
    return sys.stdout


def is_terminal(stream: TextIO) -> bool:
    """Tell whether ``stream`` is a terminal that a person reads."""
    try:
        return stream.isatty()
    except ValueError:  # already closed
        return False


def has_colour(stream: TextIO) -> bool:
    """Tell whether colour may be used on ``stream`` (rule 6; see no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, style: str, stream: TextIO) -> str:
    """Return ``text`` in a style of ``red yellow green bold dim`` where ``stream`` takes colour, else unchanged."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if has_colour(stream) else text


def visible(text: str, *, keep: str = "") -> str:
    """Return ``text`` with every control, direction and line-separator character written out (rule 7), except those in ``keep``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or _harmless(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def _harmless(character: str) -> bool:
    return character.isprintable() and not "\u202a" <= character <= "\u202e" and not "\u2066" <= character <= "\u2069"


# --- data, to stdout --------------------------------------------------------------------------------------------------------------------


def write(data: str | bytes) -> None:
    """Write data as it is to stdout. Text gets a final newline when it has none."""
    if isinstance(data, bytes):
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    sys.stdout.write(data if data.endswith("\n") or not data else data + "\n")
    sys.stdout.flush()


def write_text(text: str) -> None:
    """Write a text document: as it is when piped, made safe to look at on a terminal (rule 7)."""
    write(visible(text, keep="\n\t") if is_terminal(sys.stdout) else text)


def write_json(value: Any) -> None:
    """Write one JSON value (rule 2): a wire struct, or plain lists, mappings and scalars."""
    import json

    if hasattr(value, "__struct_fields__") or (isinstance(value, list) and value and hasattr(value[0], "__struct_fields__")):
        import msgspec

        value = msgspec.to_builtins(value)
    # ASCII only: what a name from outside could do to a terminal it cannot do here either.
    write(json.dumps(value, indent=2 if is_terminal(sys.stdout) else None, ensure_ascii=True))


def write_table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, empty: str = "") -> None:
    """Write rows (rule 3). ``empty`` is said on stderr when there are none and a person is looking."""
    if not is_terminal(sys.stdout):
        for row in rows:
            write("\t".join(plain(cell) for cell in row))
        return
    lines = [[shown(cell) for cell in row] for row in rows]
    if not lines:
        say(empty or "nothing to show")
        return
    _draw(columns, lines)


def _draw(columns: Sequence[str], lines: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    told = [place for place in range(len(columns)) if not place or any(line[place] for line in lines)]
    console = Console(file=sys.stdout, highlight=False, emoji=False, no_color=not has_colour(sys.stdout))
    cells = [[columns[place], *(line[place] for line in lines)] for place in told]
    for place, width in zip(told, _widths(cells, console.width), strict=True):
        table.add_column(columns[place].upper(), overflow="fold", width=width)
    for line in lines:
        table.add_row(*(Text(line[place], style=_WORD_OF_KIND.get(line[place], "")) for place in told))
    console.print(table)


def _widths(columns: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return how wide each column is. Where a terminal is too narrow for all, long names give way first, and words are broken last."""
    from rich.cells import cell_len

    room = max(width - 2 * (len(columns) - 1), len(columns))
    wanted = [max(map(cell_len, cells)) for cells in columns]
    least = [min(_READABLE, max(cell_len(word) for cell in cells for word in cell.split() or [""])) for cells in columns]
    while sum(least) > room:
        least[least.index(max(least))] -= 1
    while sum(wanted) > room:
        _, place = max((one, place) for place, one in enumerate(wanted) if one > least[place])
        wanted[place] -= 1
    return wanted


def write_fields(fields: Sequence[tuple[str, Cell]]) -> None:
    """Write one thing as ``name value`` lines: aligned on a terminal, tab-separated when piped. Empty fields are left out on a terminal."""
    if not is_terminal(sys.stdout):
        for name, cell in fields:
            write(f"{name}\t{plain(cell)}")
        return
    told = [
        (name, with_relative(cell) if isinstance(cell, When) else shown(cell)) for name, cell in fields if cell not in (None, "", [], ())
    ]
    width = max((len(name) for name, _ in told), default=0)
    for name, text in told:
        write(f"{styled(name.ljust(width), 'dim', sys.stdout)}  {text}")


def write_verdict(verdict: str, subject: str, text: str, *, width: int = 12) -> None:
    """Write one checked thing: ``ok``, ``warn`` or ``fail``, what was looked at, and what was found or is to be done.

    ``width`` is that of the longest subject that comes.
    """
    if not is_terminal(sys.stdout):
        write("\t".join((verdict, visible(subject), visible(text))))
        return
    write(f"{styled(verdict.ljust(4), _WORD_OF_KIND[verdict], sys.stdout)}  {visible(subject).ljust(width)}  {visible(text)}")


def plain(cell: Cell) -> str:
    """Return a cell as programs read it: one line, no tabs, times untouched, nothing for None, ``yes`` or ``no`` for truth values."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, str):
        return visible(cell)
    if isinstance(cell, int | float):
        return str(cell)
    return ",".join(visible(part) for part in cell)


def as_cell(value: Any) -> Cell:
    """Return a value of a JSON document as a cell: texts and lists of texts as they are, what is deeper as JSON."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    import json

    return json.dumps(value)


def shown(cell: Cell) -> str:
    """Return a cell as people read it: relative times, lists with spaces."""
    if isinstance(cell, When):
        return relative(cell)
    if isinstance(cell, Sequence) and not isinstance(cell, str):
        return ", ".join(visible(part) for part in cell)
    return plain(cell)


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number with its word: ``1 owner``, ``2 owners``."""
    return f"{number} {one if number == 1 else several or one + 's'}"


# --- times ------------------------------------------------------------------------------------------------------------------------------

_SPANS = ((86_400 * 365.25, "year"), (86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def relative(text: str) -> str:
    """Return an RFC 3339 time as ``in 40 minutes`` or ``3 days ago``; text that is no time comes back as it is."""
    from handclasp.clock import parse_rfc3339
    from handclasp.errors import HandclaspError

    if not text:
        return ""
    try:
        distance = (parse_rfc3339(text) - clock()) / 1000
    except HandclaspError:
        return visible(text)
    words = span(abs(distance))
    if words == "0 seconds":
        return "now"
    return f"in {words}" if distance > 0 else f"{words} ago"


def span(seconds: float) -> str:
    """Return a duration in its largest unit, rounded down: ``40 minutes``; two of a unit are needed before it is used above minutes."""
    for size, name in _SPANS:
        count = int(seconds // size)
        if count >= 2 or (count == 1 and size <= 60):
            return f"{count} {name}" + ("s" if count != 1 else "")
    return "0 seconds"


def with_relative(text: str) -> str:
    """Return ``2026-01-01T00:00:00Z (in 40 minutes)`` for people, the bare time for programs."""
    words = relative(text)
    return f"{text} ({words})" if is_terminal(sys.stdout) and words != text else text


# --- words, to stderr -------------------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Say something to the person at the terminal."""
    _words(visible(text, keep="\n"))


def warn(text: str) -> None:
    """Say something that is wrong but does not stop the command."""
    _words(f"{styled('warning:', 'yellow', sys.stderr)} {visible(text, keep=chr(10))}")


def hint(text: str) -> None:
    """Say what to do next."""
    _words(f"{styled('hint:', 'bold', sys.stderr)} {visible(text, keep=chr(10))}")


def error(sentence: str, kind: str, what_to_do: str = "") -> None:
    """Say why the command was refused or failed (rule 5)."""
    first, *rest = visible(sentence, keep="\n").split("\n")
    # The kind belongs to the first line: a policy with nine mistakes lists them below it.
    _words("\n".join([f"{styled('error:', 'red', sys.stderr)} {first} ({kind})", *(f"  {line}" for line in rest)]))
    if what_to_do:
        hint(what_to_do)


def _words(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def start_logging(level: str) -> None:
    """Let a program that runs on say what it does, one line an event on stderr, with the time where no journal adds it."""
    import logging

    class Visible(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return visible(super().format(record), keep="\n")

    handler = logging.StreamHandler(sys.stderr)
    when = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    handler.setFormatter(Visible(f"{when}%(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())


class Progress:
    """Counts long work on stderr (rule 9); does nothing where no person is looking."""

    def __init__(self, label: str, total: int | None) -> None:
        self._label, self._total, self._done = label, total, 0
        self._drawn = is_terminal(sys.stderr)

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more as done."""
        self._done += count
        if self._drawn:
            of = f" of {self._total}" if self._total is not None else ""
            sys.stderr.write(f"\r\x1b[2K{self._label} {self._done}{of}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Take the progress line off the terminal."""
        if self._drawn and self._done:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Progress]:
    """Show how far long work has come while the block runs."""
    shown_progress = Progress(label, total)
    try:
        yield shown_progress
    finally:
        shown_progress.clear()
