"""What a kind's settings are, for people and for forms: read from its struct and from the words below each field."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

import msgspec

from handclasp.wire.discovery import SourceOption

_FIELD = re.compile(r'^    (\w+):[^\n]*(?:\n(?!    \w+:)[^"\n]*)*?\n    """(.*?)"""', re.MULTILINE | re.DOTALL)


def options_of(settings: type[msgspec.Struct]) -> list[SourceOption]:
    """Return the settings of a kind in their order."""
    words = _words(settings)
    found = []
    for field in msgspec.structs.fields(settings):
        default = field.default if field.default is not msgspec.NODEFAULT else None
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        found.append(
            SourceOption(
                name=field.encode_name,
                type=type_of(field.type),
                help=words.get(field.name, ""),
                default=msgspec.to_builtins(default),
                required=field.required,
            )
        )
    return found


def type_of(annotation: Any) -> str:
    """Return ``text``, ``number``, ``flag``, ``list`` (of text or numbers) or ``json`` for anything else."""
    kind = msgspec.inspect.type_info(annotation)
    if isinstance(kind, msgspec.inspect.UnionType):
        some = [one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType)]
        if len(some) != 1:
            return "json"
        kind = some[0]
    if isinstance(kind, msgspec.inspect.StrType | msgspec.inspect.LiteralType | msgspec.inspect.EnumType):
        return "text"
    if isinstance(kind, msgspec.inspect.BoolType):
        return "flag"
    if isinstance(kind, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        return "number"
    if isinstance(kind, msgspec.inspect.ListType) and isinstance(
        kind.item_type, msgspec.inspect.StrType | msgspec.inspect.IntType | msgspec.inspect.LiteralType
    ):
        return "list"
    return "json"


def _words(settings: type[msgspec.Struct]) -> dict[str, str]:
    """Return the docstring below each field, also of those that come from a base."""
    found: dict[str, str] = {}
    for part in reversed(settings.__mro__):
        if not issubclass(part, msgspec.Struct) or part is msgspec.Struct:
            continue
        try:
            source = textwrap.dedent(inspect.getsource(part))
        except (OSError, TypeError):  # installed without sources
            continue
        found |= {match[1]: " ".join(match[2].replace("``", "").split()) for match in _FIELD.finditer(source)}
    return found
