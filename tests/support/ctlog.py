"""A Certificate Transparency log, of the old kind and the new at once."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support.answering import Answering


def _vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


@dataclass
class Logged:
    certificate: bytes
    precertificate: bool = False
    chain: list[bytes] = field(default_factory=list)

    @property
    def timestamped(self) -> bytes:
        head = struct.pack(">QH", 1_700_000_000_000, int(self.precertificate))
        signed = bytes(32) + _vector(3, b"tbs") if self.precertificate else _vector(3, self.certificate)
        return head + signed + _vector(2, b"")

    def as_json(self) -> dict[str, str]:
        chain = _vector(3, b"".join(_vector(3, one) for one in self.chain))
        extra = (_vector(3, self.certificate) if self.precertificate else b"") + chain
        return {"leaf_input": base64.b64encode(b"\0\0" + self.timestamped).decode(), "extra_data": base64.b64encode(extra).decode()}

    def as_tile(self) -> bytes:
        return self.timestamped + (_vector(3, self.certificate) if self.precertificate else b"") + _vector(2, bytes(32) * len(self.chain))


class FakeLog(Answering):
    """Use as a context manager. ``page``: as many entries as it gives at most."""

    def __init__(self, page: int = 100) -> None:
        super().__init__()
        self.entries: list[Logged] = []
        self.page = page
        self.broken: set[int] = set()
        self.asked: list[str] = []

    def answer(self, target: str, headers: Any) -> tuple[int, bytes]:
        data = self._said(target)
        return (200, data) if data is not None else (404, b"")

    def _said(self, target: str) -> bytes | None:
        parts = urlsplit(target)
        self.asked.append(parts.path)
        if parts.path == "/ct/v1/get-sth":
            return json.dumps({"tree_size": len(self.entries), "timestamp": 1}).encode()
        if parts.path == "/ct/v1/get-entries":
            query = parse_qs(parts.query)
            start, end = int(query["start"][0]), int(query["end"][0])
            found = [self._json(number) for number in range(start, min(end + 1, start + self.page, len(self.entries)))]
            return json.dumps({"entries": found}).encode()
        if parts.path == "/checkpoint":
            return f"log.example/1\n{len(self.entries)}\n{base64.b64encode(bytes(32)).decode()}\n\n— log.example/1 AAAA\n".encode()
        return self._tile(parts.path)

    def _json(self, number: int) -> dict[str, str]:
        return {"leaf_input": "AAAA", "extra_data": ""} if number in self.broken else self.entries[number].as_json()

    def _tile(self, path: str) -> bytes | None:
        name, _, width = path.removeprefix("/tile/data/").partition(".p/")
        number = int(name.replace("x", "").replace("/", ""))
        if not width and (number + 1) * 256 > len(self.entries):
            return None
        return b"".join(one.as_tile() for one in self.entries[number * 256 :][: int(width or 256)])
