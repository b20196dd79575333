"""Entries of Certificate Transparency logs: RFC 6962 section 3.4 and 4.6, and the data tiles of C2SP static-ct-api. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

TILE = 256
"""Entries of a full data tile."""
_X509, _PRECERT = 0, 1


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry: the certificate (or precertificate, with its poison) as it was submitted, in DER. ``at`` in ms."""

    at: int
    certificate: bytes
    is_precertificate: bool
    chain: tuple[bytes, ...] = ()


class _Reader:
    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise ValueError("an entry is cut off")
        found = self.data[self.at : end]
        self.at = end
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))


def read_leaf(leaf_input: bytes, extra_data: bytes) -> LogEntry:
    """Return an entry as ``get-entries`` gives it; raise ``ValueError`` for what is none."""
    reader = _Reader(leaf_input)
    if reader.take(2) != b"\0\0":  # version 1, a timestamped entry
        raise ValueError("an entry of a version that is not known")
    at, kind, certificate = _timestamped(reader)
    extra = _Reader(extra_data)
    if kind == _PRECERT:
        certificate = extra.vector(3)
    chain, parts = _Reader(extra.vector(3)), []
    while chain.at < len(chain.data):
        parts.append(chain.vector(3))
    return LogEntry(at, certificate, kind == _PRECERT, tuple(parts[:10]))


def read_tile(data: bytes) -> Iterator[LogEntry]:
    """Yield the entries of a data tile; raise ``ValueError`` where it cannot be read on. Their chains are fingerprints, and left out."""
    reader = _Reader(data)
    while reader.at < len(data):
        at, kind, certificate = _timestamped(reader)
        if kind == _PRECERT:
            certificate = reader.vector(3)
        reader.vector(2)
        yield LogEntry(at, certificate, kind == _PRECERT)


def tile_path(number: int, width: int = TILE) -> str:
    """Return where a data tile is below the log's prefix (C2SP tlog-tiles: groups of three digits, ``x`` before all but the last)."""
    groups = [f"{number % 1000:03}"]
    while number := number // 1000:
        groups.append(f"x{number % 1000:03}")
    return "/tile/data/" + "/".join(reversed(groups)) + (f".p/{width}" if width < TILE else "")


def read_checkpoint(text: str) -> int:
    """Return the size in a checkpoint (C2SP tlog-checkpoint); raise ``ValueError`` for what is none. Its signature is not looked at."""
    lines = text.split("\n")
    if len(lines) < 4 or not lines[0] or not lines[1].isascii() or not lines[1].isdigit() or len(lines[1]) > 18:
        raise ValueError("this is not a checkpoint")
    return int(lines[1])


def _timestamped(reader: _Reader) -> tuple[int, int, bytes]:
    at, kind = reader.number(8), reader.number(2)
    if kind == _X509:
        certificate = reader.vector(3)
    elif kind == _PRECERT:
        reader.take(32)  # the issuer's key
        reader.vector(3)  # what is signed in the end
        certificate = b""
    else:
        raise ValueError("an entry of a kind that is not known")
    reader.vector(2)  # extensions
    return at, kind, certificate
