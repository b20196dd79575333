"""``handclasp identity assign`` and ``identity owners``: say who owns an identity, and see everything that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from handclasp.cli import terminal
from handclasp.cli.command import Command, State, pass_state
from handclasp.cli.terminal import When

if TYPE_CHECKING:
    from handclasp.wire.ownership import Assignments

_IDENTITY = click.argument("name", metavar="IDENTITY", help="SPIFFE ID, or dns:NAME, ip:ADDRESS, email:ADDRESS.")


@click.command(
    cls=Command,
    client=True,
    example='handclasp identity assign spiffe://example.org/prod/web --owner payments --tier 1 --reason "agreed with Jane"',
)
@_IDENTITY
@click.option("--owner", help="Who owns it from now on.")
@click.option("--tier", type=click.Choice(["0", "1", "2", "3"]), help="How much hangs on it; 0 is the most.")
@click.option("--environment", metavar="NAME", help="Where it is: prod, staging …")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is kept in the log.")
@pass_state
def assign(state: State, name: str, owner: str | None, tier: str | None, environment: str | None, reason: str) -> None:
    """Say who owns an identity. It goes before all other evidence, and is to be confirmed again after a while."""
    from handclasp.wire import Done
    from handclasp.wire.ownership import AssignRequest

    if owner is None and tier is None and environment is None:
        raise click.UsageError("say --owner, --tier or --environment")
    body = AssignRequest(owner=owner, tier=tier, environment=environment, reason=reason)
    found = state.api().call("POST", f"/v1/identities/{quote(name, safe='')}:assign", Done, body=body)
    if state.json:
        terminal.write_json(found)
    terminal.say(f"assigned {name} (log entry {found.log_entry})")


@click.command(cls=Command, client=True, example="handclasp identity owners spiffe://example.org/prod/web")
@_IDENTITY
@pass_state
def owners(state: State, name: str) -> None:
    """Show everything that says who owns an identity, or says otherwise, the strongest first."""
    from handclasp.wire.ownership import Assignments

    write_assignments(state, state.api().get(f"/v1/identities/{quote(name, safe='')}:assignments", Assignments))


def write_assignments(state: State, found: Assignments) -> None:
    """Write who owns an identity, and all evidence."""
    if state.json:
        terminal.write_json(found)
        return
    terminal.write_fields(
        [
            ("identity", found.identity),
            ("owner", f"{found.owner} (is in no directory any more)" if found.owner_left else found.owner),
            ("tier", found.tier),
            ("environment", found.environment),
        ]
    )
    if found.items:
        terminal.write("\n")
    terminal.write_table(
        ["evidence", "owner", "tier", "environment", "sure", "rule", "because", "since", "stands"],
        [
            [a.evidence, a.owner, a.tier, a.environment, f"{a.confidence} %", a.rule, a.detail, When(a.at) if a.at else None, a.stands]
            for a in found.items
        ],
        empty="nothing says who owns it",
    )
