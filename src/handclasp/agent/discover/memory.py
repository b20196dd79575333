"""What earlier scans found, so that a file that has not changed is not read again, and how far the present one is.

One small file for each source. Of files with nothing in them eight bytes are kept, of the others the path and what was told of them.
Losing it costs one more reading of everything, and nothing else.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from bisect import bisect_left
from pathlib import Path

import msgspec

from handclasp.agent.generations import replace_file

MAX_KNOWN = 100_000
_VERSION = 1


class Known(msgspec.Struct, array_like=True):
    """A file that was told of: how it looked (:func:`mark`), and the digest of what was told."""

    mark: int
    digest: str
    scan: str
    """The scan that last came by it."""


class _Kept(msgspec.Struct, array_like=True):
    version: int
    asked: str
    scan: str
    place: bytes
    known: dict[bytes, Known]
    nothing: bytes
    fresh: bytes


def mark(path: str, state: os.stat_result) -> int:
    """Return eight bytes that differ for another file, and for the same file with another content, owner or mode."""
    facts = f"{state.st_dev} {state.st_ino} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {path}"
    return int.from_bytes(hashlib.blake2b(facts.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


class Memory:
    """For one source. ``asked`` stands for what was asked and how (settings, passwords): with another one everything is read anew."""

    def __init__(self, file: Path, asked: str, scan: str) -> None:
        self._file, self._asked, self._scan = file, asked, scan
        kept = _load(file)
        if kept is None or kept.asked != asked:
            kept = _Kept(_VERSION, asked, "", b"", {}, b"", b"")
        self._known = kept.known
        self._nothing = _array(kept.nothing)
        self._fresh: set[int] = set()
        self.place = ""
        if kept.scan == scan:  # it was interrupted
            self.place = os.fsdecode(kept.place)
            self._fresh = set(_array(kept.fresh))

    def has_nothing(self, mark_: int) -> bool:
        """Tell whether a file that looks like this had nothing in it."""
        at = bisect_left(self._nothing, mark_)
        return mark_ in self._fresh or (at < len(self._nothing) and self._nothing[at] == mark_)

    def note_nothing(self, mark_: int) -> None:
        """Remember that it has not."""
        self._fresh.add(mark_)

    def digest(self, path: str, mark_: int) -> str:
        """Return the digest of what was told of a file that still looks the same, or an empty string."""
        known = self._known.get(os.fsencode(path))
        if known is None or known.mark != mark_:
            return ""
        known.scan = self._scan
        return known.digest

    def note(self, path: str, mark_: int, digest: str) -> None:
        """Remember what was told of a file; call it when it is told for good."""
        if len(self._known) < MAX_KNOWN:
            self._known[os.fsencode(path)] = Known(mark_, digest, self._scan)

    def forget(self, path: str) -> None:
        """Have a file read again."""
        self._known.pop(os.fsencode(path), None)

    def save(self, place: str) -> None:
        """Keep everything, and that the scan is done up to ``place``. Raises ``OSError``."""
        self._write(self._scan, place, self._known, self._nothing, array("Q", sorted(self._fresh)))

    def finish(self, *, whole: bool) -> None:
        """Keep what this scan came by; what it did not is forgotten where it was whole. Raises ``OSError``."""
        known = {path: one for path, one in self._known.items() if one.scan == self._scan} if whole else self._known
        nothing = self._fresh if whole else self._fresh.union(self._nothing)
        self._write("", "", known, array("Q", sorted(nothing)), array("Q"))

    def _write(self, scan: str, place: str, known: dict[bytes, Known], nothing: array[int], fresh: array[int]) -> None:
        kept = _Kept(_VERSION, self._asked, scan, os.fsencode(place), known, nothing.tobytes(), fresh.tobytes())
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self._file, msgspec.msgpack.encode(kept))


def _load(file: Path) -> _Kept | None:
    try:
        kept = msgspec.msgpack.decode(file.read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError, UnicodeError):
        return None
    sound = kept.version == _VERSION and len(kept.nothing) % 8 == 0 and len(kept.fresh) % 8 == 0
    return kept if sound else None


def _array(data: bytes) -> array[int]:
    found: array[int] = array("Q")
    found.frombytes(data)
    return found
