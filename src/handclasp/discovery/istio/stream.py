"""A large JSON document in pieces: only the elements of some arrays become bytes in memory, everything around them is passed over."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from handclasp.errors import HandclaspError, Kind

MAX_ELEMENT = 4 * 1024 * 1024  # bytes: one workload's certificates have some 5 KB, one secret of Envoy at most a bundle
MAX_DEPTH = 200
# A string, what gives structure, or the beginning of a string that is not all there yet.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,"]', re.DOTALL)

Path = tuple[str, ...]


class Elements:
    """Finds the objects in the arrays at some paths. A path is the keys on the way, ``("configs", "static_secrets")``; arrays add nothing.

    Feed it the document piece by piece. ``whole`` tells at the end whether the document was complete.
    """

    def __init__(self, wanted: frozenset[Path]) -> None:
        self._wanted = wanted
        self._buffer = bytearray()
        self._stack: list[tuple[bytes, str]] = []  # opening bracket, and the key that it stands under
        self._key, self._after_colon = "", False
        self._start: int | None = None
        self._read = 0
        self._depth = 0
        self.whole = False

    def feed(self, piece: bytes) -> Iterator[tuple[Path, bytes]]:
        """Yield (path, element) for each that ends in this piece. Raises ``unavailable`` for what is no JSON, or too large in a place."""
        self._buffer += piece
        position = self._read
        while (token := _TOKEN.search(self._buffer, position)) is not None:
            text = token[0]
            if text == b'"':
                position = token.start()
                break
            position = token.end()
            done = self._take(text, token.start(), position)
            if done is not None:
                yield done
        else:
            position = len(self._buffer)
        self._forget(position)

    def _take(self, text: bytes, start: int, end: int) -> tuple[Path, bytes] | None:
        if text in (b"{", b"["):
            self._open(text, start)
        elif text in (b"}", b"]"):
            return self._close(text, end)
        elif text == b":":
            self._after_colon = True
        elif text == b",":
            self._after_colon = False
        elif self._stack and self._stack[-1][0] == b"{" and not self._after_colon and self._start is None:
            self._key = _string(text)
        return None

    def _open(self, bracket: bytes, start: int) -> None:
        if self.whole or len(self._stack) >= MAX_DEPTH:
            raise _bad()
        if bracket == b"{" and self._start is None and self._stack and self._stack[-1][0] == b"[" and self._path() in self._wanted:
            self._start, self._depth = start, len(self._stack)
        under = self._key if self._stack and self._stack[-1][0] == b"{" else ""
        self._stack.append((bracket, under))
        self._key, self._after_colon = "", False

    def _close(self, bracket: bytes, end: int) -> tuple[Path, bytes] | None:
        if not self._stack or self._stack.pop()[0] != (b"{" if bracket == b"}" else b"["):
            raise _bad()
        self._after_colon = False
        self.whole = not self._stack
        if self._start is None or len(self._stack) != self._depth:
            return None
        element, self._start = bytes(self._buffer[self._start : end]), None
        return self._path(), element

    def _path(self) -> Path:
        return tuple(key for _, key in self._stack if key)

    def _forget(self, position: int) -> None:
        """Drop what was read and is not part of an element that is still open."""
        keep = position if self._start is None else self._start
        self._read = position - keep
        if self._start is not None:
            self._start = 0
        del self._buffer[:keep]
        if len(self._buffer) > MAX_ELEMENT:
            raise HandclaspError(Kind.UNAVAILABLE, f"it has an element of more than {MAX_ELEMENT} bytes")


def _string(text: bytes) -> str:
    try:
        return msgspec.json.decode(text, type=str)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise _bad() from error


def _bad() -> HandclaspError:
    return HandclaspError(Kind.UNAVAILABLE, "it is not JSON")
