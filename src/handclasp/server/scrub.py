"""Compares the database's copy of the log with the signed tree, a part at a time: an altered row must not wait to be asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from handclasp.errors import HandclaspError, Kind
from handclasp.log.cosign import Cosignatures
from handclasp.log.merkle import leaf_hash
from handclasp.log.tiles import WIDTH, TileStorage, split_tile, tile_width

ROWS = 4096
"""Entries that one run looks at: some milliseconds of work."""

ReadEntries = Callable[[int, int], Awaitable[Sequence[bytes]]]


class Scrub:
    """Goes through the log in a circle. A finding stays one until the rows are right again: the next run begins where it was."""

    def __init__(self, read_entries: ReadEntries, storage: TileStorage, cosignatures: Cosignatures) -> None:
        self._read_entries = read_entries
        self._storage = storage
        self._cosignatures = cosignatures
        self._next = 0

    async def run(self) -> None:
        """Look at the next entries; raise ``tampered`` naming the first that is not what was signed."""
        try:
            size = (await asyncio.to_thread(self._cosignatures.newest)).checkpoint.size
        except HandclaspError as error:
            if error.kind is Kind.NOT_FOUND:
                return  # nothing is signed yet
            raise
        start = self._next if self._next < size else 0
        end = min(start + ROWS, size)
        for at in range(start, end, WIDTH):
            rows = await self._read_entries(at, min(WIDTH, end - at))
            await asyncio.to_thread(self._compare, at, rows, size)
            self._next = at + WIDTH

    def _compare(self, start: int, rows: Sequence[bytes], size: int) -> None:
        width = tile_width(0, start // WIDTH, size)
        signed = split_tile(self._storage.read_tile(0, start // WIDTH, width))
        for index, leaf in enumerate(signed):
            if index >= len(rows) or leaf_hash(rows[index]) != leaf:
                raise HandclaspError(
                    Kind.TAMPERED,
                    f"entry {start + index} of the log in the database is not the one that was signed",
                    hint="find out with: handclasp audit verify",
                )
