"""``handclasp owner``: who owns what, the directories that owners come from, the rules that find them, and the links that ask them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from handclasp.cli import terminal
from handclasp.cli.assignments import write_assignments
from handclasp.cli.command import Group, State, pass_state
from handclasp.cli.documents import apply_document, diff_document, write_document
from handclasp.cli.files import read_text
from handclasp.cli.options import limit_option, pairs
from handclasp.cli.terminal import When, counted
from handclasp.errors import HandclaspError, Kind

if TYPE_CHECKING:
    from handclasp.wire.ownership import Owner, OwnerImported, Ownership, OwnershipItem

_NAME = click.argument("name", metavar="OWNER", help="The owner's name.")
_FILE = click.option("-f", "--file", "file", required=True, metavar="FILE", help="The rules (YAML); - reads stdin.")
_MARKS = {"added": ("+", "green"), "back": ("+", "green"), "left": ("-", "red"), "changed": ("~", "yellow"), "kept": ("=", "dim")}
_NEEDS = ("owner", "new_owner", "confirmation", "decision", "look")


@click.group(cls=Group)
def owner() -> None:
    """Teams, people and services that own identities, and how it is found out which."""


@owner.command("list", client=True, example="handclasp owner list\nhandclasp owner list --state left --json")
@click.option("--kind", type=click.Choice(["team", "person", "service"]), help="Only owners of this kind.")
@click.option("--state", "owner_state", type=click.Choice(["active", "left"]), help="Only those that are, or are not, in their directory.")
@click.option("--q", metavar="TEXT", help="Only those with this in their name or title.")
@limit_option
@pass_state
def list_(state: State, kind: str | None, owner_state: str | None, q: str | None, limit: int) -> None:
    """List owners with how many identities each has."""
    from handclasp.wire.ownership import OwnerList

    found = state.api().pages("/v1/owners", OwnerList, limit, kind=kind, state=owner_state, q=q)
    if state.json:
        terminal.write_json(found)
        return
    terminal.write_table(
        ["owner", "kind", "title", "identities", "contact", "escalation", "directory", "left"],
        [
            [o.name, o.kind, o.title, o.identities, o.contact, o.escalation, o.directory, When(o.left_at) if o.left_at else None]
            for o in found.items
        ],
        empty="there are no owners: handclasp owner import, or handclasp owner add",
    )


@owner.command(client=True, example="handclasp owner show payments")
@_NAME
@pass_state
def show(state: State, name: str) -> None:
    """Show one owner. Its identities: handclasp identity list --owner OWNER."""
    from handclasp.wire.ownership import Owner

    found = state.api().get(_path(name), Owner)
    if state.json:
        terminal.write_json(found)
    else:
        _write(found)


@owner.command(
    "import",
    client=True,
    example="handclasp owner import owners.csv services.csv\n"
    "handclasp owner import --format backstage catalog-info.yaml org.yaml --dry-run\n"
    "handclasp owner import .github/CODEOWNERS",
)
@click.argument("files", nargs=-1, required=True, metavar="FILE…", help="All files of the directory; - reads stdin.")
@click.option(
    "--format", "format_", type=click.Choice(["csv", "backstage", "codeowners", "json"]), help="What they are; told from their names else."
)
@click.option("--directory", metavar="NAME", help="What to call the directory; the format's name else. One directory is imported whole.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--allow-empty", is_flag=True, help="Take files that hold nothing: everybody has left this directory.")
@pass_state
def import_(state: State, files: tuple[str, ...], format_: str | None, directory: str | None, dry_run: bool, allow_empty: bool) -> None:
    """Import a directory of owners, whole. Who is not in it any more is marked as left, and never removed."""
    from handclasp.ownership.directories import READERS
    from handclasp.wire.ownership import OwnerImported

    kind = format_ or _format(files)
    wanted = READERS[kind]([(name, read_text(name)) for name in files], directory or kind)
    wanted.dry = dry_run
    if not (wanted.owners or wanted.catalogue or allow_empty):  # an export that failed must not have everybody leave
        hint = "if everybody has left the directory: --allow-empty"
        raise HandclaspError(Kind.BAD_REQUEST, f"there are no owners in {', '.join(files)}, and nothing that they own", hint=hint)
    found = state.api().call("PUT", "/v1/owners", OwnerImported, body=wanted)
    if state.json:
        terminal.write_json(found)
        return
    for change in found.changes:
        mark, style = _MARKS.get(change.change, ("~", "yellow"))
        words = f"{mark} {change.change} {terminal.visible(change.owner)}" + (
            f": {terminal.visible(change.detail)}" if change.detail else ""
        )
        terminal.write(terminal.styled(words, style, terminal.out()))
    _say_imported(found, dry_run)


def _say_imported(found: OwnerImported, dry_run: bool) -> None:
    for note in found.notes:
        terminal.warn(note)
    done = "would change" if dry_run else "changed" if found.applied else "nothing changed"
    entry = f" (log entry {found.log_entry})" if found.log_entry is not None else ""
    told = sum(change.change != "kept" for change in found.changes)
    terminal.say(
        f"{found.directory}: {counted(found.owners, 'owner')}, {counted(found.components, 'component')}, {counted(found.paths, 'path')}; "
        f"{done}: {counted(told, 'owner')}, {counted(found.catalogue_changed, 'component or path', 'components and paths')}{entry}"
    )


def _format(files: tuple[str, ...]) -> str:
    """Tell the format from the first file's name."""
    name = Path(files[0]).name.lower()
    for ends, kind in (
        (".csv", "csv"),
        (".tsv", "csv"),
        (".yaml", "backstage"),
        (".yml", "backstage"),
        (".json", "json"),
        ("codeowners", "codeowners"),
    ):
        if name.endswith(ends):
            return kind
    raise click.UsageError(f"the name {files[0]} does not tell its format: give --format")


@owner.command(client=True, example='handclasp owner add payments --title "Payments" --contact "#payments" --escalation platform')
@_NAME
@click.option("--kind", type=click.Choice(["team", "person", "service"]), default="team", show_default=True, help="What it is.")
@click.option("--title", default="", help="Its name for people.")
@click.option("--contact", default="", help="Where it is reached: an address, a channel, a URL.")
@click.option("--escalation", metavar="OWNER", help="Whom to turn to when it does not answer.")
@pass_state
def add(state: State, name: str, kind: str, title: str, contact: str, escalation: str | None) -> None:
    """Make an owner by hand, or change one that was."""
    from handclasp.wire import Done
    from handclasp.wire.ownership import OwnerEntry

    body = OwnerEntry(name=name, kind=kind, title=title, contact=contact, escalation=escalation)
    _done(state, state.api().call("PUT", _path(name), Done, body=body), f"{name} is there")


@owner.command(client=True, example="handclasp owner remove payments")
@_NAME
@pass_state
def remove(state: State, name: str) -> None:
    """Remove an owner that owns nothing any more."""
    from handclasp.wire import Done

    _done(state, state.api().call("DELETE", _path(name), Done), f"{name} is removed")


@owner.command(client=True, example="handclasp owner ask payments\nhandclasp owner ask payments --identity spiffe://example.org/prod/web")
@_NAME
@click.option("--identity", "identities", multiple=True, metavar="IDENTITY", help="Ask about this one (repeatable); else all that are due.")
@click.option("--expires", default="14d", show_default=True, help="How long the link is good.")
@pass_state
def ask(state: State, name: str, identities: tuple[str, ...], expires: str) -> None:
    """Make a link by which an owner confirms what it owns. It is shown once: send it to them, and to nobody else."""
    from handclasp.wire.ownership import Asked, AskRequest

    api = state.api()
    found = api.call("POST", f"{_path(name)}:ask", Asked, body=AskRequest(identities=list(identities), expires=expires))
    link = api.address(found.path)
    if state.json:
        terminal.write_json({**_plain(found), "link": link})
        return
    terminal.write_text(link + "\n")
    more = f", and {found.more} more for another link" if found.more else ""
    where = f" Their contact is {found.contact}." if found.contact else ""
    terminal.say(
        f"asks {found.owner} about {counted(len(found.identities), 'identity', 'identities')}{more}, until {found.expires_at}.{where}"
    )


@owner.command(client=True, example="handclasp owner needing\nhandclasp owner needing confirmation")
@click.argument(
    "need", type=click.Choice(_NEEDS), default="owner", help="owner: nobody owns it. new_owner: who does has left. confirmation: over. "
    "decision: equally strong evidence disagrees. look: weaker evidence disagrees.",
)  # fmt: skip
@limit_option
@pass_state
def needing(state: State, need: str, limit: int) -> None:
    """List identities whose ownership needs a person, with the best guesses."""
    from handclasp.wire.ownership import OwnershipItems

    found = state.api().pages("/v1/ownership/needing", OwnershipItems, limit, need=need)
    if state.json:
        terminal.write_json(found)
        return
    terminal.write_table(
        ["identity", "owner", "confirm by", "guesses" if need in ("owner", "new_owner") else "evidence"],
        [[item.identity, item.owner, When(item.confirm_by) if item.confirm_by else None, _guesses(item)] for item in found.items],
        empty="nothing needs a person",
    )


def _guesses(item: OwnershipItem) -> list[str]:
    return [f"{guess.owner} ({guess.evidence} {guess.confidence} %)" for guess in item.guesses[:3]]


# --- rules ------------------------------------------------------------------------------------------------------------------------------


@owner.group(cls=Group)
def rules() -> None:
    """The rules that find owners: show, compare, apply, try."""


@rules.command("show", client=True, example="handclasp owner rules show > ownership.yaml")
@pass_state
def show_rules(state: State) -> None:
    """Write the rules in force to stdout, as they were applied."""
    from handclasp.wire.ownership import Ownership

    found = state.api().get("/v1/ownership", Ownership)
    if state.json:
        terminal.write_json(found)
        return
    write_document(found, "no rules were ever applied: only tokens say who owns what, and people")
    terminal.say(_standing(found))


def _standing(found: Ownership) -> str:
    parts = [f"{found.unowned} without owner", f"{found.contested} contested", f"{found.overdue} to be confirmed again"]
    if found.sweep is not None:
        parts.append(f"owners are being derived: {found.sweep.done} of {found.sweep.total}")
    return ", ".join(parts)


@rules.command("diff", client=True, example="handclasp owner rules diff -f ownership.yaml")
@_FILE
@click.option("--exit-code", is_flag=True, help="Exit 1 when something would change (for scripts).")
@pass_state
def diff_rules(state: State, file: str, exit_code: bool) -> int:
    """Show what applying rules would change. Changes nothing."""
    return diff_document(state, "/v1/ownership", read_text(file), exit_code=exit_code)


@rules.command(
    "apply", client=True, example="handclasp owner rules apply -f ownership.yaml\nhandclasp owner rules apply -f ownership.yaml --wait"
)
@_FILE
@click.option("--wait", is_flag=True, help="Wait until every owner is derived by them.")
@pass_state
def apply_rules(state: State, file: str, wait: bool) -> None:
    """Put rules in force. They are checked whole first, and replace those before; every owner is derived again."""
    apply_document(state, "/v1/ownership", read_text(file))
    if wait:
        _wait(state)


def _wait(state: State) -> None:
    import time

    from handclasp.wire.ownership import Ownership

    api = state.api()
    found, done = api.get("/v1/ownership", Ownership), 0
    with terminal.progress("deriving owners", found.sweep.total if found.sweep is not None else None) as bar:
        while found.sweep is not None:
            bar.advance(found.sweep.done - done)
            done = found.sweep.done
            time.sleep(0.3)
            found = api.get("/v1/ownership", Ownership)
    terminal.say(_standing(found))


@rules.command(
    "test",
    client=True,
    example="handclasp owner rules test spiffe://example.org/ns/payments/sa/web -f ownership.yaml\n"
    "handclasp owner rules test dns:db.example.org --label team=payments --namespace prod",
)
@click.argument("identity", help="SPIFFE ID, or dns:NAME, ip:ADDRESS, email:ADDRESS.")
@click.option("-f", "--file", "file", metavar="FILE", help="The rules to try (YAML); without it those in force. - reads stdin.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="As if its workload had this label (repeatable).")
@click.option("--namespace", metavar="NAME", help="As if it were seen in this namespace.")
@click.option(
    "--namespace-label", "namespace_labels", multiple=True, metavar="K=V", help="As if its namespace had this label (repeatable)."
)
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="As if it had this tag in a cloud (repeatable).")
@click.option("--host-group", metavar="NAME", help="As if its host were in this group.")
@pass_state
def test_rules(state: State, identity: str, file: str | None, labels: tuple[str, ...], namespace: str | None,
               namespace_labels: tuple[str, ...], tags: tuple[str, ...], host_group: str | None) -> int:  # fmt: skip
    """Say who would own an identity, and by which evidence. Changes nothing. Exits 1 when nobody would."""
    from handclasp.wire.ownership import Assignments, OwnershipTest

    facts: dict[str, Any] = {
        "workload_labels": pairs(labels, "--label"),
        "namespace": namespace,
        "namespace_labels": pairs(namespace_labels, "--namespace-label"),
        "tags": pairs(tags, "--tag"),
        "host_group": host_group,
    }
    given = {key: value for key, value in facts.items() if value}
    body = OwnershipTest(identity=identity, text=read_text(file) if file is not None else None, facts=given or None)
    found = state.api().call("POST", "/v1/ownership:test", Assignments, body=body)
    write_assignments(state, found)
    return 0 if found.owner is not None else 1


def _write(found: Owner) -> None:
    terminal.write_fields(
        [
            ("owner", found.name),
            ("kind", found.kind),
            ("title", found.title),
            ("contact", found.contact),
            ("escalation", found.escalation),
            ("directory", found.directory or "made by hand"),
            ("left", When(found.left_at) if found.left_at else None),
            ("identities", found.identities),
            ("to be confirmed", found.overdue),
            ("created", When(found.created_at)),
        ]
    )
    if found.left_at:
        terminal.hint(f"its identities need a new owner: handclasp identity list --owner {found.name}")


def _path(name: str) -> str:
    return f"/v1/owners/{quote(name, safe='')}"


def _plain(value: Any) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(value)
    return found


def _done(state: State, found: Any, words: str) -> None:
    if state.json:
        terminal.write_json(found)
    terminal.say(f"{words} (log entry {found.log_entry})")
