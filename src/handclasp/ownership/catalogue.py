"""What directories say about components and paths: Backstage, CODEOWNERS and tables. Pure.

A rule of ownership leads an identity to a component's name or to a path; here is who owns those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

COMPONENT = "component"
PATH = "path"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that a directory knows an owner of."""

    directory: str
    kind: str
    """``component`` or ``path``."""
    name: str
    """A component's name, or a pattern of paths as CODEOWNERS writes it."""
    owners: tuple[str, ...] = ()
    tier: str | None = None
    environment: str | None = None
    place: int = 0
    """Of a path in its file: the last one that covers a path counts."""


@dataclass(slots=True)
class Catalogue:
    """All items of all directories, to be looked up in."""

    items: Sequence[Item] = ()
    _components: dict[str, list[Item]] = field(init=False, default_factory=dict)
    _paths: dict[str, list[tuple[re.Pattern[str], Item]]] = field(init=False, default_factory=dict)
    _known: dict[str, list[Item]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for item in self.items:
            if item.kind == COMPONENT:
                self._components.setdefault(item.name, []).append(item)
        for item in sorted((item for item in self.items if item.kind == PATH), key=lambda item: item.place, reverse=True):
            regex = path_regex(item.name)
            if regex is not None:
                self._paths.setdefault(item.directory, []).append((regex, item))

    def component(self, name: str) -> list[Item]:
        """Return what each directory says about the component of this name."""
        return self._components.get(name, [])

    def path(self, path: str) -> list[Item]:
        """Return the item of each directory that counts for a path. One without owners says that nobody is, and is left out."""
        path = path.strip("/")
        known = self._known.get(path)
        if known is None:
            if len(self._known) > 50_000:
                self._known.clear()
            known = self._known[path] = [item for item in self._first(path) if item.owners]
        return known

    def _first(self, path: str) -> Iterable[Item]:
        for rules in self._paths.values():
            item = next((item for regex, item in rules if regex.fullmatch(path)), None)
            if item is not None:
                yield item


def path_regex(pattern: str) -> re.Pattern[str] | None:
    """Return the expression of a CODEOWNERS pattern over paths without the leading slash; None for one that no file can have.

    As gitignore, without ``!`` and ``[…]``: a pattern with a slash that is not its last character begins at the top, another one fits
    anywhere; what names a directory covers all in it, and ``dir/*`` only what is right in it; ``**`` is any number of directories.
    """
    text = pattern.strip()
    if not text or text.startswith("!") or "[" in text or len(text) > 1024:
        return None
    # Each further star would make a long path that nearly fits slower by its length.
    if text.count("**") > 2 or text.replace("**", "").count("*") > 3:
        return None
    anchored = "/" in text.rstrip("/")
    # After "dir/*" nothing more may follow; "*" alone covers everything.
    shallow = text.endswith("/*")
    segments = [segment for segment in text.split("/") if segment]
    if not segments:
        return re.compile(r".+")
    parts = ["(?=.)"] if anchored else ["(?=.)(?:[^/]+/)*"]  # a path that is empty is no file, and nobody's
    for place, segment in enumerate(segments):
        last = place == len(segments) - 1
        if segment == "**":
            parts.append(".+" if last else "(?:[^/]+/)*")
            continue
        parts.append("".join("[^/]*" if piece == "*" else "[^/]" if piece == "?" else re.escape(piece) for piece in _pieces(segment)))
        if not last:
            parts.append("/")
    if not shallow and segments[-1] != "**":
        parts.append("(?:/.+)?")
    return re.compile("".join(parts), re.DOTALL)


def _pieces(segment: str) -> list[str]:
    return [piece for piece in re.split(r"(\*|\?)", re.sub(r"\*+", "*", segment)) if piece]
