"""``handclasp identity``: who has certificates, and who owns them."""

from __future__ import annotations

import click

from handclasp.cli import terminal
from handclasp.cli.certificates import certificate_table
from handclasp.cli.command import Group, State, pass_state
from handclasp.cli.options import limit_option
from handclasp.cli.terminal import When
from handclasp.errors import HandclaspError, Kind


@click.group(cls=Group)
def identity() -> None:
    """Who has certificates, and who owns them. An identity outlives its certificates."""


@identity.command("list", client=True, example="handclasp identity list\nhandclasp identity list --search prod/web --owner team-web")
@click.option("--search", metavar="TEXT", help="Only identities whose name holds this.")
@click.option("--owner", help="Only identities of this owner.")
@limit_option
@pass_state
def list_(state: State, search: str | None, owner: str | None, limit: int) -> None:
    """List identities with their owners and newest certificates."""
    from handclasp.wire import IdentityList

    found = state.api().pages("/v1/identities", IdentityList, limit, q=search, owner=owner)
    if state.json:
        terminal.write_json(found)
        return
    terminal.write_table(
        ["identity", "owner", "tier", "environment", "certificates", "newest ends"],
        [
            [i.identity, i.owner, i.tier, i.environment, i.certificates, When(i.newest_not_after) if i.newest_not_after else None]
            for i in found.items
        ],
        empty="there are no identities",
    )


@identity.command(client=True, example="handclasp identity show spiffe://example.org/prod/web")
@click.argument("name", metavar="IDENTITY", help="SPIFFE ID, or dns:NAME, ip:ADDRESS, email:ADDRESS.")
@click.option("--limit", type=click.IntRange(0), default=10, show_default=True, help="Certificates to show at most; 0 is all.")
@pass_state
def show(state: State, name: str, limit: int) -> None:
    """Show one identity with its certificates, newest first."""
    from handclasp.wire import CertificateList, IdentityList

    api = state.api()
    found = next(iter(api.get("/v1/identities", IdentityList, identity=name, limit=1).items), None)
    if found is None:
        raise HandclaspError(Kind.NOT_FOUND, f"there is no identity {name}", hint="handclasp identity list")
    if state.json:
        terminal.write_json(found)
        return
    terminal.write_fields(
        [
            ("identity", found.identity),
            ("owner", found.owner),
            ("tier", found.tier),
            ("environment", found.environment),
            ("created", When(found.created_at)),
            ("certificates", found.certificates),
        ]
    )
    if terminal.is_terminal(terminal.out()):
        terminal.write("\n")
        certificate_table(api.pages("/v1/certificates", CertificateList, limit, identity=name).items)
