"""What follows a delivery: ``validate``, ``reload``, ``look`` and ``timeout``."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from handclasp.agent.config import values
from handclasp.agent.config.helper import helper_of
from handclasp.agent.config.table import Table
from handclasp.agent.config.targets import About
from handclasp.agent.targets.base import Call, Look, Place, Reload, Target
from handclasp.client.starttls import STARTTLS

ACTIONS = ("reload", "restart", "reload-or-restart", "try-reload-or-restart", "try-restart")
"""What may be asked of systemd."""
_METHODS = ("GET", "POST", "PUT", "PATCH")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]{0,254}")
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")


def with_after(place: Place, table: Table, about: About) -> Target:
    """Read what follows a delivery to ``place``, and return the whole target."""
    return Target(
        place.name,
        place,
        validate=table.take("validate", values.argv, ()),
        reload=read_reload(table),
        look=read_look(table, about),
        timeout=table.take("timeout", values.duration, 30.0),
        helper=helper_of(table),
    )


def read_reload(parent: Table) -> Reload | None:
    """Read ``reload``: one of a command, a signal and a pid file, a systemd unit, an HTTP call."""
    table = parent.table("reload")
    if table is None:
        return None
    command = table.take("command", values.argv, ())
    number = table.take("signal", values.signal_number, 0)
    pidfile = table.take("pidfile", table.path_of)
    unit = table.take("systemd", _unit, "")
    action = table.take("action", values.one_of(*ACTIONS), "")
    call = _call(table)
    if sum(map(bool, (command, number, unit, call))) != 1 or bool(number) != bool(pidfile):
        table.problem("reload is either a command, a signal with a pidfile, systemd with a unit, or http with a url")
    if action and not unit:
        table.problem("action belongs to systemd", "action")
    table.done()
    return Reload(command, number, pidfile, unit, action or "reload", call)


def _unit(value: Any) -> str:
    if not _UNIT.fullmatch(values.text(value)):
        raise ValueError("the name of a unit is expected, such as nginx.service")
    return value if "." in value else f"{value}.service"


def _call(parent: Table) -> Call | None:
    table = parent.table("http")
    if table is None:
        return None
    host, port, target = table.take("url", _local_url, ("", 0, ""), required=True)
    call = Call(
        host,
        port,
        target,
        socket=table.take("socket", table.path_of),
        method=table.take("method", values.one_of(*_METHODS), "POST"),
        expect=table.take("expect", _statuses, Call.__dataclass_fields__["expect"].default),
        headers=table.take("headers", _headers, ()),
        body_file=table.take("body_file", table.path_of),
    )
    table.done()
    return call


def _local_url(value: Any) -> tuple[str, int, str]:
    text = values.text(value)
    parts = urlsplit(text)
    if parts.scheme != "http" or parts.username is not None or parts.fragment or not text.isascii() or set(text) & set(" \r\n\t"):
        raise ValueError("an address such as http://127.0.0.1:2019/load is expected")
    if parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise ValueError("only an interface of this host is called: localhost, 127.0.0.1 or [::1]")
    return parts.hostname, parts.port or 80, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _statuses(value: Any) -> tuple[int, ...]:
    return tuple(values.whole(100, 599)(one) for one in (value if isinstance(value, list) and value else [value]))


def _headers(value: Any) -> tuple[tuple[str, str], ...]:
    found = values.pairs(value)
    for name, text in found:
        if not _HEADER.fullmatch(name) or not text.isascii() or not text.isprintable():
            raise ValueError(f"{name!r} cannot be a header")
    return found


def read_look(parent: Table, about: About) -> Look | None:
    """Read ``look``: where to make a handshake, and how it begins."""
    table = parent.table("look")
    if table is None:
        return None
    place = table.take("connect", values.text, "", required=True)
    socket, host, port = None, "", 0
    if place.startswith("unix:"):
        socket = table.path_of(place.removeprefix("unix:") or "/")
    elif place:
        try:
            host, port = values.address(place)
        except ValueError as error:
            table.problem(f"connect: {error}, or unix:/path", "connect")
    default = next((name for name in about.dns if "*" not in name), host or "localhost")
    server_name = table.take("server_name", values.host_name, default)
    starttls = table.take("starttls", values.one_of("none", *STARTTLS), "none")
    table.done()
    return Look(host, port, server_name, starttls, socket)
