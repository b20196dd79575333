"""``handclasp source add``: one command for each kind of source, made from the kind's own settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from handclasp.cli import terminal
from handclasp.cli.command import Command, State, pass_state
from handclasp.cli.options import pairs
from handclasp.errors import HandclaspError

if TYPE_CHECKING:
    from handclasp.wire.discovery import SourceOption

F = TypeVar("F", bound=Callable[..., Any])

EXAMPLES = {
    "network": "handclasp source add network office --allow 10.0.0.0/24 --deny 10.0.0.17 --port 443 --port 8443 --every 6h\n"
    "handclasp source add network mail --allow mx.example.org --port 25 --port 587 --port 143\n"
    "handclasp source add network here --allow 127.0.0.1 --port 8443",
    "import": "handclasp source add import inherited --fact environment=prod",
    "kubernetes": "handclasp source add kubernetes prod-a --cluster prod-a --tls-secret payments --every 1h --watch 55m\n"
    "handclasp source add kubernetes prod-b --cluster prod-b --kubeconfig prod-b.kubeconfig --runs server --every 1h",
    "istio": "handclasp source add istio mesh-a --cluster prod-a --source-url node-1=http://10.0.0.7:15000/config_dump --every 15m",
    "linkerd": "handclasp source add linkerd mesh-b --cluster prod-b --every 30m --watch 25m",
    "files": "handclasp source add files hosts --path /etc/ssl --path /etc/nginx --every 1d",
    "consul": "handclasp source add consul mesh-c --source-url https://consul.example.org:8501 --ca-file consul-ca.pem --every 15m",
    "spire": "handclasp source add spire spire-a --socket /run/spire/server/private/api.sock --every 15m",
    "vault": "handclasp source add vault main --source-url https://vault.example.org:8200 --mount pki --source-token-file vault.token",
    "ct": "handclasp source add ct transparency --domain example.org --static-log https://mon.example-log.org/2026h2 --every 1h",
    "step": "handclasp source add step edge-ca --source-url https://ca.example.org:9000 --ca-file step-root.pem --every 6h",
    "aws": "handclasp source add aws cloud --region eu-central-1 --region us-east-1 --every 6h",
}
"""What is typed for a kind; one from elsewhere has the general form."""
_TAKEN = frozenset(
    {"--url", "--token-file", "--ca", "--json", "--set", "--allow", "--deny", "--loopback", "--every", "--runs", "--fact", "--paused"}
)
"""Options of the command itself, or of the connection to our own server: a setting of such a name gets ``--source-`` before it."""


def common_options(function: F) -> F:
    """Add the options that every kind has; what is not given is None or empty."""
    for option in reversed(
        (
            click.option("--allow", multiple=True, metavar="ENTRY", help="What may be read; the kind says what an entry is. Repeatable."),
            click.option("--deny", multiple=True, metavar="ENTRY", help="What is never read; wins over --allow. Repeatable."),
            click.option("--loopback/--no-loopback", default=None, help="Whether connections may go to the machine that reads."),
            click.option("--every", metavar="DURATION", help="From one scan to the next: 30m, 6h, 1d. Without it, only when asked."),
            click.option("--runs", type=click.Choice(["server", "collector", "agents"]), help="Who reads it, where it is not the usual."),
            click.option("--fact", multiple=True, metavar="K=V", help="What is true of everything in it: environment=prod. Repeatable."),
            click.option("--paused/--active", default=None, help="Whether its schedule rests."),
        )
    ):
        function = option(function)
    return function


class AddGroup(click.Group):
    """The kinds, each a command that is made when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click calls it so)
        """Return the kinds."""
        from handclasp.discovery.kinds import KINDS

        return list(KINDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command of a kind, None where there is none."""
        from handclasp.discovery.kinds import KINDS

        return make_command(cmd_name) if cmd_name in KINDS else None


def make_command(kind_name: str) -> click.Command:
    """Return ``source add KIND``. A kind whose library is not installed here can be added by ``--set`` alone; the server judges."""
    options: list[SourceOption] = []
    words = f"Add a source of the kind {kind_name}."
    try:
        from handclasp.discovery.kinds import load_kind
        from handclasp.discovery.options import options_of

        kind = load_kind(kind_name)
        options, words = options_of(kind.Settings), f"{kind.summary[:1].upper()}{kind.summary[1:]}.\n\nIt needs: {kind.privilege}"
    except (HandclaspError, ImportError):
        pass
    flags = [_option(one) for one in options if one.type != "json"]

    @pass_state
    def add(state: State, name: str, given: tuple[str, ...], **values: Any) -> None:
        _add(state, kind_name, name, given, values, options)

    add = common_options(click.option("--set", "given", multiple=True, metavar="KEY=VALUE", help="Any setting, as text or JSON.")(add))
    command = click.command(
        kind_name,
        cls=Command,
        client=True,
        help=words,
        example=EXAMPLES.get(kind_name, f"handclasp source add {kind_name} NAME --every 6h"),
    )(add)
    command.params = [click.Argument(["name"], metavar="NAME", help="What it is to be called."), *flags, *command.params]
    return command


def parse_settings(given: Sequence[str], options: Sequence[SourceOption]) -> dict[str, Any]:
    """Return ``--set`` arguments as settings: JSON where the setting is not plain text, repeated ones as a list, empty ones None."""
    types = {one.name: one.type for one in options}
    found: dict[str, Any] = {}
    for argument in given:
        ((key, text),) = pairs([argument], "--set").items()
        if text == "":
            found[key] = None
        elif types.get(key) == "list" and not text.startswith("["):
            found[key] = [*(found.get(key) or []), text]
        else:
            found[key] = text if types.get(key) == "text" else _json(text)
    return found


def _json(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text


def _option(one: SourceOption) -> click.Option:
    flag = "--" + one.name.replace("_", "-")
    several = one.type == "list"
    if several and flag.endswith("s") and not flag.endswith("ss"):
        flag = flag.removesuffix("s")
    if flag in _TAKEN:
        flag = f"--source-{flag[2:]}"
    words = one.help
    if one.default not in (None, "", [], False):
        shown = ", ".join(map(str, one.default)) if isinstance(one.default, list) else one.default
        words = f"{words} [default: {shown}]"
    if several:
        words += " Repeatable."
    if one.type == "flag":
        return click.Option([f"{flag}/--no-{flag[2:]}", f"setting_{one.name}"], default=None, help=words)
    kind: Any = float if one.type == "number" else str
    return click.Option(
        [flag, f"setting_{one.name}"], multiple=several, type=kind, metavar="N" if one.type == "number" else "TEXT", help=words
    )


def _add(state: State, kind: str, name: str, given: tuple[str, ...], values: dict[str, Any], options: Sequence[SourceOption]) -> None:
    from handclasp.wire.discovery import Source, SourceRequest, SourceScope

    settings = {key.removeprefix("setting_"): _plain(value) for key, value in values.items() if key.startswith("setting_")}
    settings = {key: value for key, value in settings.items() if value not in (None, [])} | parse_settings(given, options)
    body = SourceRequest(
        name=name,
        kind=kind,
        settings={key: value for key, value in settings.items() if value is not None},
        scope=SourceScope(allow=list(values["allow"]), deny=list(values["deny"]), loopback=bool(values["loopback"])),
        every=values["every"] or "",
        runs=values["runs"],
        facts=dict(pairs(values["fact"], "--fact")),
        paused=bool(values["paused"]),
    )
    added = state.api().call("POST", "/v1/sources", Source, body=body)
    if state.json:
        terminal.write_json(added)
        return
    terminal.write(added.name)
    when = f"is read every {added.every}, for the first time now" if added.every and added.state == "active" else "is read when asked"
    terminal.say(f"{added.name} is added, and {when}")
    if not added.every and added.kind != "import":
        terminal.hint(f"handclasp source run {added.name} --dry-run --watch")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
