"""Filters of a list as fields of a form, and as options of a command.

They are made from the API's own parameters: a filter that the API has, the console has.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handclasp.console.visit import ApiParameter, Visit

_LABELS: Mapping[str, str] = {
    "q": "Search",
    "spiffe": "SPIFFE path",
    "key_type": "Key type",
    "key": "Key fingerprint",
    "sha256": "Fingerprint",
    "expires_before": "Expires before",
    "expires_after": "Expires after",
    "ca": "CA certificates",
}
_EXAMPLES: Mapping[str, str] = {
    "q": "part of a name …",
    "spiffe": "spiffe://example.org/prod",
    "expires_before": "7d",
    "expires_after": "2026-01-01",
    "owner": "payments",
    "key_type": "rsa2048",
    "subject": "token:ID",
    "label": "zone=a",
}
_LEFT_OUT = frozenset({"limit", "cursor", "expand"})


@dataclass(frozen=True, slots=True)
class Field:
    """One field."""

    name: str
    label: str
    description: str
    choices: tuple[str, ...]
    example: str


def fields_of(parameters: Sequence[ApiParameter]) -> list[Field]:
    """Return the fields for the parameters of a list, the search first."""
    made = [
        Field(
            one.name,
            _LABELS.get(one.name, one.name.replace("_", " ").capitalize()),
            one.description,
            _choices(one.schema),
            _EXAMPLES.get(one.name, ""),
        )
        for one in parameters
        if one.name not in _LEFT_OUT
    ]
    return sorted(made, key=lambda field: field.name != "q")


COMMANDS: Mapping[str, str] = {"certificates": "cert list", "identities": "identity list", "locations": "location list"}
"""Commands that list the same, with an option for each filter."""


def list_command(name: str, search: Mapping[str, str]) -> str:
    """Return the command that shows the same list with the same filters."""
    words = ["handclasp", *COMMANDS[name].split()]
    for parameter, value in search.items():
        words.append(f"{_FLAGS.get(parameter, '--' + parameter.replace('_', '-'))}={value}")  # in one word: a value may begin with a dash
    return shlex.join(words)


_FLAGS = {"ca": "--is-ca"}


def _choices(schema: Mapping[str, Any]) -> tuple[str, ...]:
    return ("true", "false") if schema.get("type") == "boolean" else tuple(str(choice) for choice in schema.get("enum", ()))


def list_query(visit: Visit, path: str, limit: int = 50) -> dict[str, str]:
    """Return the query for a list of the API: the page's own filters, those that the list has."""
    known = {one.name for one in visit.api.parameters(path)}
    return {name: value for name, value in visit.query.items() if name in known - {"limit", "expand"}} | {"limit": str(limit)}
