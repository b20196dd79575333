"""``handclasp token``: scoped access tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from handclasp.cli import terminal
from handclasp.cli.command import Group, State, pass_state
from handclasp.cli.options import limit_option, pairs
from handclasp.cli.terminal import When
from handclasp.errors import HandclaspError, Kind

if TYPE_CHECKING:
    from handclasp.wire import Token


@click.group(cls=Group)
def token() -> None:
    """Scoped access tokens: a grant attached to a secret, with few uses and a short life."""


@token.command(
    client=("url", "ca"),
    example="handclasp token create web-bootstrap --allow 'spiffe://example.org/prod/web' --allow-dns web.example.org \\\n"
    "    --profile workload --max-ttl 24h --uses 1 --expires 10m --owner team-web --cidr 10.0.0.0/8",
)
@click.argument("name", help="What people call it.")
@click.option("--allow", multiple=True, metavar="PATTERN", help="SPIFFE ID it may obtain; * is one path segment, ** the rest.")
@click.option("--allow-dns", multiple=True, metavar="PATTERN", help="DNS name it may obtain; *.example.org is one label below.")
@click.option("--allow-ip", multiple=True, metavar="CIDR", help="IP address or network it may obtain.")
@click.option("--allow-email", multiple=True, metavar="PATTERN", help="E-mail address it may obtain; *@example.org is any there.")
@click.option("--profile", "profiles", multiple=True, metavar="NAME", help="Profile it may use.")
@click.option("--max-ttl", metavar="DURATION", help="Longest lifetime it may ask for.")
@click.option("--uses", type=click.IntRange(0), default=1, show_default=True, help="Certificates it may obtain; 0 is without limit.")
@click.option("--expires", default="10m", show_default=True, metavar="DURATION", help="How long it can be used.")
@click.option("--owner", help="Who answers for it.")
@click.option("--cidr", multiple=True, metavar="CIDR", help="Network it may be used from.")
@click.option("--csr-hash", metavar="SHA256", help="SHA-256 of the DER of the only CSR it may be used with.")
@click.option("--agent", is_flag=True, help="An enrolment token for an agent.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Label of the agent that enrols with it.")
@click.option("--no-renew", is_flag=True, help="What it obtains cannot be renewed.")
@click.option("--scope", "scopes", multiple=True, metavar="SCOPE", help="Part of the API it may use, such as certificates:read.")
@click.option("--out", "--token-file", "out", metavar="FILE", help="Write the new token to FILE (mode 0600) instead of stdout.")
@pass_state
def create(state: State, name: str, labels: tuple[str, ...], no_renew: bool, out: str | None, **options: Any) -> None:
    """Make a token and print it, once and alone, on stdout.

    Here --token-file names the file for the new token. The token that allows the command comes from HANDCLASP_TOKEN, the configuration, or
    --token-file in front of the command: handclasp --token-file admin.token token create ...
    """
    from handclasp.cli.files import write_file
    from handclasp.wire import TokenCreated, TokenRequest

    if out and Path(out).exists():
        raise HandclaspError(
            Kind.CONFLICT,
            f"{out} exists, and a new token is not written over it",
            hint=f"if it is the token to authenticate with: handclasp --token-file {out} token create …",
        )
    given: dict[str, Any] = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    request = TokenRequest(name=name, labels=pairs(labels, "--label"), renew=not no_renew, **given)
    made = state.api().call("POST", "/v1/tokens", TokenCreated, body=request)
    if out:
        write_file(Path(out), made.token.encode() + b"\n", 0o600)
    uses = "without limit" if made.uses == 0 else "once" if made.uses == 1 else f"{made.uses} times"
    terminal.say(f"token {made.id} ({made.name}) can be used {uses}, until {made.expires_at}" + (f"; it is in {out}" if out else ""))
    if state.json:
        terminal.write_json(made)
    elif not out:
        terminal.write(made.token)
        terminal.say("it is shown only this once")


@token.command("list", client=True, example="handclasp token list\nhandclasp token list --owner team-web --json")
@click.option("--owner", help="Only tokens of this owner.")
@click.option("--state", "token_state", metavar="STATE", help="Only active, spent, expired or revoked ones.")
@limit_option
@pass_state
def list_(state: State, owner: str | None, token_state: str | None, limit: int) -> None:
    """List tokens, newest first, without their secrets."""
    from handclasp.wire import TokenList

    tokens = state.api().pages("/v1/tokens", TokenList, limit, owner=owner, state=token_state)
    if state.json:
        terminal.write_json(tokens)
        return
    terminal.write_table(
        ["id", "name", "owner", "state", "used", "expires", "last used", "may obtain"],
        [[t.id, t.name, t.owner, t.state, _used(t), When(t.expires_at), _when(t.last_used_at), _reach(t)] for t in tokens.items],
        empty="there are no tokens",
    )


@token.command(client=True, example="handclasp token show k3v6q2mzt4w7ay5d")
@click.argument("token_id", metavar="ID", help="The token's id, as `token list` shows it.")
@pass_state
def show(state: State, token_id: str) -> None:
    """Show one token: what it may do, and what it has done."""
    from handclasp.wire import Token

    found = state.api().get(f"/v1/tokens/{quote(token_id, safe='')}", Token)
    if state.json:
        terminal.write_json(found)
        return
    times = {"created_at", "expires_at", "last_used_at", "revoked_at"}
    fields: list[tuple[str, terminal.Cell]] = []
    for field in found.__struct_fields__:
        value = getattr(found, field)
        if isinstance(value, dict):
            value = [f"{key}={item}" for key, item in sorted(value.items())]
        fields.append((field.replace("_", " ").removesuffix(" at"), When(value) if field in times and value else value))
    terminal.write_fields(fields)


@token.command(client=True, example="handclasp token revoke k3v6q2mzt4w7ay5d")
@click.argument("token_id", metavar="ID", help="The token's id, as `token list` shows it.")
@pass_state
def revoke(state: State, token_id: str) -> None:
    """Revoke a token. What it has obtained stays valid, and is not renewed any more."""
    from handclasp.wire import Done

    done = state.api().call("POST", f"/v1/tokens/{quote(token_id, safe='')}:revoke", Done)
    if state.json:
        terminal.write_json(done)
    terminal.say(f"token {token_id} is revoked (log entry {done.log_entry})")


def _used(token: Token) -> str:
    return f"{token.used}/{token.uses}" if token.uses else str(token.used)


def _when(text: str | None) -> When | None:
    return When(text) if text else None


def _reach(token: Token) -> list[str]:
    return [*token.allow, *token.allow_dns, *token.allow_ip, *token.allow_email, *token.scopes]
