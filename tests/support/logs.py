"""A log in a directory, with keys that are the same in each run, for tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handclasp.log.checkpoint import SignedCheckpoint
from handclasp.log.notes import Cosigner, NoteSigner
from handclasp.log.sequencer import Sequencer
from handclasp.log.tiles import TileStorage

ORIGIN = "log.example.org/handclasp"
NOW = 1_767_225_600_000


def log_signer(origin: str = ORIGIN, seed: int = 1) -> NoteSigner:
    return NoteSigner(origin, Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


def cosigner(name: str = "witness.example/w1", seed: int = 2) -> Cosigner:
    return Cosigner(name, Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


def entry(index: int, salt: str = "") -> bytes:
    """The bytes of entry ``index``: lengths vary, and no two are alike."""
    return json.dumps({"n": index, "pad": salt + "x" * (index * 7 % 90)}).encode()


class Entries:
    """Stands for the table of committed entries."""

    def __init__(self, count: int = 0) -> None:
        self.rows = [entry(index) for index in range(count)]

    def grow(self, count: int) -> None:
        self.rows += [entry(index) for index in range(len(self.rows), len(self.rows) + count)]

    async def read(self, start: int, limit: int) -> Sequence[bytes]:
        return self.rows[start : start + limit]


def build(directory: Path, steps: Sequence[int]) -> list[SignedCheckpoint]:
    """Make a log of ``sum(steps)`` entries, one step after the other; return the checkpoint of each, the empty one first."""

    async def run() -> list[SignedCheckpoint]:
        entries = Entries()
        sequencer = await Sequencer.open(entries.read, TileStorage(directory), log_signer())
        checkpoints = [sequencer.checkpoint]
        for count in steps:
            entries.grow(count)
            assert await sequencer.step() == count
            checkpoints.append(sequencer.checkpoint)
        sequencer.close()
        return checkpoints

    return asyncio.run(run())


def files(directory: Path) -> dict[str, bytes]:
    """Everything a reader of the log may see, by path."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.relative_to(directory).parts[0].startswith(".")
    }
