"""Targets that are a child of the agent."""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Mapping
from typing import Any

from handclasp.agent.config import values
from handclasp.agent.config.after import read_look
from handclasp.agent.config.table import Table
from handclasp.agent.config.targets import About
from handclasp.agent.targets.base import Target
from handclasp.agent.targets.exec import VARIABLES, Exec
from handclasp.agent.targets.files import Files

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def read_exec(table: Table, _kind: str, about: About) -> Target:
    """Read a target of the kind ``exec``."""
    user = table.take("user", values.account(lambda name: pwd.getpwnam(name).pw_uid, "user"), -1)
    group = table.take("group", values.account(lambda name: grp.getgrnam(name).gr_gid, "group"), -1)
    names = table.take("environment", _names, ())
    directory = table.take("directory", table.path_of, table.source.base / "exec", required=True)
    files = Files(
        directory,
        combine="certificate-first" if "combined" in dict(names) else "",
        include_root=table.take("include_root", values.flag, False),
        crl=table.take("crl", values.flag, False) or "crl" in dict(names),
        owner=user,
        group=group,
        mode=table.take("mode", values.mode, 0o600),
    )
    timeout = table.take("timeout", values.duration, 30.0)
    place = Exec(
        files,
        table.take("command", values.argv, ("true",), required=True),
        names,
        signal=table.take("on_change", _on_change, 0),
        restart=table.take("restart", values.one_of("always", "on_failure", "never"), "always"),
        backoff=_backoff(table),
        user=user,
        group=group,
        stop_timeout=table.take("stop_timeout", values.duration, 10.0),
        settle=table.take("settle", _settle, 1.0),
        look=read_look(table, about),
        extra=table.take("variables", _variables, ()),
    )
    if table.has("reload") or table.has("validate"):
        table.problem("a child is restarted or signalled (on_change); reload and validate are for services that others run")
        table.value.pop("reload", None)
        table.value.pop("validate", None)
    return Target(place.name, place, timeout=timeout)


def _settle(value: Any) -> float:
    seconds = values.duration(value)
    if seconds > 60:
        raise ValueError("at most 60s: a delivery waits for it")
    return seconds


def _names(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise TypeError(f"a mapping is expected, of {', '.join(VARIABLES)} to names of variables")
    for word in value:
        values.one_of(*VARIABLES)(word)
    return tuple((word, _variable(name)) for word, name in value.items())


def _variables(value: Any) -> tuple[tuple[str, str], ...]:
    found = values.pairs(value)
    if any(_variable(name).startswith("HANDCLASP_") for name, _ in found):
        raise ValueError("names that begin with HANDCLASP_ are ours")
    return found


def _variable(value: Any) -> str:
    if not _VARIABLE.fullmatch(values.text(value)):
        raise ValueError(f"{value!r} cannot be the name of a variable")
    return str(value)


def _on_change(value: Any) -> int:
    word = values.text(value).removeprefix("signal ")
    return 0 if word == "restart" else values.signal_number(word)


def _backoff(parent: Table) -> tuple[float, float]:
    table = parent.table("backoff")
    if table is None:
        return 1.0, 60.0
    first, longest = table.take("first", values.duration, 1.0), table.take("longest", values.duration, 60.0)
    if longest < first:
        table.problem("longest is shorter than first", "longest")
    table.done()
    return first, max(first, longest)
