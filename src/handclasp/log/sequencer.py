"""The sequencer: brings committed entries into the tree, and publishes what it has made durable.

The database gives an entry its index for ever, in the transaction that commits it. So whatever a killed step left behind, the next one
writes the same bytes again, and two signed checkpoints can only differ in size. The order of a step is the whole safety of it:

1. read the entries after the checkpoint, hash them, grow the right edge of the tree (in memory, aside)
2. write full and partial tiles and bundles; sync each file, then each directory once
3. remove the partial files whose full tile is durable now
4. sign the new checkpoint, write it aside, sync, rename, sync
5. only now take the new edge as the present one
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256

from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault
from handclasp.log.checkpoint import SignedCheckpoint, open_checkpoint, sign_checkpoint
from handclasp.log.entries import MAX_ENTRY
from handclasp.log.merkle import CompactTree, leaf_hash, range_root, root_of
from handclasp.log.notes import NoteSigner
from handclasp.log.tiles import CHECKPOINT, ENTRIES, HASH, WIDTH, HashReader, TileStorage, edge_widths, encode_bundle, tile_path

BATCH = 4096
"""Entries brought in under one checkpoint: bounds memory when a log is rebuilt, and the work that a kill can undo."""

ReadEntries = Callable[[int, int], Awaitable[Sequence[bytes]]]
"""``await read(start, limit)`` returns the committed entries from index ``start`` on, in order, without a gap, at most ``limit``."""

declare("log.step.read", "log.step.tiles", "log.step.partials", "log.step.published")


class Sequencer:
    """The one writer of a log's directory. Made by :meth:`open`; a second one for the same directory, in any process, is refused."""

    def __init__(self, read_entries: ReadEntries, storage: TileStorage, signer: NoteSigner) -> None:
        self._read_entries = read_entries
        self._storage = storage
        self._signer = signer
        self._alone = asyncio.Lock()
        self._lock_file: int | None = None
        self._tree = CompactTree()
        self._rows: list[bytes] = []
        """The last tile of each level while it is partial, else empty."""
        self._bundle = b""
        """The last entry bundle while it is partial, else empty."""
        self.checkpoint = sign_checkpoint(signer, 0, self._tree.root())
        """The newest published checkpoint."""

    @classmethod
    async def open(cls, read_entries: ReadEntries, storage: TileStorage, signer: NoteSigner) -> Sequencer:
        """Take the log's directory, and check that checkpoint, tiles and committed entries belong together; a new log is begun.

        The check reads the right edge of the tree and the last bundle, whatever the size (``verify_directory`` reads everything). Raises
        ``tampered`` when they do not belong together: nothing is signed then. ``conflict``: another process has the directory.
        ``unavailable``: it cannot be written.
        """
        sequencer = cls(read_entries, storage, signer)
        try:
            await asyncio.to_thread(sequencer._take)
            last = await asyncio.to_thread(sequencer._load)
            await sequencer._check_entries(last)
        except OSError as error:
            sequencer.close()
            raise HandclaspError(Kind.UNAVAILABLE, f"the log's directory cannot be used: {error.strerror}") from error
        except BaseException:
            sequencer.close()
            raise
        return sequencer

    def close(self) -> None:
        """Let go of the directory."""
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    @property
    def size(self) -> int:
        """Entries under the newest checkpoint."""
        return self._tree.size

    async def step(self) -> int:
        """Bring in everything committed so far; return how many entries that was. On return their checkpoint is published and durable.

        Raises ``unavailable`` when the files cannot be written (the next call tries again), whatever reading the entries raises.
        """
        total = 0
        async with self._alone:
            while entries := await self._read_entries(self.size, BATCH):
                try:
                    await asyncio.to_thread(self._integrate, entries)
                except OSError as error:
                    raise HandclaspError(Kind.UNAVAILABLE, f"the log's files cannot be written: {error.strerror}") from error
                total += len(entries)
                if len(entries) < BATCH:
                    break
        return total

    # --- one step, in a worker thread ---

    def _integrate(self, entries: Sequence[bytes]) -> None:
        fault("log.step.read")
        if any(len(entry) > MAX_ENTRY for entry in entries):
            raise HandclaspError(Kind.INTERNAL, f"a committed entry is longer than {MAX_ENTRY} bytes")
        tree = self._tree.copy()
        made = tree.extend([sha256(b"\x00" + entry).digest() for entry in entries])
        files: dict[str, bytes] = {}
        bundle = self._bundles(entries, files)
        rows = self._tiles(made, files)
        self._storage.write(files)
        fault("log.step.tiles")
        self._storage.remove_partials(path for path in files if not path.rpartition("/")[0].endswith(".p"))
        fault("log.step.partials")
        self.checkpoint = self._publish(tree)
        self._tree, self._rows, self._bundle = tree, rows, bundle
        fault("log.step.published")

    def _bundles(self, entries: Sequence[bytes], files: dict[str, bytes]) -> bytes:
        """Add the bundles that change; return the one that is partial now."""
        bundle, held = self._bundle, self.size % WIDTH
        index, start = self.size // WIDTH, 0
        while start < len(entries):
            new = entries[start : start + WIDTH - held]
            bundle += encode_bundle(new)
            start, held = start + len(new), held + len(new)
            files[tile_path(ENTRIES, index, held)] = bundle
            if held == WIDTH:
                bundle, held, index = b"", 0, index + 1
        return bundle

    def _tiles(self, made: Sequence[Sequence[bytes]], files: dict[str, bytes]) -> list[bytes]:
        """Add the tiles that change; return, by level, the one that is partial now."""
        rows = self._rows.copy()
        for row, nodes in enumerate(made[::8]):
            if row == len(rows):
                rows.append(b"")
            index = self.size >> 8 * (row + 1)
            data = rows[row] + b"".join(nodes)
            for at in range(0, len(data), WIDTH * HASH):
                tile = data[at : at + WIDTH * HASH]
                files[tile_path(row, index, len(tile) // HASH)] = tile
                index += 1
            rows[row] = data[len(data) // (WIDTH * HASH) * WIDTH * HASH :]
        return rows

    def _publish(self, tree: CompactTree) -> SignedCheckpoint:
        signed = sign_checkpoint(self._signer, tree.size, tree.root())
        self._storage.write({CHECKPOINT: str(signed).encode()})
        return signed

    # --- the start ---

    def _take(self) -> None:
        self._storage.directory.mkdir(parents=True, exist_ok=True)
        self._lock_file = os.open(self._storage.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HandclaspError(Kind.CONFLICT, "another process writes this log", hint="one sequencer per log is enough") from error
        self._storage.prepare()

    def _load(self) -> list[bytes]:
        """Bring the right edge into memory, checked against the signed root; return the entries of the last bundle, checked against it."""
        note = self._storage.read_note(CHECKPOINT)
        if note is None:
            if self._storage.has_tiles():
                raise _tampered("its checkpoint is missing, and its tiles are there")
            self.checkpoint = self._publish(self._tree)
            return []
        try:
            self.checkpoint = open_checkpoint(note, [self._signer.vkey])
            size = self.checkpoint.checkpoint.size
            reader = HashReader(self._storage, size)
            self._tree = CompactTree(size, reader)
            if self._tree.root() != self.checkpoint.checkpoint.root:
                raise _tampered("its tiles do not give the root that it signed")
            widths = enumerate(edge_widths(size))
            self._rows = [self._storage.read_tile(row, size >> 8 * (row + 1), width) if width else b"" for row, width in widths]
            return self._load_bundle(size, reader)
        except HandclaspError as error:
            if error.kind is Kind.TAMPERED:
                raise
            raise _tampered(error.detail) from error

    def _load_bundle(self, size: int, reader: HashReader) -> list[bytes]:
        if not size:
            return []
        index = (size - 1) // WIDTH
        last = self._storage.read_bundle(index, size - index * WIDTH)
        if root_of([leaf_hash(entry) for entry in last]) != range_root(index * WIDTH, size, reader):
            raise _tampered(f"among its entries {index * WIDTH} to {size - 1} is one that does not fit the tree")
        self._bundle = encode_bundle(last) if len(last) < WIDTH else b""
        return last

    async def _check_entries(self, last: Sequence[bytes]) -> None:
        """Compare the last bundle with what the database holds: the log must never go on from other entries than it has signed."""
        start = self.size - len(last)
        committed = await self._read_entries(start, len(last)) if last else []
        for index, entry in enumerate(last, start):
            if index - start >= len(committed):
                raise _tampered(
                    f"it has {self.size} entries, and the database only {index} of them", "was the database restored from an old copy?"
                )
            if committed[index - start] != entry:
                raise _tampered(f"its entry {index} is not the one in the database")


def _tampered(detail: str, hint: str = "find out with: handclasp audit verify") -> HandclaspError:
    return HandclaspError(Kind.TAMPERED, f"the log does not hold together, and nothing is signed: {detail}", hint=hint)
