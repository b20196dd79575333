"""``handclasp up``, ``init`` and ``serve``: parse flags, and hand over to the server."""

from __future__ import annotations

import shlex
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


@click.command(
    cls=SettingsCommand,
    example="handclasp init --trust-domain example.org --dns-zone example.org --data /var/lib/handclasp\n"
    "handclasp init --new-admin-token --data /var/lib/handclasp",
)
@click.option("--new-admin-token", is_flag=True, help="Only make another admin token, when the one there is lost or has ended.")
@pass_state
def init(state: State, new_admin_token: bool, **flags: Any) -> None:
    """Make a data directory: database, root and issuing authority, admin token."""
    given = {"--config": flags.get("config"), "--data": flags.get("data"), "--passphrase-file": flags.get("passphrase_file")}
    if new_admin_token:
        settings = load_settings(flags)
        file = finish(server_part("server.local", "create_admin_token")(settings))
        made = {"admin_token_file": str(file)}
    else:
        made = _run("init", flags)
    if state.json:
        terminal.write_json(made)
    else:
        terminal.write_fields([(name.replace("_", " "), value) for name, value in made.items()])
    if not new_admin_token:
        if not given["--config"]:
            given["--data"] = made["data"]
        words = (shlex.quote(str(word)) for flag, value in given.items() if value for word in (flag, value))
        terminal.say(f"start it with: handclasp serve {' '.join(words)}")


def _exit_code(result: Any) -> int:
    return result if isinstance(result, int) else 0
