"""What directories say about components and paths: Backstage, CODEOWNERS and tables. Pure.

A rule of ownership leads an identity to a component's name or to a path; here is who owns those.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

COMPONENT = "component"
PATH = "path"
MAX_PATH = 2048
_NOTHING = re.compile(r"(?!)")


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


class _Rule:
    """A pattern of paths, compiled when it is first needed: most are not, and a hundred of them are ten milliseconds."""

    __slots__ = ("_regex", "item")

    def __init__(self, item: Item) -> None:
        self.item = item
        self._regex: re.Pattern[str] | None = None

    def covers(self, path: str) -> bool:
        if self._regex is None:
            self._regex = path_regex(self.item.name) or _NOTHING
        return self._regex.fullmatch(path) is not None


@dataclass(slots=True)
class Catalogue:
    """All items of all directories, to be looked up in. Paths take time by how many patterns there are: not in an event loop."""

    items: Sequence[Item] = ()
    _components: dict[str, list[Item]] = field(init=False, default_factory=dict)
    _paths: dict[str, dict[str, list[_Rule]]] = field(init=False, default_factory=dict)
    """By directory and by what a path must begin with ("": with anything), those that count first at the front."""
    _known: dict[str, list[Item]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for item in self.items:
            if item.kind == COMPONENT:
                self._components.setdefault(item.name, []).append(item)
        for item in sorted((item for item in self.items if item.kind == PATH), key=_by_weight):
            self._paths.setdefault(item.directory, {}).setdefault(_beginning(item.name), []).append(_Rule(item))

    def component(self, name: str) -> list[Item]:
        """Return what each directory says about the component of this name."""
        return self._components.get(name, [])

    def path(self, path: str) -> list[Item]:
        """Return the item of each directory that counts for a path. One without owners says that nobody is, and is left out.

        A path of more than :data:`MAX_PATH` characters is nobody's: it was put together from what others say.
        """
        path = path.strip("/")
        if len(path) > MAX_PATH:
            return []
        known = self._known.get(path)
        if known is None:
            if len(self._known) > 50_000:
                self._known.clear()
            known = self._known[path] = [item for item in self._first(path) if item.owners]
        return known

    def _first(self, path: str) -> Iterable[Item]:
        ends = [place for place, letter in enumerate(path) if letter == "/"]
        beginnings = ["", *(path[:end] for end in ends), path]
        for rules in self._paths.values():
            near = heapq.merge(*(rules[each] for each in beginnings if each in rules), key=lambda rule: _by_weight(rule.item))
            item = next((rule.item for rule in near if rule.covers(path)), None)
            if item is not None:
                yield item


def _by_weight(item: Item) -> int:
    return -item.place


def _beginning(pattern: str) -> str:
    """Return the whole segments that a path must begin with to be covered; empty where it may begin with anything."""
    text = pattern.strip()
    segments = [segment for segment in text.split("/") if segment]
    if "/" not in text.rstrip("/"):
        return ""
    return "/".join(takewhile(lambda segment: "*" not in segment and "?" not in segment, segments))


def path_regex(pattern: str) -> re.Pattern[str] | None:
    """Return the expression of a CODEOWNERS pattern over paths without the leading slash; None for one that no file can have.

    As gitignore, without ``!`` and ``[…]``: a pattern with a slash that is not its last character begins at the top, another one fits
    anywhere; what names a directory covers all in it, and ``dir/*`` only what is right in it; ``**`` is any number of directories.

    Whatever the pattern, a path is compared in time by the product of their lengths at most: what stands between two stars is taken where
    it comes first and never looked for again (an atomic group), which finds the same paths.
    """
    text = pattern.strip()
    if not text or text.startswith("!") or "[" in text or len(text) > 1024:
        return None
    segments = [segment for segment in text.split("/") if segment]
    if not segments:
        return re.compile(r".+")
    anchored = "/" in text.rstrip("/")
    groups: list[list[str]] = [[]]  # the segments between one "**" and the next
    for segment in segments if anchored else ["**", *segments]:
        if segment == "**":
            groups.append([])
        else:
            groups[-1].append(_segment(segment))
    first, *middle = ["/".join(group) for group in groups]
    parts = ["(?=.)"]  # a path that is empty is no file, and nobody's
    if not middle:
        parts.append(first)
    else:
        *middle, last = middle
        parts += [f"{first}/"] if first else []
        parts += [f"(?>(?:[^/]+/)*?{group}/)" for group in middle if group]
        parts.append(f"(?:[^/]+/)*{last}" if last else ".+")
    # After "dir/*" nothing more may follow; "*" alone covers everything.
    if not text.endswith("/*") and segments[-1] != "**":
        parts.append("(?:/.+)?")
    return re.compile("".join(parts), re.DOTALL)


def _segment(text: str) -> str:
    start, *rest = ["".join("[^/]" if letter == "?" else re.escape(letter) for letter in piece) for piece in re.split(r"\*+", text)]
    if not rest:
        return start
    *between, end = rest
    return start + "".join(f"(?>[^/]*?{piece})" for piece in between) + f"[^/]*{end}"
