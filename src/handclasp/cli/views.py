"""``handclasp view``: searches that are kept under a name."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import click

from handclasp.cli import terminal
from handclasp.cli.command import Group, State, pass_state
from handclasp.cli.options import limit_option
from handclasp.cli.terminal import When
from handclasp.errors import HandclaspError, Kind

if TYPE_CHECKING:
    from handclasp.wire.inventory import View


@click.group(cls=Group)
def view() -> None:
    """Saved views: searches that somebody keeps, for everybody."""


@view.command(client=True, example="handclasp view save ending-soon --list certificates 'state=valid&expires_before=7d&sort=expires'")
@click.argument("name", help="What it is to be called.")
@click.argument("query", required=False, default="", help="The filters, as in a URL.")
@click.option(
    "--list", "list_name", type=click.Choice(["certificates", "identities", "locations"]), default="certificates", show_default=True,
    help="The list that it filters."
)  # fmt: skip
@pass_state
def save(state: State, name: str, query: str, list_name: str) -> None:
    """Keep a search. Durations in it, such as 7d, count from the moment it is shown."""
    from handclasp.wire.inventory import View, ViewRequest

    saved = state.api().call("POST", "/v1/views", View, body=ViewRequest(name=name, list=list_name, query=query))
    if state.json:
        terminal.write_json(saved)
    terminal.say(f"saved: handclasp view run {shlex.quote(saved.name)}")


@view.command("list", client=True, example="handclasp view list")
@pass_state
def list_(state: State) -> None:
    """List saved views."""
    found = _views(state)
    if state.json:
        from handclasp.wire.inventory import ViewList

        terminal.write_json(ViewList(items=found))
        return
    terminal.write_table(
        ["name", "list", "query", "created by", "created"],
        [[one.name, one.list, one.query, one.created_by, When(one.created_at)] for one in found],
        empty="nobody saved a view",
    )


@view.command(client=True, example="handclasp view run ending-soon")
@click.argument("name", help="Its name.")
@limit_option
@pass_state
def run(state: State, name: str, limit: int) -> None:
    """Show what a saved view finds now."""
    one = _find(state, name)
    response, write = _shapes()[one.list]
    found = state.api().pages(f"/v1/{one.list}", response, limit, **dict(parse_qsl(one.query, keep_blank_values=True)))
    if state.json:
        terminal.write_json(found)
    else:
        write(found.items)


@view.command(client=True, example="handclasp view remove ending-soon")
@click.argument("name", help="Its name.")
@pass_state
def remove(state: State, name: str) -> None:
    """Forget a saved view."""
    from handclasp.wire.inventory import View

    removed = state.api().call("DELETE", f"/v1/views/{_find(state, name).id}", View)
    if state.json:
        terminal.write_json(removed)
    terminal.say(f"removed {removed.name}")


def _views(state: State) -> list[View]:
    from handclasp.wire.inventory import ViewList

    return state.api().get("/v1/views", ViewList).items


def _find(state: State, name: str) -> View:
    found = next((one for one in _views(state) if one.name == name), None)
    if found is None:
        raise HandclaspError(Kind.NOT_FOUND, f"there is no view {name}", hint="handclasp view list")
    return found


def _shapes() -> dict[str, tuple[Any, Any]]:
    from handclasp.cli.identities import identity_table
    from handclasp.cli.inventories import certificate_table
    from handclasp.cli.locations import location_table
    from handclasp.wire import CertificateList, IdentityList
    from handclasp.wire.inventory import LocationList

    return {
        "certificates": (CertificateList, certificate_table),
        "identities": (IdentityList, identity_table),
        "locations": (LocationList, location_table),
    }
