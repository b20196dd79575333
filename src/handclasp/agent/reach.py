"""Reaching files in places that others can write to, such as a service's own directory, without being led elsewhere by them.

An agent that is root and goes by path does what the owner of a directory on the way wants: a link, a pipe or a renamed directory put there
makes it read, give away or remove something else. So a way is walked here part by part, each from the descriptor of the one before. Links
on it are followed only where they are root's or our own, as Linux does in sticky directories (``fs.protected_symlinks``, proc(5)).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LARGEST = 64 * 1024 * 1024
"""Bytes of a file that are read at most; CRLs are what may be large."""
_LINKS = 40  # as many as Linux follows (path_resolution(7))
_WAY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW  # as a path does, it needs no more than to search a directory
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW  # a pipe must not keep us waiting for somebody to write


@dataclass(frozen=True, slots=True)
class Reached:
    """What a way leads to. ``hands``: the users besides root and us who own a directory on it, and could put something else there."""

    descriptor: int
    hands: frozenset[int]

    def trusts(self, state: os.stat_result) -> bool:
        """Tell whether a file that was opened here may be taken for what it seems: no hand could have put another's file here.

        What a hand can put there is a second name (a hard link) of a file that he may not read (``fs.protected_hardlinks`` may be off).
        """
        known = state.st_uid in self.hands | {0, os.geteuid()}
        return stat.S_ISREG(state.st_mode) and (not self.hands or (known and state.st_nlink == 1))


@contextmanager
def directory(path: Path) -> Iterator[Reached]:
    """Hold a directory open. Raises ``OSError``, with ``ELOOP`` where a link of another user is on the way."""
    reached = _walk(path, last=_DIRECTORY)
    try:
        yield reached
    finally:
        os.close(reached.descriptor)


@contextmanager
def file(path: Path) -> Iterator[Reached]:
    """Hold a regular file open for reading. Raises ``OSError``, also for anything that is no regular file."""
    reached = _walk(path, last=_FILE)
    try:
        if not stat.S_ISREG(os.fstat(reached.descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield reached
    finally:
        os.close(reached.descriptor)


def read(path: Path, most: int = LARGEST) -> bytes:
    """Return a file's content. Raises ``OSError``; ``EFBIG`` for more than ``most`` bytes."""
    with file(path) as reached:
        return read_all(reached.descriptor, path, most)


def read_all(descriptor: int, path: Path, most: int = LARGEST) -> bytes:
    """Return what a descriptor gives, at most ``most`` bytes. Raises ``OSError``."""
    data = bytearray()
    while chunk := os.read(descriptor, min(1 << 20, most + 1 - len(data))):
        data += chunk
        if len(data) > most:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return bytes(data)


def _walk(path: Path, *, last: int) -> Reached:
    way = Path(os.path.abspath(path))  # noqa: PTH100  (not resolved: that would follow links)
    left, ours, links = list(reversed(way.parts[1:])), {0, os.geteuid()}, 0
    here, hands = os.open("/", _WAY if left else last), set[int]()
    try:
        while left:
            part = left.pop()
            state = os.stat(part, dir_fd=here, follow_symlinks=False)
            if stat.S_ISLNK(state.st_mode):
                links += 1
                if links > _LINKS or state.st_uid not in ours:
                    raise OSError(errno.ELOOP, f"a link of uid {state.st_uid} is on the way, which is not followed", str(path))
                target = Path(os.readlink(part, dir_fd=here))
                if target.is_absolute():
                    here = _instead(here, os.open("/", _WAY))
                left += reversed(target.parts[1:] if target.is_absolute() else target.parts)
                continue
            owner = os.fstat(here).st_uid
            if owner not in ours:
                hands.add(owner)
            here = _instead(here, os.open(part, _WAY if left else last, dir_fd=here))
        if last == _DIRECTORY and (owner := os.fstat(here).st_uid) not in ours:
            hands.add(owner)  # what will be looked for in it is his too
    except BaseException:
        os.close(here)
        raise
    return Reached(here, frozenset(hands))


def _instead(old: int, new: int) -> int:
    os.close(old)
    return new
