"""``handclasp up``, ``init`` and ``serve``: parse flags, and hand over to the server."""

from __future__ import annotations

from typing import Any

import click

from handclasp.cli import terminal
from handclasp.cli.command import State, pass_state
from handclasp.cli.parts import finish, server_part
from handclasp.cli.settings import SettingsCommand, load_settings


def _run(name: str, flags: dict[str, Any]) -> Any:
    settings = load_settings(flags)
    return finish(server_part("server.run", name)(settings))


@click.command(
    cls=SettingsCommand,
    example="handclasp up --trust-domain example.org\nhandclasp up --data ./try --https 127.0.0.1:0 --ready-file ready.json",
)
def up(**flags: Any) -> int:
    """Make the authorities when the data directory is empty, then serve, in one process on SQLite."""
    return _exit_code(_run("up", flags))


@click.command(
    cls=SettingsCommand, example="handclasp serve --database postgresql://handclasp@db/handclasp --workers 4 --https 0.0.0.0:8443"
)
def serve(**flags: Any) -> int:
    """Serve from a data directory that ``handclasp init`` has made."""
    return _exit_code(_run("serve", flags))


@click.command(cls=SettingsCommand, example="handclasp init --trust-domain example.org --dns-zone example.org --data /var/lib/handclasp")
@pass_state
def init(state: State, **flags: Any) -> None:
    """Make a data directory: database, root and issuing authority, admin token."""
    made = _run("init", flags)
    if state.json:
        terminal.write_json(made)
    else:
        terminal.write_fields([(name.replace("_", " "), value) for name, value in made.items()])
    terminal.say(f"start it with: handclasp serve --data {made['data']}")


def _exit_code(result: Any) -> int:
    return result if isinstance(result, int) else 0
