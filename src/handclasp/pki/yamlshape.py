"""Reading one part of a YAML file of ours: what must be there, of which type, every mistake noted with its line; and comparing two."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from handclasp.clock import parse_duration
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.yamlfile import Document, Problems, read_yaml
from handclasp.wire.rules import PolicyChange

T = TypeVar("T")
Path = tuple[str | int, ...]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # as wire.Name


class Part:
    """A mapping somewhere in a document. Its readers return a harmless value after noting a problem, so that reading goes on."""

    def __init__(self, document: Document, problems: Problems, path: Path, value: dict[str, Any]) -> None:
        self.document = document
        self.problems = problems
        self.path = path
        self.value = value

    def problem(self, key: str | Path, message: str) -> None:
        """Note a problem at ``key`` below this part (at the part itself when it is empty or not there)."""
        below: Path = key if isinstance(key, tuple) else (key,) if key else ()
        self.problems.add(self.document.line((*self.path, *below)), message)

    def attempt(self, key: str | Path, make: Callable[[], T]) -> T | None:
        """Return what ``make`` returns, or note its error at ``key`` and return None."""
        try:
            return make()
        except HandclaspError as error:
            self.problem(key, error.detail)
            return None

    def keys(self, *known: str) -> None:
        """Note every key that is not one of these: a misspelt limit would otherwise be no limit."""
        for key in self.value:
            if key not in known:
                self.problem(key, f"{key!r} is not known here; known are {', '.join(known)}")

    def parts(self, key: str, *, required: bool = False, quiet: bool = False) -> list[Part]:
        """Return the mappings of the list at ``key``."""
        value = self.value.get(key)
        if value is None and not required and key not in self.value:
            return []
        if not isinstance(value, list) or (required and not value):
            if not quiet:
                self.problem(key, f"{key} must be a list" + (" with something in it" if required else ""))
            return []
        found = []
        for index, item in enumerate(value):
            if isinstance(item, dict):
                found.append(Part(self.document, self.problems, (*self.path, key, index), item))
            elif not quiet:
                self.problem((key, index), f"each of {key} is a mapping")
        return found

    def part(self, key: str) -> Part:
        """Return the mapping at ``key``."""
        value = self.value.get(key)
        if not isinstance(value, dict):
            self.problem(key, f"{key} must be a mapping")
            value = {}
        return Part(self.document, self.problems, (*self.path, key), value)

    def text(self, key: str) -> str:
        """Return the text at ``key``."""
        value = self.value.get(key)
        if not isinstance(value, str) or not value or len(value) > 4096:
            self.problem(key, f"{key} must be a text")
            return ""
        return value

    def name(self) -> str:
        """Return ``name``, which is what log entries and rows refer to."""
        value = self.value.get("name")
        if not isinstance(value, str) or _NAME.fullmatch(value) is None:
            self.problem("name", "a name is needed: letters, digits and . _ -")
            return ""
        return value

    def texts(self, key: str, *, required: bool = False) -> list[str]:
        """Return the list of texts at ``key``. An empty list is a mistake: what is not limited, or not given, is left out."""
        if key not in self.value and not required:
            return []
        value = self.value.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            self.problem(key, f"{key} must be a list of texts with something in it")
            return []
        return value

    def duration(self, key: str) -> float | None:
        """Return the duration at ``key`` in seconds; None when it is not there."""
        if key not in self.value:
            return None
        value = self.value[key]
        if not isinstance(value, str):
            self.problem(key, f"{key} is a duration such as 90s, 15m or 24h")
            return None
        seconds = self.attempt(key, lambda: parse_duration(value))
        if seconds is not None and seconds <= 0:
            self.problem(key, f"{key} is longer than nothing")
        return seconds

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false at ``key``."""
        value = self.value.get(key, default)
        if not isinstance(value, bool):
            self.problem(key, f"{key} is true or false")
            return default
        return value


def document_of(text: str, source: str, kind: Kind) -> Part:
    """Return the whole document as a part. Raises ``kind`` for what is not YAML with a mapping at the top."""
    document = read_yaml(text, source, kind)
    return Part(document, Problems(source, kind), (), document.value)


def each_once(parts: Iterable[Part], key: str) -> None:
    """Note every part whose text at ``key`` another one before it has."""
    seen: set[str] = set()
    for part in parts:
        value = part.value.get(key)
        if isinstance(value, str) and value in seen:
            part.problem(key, f"{key} {value!r} is given twice")
        elif isinstance(value, str):
            seen.add(value)


def changes_between(before: Mapping[str, str], after: Mapping[str, str]) -> list[PolicyChange]:
    """Return what differs between two documents, each given as what its parts mean, by what they are called; removed parts come last."""
    changes = []
    for subject in [*after, *(subject for subject in before if subject not in after)]:
        was, will = before.get(subject), after.get(subject)
        if was != will:
            change = "added" if was is None else "removed" if will is None else "changed"
            changes.append(PolicyChange(change=change, subject=subject, before=was, after=will))
    return changes
