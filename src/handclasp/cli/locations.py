"""``handclasp location`` and ``handclasp inventory``: where certificates are, and how they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from handclasp.cli import terminal
from handclasp.cli.command import Command, Group, State, pass_state
from handclasp.cli.inventories import sighting_table
from handclasp.cli.options import filter_options, filters_of, limit_option
from handclasp.cli.terminal import When, as_cell

if TYPE_CHECKING:
    from handclasp.wire.inventory import Location, Standings


@click.group(cls=Group)
def location() -> None:
    """Places where certificates are: endpoints, files, Secrets, mesh proxies, stores."""


@location.command(
    "list", client=True, example="handclasp location list --source edge --state failed\nhandclasp location list --host web-1 --json"
)
@filter_options("locations")
@limit_option
@pass_state
def list_(state: State, limit: int, **options: Any) -> None:
    """List the places that sources read, and whether they could."""
    from handclasp.wire.inventory import LocationList

    found = state.api().pages("/v1/locations", LocationList, limit, **filters_of(options))
    if state.json:
        terminal.write_json(found)
    else:
        location_table(found.items)


def location_table(items: Sequence[Location]) -> None:
    """Write places as a table."""
    terminal.write_table(
        ["id", "source", "kind", "place", "host", "state", "last seen", "problem"],
        [[one.id, one.source, one.kind, one.shown, one.host, one.state, When(one.last_seen) if one.last_seen else None, one.problem]
         for one in items],
        empty="there are no such places: handclasp source add makes one",
    )  # fmt: skip


@location.command(client=True, example="handclasp location show 17")
@click.argument("number", type=click.IntRange(1), metavar="ID", help="Its number in the list.")
@pass_state
def show(state: State, number: int) -> None:
    """Show one place: what is there now, what was, and what is known of the place itself."""
    from handclasp.wire.inventory import Location

    found = state.api().get(f"/v1/locations/{number}", Location)
    if state.json:
        terminal.write_json(found)
        return
    fields: list[tuple[str, terminal.Cell]] = []
    for name in ("shown", "kind", "source", "host", "state", "first_seen", "last_seen", "last_tried", "problem", "gone_at", "key",
                 "key_sha256", "anchors"):  # fmt: skip
        value = getattr(found, name)
        is_time = value and name in ("first_seen", "last_seen", "last_tried", "gone_at")
        fields.append((name.replace("_", " "), When(value) if is_time else value))
    fields += [(name, as_cell(value)) for name, value in sorted({**found.details, **found.facts}.items())]
    terminal.write_fields(fields)
    if terminal.is_terminal(terminal.out()):
        terminal.write("\n")
        sighting_table(found.sightings or [])


@click.command("inventory", cls=Command, client=True, example="handclasp inventory\nhandclasp inventory --json")
@pass_state
def inventory(state: State) -> int:
    """Show how many certificates stand how, and what to do about it. Exits 1 when something is alarming."""
    from handclasp.wire.inventory import Standings

    found = state.api().get("/v1/standings", Standings)
    if state.json:
        terminal.write_json(found)
    else:
        _write_standings(found)
    return 1 if any(one.level == "alarm" and one.count for one in found.items) else 0


def _write_standings(found: Standings) -> None:
    terminal.write_table(
        ["standing", "certificates", "level", "what it is"],
        [[one.standing, one.count, one.level, one.title] for one in found.items],
    )
    for one in found.items:
        if one.count and one.advice:
            say = terminal.warn if one.level == "alarm" else terminal.say
            say(f"{one.standing}: {one.advice} See them: handclasp cert list --standing {one.standing}")
