"""``handclasp profile``: what each kind of certificate looks like."""

from __future__ import annotations

import click

from handclasp.cli import terminal
from handclasp.cli.command import Group, State, pass_state
from handclasp.cli.documents import apply_document, diff_document
from handclasp.cli.files import read_text
from handclasp.errors import HandclaspError, Kind

_FILE = click.option("-f", "--file", "file", required=True, metavar="FILE", help="The profiles (YAML); - reads stdin.")


@click.group(cls=Group)
def profile() -> None:
    """What each kind of certificate looks like: key types, lifetime, usages, names, authority."""


@profile.command("list", client=True, example="handclasp profile list")
@pass_state
def list_(state: State) -> None:
    """List every profile, built in and applied."""
    from handclasp.wire import ProfileList

    found = state.api().get("/v1/profiles", ProfileList)
    if state.json:
        terminal.write_json(found)
        return
    terminal.write_table(
        ["name", "lifetime", "at most", "names", "usages", "keys", "authority"],
        [[p.name, p.lifetime, p.max_lifetime, p.names, p.usages, p.key_types, p.authority or "default"] for p in found.items],
    )


@profile.command(client=True, example="handclasp profile show workload")
@click.argument("name", help="The profile's name.")
@pass_state
def show(state: State, name: str) -> None:
    """Show one profile."""
    from handclasp.wire import ProfileList

    items = state.api().get("/v1/profiles", ProfileList).items
    found = next((item for item in items if item.name == name), None)
    if found is None:
        known = ", ".join(item.name for item in items)
        raise HandclaspError(Kind.UNKNOWN_PROFILE, f"there is no profile {name}", hint=f"known are {known}")
    if state.json:
        terminal.write_json(found)
        return
    terminal.write_fields([(field.replace("_", " "), getattr(found, field)) for field in found.__struct_fields__])


@profile.command(client=True, example="handclasp profile diff -f profiles.yaml")
@_FILE
@click.option("--exit-code", is_flag=True, help="Exit 1 when something would change (for scripts).")
@pass_state
def diff(state: State, file: str, exit_code: bool) -> int:
    """Show what applying a file of profiles would change. Changes nothing."""
    return diff_document(state, "/v1/profiles", read_text(file), exit_code=exit_code)


@profile.command(client=True, example="handclasp profile apply -f profiles.yaml")
@_FILE
@pass_state
def apply(state: State, file: str) -> None:
    """Put profiles in force: they replace every profile that is not built in."""
    apply_document(state, "/v1/profiles", read_text(file))
