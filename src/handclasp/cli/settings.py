"""Command-line options made from the server's own list of settings, so that no setting can be missing here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from handclasp.cli.command import Command
from handclasp.cli.parts import server_part


class SettingsCommand(Command):
    """A command that takes the server's settings as options: all of them, or those named in ``settings``.

    The list is imported when the options are needed, which is when the command runs or its help is asked for.
    """

    def __init__(self, *args: Any, settings: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names = settings
        self._options: list[click.Parameter] | None = None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own parameters and one option for each setting."""
        if self._options is None:
            wanted = [s for s in server_part("server.settings", "SETTINGS") if self._names is None or s.name in self._names]
            self._options = [option_for(setting) for setting in wanted]
            self._options.append(
                click.Option(["--config"], metavar="FILE", envvar="HANDCLASP_SERVER_CONFIG", show_envvar=True, help="Settings file (TOML).")
            )
        return [*self._options, *super().get_params(ctx)]


def option_for(setting: Any) -> click.Option:
    """Return the option for one setting. Values stay text: the settings parse flags, variables and file with one set of rules."""
    text = f"{setting.help} [env: {setting.env}]"
    default = "" if setting.default in ("", None, (), False) else f" [default: {setting.default}]"
    if setting.type == "flag":
        return click.Option([f"{setting.flag}/--no-{setting.flag[2:]}", setting.name], default=None, help=text)
    if setting.type == "list":
        return click.Option([setting.flag, setting.name], multiple=True, metavar="TEXT", help=text + default)
    return click.Option([setting.flag, setting.name], metavar=setting.type.upper(), help=text + default)


def load_settings(flags: dict[str, Any]) -> Any:
    """Return the server's settings from given flags, the environment and ``--config``; raise ``bad_setting`` naming each bad one."""
    config = flags.pop("config", None)
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    return server_part("server.settings", "Settings").load(given, None, config)
