"""Walks directories: in a fixed order, never through a link to elsewhere, from descriptors, so that nobody leads us astray meanwhile."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from handclasp.agent import reach
from handclasp.agent.discover.exchange import gone_through
from handclasp.agent.discover.rules import Rules

_MOST_ENTRIES = 200_000  # of one directory: a mail spool or a cache is no place for certificates
_WAY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class File:
    """A regular file. ``directory`` is a descriptor that is open until the walk goes on."""

    path: str
    name: str
    directory: int
    state: os.stat_result


@dataclass(frozen=True, slots=True)
class Closed:
    """A directory, or a file's state, that cannot be read."""

    path: str
    problem: str


Step = File | Closed


class Walk:
    """One root. ``after`` is the path of the last file that was dealt with before an interruption: what comes before it is passed over."""

    def __init__(self, root: str, rules: Rules, *, depth: int, after: str = "", stop: Callable[[], bool] = lambda: False) -> None:
        self._root, self._rules, self._depth, self._stop = root, rules, depth, stop
        self._after = after.split("/") if after else []

    def __iter__(self) -> Iterator[Step]:
        """Yield files and what cannot be read, each directory's entries by name, depth first. A root that is not there yields nothing."""
        path = Path(self._root)
        try:
            state = path.lstat()
            if not stat.S_ISDIR(state.st_mode) and not stat.S_ISLNK(state.st_mode):
                yield from self._alone(path)
                return
            with reach.directory(path) as reached:
                yield from self._directory(self._root, reached.descriptor, 0)
        except FileNotFoundError:
            return
        except NotADirectoryError:
            yield from self._alone(path)
        except OSError as error:
            yield Closed(self._root, error.strerror or str(error))

    def _alone(self, path: Path) -> Iterator[Step]:
        try:
            with reach.directory(path.parent) as reached:
                state = os.stat(path.name, dir_fd=reached.descriptor, follow_symlinks=False)
                if stat.S_ISREG(state.st_mode):
                    yield File(str(path), path.name, reached.descriptor, state)
        except FileNotFoundError:
            return
        except OSError as error:
            yield Closed(str(path), error.strerror or str(error))

    def _directory(self, path: str, descriptor: int, depth: int) -> Iterator[Step]:
        try:
            entries = self._entries(descriptor)
        except OSError as error:
            yield Closed(path, error.strerror or str(error))
            return
        for name, way in entries:
            if self._stop():
                return
            below = path.rstrip("/") + "/" + name
            if self._is_behind(below) or self._rules.skips(below, name, self._root):
                continue
            try:
                opened = _open(way, descriptor) if way else None
                state = os.stat(name, dir_fd=descriptor, follow_symlinks=False) if opened is None else None
            except FileNotFoundError:
                continue
            except OSError as error:
                yield Closed(below, error.strerror or str(error))
                continue
            if opened is None:
                if state is not None and stat.S_ISREG(state.st_mode):
                    yield File(below, name, descriptor, state)
                continue
            try:
                if depth < self._depth:
                    yield from self._directory(below, opened, depth + 1)
            finally:
                os.close(opened)

    def _entries(self, descriptor: int) -> list[tuple[str, str]]:
        """Return (name, way) of what is in a directory; the way is empty for what is no directory.

        A directory that a link beside it goes through is walked by the link's name and nothing else of it is, because where such sets of
        files lie is another place each time (:mod:`handclasp.agent.discover.exchange`).
        """
        files: list[str] = []
        ways: dict[str, str] = {}
        links: list[str] = []
        with os.scandir(descriptor) as found:
            for count, entry in enumerate(found):
                if count >= _MOST_ENTRIES:
                    raise OSError(0, f"it has more than {_MOST_ENTRIES} entries")
                if entry.is_symlink():
                    links.append(entry.name)
                elif entry.is_dir(follow_symlinks=False):
                    ways[entry.name] = entry.name
                else:
                    files.append(entry.name)
        exchanged = gone_through(links, ways.keys(), descriptor)
        ways |= exchanged.values()
        for name in exchanged:
            ways.pop(name, None)
        return sorted([*((name, "") for name in files), *ways.items()])

    def _is_behind(self, path: str) -> bool:
        """Tell whether all of ``path`` was dealt with before the interruption."""
        if not self._after:
            return False
        parts = path.split("/")
        if parts > self._after:
            self._after = []
            return False
        return parts != self._after[: len(parts)] or len(parts) == len(self._after)


def _open(way: str, descriptor: int) -> int:
    """Open a directory below another, part by part, through no link. Raises ``OSError``."""
    here = descriptor
    for part in way.split("/"):
        try:
            there = os.open(part, _WAY, dir_fd=here)
        finally:
            if here != descriptor:
                os.close(here)
        here = there
    return here
