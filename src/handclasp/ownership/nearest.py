"""Names that are nearly an owner's: a guess for identities of which nothing else says whose they are. Pure."""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable

_WORD = re.compile(r"[a-z0-9]{3,}")
_LOOKED_AT = 8
_NEAR = 0.75
"""Of difflib's ratio: ``payment`` and ``payments`` are 0.93, ``web`` and ``webshop`` 0.6."""


class Nearest:
    """Owners by the three-letter pieces of their names."""

    def __init__(self, owners: Iterable[str]) -> None:
        self._by_piece: dict[str, list[str]] = defaultdict(list)
        for owner in owners:
            for piece in _pieces(owner.lower()):
                self._by_piece[piece].append(owner)

    def of(self, identity: str) -> list[tuple[str, str, int]]:
        """Return owners whose names are near a part of an identity's, the nearest first: (owner, the part, percent)."""
        best: dict[str, tuple[float, str]] = {}
        for part in _parts(identity):
            shared = Counter(owner for piece in _pieces(part) for owner in self._by_piece.get(piece, ())[:1000])
            for owner, _ in sorted(shared.items(), key=lambda item: (-item[1], item[0]))[:_LOOKED_AT]:
                ratio = difflib.SequenceMatcher(None, part, owner.lower()).ratio()
                if ratio >= _NEAR and ratio > best.get(owner, (0.0, ""))[0]:
                    best[owner] = (ratio, part)
        ordered = sorted(best.items(), key=lambda item: (-item[1][0], item[0]))
        return [(owner, part, min(29, round(ratio * 29))) for owner, (ratio, part) in ordered[:3]]


def _parts(identity: str) -> list[str]:
    """Return the parts of an identity's name that could be somebody's: segments of the path, labels, and the words in them."""
    path = identity.partition("://")[2].partition("/")[2] if "://" in identity else identity.partition(":")[2]
    segments = [segment.lower() for segment in re.split(r"[/.@]" if "://" not in identity else r"/", path) if len(segment) >= 3]
    words = [word for segment in segments for word in _WORD.findall(segment)]
    return list(dict.fromkeys([*segments, *words]))[:20]


def _pieces(text: str) -> set[str]:
    return {text[place : place + 3] for place in range(len(text) - 2)}
