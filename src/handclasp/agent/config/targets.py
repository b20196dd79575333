"""Kinds of target, and the presets that fill them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from handclasp.agent.config import values
from handclasp.agent.config.table import Table
from handclasp.agent.targets.base import Target
from handclasp.errors import HandclaspError

KINDS: dict[str, str] = {
    "files": "handclasp.agent.config.files:read_files",
    "pkcs12": "handclasp.agent.config.files:read_keystore",
    "jks": "handclasp.agent.config.files:read_keystore",
    "exec": "handclasp.agent.config.exec:read_exec",
    "kubernetes_secret": "handclasp.agent.config.kubernetes:read_kubernetes_secret",
}
"""``type`` of a target -> ``module:function`` that reads it.

The function is called with the target's :class:`Table`, its ``type`` and :class:`About` the identity. It takes out everything that it
knows, does not call ``done()``, and returns a :class:`Target` whatever problems it noted. ``config.after`` reads validate, reload and look
for those kinds that have them.
"""

_PARAMETER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,127}")


@dataclass(frozen=True, slots=True)
class About:
    """The identity whose targets are read."""

    name: str
    dns: tuple[str, ...]
    key_type: str


def read_target(table: Table, about: About) -> Target | None:
    """Read one target of any kind; None when its kind is not known (which is noted)."""
    preset = table.take("preset", values.text, "")
    if preset:
        _fill(table, preset)
    kind = table.take("type", values.text, "files")
    if kind not in KINDS:
        table.problem(f"{kind!r} is not a type of target: {', '.join(KINDS)}", "type")
        return None
    module, _, name = KINDS[kind].partition(":")
    target: Target = getattr(importlib.import_module(module), name)(table, kind, about)
    table.done()
    return replace(target, preset=preset)


def _fill(table: Table, name: str) -> None:
    """Put what a preset says where the configuration says nothing. A ``look`` is filled key by key, everything else as a whole."""
    from handclasp.agent.presets import load_preset

    try:
        preset = load_preset(name)
    except HandclaspError as error:
        table.problem(f"{error.detail}; {error.hint}" if error.hint else error.detail, "preset")
        return
    parameters = {word: table.take(word, _parameter, default, required=not default) for word, default in preset.parameters.items()}
    written, kind = dict(table.value), preset.target.get("type", "files")
    if written.get("type", kind) != kind:
        table.problem(f"the preset {name} is for the type {kind}", "type")
    directory = written.get("directory")
    place = str(table.path_of(directory)) if isinstance(directory, str) and directory and "\0" not in directory else None
    filled = preset.fill(place, {word: text for word, text in parameters.items() if text})
    look, given = filled.get("look"), written.get("look")
    if isinstance(look, Mapping) and isinstance(given, Mapping):
        filled["look"] = written["look"] = {**look, **given}
    table.value = filled | written


def _parameter(value: Any) -> str:
    # It becomes part of commands and paths.
    if not isinstance(value, str | int) or isinstance(value, bool) or not _PARAMETER.fullmatch(str(value)):
        raise ValueError("letters, digits and . _ @ : - are expected")
    return str(value)
