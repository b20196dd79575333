"""Presets: what a target needs for a service that many have. Each is a file of data beside this one.

    title      what it is for, in a line
    parameters what the target must say besides, or may (name -> default; empty: it must), as ``{unit}`` for the key ``unit``
    target     what a target of ``agent.yaml`` is filled with where it says nothing; ``{directory}`` stands for its directory
    snippet    what the service's own configuration must say, for the same directory
    notes      what one should know
    tried      True when a test of ours rotates certificates under the real service

Nothing here runs anything: the configuration's readers turn the data into a target, with the same checks as what people write.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import msgspec

from handclasp.errors import HandclaspError, Kind
from handclasp.pki.yamlfile import read_yaml


class Preset(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One preset, as it is written."""

    name: str
    title: str
    target: dict[str, Any]
    snippet: str
    parameters: dict[str, str] = {}
    notes: list[str] = []
    tried: bool = False

    def fill(self, directory: str | None = None, parameters: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return what a target is filled with, its directory and parameters put in everywhere; without a directory, the preset's own."""
        values = self._values(directory, parameters)
        return {**_put(self.target, values), "directory": values["directory"]}

    def snippet_for(self, directory: str | None = None, parameters: Mapping[str, str] | None = None) -> str:
        """Return what the service's own configuration must say."""
        return str(_put(self.snippet, self._values(directory, parameters)))

    def as_json(self) -> dict[str, Any]:
        """Return everything that is known about it, filled in for its own directory."""
        known: dict[str, Any] = {name: getattr(self, name) for name in ("name", "title", "parameters", "notes", "tried")}
        return {**known, "target": self.fill(), "snippet": self.snippet_for()}

    def as_text(self) -> str:
        """Return the same for people to read and copy."""
        import yaml

        written = {"preset": self.name, **{name: default or name.upper() for name, default in self.parameters.items()}}
        parts = [
            f"# {self.title}\n# In agent.yaml, as a target; everything but the first line is filled in by the preset:",
            _listed(yaml.safe_dump({**written, **self.fill()}, sort_keys=False, width=130)),
            "# The service's own configuration:",
            self.snippet_for().rstrip(),
            "",
            *(f"# * {note}" for note in self.notes),
        ]
        return "\n".join(parts) + "\n"

    def _values(self, directory: str | None, parameters: Mapping[str, str] | None) -> dict[str, str]:
        given = {**{name: default or name.upper() for name, default in self.parameters.items()}, **(parameters or {})}
        return {**given, "directory": directory or str(_put(self.target["directory"], given))}


def _listed(text: str) -> str:
    """A mapping as the one item of a list."""
    first, *rest = text.splitlines()
    return "\n".join([f"- {first}", *(f"  {line}" for line in rest), ""])


def preset_names() -> list[str]:
    """Return the names of all presets, in alphabetical order."""
    return sorted(file.name.removesuffix(".yaml") for file in resources.files(__name__).iterdir() if file.name.endswith(".yaml"))


@cache
def load_preset(name: str) -> Preset:
    """Return a preset; raise ``not_found`` with the names that there are."""
    known = preset_names()
    if name not in known:
        raise HandclaspError(Kind.NOT_FOUND, f"{name!r} is not a preset", hint=f"there are {', '.join(known)}")
    file = f"{name}.yaml"
    document = read_yaml((resources.files(__name__) / file).read_text("utf-8"), file, Kind.BAD_SETTING)
    return msgspec.convert({"name": name, **document.value}, Preset)


def _put(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _put(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_put(item, values) for item in value]
    if isinstance(value, str):
        for name, text in values.items():
            value = value.replace(f"{{{name}}}", text)
    return value
