"""One mapping of a configuration file, with the line of everything in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from handclasp.agent.config.values import text
from handclasp.errors import HandclaspError
from handclasp.pki.yamlfile import Document, Problems

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """The file that is read. Relative paths in it are relative to ``base``."""

    document: Document
    problems: Problems
    base: Path


class Table:
    """Values are taken out by name; what is left over when :meth:`done` is called was misspelt.

    Nothing here raises: each problem is noted with its line, and the default stands in for the value.
    """

    def __init__(self, source: Source, value: Any, path: tuple[str | int, ...] = ()) -> None:
        self.source, self.path = source, path
        self.value: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {}
        if not isinstance(value, Mapping):
            self.problem("a mapping is expected here")

    def problem(self, message: str, *keys: str | int) -> None:
        """Note a problem at the line of ``keys`` in this mapping, or of the mapping itself."""
        self.source.problems.add(self.source.document.line((*self.path, *keys)), message)

    def has(self, key: str) -> bool:
        """Tell whether there is something (not: empty) for ``key`` that was not taken yet."""
        return self.value.get(key) is not None

    def take(self, key: str, check: Callable[[Any], Any], default: Any = None, *, required: bool = False) -> Any:
        """Take a value out and return what ``check`` makes of it; ``check`` raises ``ValueError``, ``TypeError`` or HandclaspError."""
        value = self.value.pop(key, None)
        if value is None:
            if required:
                self.problem(f"{key} is missing")
            return default
        try:
            return check(value)
        except HandclaspError as error:
            self.problem(f"{key}: {error.detail}", key)
        except (ValueError, TypeError) as error:
            self.problem(f"{key}: {error}", key)
        return default

    def table(self, key: str) -> Table | None:
        """Take a mapping out; None when it is not there."""
        value = self.value.pop(key, None)
        return None if value is None else Table(self.source, value, (*self.path, key))

    def tables(self, key: str, *, required: bool) -> list[Table]:
        """Take a list of mappings out."""
        value = self.value.pop(key, None)
        if not isinstance(value, list) or (required and not value):
            if value is not None or required:
                self.problem(f"{key} must be a list" + (" with something in it" if required else ""), key)
            return []
        return [Table(self.source, item, (*self.path, key, index)) for index, item in enumerate(value)]

    def path_of(self, value: Any) -> Path:
        """Return a file name as a path: absolute, ``~`` filled in. A check for :meth:`take`."""
        return Path(os.path.normpath(self.source.base / Path(text(value)).expanduser()))

    def done(self) -> None:
        """Note everything that nobody has taken."""
        for key in self.value:
            self.problem(f"{key} is not known here", key)
