"""The log's files (C2SP tlog-tiles): hash tiles, entry bundles and the checkpoint, in a directory that can be served and copied as it is.

``tile/<L>/<N>`` holds 256 hashes of level ``8 * L``, ``tile/entries/<N>`` 256 entries; ``<N>.p/<W>`` is the same while it has only ``W``.
A file never changes once it is there: it is written aside, synced, and renamed. Only ``checkpoint`` and ``cosigned`` are replaced.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault
from handclasp.log.entries import MAX_ENTRY
from handclasp.log.merkle import next_level, range_root

WIDTH = 256
"""Hashes in a full tile, entries in a full bundle."""
HASH = 32
ENTRIES = "entries"
"""Stands for the level in the paths of entry bundles."""
CHECKPOINT = "checkpoint"
COSIGNED = "cosigned"
"""The newest checkpoint that a witness cosigned; our own file beside the standard ones."""

MAX_BUNDLE = WIDTH * (2 + MAX_ENTRY)
_TILE = re.compile(r"tile/(entries|[0-9]|[1-5][0-9]|6[0-3])/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")

declare("log.file.written", "log.file.renamed")


def tile_path(level: int | str, index: int, width: int = WIDTH) -> str:
    """Return the path of a tile, or of an entry bundle when ``level`` is ENTRIES: 1234067 is ``x001/x234/067``."""
    parts = [f"{index % 1000:03d}"]
    while index >= 1000:
        index //= 1000
        parts.insert(0, f"x{index % 1000:03d}")
    return f"tile/{level}/{'/'.join(parts)}" + (f".p/{width}" if width < WIDTH else "")


def parse_tile_path(path: str) -> tuple[int | str, int, int]:
    """Return level (or ENTRIES), index and width of a path that :func:`tile_path` makes; raise ``not_found`` for any other text."""
    match = _TILE.fullmatch(path) if len(path) < 80 else None
    if match is not None:
        level = match[1] if match[1] == ENTRIES else int(match[1])
        index, width = int(match[2].replace("x", "").replace("/", "")), int(match[3] or WIDTH)
        if tile_path(level, index, width) == path:
            return level, index, width
    raise HandclaspError(Kind.NOT_FOUND, f"{path[:80]!r} is not a file of the log")


def encode_bundle(entries: Iterable[bytes]) -> bytes:
    """Return entries as a bundle: each after its length in two big-endian bytes."""
    return b"".join([len(entry).to_bytes(2) + entry for entry in entries])


def decode_bundle(data: bytes, width: int) -> list[bytes]:
    """Return the first ``width`` entries of a bundle; raise ``tampered`` when it ends inside one or before."""
    entries: list[bytes] = []
    start, size = 0, len(data)
    while len(entries) < width:
        end = start + 2 + int.from_bytes(data[start : start + 2])
        if start + 2 > size or end > size:
            raise HandclaspError(Kind.TAMPERED, f"an entry bundle ends in its entry {len(entries)} of {width}")
        entries.append(data[start + 2 : end])
        start = end
    return entries


def split_tile(data: bytes) -> list[bytes]:
    """Return the hashes of a tile."""
    return [data[at : at + HASH] for at in range(0, len(data), HASH)]


def tile_width(level: int, index: int, size: int) -> int:
    """Return how many hashes tile ``index`` at ``level`` has in a log of ``size`` entries: 0 to 256."""
    return max(0, min(WIDTH, (size >> 8 * level) - index * WIDTH))


class TileStorage:
    """The files under one directory. Any number of readers, in any process; one writer (see Sequencer)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._root = str(directory.absolute())
        self._aside = f"{self._root}/.aside"
        self._directories: set[str] = set()
        self._full_tile = lru_cache(maxsize=512)(self._read_full_tile)  # 4 MB: what proofs of one log mostly read

    # --- reading ---

    def read(self, path: str) -> bytes:
        """Return the file at ``checkpoint`` or at a tile's path, as it is to be served; raise ``not_found``, also for other paths.

        A partial tile that was removed because the full one is there is answered from that one.
        """
        if path == CHECKPOINT:
            return self._read(path)
        level, index, width = parse_tile_path(path)
        if level == ENTRIES:
            return self.read_raw(ENTRIES, index) if width == WIDTH else encode_bundle(self.read_bundle(index, width))
        return self.read_tile(int(level), index, width)

    def read_tile(self, level: int, index: int, width: int = WIDTH) -> bytes:
        """Return the first ``width`` hashes of a tile, from the partial file or the full one; raise ``not_found`` or ``tampered``."""
        if width == WIDTH:
            return self._full_tile(level, index)
        data = self.read_raw(level, index, width)
        if len(data) not in (width * HASH, WIDTH * HASH):
            raise HandclaspError(Kind.TAMPERED, f"{tile_path(level, index, width)} has {len(data)} bytes, not {width * HASH}")
        return data[: width * HASH]

    def read_bundle(self, index: int, width: int = WIDTH) -> list[bytes]:
        """Return the first ``width`` entries of a bundle, from the partial file or the full one; raise ``not_found`` or ``tampered``."""
        return decode_bundle(self.read_raw(ENTRIES, index, width), width)

    def read_note(self, name: str) -> str | None:
        """Return the note in ``checkpoint`` or ``cosigned``, None when there is none; raise ``tampered`` when it is no text."""
        try:
            return (self.directory / name).read_text("utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise HandclaspError(Kind.TAMPERED, f"the log's {name} is not text") from error

    def has_tiles(self) -> bool:
        """Whether any tile was ever written here."""
        return (self.directory / "tile").exists()

    def _read_full_tile(self, level: int, index: int) -> bytes:
        data = self._read(tile_path(level, index))
        if len(data) != WIDTH * HASH:
            raise HandclaspError(Kind.TAMPERED, f"{tile_path(level, index)} has {len(data)} bytes, not {WIDTH * HASH}")
        return data

    def read_raw(self, level: int | str, index: int, width: int = WIDTH) -> bytes:
        """Return the file of a tile or bundle of ``width``, or where that is missing the full one, unchecked; raise ``not_found``."""
        try:
            return self._read(tile_path(level, index, width))
        except HandclaspError:
            if width == WIDTH:
                raise
            return self._read(tile_path(level, index))

    def _read(self, path: str) -> bytes:
        try:
            with (self.directory / path).open("rb") as file:
                return file.read(MAX_BUNDLE)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise HandclaspError(Kind.NOT_FOUND, f"the log has no {path}") from error

    # --- writing ---

    def prepare(self) -> None:
        """Make the directory and clear away what a killed writer left half-written."""
        aside = self.directory / ".aside"
        aside.mkdir(parents=True, exist_ok=True)
        for left in aside.iterdir():
            if left.name != COSIGNED:  # which another process may be writing
                left.unlink()

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files, all durable on return. Raises OSError; then any of them may be there, each of them whole.

        Each file is synced before its rename, and each directory once at the end, however many files went into it.
        """
        touched: dict[str, None] = {}
        try:
            self._make_directory(self._aside, touched)
            for path, data in files.items():
                target = f"{self._root}/{path}"
                directory = target.rpartition("/")[0]
                self._make_directory(directory, touched)
                aside = f"{self._aside}/{path.replace('/', '_')}"
                _write_synced(aside, data)
                fault("log.file.written")
                os.rename(aside, target)  # noqa: PTH104  (pathlib doubles the cost of a step)
                touched[directory] = None
                fault("log.file.renamed")
            for directory in touched:
                _sync_directory(directory)
        except OSError:
            self._directories.clear()  # some may not be durable
            raise

    def remove_partials(self, paths: Iterable[str]) -> None:
        """Remove the partial files of these full tiles, which must be durable (C2SP tlog-tiles, "Partial Tiles")."""
        for path in paths:
            directory = f"{self._root}/{path}.p"
            if os.path.isdir(directory):  # noqa: PTH112
                shutil.rmtree(directory, ignore_errors=True)
                self._directories.discard(directory)

    def clear_aside(self) -> None:
        """Remove the directory that files are written aside in, when nothing is in it: a finished copy holds the log's files alone."""
        self._directories.discard(self._aside)
        with contextlib.suppress(OSError):
            os.rmdir(self._aside)  # noqa: PTH106

    def _make_directory(self, directory: str, touched: dict[str, None]) -> None:
        """Make a directory, and have its name synced once in this process, whoever made it: a killed writer may not have come to that."""
        if directory in self._directories:
            return
        parent = directory.rpartition("/")[0]
        if directory != self._root:
            self._make_directory(parent, touched)
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory)  # noqa: PTH102
        touched[parent or "/"] = None
        self._directories.add(directory)


def _write_synced(path: str, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_directory(directory: str) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class HashReader:
    """Reads the hash of any node of a log of ``size`` entries from its tiles; it is a ``merkle.ReadHash``."""

    def __init__(self, storage: TileStorage, size: int) -> None:
        self._storage = storage
        self._size = size

    def __call__(self, level: int, index: int) -> bytes:
        """Return the hash of a complete node; raise ``not_found`` when a tile is missing, ``tampered`` when it has the wrong length."""
        row, up = divmod(level, 8)
        first = index << up  # the node's leftmost hash in the tiles' row
        tile, offset = divmod(first, WIDTH)
        width = tile_width(row, tile, self._size)
        data = self._storage.read_tile(row, tile, width) if width else b""
        hashes = split_tile(data[offset * HASH : (offset + (1 << up)) * HASH])
        if len(hashes) != 1 << up:
            raise HandclaspError(Kind.NOT_FOUND, f"a log of {self._size} entries has no node {index} at level {level}")
        while len(hashes) > 1:
            hashes = next_level(hashes)
        return hashes[0]

    def root(self, size: int | None = None) -> bytes:
        """Return the root of the log, or of its first ``size`` entries."""
        return range_root(0, self._size if size is None else size, self)


def edge_widths(size: int) -> Sequence[int]:
    """Return, for each level of tiles, how many hashes its last tile has while it is partial (0 when the row ends with a full one)."""
    return [(size >> 8 * level) % WIDTH for level in range((size.bit_length() + 7) // 8)]
