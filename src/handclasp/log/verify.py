"""The offline verifier: reads a copy of a log's files, trusts nothing in it but the signatures, and names the entries that are wrong.

To copy a log that is being written, copy ``checkpoint`` first: what the log writes later never takes anything away from it.

How it finds the entry: each entry's hash is in a tile, the tile's root is in the tile above, and the root of all is signed. Whoever changes
an entry has to change all of these and cannot change the last; the verifier names the place where old and new meet. If everything was
written anew up to the root, checkpoints kept elsewhere say between which two of them the first wrong entry lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from handclasp.errors import HandclaspError, Kind
from handclasp.log.checkpoint import Checkpoint, SignedCheckpoint, open_checkpoint
from handclasp.log.merkle import EMPTY_ROOT, CompactTree, root_of
from handclasp.log.notes import VerifierKey
from handclasp.log.proofs import Proven, verify_proof
from handclasp.log.tiles import CHECKPOINT, COSIGNED, ENTRIES, WIDTH, TileStorage, split_tile, tile_path, tile_width

__all__ = ["Problem", "Proven", "Report", "verify_directory", "verify_proof"]

MAX_PROBLEMS = 1000


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. ``str`` gives a sentence that names the entry."""

    first: int | None
    """The index of the entry, or of the first that it may be; None when it is not about an entry."""
    last: int | None
    detail: str
    intact: bool = False
    """The entries themselves are those that were signed; only the files that prove it are damaged."""

    def __str__(self) -> str:
        if self.first is None:
            return self.detail
        return f"entry {self.first}: {self.detail}" if self.last == self.first else f"entries {self.first} to {self.last}: {self.detail}"


@dataclass(slots=True)
class Report:
    """What the verifier found."""

    origin: str = ""
    entries: int = 0
    """Entries that the directory's checkpoint speaks for."""
    root: bytes = b""
    witnesses: dict[str, int] = field(default_factory=dict)
    """By witness name, the largest size among the given and found checkpoints that it cosigned."""
    problems: list[Problem] = field(default_factory=list)
    """In the order of the log; at most 1,000."""

    @property
    def ok(self) -> bool:
        """Whether every entry is there and is the one that was signed."""
        return not self.problems


def verify_directory(
    path: Path,
    vkeys: Iterable[VerifierKey],
    *,
    witnesses: Iterable[VerifierKey] = (),
    kept: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Verify a log's directory with its keys, and against checkpoints ``kept`` elsewhere (notes of any age). Nothing is written.

    ``progress(done, entries)`` is called once in about 65,000 entries. Whatever is wrong with the directory is in the report; raises
    ``verify_failed`` for a kept checkpoint that the log did not sign, OSError when a file cannot be read.
    """
    keys, known = tuple(vkeys), tuple(witnesses)
    elsewhere = [open_checkpoint(note, keys, known) for note in kept]
    report = Report()
    storage = TileStorage(path)
    newest = _read_checkpoint(storage, CHECKPOINT, keys, known, report)
    cosigned = _read_checkpoint(storage, COSIGNED, keys, known, report)
    anchors = [signed for signed in (newest, cosigned, *elsewhere) if signed is not None]
    for signed in anchors:
        for witness in signed.witnesses:
            report.witnesses[witness.name] = max(signed.checkpoint.size, report.witnesses.get(witness.name, 0))
    if newest is None:
        return report
    report.origin, report.entries, report.root = newest.checkpoint.origin, newest.checkpoint.size, newest.checkpoint.root
    foreign = {signed.checkpoint.origin for signed in anchors} - {report.origin}
    if foreign:
        raise HandclaspError(Kind.VERIFY_FAILED, f"the kept checkpoint is of another log: {', '.join(sorted(foreign))}")
    _Walk(storage, report, [signed.checkpoint for signed in anchors]).run(progress)
    return report


def _read_checkpoint(
    storage: TileStorage, name: str, keys: tuple[VerifierKey, ...], witnesses: tuple[VerifierKey, ...], report: Report
) -> SignedCheckpoint | None:
    try:
        note = storage.read_note(name)
        if note is not None:
            return open_checkpoint(note, keys, witnesses)
        if name == CHECKPOINT:
            report.problems.append(Problem(None, None, "the directory has no checkpoint, so nothing says what should be in it"))
    except HandclaspError as error:
        report.problems.append(Problem(None, None, f"the file {name} is not what the log signed: {error.detail}"))
    return None


_MISSING = "missing from the log"
_NO_HASH = "the tile with its hash is missing or cut short"


class _Walk:
    """One pass over the files, in blocks of up to 256 entries that share a tile.

    It grows two trees over the blocks' roots: ``found`` from the entries, ``stored`` from what the tiles above say of them.
    """

    def __init__(self, storage: TileStorage, report: Report, anchors: Sequence[Checkpoint]) -> None:
        self._storage = storage
        self._report = report
        self._size = report.entries
        self._anchors = sorted(set(anchors), key=lambda anchor: anchor.size)
        self._found = CompactTree()
        self._stored = CompactTree()
        self._parents: list[bytes] = []
        """The hashes of the present tile at level 1."""
        self._doubts: list[tuple[int, int]] = []
        """Ranges of entries where a level of the tree does not fit the one above; which of the two is right, the root tells at the end."""
        self._good: list[int] = []
        """The sizes of the signed trees that were met."""
        self._bad: tuple[int, int] | None = None
        """The entries between the last signed tree that was met and the first that was not."""
        self._found_fits = self._size == 0

    def run(self, progress: Callable[[int, int], None] | None) -> None:
        for anchor in self._anchors:
            if anchor.size > self._size:
                detail = f"the log was truncated: a checkpoint signed {anchor.size} entries, the directory's only {self._size}"
                self._report.problems.append(Problem(self._size, anchor.size - 1, detail))
            elif anchor.size == 0 and anchor.root != EMPTY_ROOT:
                self._report.problems.append(Problem(None, None, "the checkpoint of the empty log has a wrong root"))
        for index in range((self._size + WIDTH - 1) // WIDTH):
            self._visit(index, min(WIDTH, self._size - index * WIDTH))
            if progress is not None and index % WIDTH == 0:
                progress(index * WIDTH, self._size)
        self._judge()
        self._check_superseded()
        self._report.problems.sort(key=lambda problem: -1 if problem.first is None else problem.first)
        del self._report.problems[MAX_PROBLEMS:]

    # --- one block ---

    def _visit(self, index: int, width: int) -> None:
        start = index * WIDTH
        tile = self._read_tile(0, index)
        entries = self._read_bundle(index, width)
        if tile is None:
            self._problem(start, start + width - 1, _NO_HASH, intact=entries is not None)
        if entries is None:
            self._problem(start, start + width - 1, _MISSING)
        parent = self._parent(index) if width == WIDTH else None
        options = [hashes for hashes in (tile, entries) if hashes is not None and len(hashes) == width]
        if parent is not None:  # the one that fits the level above goes first
            options.sort(key=lambda hashes: root_of(hashes) != parent)
        if tile == entries:
            del options[1:]
        right = self._check_anchors(start, width, options, parent)
        if tile is not None and entries is not None and tile != entries:
            self._blame(start, tile, entries, tile_is_right=right is not entries)
        if width == WIDTH:
            self._grow(start, root_of(options[0]) if options else None, parent)

    def _check_anchors(self, start: int, width: int, options: list[list[bytes]], parent: bytes | None) -> list[bytes] | None:
        """Compare with every signed tree that ends in this block; return the hashes to believe."""
        right = options[0] if options else None
        for anchor in self._anchors:
            count = anchor.size - start
            if not 0 < count <= width:
                continue
            fitting = [hashes for hashes in options if self._found.root(root_of(hashes[:count])) == anchor.root]
            if fitting and parent is None:
                right = fitting[0]
            by_tiles = [parent] if parent and count == WIDTH else [root_of(hashes[:count]) for hashes in options]
            if fitting or any(self._stored.root(node) == anchor.root for node in by_tiles):
                self._good.append(anchor.size)
            elif self._bad is None:
                self._bad = (max((size for size in self._good if size < anchor.size), default=0), anchor.size - 1)
            self._found_fits |= bool(fitting) and anchor.size == self._size
        return right

    def _blame(self, start: int, tile: list[bytes], entries: list[bytes], *, tile_is_right: bool) -> None:
        if tile_is_right:
            for first, last, detail in name_differences(entries, tile):
                self._problem(start + first, start + last, detail)
            return
        for at, (one, other) in enumerate(zip(tile, entries, strict=True), start):
            if one != other:
                self._problem(at, at, "its hash in the tile was changed; the entry itself is what was signed", intact=True)

    def _grow(self, start: int, root: bytes | None, parent: bytes | None) -> None:
        """Take a full block into both trees, and compare the tiles at level 2 and above when one of their hashes is complete."""
        if parent is not None and root is not None and root != parent:
            self._doubts.append((start, start + WIDTH - 1))
        self._found.extend([root or parent or EMPTY_ROOT])
        made = self._stored.extend([parent or root or EMPTY_ROOT])
        for level in range(8, len(made), 8):
            row, index = 1 + level // 8, (self._stored.size >> level) - 1
            hashes = self._read_tile(row, index // WIDTH)
            end = (index + 1) << 8 * row
            if hashes is None:
                self._problem(end - (1 << 8 * row), end - 1, _NO_HASH, intact=True)
            elif hashes[index % WIDTH] != made[level][0]:
                self._doubts.append((end - (1 << 8 * row), end - 1))

    # --- the files ---

    def _read_tile(self, row: int, index: int) -> list[bytes] | None:
        try:
            return split_tile(self._storage.read_tile(row, index, tile_width(row, index, self._size)))
        except HandclaspError:
            return None

    def _parent(self, index: int) -> bytes | None:
        if index % WIDTH == 0:
            self._parents = self._read_tile(1, index // WIDTH) or []
        if self._parents:
            return self._parents[index % WIDTH]
        self._problem(index * WIDTH, index * WIDTH + WIDTH - 1, _NO_HASH, intact=True)
        return None

    def _read_bundle(self, index: int, width: int) -> list[bytes] | None:
        try:
            data = self._storage.read_raw(ENTRIES, index, width)
        except HandclaspError:
            return None
        return _entry_hashes(data, width)

    def _check_superseded(self) -> None:
        """Compare the partial files of earlier steps, which are served until the full one is there, with the newest of their tile."""
        for row in (ENTRIES, *range((self._size.bit_length() + 7) // 8)):
            level = 0 if row == ENTRIES else int(row)
            index, width = self._size >> 8 * (level + 1), (self._size >> 8 * level) % WIDTH
            if not width:
                continue
            newest = self._hashes(row, index, width)
            directory = (self._storage.directory / tile_path(row, index, width)).parent
            older = sorted(int(file.name) for file in directory.glob("*") if file.name.isdecimal()) if newest is not None else []
            for count in older:
                if newest is not None and 0 < count < width and (found := self._hashes(row, index, count)) != newest[:count]:
                    at = name_differences(found or [], newest[:count])[0][0]
                    first = (index * WIDTH + at) << 8 * level
                    last = first + (1 << 8 * level) - 1
                    if not self._overlaps(first, last):  # else it is the newest one that is wrong, or was written anew
                        self._problem(first, last, "a superseded partial file holds something else in its place", intact=True)

    def _hashes(self, row: int | str, index: int, width: int) -> list[bytes] | None:
        if row == ENTRIES:
            return self._read_bundle(index, width)
        try:
            return split_tile(self._storage.read_tile(int(row), index, width))
        except HandclaspError:
            return None

    # --- the judgement ---

    def _judge(self) -> None:
        for first, last in self._doubts:
            if self._found_fits:
                self._problem(first, last, "a tile above them was changed; the entries are what was signed", intact=True)
            else:
                self._problem(first, last, "one of them was changed, together with its tile: the tree above has another hash for them")
        if self._bad is None:
            return
        first, last = self._bad
        if not self._overlaps(first, last, intact=False):
            self._problem(
                first, last, f"one of them is not what was signed: the log was written anew since its checkpoint of {last + 1} entries"
            )

    def _overlaps(self, first: int, last: int, *, intact: bool = True) -> bool:
        """Whether a problem in this range is known already; without ``intact``, one in which the entries themselves are wrong."""
        known = [problem for problem in self._report.problems if intact or not problem.intact]
        return any(p.first is not None and p.last is not None and p.first <= last and p.last >= first for p in known)

    def _problem(self, first: int, last: int, detail: str, *, intact: bool = False) -> None:
        problems = self._report.problems
        if problems and problems[-1].detail == detail and problems[-1].last == first - 1 and detail in (_MISSING, _NO_HASH):
            problems[-1] = Problem(problems[-1].first, last, detail, intact)
        elif len(problems) < 10 * MAX_PROBLEMS:
            problems.append(Problem(first, last, detail, intact))


def _entry_hashes(data: bytes, width: int) -> list[bytes]:
    """Return the hashes of a bundle's entries, at most ``width``; a rest that is no whole entry counts as one, so that it is named."""
    hashes: list[bytes] = []
    at, size = 0, len(data)
    while at < size and len(hashes) < width:
        end = at + 2 + (data[at] << 8) + data[at + 1] if at + 2 <= size else size + 1
        hashes.append(sha256(b"\x00" + data[at + 2 : end]).digest() if end <= size else b"")
        at = end
    return [*hashes, b""] if width == WIDTH and at < size else hashes


def name_differences(actual: Sequence[bytes], expected: Sequence[bytes]) -> list[tuple[int, int, str]]:
    """Return ``(first, last, what happened)`` for each place where the hashes of the entries differ from those in the tree."""
    wrong = [at for at, digest in enumerate(expected) if at >= len(actual) or actual[at] != digest]
    end = len(expected)
    if not wrong:
        return [(end - 1, end - 1, "bytes that were never signed follow it in its bundle")]
    first = wrong[0]
    place = {digest: at for at, digest in enumerate(expected)}
    if len(actual) == end and all(actual[at] in place for at in wrong):
        return [(at, at, f"another entry stands in its place ({place[actual[at]] - at:+d}): the entries were reordered") for at in wrong]
    if actual[first : first + 8] == expected[first + 1 : first + 9] and first + 1 < end:
        return [(first, first, "it was dropped: what came after it stands in its place")]
    if len(actual) == first:
        return [(first, end - 1, "cut off from its bundle")]
    if actual[first + 1 : first + 9] == expected[first : first + 8] and len(actual) == end:
        return [(first, first, "something that was never signed was put in before it")]
    runs: list[list[int]] = []
    for at in wrong:
        if runs and runs[-1][1] == at - 1:
            runs[-1][1] = at
        else:
            runs.append([at, at])
    return [(first, last, "not what was signed: its bytes were changed") for first, last in runs]
