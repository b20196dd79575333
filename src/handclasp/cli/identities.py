"""``handclasp identity``: who has certificates, and who owns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from handclasp.cli import terminal
from handclasp.cli.assignments import assign, owners
from handclasp.cli.command import Group, State, pass_state
from handclasp.cli.inventories import certificate_table, sighting_table
from handclasp.cli.options import filter_options, filters_of, limit_option
from handclasp.cli.terminal import When

if TYPE_CHECKING:
    from handclasp.wire import Identity


@click.group(cls=Group)
def identity() -> None:
    """Who has certificates, and who owns them. An identity outlives its certificates."""


identity.add_command(assign)
identity.add_command(owners)


@identity.command(
    "list",
    client=True,
    example="handclasp identity list --spiffe example.org/prod --owner none\nhandclasp identity list --state overdue --sort expires",
)
@click.option("--search", metavar="TEXT", help="The same as --q.")
@filter_options("identities")
@limit_option
@pass_state
def list_(state: State, search: str | None, limit: int, **options: Any) -> None:
    """List identities with their owners and newest certificates."""
    from handclasp.wire import IdentityList

    query = filters_of(options)
    if search is not None:
        query.setdefault("q", search)
    found = state.api().pages("/v1/identities", IdentityList, limit, **query)
    if state.json:
        terminal.write_json(found)
    else:
        identity_table(found.items)


def identity_table(items: Sequence[Identity]) -> None:
    """Write identities as a table."""
    terminal.write_table(
        ["identity", "owner", "tier", "environment", "issued", "newest ends", "state"],
        [
            [i.identity, i.owner, i.tier, i.environment, i.certificates, When(i.newest_not_after) if i.newest_not_after else None, i.state]
            for i in items
        ],
        empty="there are no such identities",
    )


_NAME = click.argument("name", metavar="IDENTITY", help="SPIFFE ID, or dns:NAME, ip:ADDRESS, email:ADDRESS.")


@identity.command(client=True, example="handclasp identity show spiffe://example.org/prod/web")
@_NAME
@pass_state
def show(state: State, name: str) -> None:
    """Show one identity: whose it is and why, its certificates, where they are, who may obtain more, and what to do next."""
    from handclasp.wire.inventory import IdentityDetail

    found = state.api().get(f"/v1/identities/{quote(name, safe='')}", IdentityDetail)
    if state.json:
        terminal.write_json(found)
        return
    one = found.identity
    terminal.write_fields(
        [
            ("identity", one.identity),
            ("owner", one.owner),
            ("tier", one.tier),
            ("environment", one.environment),
            ("created", When(one.created_at)),
            ("issued", one.certificates),
            ("state", one.state),
            ("newest ends", When(one.newest_not_after) if one.newest_not_after else None),
            ("names", found.names),
            ("why", [f"{e.owner or ''}: {e.rule} ({e.evidence}, {e.confidence} %)" for e in found.evidence]),
            ("may obtain", [f"{g.grant}: {g.who}" for g in found.grants]),
            ("agents", found.agents),
        ]
    )
    for step in found.next_steps:
        text = f"{step.text.rstrip('.')}: {step.command}" if step.command else step.text
        terminal.write_verdict("fail" if step.level == "alarm" else "warn", step.kind, text)
    if terminal.is_terminal(terminal.out()):
        terminal.write("\n")
        certificate_table([item.certificate for item in found.line], of_one=True)
        if found.served:
            terminal.write("\n")
            sighting_table(found.served)


@identity.command(client=True, example="handclasp identity lineage spiffe://example.org/prod/web --json")
@_NAME
@limit_option
@pass_state
def lineage(state: State, name: str, limit: int) -> None:
    """Show every certificate of an identity, newest first: who obtained it by which grant, and where it was seen."""
    from handclasp.wire.inventory import Lineage

    found = state.api().pages(f"/v1/identities/{quote(name, safe='')}:lineage", Lineage, limit)
    if state.json:
        terminal.write_json(found)
        return
    shorten = terminal.is_terminal(terminal.out())
    terminal.write_table(
        ["sha256", "state", "from", "until", "generation", "replaced", "obtained by", "grant", "log entry", "seen at"],
        [
            [
                c.sha256[:16] if shorten else c.sha256,
                c.state if c.origin == "issued" else f"{c.state}, found",
                When(c.not_before),
                When(c.not_after),
                c.generation,
                (c.predecessor[:16] if shorten else c.predecessor) if c.predecessor else None,
                c.obtained_by,
                c.granted_by,
                c.log_entry,
                [s.shown if s.ended is None else f"{s.shown} until {s.ended}" for s in item.sightings],
            ]
            for item in found.items
            for c in (item.certificate,)
        ],
        empty="it has no certificates",
    )
