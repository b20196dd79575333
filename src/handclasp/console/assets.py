"""Static files under addresses with the hash of their content, so that a browser keeps them for ever and never has an old one."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

STATIC = Path(__file__).parent / "static"
PREFIX = "/console/static/"

_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, ready to be sent."""

    data: bytes
    packed: bytes
    """The same, gzip."""
    media_type: str
    address: str


class Assets:
    """The files of one directory, each read when it is first asked for."""

    def __init__(self, directory: Path = STATIC) -> None:
        self._directory = directory
        self._by_name: dict[str, Asset | None] = {}

    def address(self, name: str) -> str:
        """Return the address of a file, empty for one that is not there: a browser library that was not fetched."""
        asset = self._asset(name)
        return asset.address if asset is not None else ""

    def find(self, path: str) -> Asset | None:
        """Return what is at an address; None where nothing is, or its content is another by now."""
        _, _, name = path.removeprefix(PREFIX).partition("/")
        asset = self._by_name.get(name) or (self._asset(name) if name in self._names() else None)
        return asset if asset is not None and asset.address == path else None

    def _names(self) -> frozenset[str]:
        """Return every file there is, by its name below the directory: nothing else is ever opened."""
        return frozenset(
            path.relative_to(self._directory).as_posix() for path in self._directory.rglob("*") if path.suffix in _TYPES and path.is_file()
        )

    def _asset(self, name: str) -> Asset | None:
        if name not in self._by_name:
            path = self._directory / name
            try:
                data = path.read_bytes()
            except OSError:
                self._by_name[name] = None
                return None
            digest = hashlib.sha256(data).hexdigest()[:16]
            self._by_name[name] = Asset(data, gzip.compress(data, 6, mtime=0), _TYPES[path.suffix], f"{PREFIX}{digest}/{name}")
        return self._by_name[name]
