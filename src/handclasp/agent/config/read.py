"""The file as a whole: the server, the identities, and the sections of parts that not every agent has."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from handclasp.agent.config import values
from handclasp.agent.config.model import Config, Managed
from handclasp.agent.config.table import Source, Table
from handclasp.agent.config.targets import About, read_target
from handclasp.agent.targets.base import Target
from handclasp.agent.targets.files import Generated
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import names
from handclasp.pki.yamlfile import Problems, read_yaml

SECTIONS: dict[str, str] = {
    "discover": "handclasp.agent.config.discover:read_discover",
    "helper": "handclasp.agent.config.helper:read_helper",
    "metrics": "handclasp.agent.config.core:read_metrics",
    "state_key": "handclasp.agent.config.core:read_state_key",
    "socket": "handclasp.agent.config.socket:read_socket",
}
"""Section of the file -> ``module:function`` that reads it.

The function is called with the outermost :class:`Table` and the section's key when it is there, takes it out (``top.table(key)`` or
``top.take(key, check)``) and returns what :meth:`Config.section` is to return.
"""


def load_config(path: str | os.PathLike[str]) -> Config:
    """Read a configuration; relative files in it are relative to it. Raises one ``bad_setting`` for all problems, each ``file:line: …``."""
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise HandclaspError(Kind.BAD_SETTING, f"cannot read {os.fspath(path)}: {error.strerror}") from error
    except ValueError as error:
        raise HandclaspError(Kind.BAD_SETTING, f"{os.fspath(path)} is not UTF-8 text") from error
    return parse_config(text, os.fspath(path), Path(path).resolve().parent)


def parse_config(text: str, source: str, base: Path) -> Config:
    """The same for a text."""
    document = read_yaml(text, source, Kind.BAD_SETTING)
    problems = Problems(source, Kind.BAD_SETTING)
    config = _config(Table(Source(document, problems, base), document.value))
    problems.raise_if_any()
    return config


def function(place: str) -> Callable[..., Any]:
    """Return the function that ``module:function`` names."""
    module, _, name = place.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _config(top: Table) -> Config:
    if top.value.pop("version", 1) != 1:
        top.problem("version must be 1", "version")
    server = top.table("server") or Table(top.source, {}, ("server",))
    url, ca = server.take("url", values.url), server.take("ca", _ca(server))
    server.done()
    state_dir = top.take("state_dir", top.path_of)
    poll = top.take("poll", values.duration, 60.0)
    sections = {key: function(place)(top, key) for key, place in SECTIONS.items() if top.has(key)}
    # An agent that only serves a socket needs no identities of its own.
    tables = top.tables("identities", required="socket" not in sections)
    identities = [_identity(table) for table in tables]
    top.done()
    _unique([(table, managed.name) for table, (managed, _) in zip(tables, identities, strict=True)], "identity")
    _unique([(table, claim) for _, targets in identities for table, target in targets for claim in _claims(target)], "target")
    return Config(url, ca, state_dir, poll, tuple(managed for managed, _ in identities), sections)


def _claims(target: Target) -> list[str]:
    """What no two targets may have in common: their name, and every path that is theirs alone."""
    place = target.place
    if not isinstance(place, Generated):
        return [place.name]
    return [str(path) for path in dict.fromkeys((place.directory, *(path for _, path in place.links)))]


def _unique(found: list[tuple[Table, str]], what: str) -> None:
    seen: set[str] = set()
    for table, value in found:
        if value and value in seen:
            table.problem(f"the {what} {value} is there more than once")
        seen.add(value)


def _ca(table: Table) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        word = values.text(value)
        return word if word.startswith("sha256:") else str(table.path_of(word))

    return read


def _identity(table: Table) -> tuple[Managed, list[tuple[Table, Target]]]:
    identity = table.take("identity", lambda value: names.check_spiffe_id(values.text(value)))
    dns = table.take("dns", values.texts(names.check_dns), ())
    ip = table.take("ip", values.texts(names.check_ip), ())
    if not (identity or dns or ip):
        table.problem("an identity needs a SPIFFE ID, a DNS name or an IP address")
    profile = table.take("profile", values.text, "workload" if identity else "server")
    ttl = table.take("ttl", values.ttl)
    key_type = table.take("key_type", values.key_type, "p256")
    name = identity or (f"dns:{dns[0]}" if dns else f"ip:{ip[0]}" if ip else "")
    tables = table.tables("targets", required=False)
    found = [(item, read_target(item, About(name, dns, key_type))) for item in tables]
    table.done()
    targets = [(item, target) for item, target in found if target is not None]
    return Managed(name, identity, dns, ip, profile, ttl, key_type, tuple(target for _, target in targets)), targets
