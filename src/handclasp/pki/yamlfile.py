"""YAML as people write it for us: a small, exact subset, with the line of everything.

Read are mappings, lists, text, whole and decimal numbers, ``true``/``false`` and empty. Refused, each with its line: duplicate keys,
anchors and aliases (a few lines of them can fill any memory), tags, merge keys, keys that are not text. ``no``, ``on``, ``012``, ``1:30``
and dates stay the text they look like.
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias

import yaml

from handclasp.errors import HandclaspError, Kind

MAX_BYTES = 1_000_000
MAX_NODES = 200_000
"""Keys, values, lists and mappings in one document: the ten thousand grants that a megabyte holds have half as many."""
_KEPT = 1000
_SLOWLY = 100_000
_MAX_DEPTH = 20
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\.[0-9]{1,18}")
_CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}

Path: TypeAlias = tuple[str | int, ...]


class Problems:
    """Collects everything that is wrong with a file, so that it is told at once and not one by one."""

    def __init__(self, source: str, kind: Kind) -> None:
        self.source = source
        self.kind = kind
        self.items: list[tuple[int, str]] = []

    def add(self, line: int, message: str) -> None:
        """Note one problem at a line (counted from 1). Of thousands only the first are kept."""
        if len(self.items) < _KEPT:
            self.items.append((line, message))

    def raise_if_any(self) -> None:
        """Raise one error of the kind given, ``source:line: message`` for each problem in the order of lines, if there is any."""
        if self.items:
            lines = [f"{self.source}:{line}: {message}" for line, message in sorted(dict.fromkeys(self.items))]
            more = [f"… and {len(lines) - 50} more"] if len(lines) > 50 else []
            raise HandclaspError(self.kind, "\n".join(lines[:50] + more))


class Document:
    """A file that was read: ``value`` is plain Python, ``line`` says where a part of it stands."""

    def __init__(self, value: dict[str, Any], lines: dict[Path, int], source: str) -> None:
        self.value = value
        self.source = source
        self._lines = lines

    def line(self, path: Path) -> int:
        """Return the line (from 1) of what is at ``path``: mapping keys and list positions; the nearest known part above it when it is not
        there."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)


class _Guard(yaml.composer.Composer):
    """PyYAML's composer, without anchors and without unlimited depth."""

    _depth = 0
    _nodes = 0
    peek_event: Any
    """The parser's."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not accepted", problem_mark=event.start_mark)
        if self._depth >= _MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=event.start_mark)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_NODES} keys and values", problem_mark=event.start_mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _Composer(_Guard, yaml.SafeLoader):
    """The same over PyYAML's own parser, which says best what is wrong."""


def _fast_composer() -> type[Any] | None:
    """The same over libyaml, seven times as fast, where PyYAML was built with it: an agent of five hundred identities has to start."""
    if not getattr(yaml, "__with_libyaml__", False):
        return None
    from yaml._yaml import CParser

    class Fast(_Guard, CParser, yaml.resolver.Resolver):
        def __init__(self, text: str) -> None:
            CParser.__init__(self, text)
            yaml.resolver.Resolver.__init__(self)
            yaml.composer.Composer.__init__(self)

    return Fast


_FAST = _fast_composer()


def _compose(text: str) -> yaml.Node | None:
    """Return the outermost node, None for an empty text. Raises ``yaml.YAMLError`` or ``ValueError``, in the words of the slow parser where
    that does not take long.
    """
    for kind in (_FAST, _Composer):
        if kind is None:
            continue
        loader = None
        try:
            loader = kind(text)
            node: yaml.Node | None = loader.get_single_node()
        except (yaml.YAMLError, ValueError):
            if kind is _Composer or len(text) > _SLOWLY:
                raise
        else:
            return node
        finally:
            if loader is not None:
                loader.dispose()
    raise AssertionError("the last one returns or raises")


class _Reader:
    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.lines: dict[Path, int] = {}

    def read(self, node: yaml.Node, path: Path) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            if node.tag != "tag:yaml.org,2002:seq":
                self.problems.add(line, f"tag {node.tag} is not accepted")
            return [self.read(item, (*path, position)) for position, item in enumerate(node.value)]
        return self._scalar(node, line)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        if node.tag != "tag:yaml.org,2002:map":
            self.problems.add(node.start_mark.line + 1, f"tag {node.tag} is not accepted")
        value: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                self.problems.add(line, "a key must be plain text")
                continue
            key = str(key_node.value)
            if key in value:
                self.problems.add(line, f"{key!r} is given twice")
            self.lines[(*path, key)] = line
            value[key] = self.read(value_node, (*path, key))
        return value

    def _scalar(self, node: yaml.Node, line: int) -> Any:
        text = str(node.value)
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.endswith((":binary", ":set", ":omap", ":pairs", ":python")):
            self.problems.add(line, f"tag {node.tag} is not accepted")
        if getattr(node, "style", None):  # quoted or block text is text; a plain one has none, which libyaml calls empty
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _INTEGER.fullmatch(text):
            return int(text)
        return float(text) if _NUMBER.fullmatch(text) else text


def read_yaml(text: str, source: str, kind: Kind) -> Document:
    """Read one document whose outermost part is a mapping; raise one error of ``kind`` that names every problem as ``source:line:
    message``.

    An empty file is an empty mapping. ``source`` is only the name used in messages.
    """
    problems = Problems(source, kind)
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        problems.add(1, f"larger than {MAX_BYTES} bytes")
        problems.raise_if_any()
    try:
        node = _compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.add(mark.line + 1 if mark else 1, f"not YAML that is accepted: {error.problem or error.context or 'syntax error'}")
    except (yaml.YAMLError, ValueError) as error:
        problems.add(1, f"not YAML: {error}".splitlines()[0])
    problems.raise_if_any()
    if node is None:
        return Document({}, {}, source)
    reader = _Reader(problems)
    value = reader.read(node, ())
    if not isinstance(value, dict):
        problems.add(node.start_mark.line + 1, "a mapping is expected here: 'key: value' lines")
    problems.raise_if_any()
    return Document(value, reader.lines, source)
