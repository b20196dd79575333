"""Transcripts: what a person types and everything that comes back, byte for byte, in text files beside the tests.

``$ `` begins a command as it is typed at a pipe, ``% `` the same at a terminal; its output follows: lines of stdout as they are, lines of
stderr after ``! ``, and ``= N`` when the exit code is not 0. ``#`` begins a comment, an empty line ends nothing. ``\\t`` stands for a tab.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Exchange:
    line: int
    typed: str
    at_terminal: bool
    stdout: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    code: int = 0

    @property
    def arguments(self) -> list[str]:
        program, *arguments = shlex.split(self.typed)
        assert program == "handclasp"
        return arguments

    def told(self) -> tuple[str, str, int]:
        return _text(self.stdout), _text(self.stderr), self.code


def read(path: Path) -> Iterator[Exchange]:
    """Yield the exchanges of a transcript."""
    current: Exchange | None = None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("#"):
            continue
        if line.startswith(("$ ", "% ")):
            if current is not None:
                yield current
            current = Exchange(number, line[2:], line[0] == "%")
            continue
        if current is None:
            continue
        line = line.replace("\\t", "\t")
        if line.startswith("! "):
            current.stderr.append(line[2:])
        elif line.startswith("= "):
            current.code = int(line[2:])
        elif line or current.stdout:
            current.stdout.append(line)
    if current is not None:
        yield current


def _text(lines: list[str]) -> str:
    while lines and not lines[-1]:
        lines = lines[:-1]
    return "".join(line + "\n" for line in lines)
