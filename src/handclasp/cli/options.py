"""Small pieces that several groups of commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import click

from handclasp.errors import HandclaspError, Kind

F = TypeVar("F", bound=Callable[..., Any])


def limit_option(function: F) -> F:
    """Add ``--limit``: how many items a list shows at most."""
    return click.option("--limit", type=click.IntRange(0), default=1000, show_default=True, help="Items to show at most; 0 is all.")(
        function
    )


def log_level_option(function: F) -> F:
    """Add ``--log-level``: how much a command that runs on says."""
    levels = click.Choice(["debug", "info", "warning", "error"])
    return click.option("--log-level", type=levels, default="info", show_default=True, help="What to say on stderr.")(function)


def filter_options(which: str, *, without: Sequence[str] = ()) -> Callable[[F], F]:
    """Add an option for each filter of a list, with the words of the API; they come as ``filter_NAME``."""
    from handclasp.inventory.filters import LISTS

    def add(function: F) -> F:
        for one in reversed(LISTS[which]):
            if one.name not in without:
                choices = one.schema.get("enum")
                names = [_OPTIONS.get(one.name, f"--{one.name.replace('_', '-')}"), f"filter_{one.name}"]
                metavar = "|".join(choices) if choices and len(choices) <= 4 else "true|false" if one.name == "ca" else "TEXT"
                said = one.description.replace("`", "")
                text = f"{said} One of {', '.join(choices)}." if choices and len(choices) > 4 else said
                function = click.option(*names, metavar=metavar, help=text)(function)
        return function

    return add


_OPTIONS = {"ca": "--is-ca"}
"""Options that are not called like their filter, whose name stands for something else on every command."""


def filters_of(given: dict[str, Any]) -> dict[str, str]:
    """Return the query that the options of :func:`filter_options` say, and take them out of ``given``."""
    names = [name for name in given if name.startswith("filter_")]
    values = {name.removeprefix("filter_"): given.pop(name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def in_path(name: str) -> str:
    """Return a name as one segment of a path, whatever is in it; raise ``not_found`` for one that no address can hold."""
    if name in ("", ".", ".."):
        raise HandclaspError(Kind.NOT_FOUND, f"nothing is called {name!r}")
    return quote(name, safe="")


def pairs(values: Sequence[str], option: str) -> dict[str, str]:
    """Return ``K=V`` arguments as a mapping; wrong usage when one is not of that form."""
    result = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{value!r} is not K=V", param_hint=option)
        result[key] = text
    return result
