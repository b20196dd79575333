"""Small pieces that several groups of commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def limit_option(function: F) -> F:
    """Add ``--limit``: how many items a list shows at most."""
    return click.option("--limit", type=click.IntRange(0), default=1000, show_default=True, help="Items to show at most; 0 is all.")(
        function
    )


def pairs(values: Sequence[str], option: str) -> dict[str, str]:
    """Return ``K=V`` arguments as a mapping; wrong usage when one is not of that form."""
    result = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{value!r} is not K=V", param_hint=option)
        result[key] = text
    return result
