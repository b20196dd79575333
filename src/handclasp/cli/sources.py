"""``handclasp source``: what discovery reads, how often, and how that goes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from handclasp.cli import terminal
from handclasp.cli.command import Group, State, pass_state
from handclasp.cli.options import in_path, limit_option, pairs
from handclasp.cli.source_add import AddGroup, common_options, parse_settings
from handclasp.cli.source_view import ENDED, follow, going_on, is_whole, show_scan
from handclasp.cli.terminal import When, as_cell

if TYPE_CHECKING:
    from handclasp.wire.discovery import Source


@click.group(cls=Group)
def source() -> None:
    """What discovery reads: networks, hosts, clusters, CAs, files."""


source.add_command(AddGroup(name="add", help="Add a source, of one of these kinds; each has options of its own."))


@source.command("kinds", client=True, example="handclasp source kinds\nhandclasp source kinds --json")
@pass_state
def kinds(state: State) -> None:
    """List the kinds of sources, with the least that each needs."""
    from handclasp.wire.discovery import SourceKindList

    found = state.api().get("/v1/source-kinds", SourceKindList)
    if state.json:
        terminal.write_json(found)
        return
    for kind in found.items:
        terminal.write_fields([("kind", kind.name), ("reads", kind.summary), ("needs", kind.privilege), ("read by", kind.runs)])
        if terminal.is_terminal(sys.stdout):
            terminal.write("\n")


@source.command("list", client=True, example="handclasp source list\nhandclasp source list --kind network")
@click.option("--kind", help="Only sources of this kind.")
@click.option("--state", "wanted", type=click.Choice(["active", "paused"]), help="Only sources in this state.")
@limit_option
@pass_state
def list_(state: State, kind: str | None, wanted: str | None, limit: int) -> None:
    """List sources, with how their last scans went."""
    from handclasp.wire.discovery import SourceList

    found = state.api().pages("/v1/sources", SourceList, limit, kind=kind, state=wanted)
    if state.json:
        terminal.write_json(found)
        return
    rows = []
    for one in found.items:
        scan = one.scan
        read = f"{scan.read} of {scan.total}" if scan is not None else ""
        last = When(one.success_at) if one.success_at else None
        rows.append([one.name, one.kind, one.state, one.every or "asked", scan.state if scan else "never", read, last, one.problem])
    terminal.write_table(
        ["name", "kind", "state", "every", "last scan", "read", "all read", "problem"],
        rows,
        empty="there are no sources: handclasp source add",
    )


@source.command("show", client=True, example="handclasp source show office")
@click.argument("name", metavar="NAME", help="The source, as `source list` shows it.")
@pass_state
def show(state: State, name: str) -> None:
    """Show a source: what it may read, what it is set to, and how its last scan went."""
    from handclasp.wire.discovery import Source

    _write(state, state.api().get(f"/v1/sources/{in_path(name)}", Source))


@source.command(
    "change",
    client=True,
    example="handclasp source change office --every 1h --deny 10.0.0.17\nhandclasp source change office --set ports=443 --set ports=8443",
)
@click.argument("name", metavar="NAME", help="The source, as `source list` shows it.")
@common_options
@click.option(
    "--set", "given", multiple=True, metavar="KEY=VALUE", help="A setting of its kind; repeat it for a list, empty for the default."
)
@pass_state
def change(state: State, name: str, given: tuple[str, ...], **common: Any) -> None:
    """Change a source, from its next scan on. What is not given stays; --allow and --deny replace the whole list."""
    from handclasp.wire.discovery import Source, SourceChange, SourceKindList

    api = state.api()
    before = api.get(f"/v1/sources/{in_path(name)}", Source)
    scope = before.scope
    scope.allow = list(common["allow"]) or scope.allow
    scope.deny = list(common["deny"]) or scope.deny
    scope.loopback = scope.loopback if common["loopback"] is None else common["loopback"]
    body = SourceChange(scope=scope, every=common["every"], runs=common["runs"])
    if common["fact"]:
        body.facts = before.facts | dict(pairs(common["fact"], "--fact"))
    if common["paused"] is not None:
        body.paused = common["paused"]
    if given:
        options = next((kind.options for kind in api.get("/v1/source-kinds", SourceKindList).items if kind.name == before.kind), [])
        wanted = before.settings | parse_settings(given, options)
        body.settings = {key: value for key, value in wanted.items() if value is not None}
    _write(state, api.call("PUT", f"/v1/sources/{in_path(name)}", Source, body=body))


def _pause(state: State, name: str, paused: bool) -> None:
    from handclasp.wire.discovery import Source, SourceChange

    _write(state, state.api().call("PUT", f"/v1/sources/{in_path(name)}", Source, body=SourceChange(paused=paused)))


@source.command("pause", client=True, example="handclasp source pause office")
@click.argument("name", metavar="NAME", help="The source, as `source list` shows it.")
@pass_state
def pause(state: State, name: str) -> None:
    """Let a source rest: it is read only when somebody asks."""
    _pause(state, name, True)


@source.command("resume", client=True, example="handclasp source resume office")
@click.argument("name", metavar="NAME", help="The source, as `source list` shows it.")
@pass_state
def resume(state: State, name: str) -> None:
    """Read a source by its schedule again."""
    _pause(state, name, False)


@source.command("run", client=True, example="handclasp source run office --watch\nhandclasp source run office --dry-run --watch --json")
@click.argument("name", metavar="NAME", help="The source, as `source list` shows it.")
@click.option("--dry-run", is_flag=True, help="Read, record nothing, and say what it would have come to.")
@click.option("--watch", is_flag=True, help="Watch it to its end.")
@pass_state
def run(state: State, name: str, dry_run: bool, watch: bool) -> int:
    """Begin a scan of a source now. With --watch, exits 1 when it could not read everything.

    One scan of a source goes on at a time: with --watch, one that does is watched.
    """
    from handclasp.errors import HandclaspError, Kind
    from handclasp.wire.discovery import RunRequest, Scan

    api = state.api()
    try:
        scan = api.call("POST", f"/v1/sources/{in_path(name)}:run", Scan, body=RunRequest(dry=dry_run))
        terminal.say(f"scan {scan.id} has begun")
    except HandclaspError as error:
        scan_on = going_on(api, name) if watch and not dry_run and error.kind is Kind.CONFLICT else None
        if scan_on is None:
            raise
        scan = scan_on  # its schedule was faster: what was asked for is being done
        terminal.say(f"scan {scan.id} goes on already: watching it")
    if watch:
        scan = follow(api, scan)
    show_scan(state, scan)
    return 1 if watch and not is_whole(scan) else 0


@source.command(
    "scans", client=True, example="handclasp source scans\nhandclasp source scans office\nhandclasp source scans --scan ID --watch"
)
@click.argument("name", metavar="[NAME]", required=False, help="Only scans of this source.")
@click.option("--state", "wanted", type=click.Choice(["planning", "running", *ENDED]), help="Only scans in this state.")
@click.option("--scan", "scan_id", metavar="ID", help="Show this scan, with what it could not read.")
@click.option("--watch", is_flag=True, help="Watch that scan to its end.")
@limit_option
@pass_state
def scans(state: State, name: str | None, wanted: str | None, scan_id: str | None, watch: bool, limit: int) -> int:
    """List scans, newest first; or show one. With --watch, exits 1 when it could not read everything."""
    from handclasp.wire.discovery import Scan, ScanList

    api = state.api()
    if scan_id is not None:
        one = api.get(f"/v1/scans/{in_path(scan_id)}", Scan)
        one = follow(api, one) if watch else one
        show_scan(state, one)
        return 1 if watch and not is_whole(one) else 0
    if watch:
        raise click.UsageError("say which scan: --scan ID")
    found = api.pages("/v1/scans", ScanList, limit, source=name, state=wanted)
    if state.json:
        terminal.write_json(found)
        return 0
    terminal.write_table(
        ["scan", "source", "state", "began", "read", "failed", "certificates", "new", "gone", "problem"],
        [
            [s.id, s.source, s.state + (" (dry)" if s.dry else ""), When(s.created_at), f"{s.read} of {s.total}", s.failed,
             s.certificates, s.fresh, s.gone, s.problem]
            for s in found.items
        ],
        empty="nothing was ever scanned",
    )  # fmt: skip
    return 0


@source.command("stop", client=True, example="handclasp source stop office")
@click.argument("name", metavar="NAME|SCAN", help="The source whose scan is to end, or the scan.")
@pass_state
def stop(state: State, name: str) -> None:
    """Stop the scan of a source. What was read stays recorded, and nothing is gone for what was not."""
    from handclasp.errors import HandclaspError, Kind
    from handclasp.wire.discovery import Scan, ScanList

    api = state.api()
    scan_id = name
    found = api.get("/v1/scans", ScanList, source=name, limit=1).items
    if found:
        scan_id = found[0].id
    try:
        show_scan(state, api.call("POST", f"/v1/scans/{in_path(scan_id)}:stop", Scan))
    except HandclaspError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
        raise HandclaspError(
            Kind.NOT_FOUND, f"there is no scan of {name!r}, and none called that", hint="handclasp source scans"
        ) from error


@source.command("remove", client=True, example="handclasp source remove office --yes")
@click.argument("name", metavar="NAME", help="The source, as `source list` shows it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_state
def remove(state: State, name: str, yes: bool) -> int:
    """Remove a source with every location and sighting of it. Certificates, and what the log says, stay."""
    from handclasp.wire import Done
    from handclasp.wire.discovery import Source

    api = state.api()
    found = api.get(f"/v1/sources/{in_path(name)}", Source)
    if not yes:
        if not terminal.is_terminal(sys.stdin):
            raise click.UsageError("there is no terminal to ask on: add --yes")
        if not click.confirm(f"forget {found.locations or 0} locations of {name}?", err=True):
            terminal.say("nothing was changed")
            return 1
    done = api.call("DELETE", f"/v1/sources/{in_path(name)}", Done)
    if state.json:
        terminal.write_json(done)
    terminal.say(f"{name} is removed, and what it saw will be forgotten (log entry {done.log_entry})")
    return 0


@source.command(
    "import",
    client=True,
    example="handclasp source import inherited bundle.pem\n"
    "handclasp source import inherited old.csv --column pem='Certificate body' --column location='Installed at'\n"
    "handclasp source import lemur export.json --dry-run",
)
@click.argument("name", metavar="NAME", help="The source; it is made when there is none of that name.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, help="PEM bundles, CSV tables, exports of Lemur's API; - is stdin.")
@click.option(
    "--format", "format_", type=click.Choice(["pem", "csv", "lemur"]), help="What the files are; otherwise their beginnings tell."
)
@click.option(
    "--column", "columns", multiple=True, metavar="MEANING=COLUMN", help="What a column of a table means, where its name does not say."
)
@click.option("--dry-run", is_flag=True, help="Read the files, and send nothing.")
@pass_state
def import_(state: State, name: str, files: tuple[str, ...], format_: str | None, columns: tuple[str, ...], dry_run: bool) -> int:
    """Bring in certificates from files. Private keys in them are left out, and never sent. Twice is the same as once."""
    from handclasp.cli.source_import import run_import

    return run_import(state, name, files, format_, pairs(columns, "--column"), dry_run)


def _write(state: State, found: Source) -> None:
    if state.json:
        terminal.write_json(found)
        return
    scan = found.scan
    fields: list[tuple[str, Any]] = [
        ("name", found.name),
        ("kind", found.kind),
        ("state", found.state),
        ("read by", found.runs),
        ("every", found.every or "only when asked"),
        ("allow", found.scope.allow),
        ("deny", found.scope.deny),
        ("loopback", "allowed" if found.scope.loopback else None),
        *((f"setting {key}", as_cell(value)) for key, value in found.settings.items()),
        *((f"fact {key}", as_cell(value)) for key, value in found.facts.items()),
        ("locations", found.locations),
        ("next scan", When(found.due_at) if found.due_at else None),
        ("all was read", When(found.success_at) if found.success_at else "never"),
        ("last scan", f"{scan.id}: {scan.state}, {scan.read} of {scan.total} read" if scan else None),
        ("problem", found.problem),
        ("added", When(found.created_at)),
        ("added by", found.created_by),
    ]
    terminal.write_fields(fields)
