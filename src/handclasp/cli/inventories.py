"""``handclasp cert list``, ``show``, ``export`` and ``triage``: certificates that were issued here, and those that were found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handclasp.cli import terminal
from handclasp.cli.command import Command, State, pass_state
from handclasp.cli.options import filter_options, filters_of, limit_option
from handclasp.cli.terminal import When
from handclasp.errors import HandclaspError, Kind

if TYPE_CHECKING:
    from handclasp.wire import Certificate, Sighting

_TIMES = {
    "not_before", "not_after", "renew_after", "renew_before", "revoked_at", "standing_since", "first_seen", "last_seen",
}  # fmt: skip


@click.command(
    "list",
    cls=Command,
    client=True,
    example="handclasp cert list --name '*.example.org' --state valid --expires-before 7d --sort expires\n"
    "handclasp cert list --standing foreign --owner none --json",
)
@filter_options("certificates")
@limit_option
@pass_state
def list_(state: State, limit: int, **options: Any) -> None:
    """List certificates, issued and found, those that end last first."""
    from handclasp.wire import CertificateList

    found = state.api().pages("/v1/certificates", CertificateList, limit, **filters_of(options))
    if state.json:
        terminal.write_json(found)
    else:
        certificate_table(found.items)


def certificate_table(items: Sequence[Certificate], *, of_one: bool = False) -> None:
    """Write certificates as a table. People see the beginning of a fingerprint, and not what `cert show` is for.

    ``of_one``: all are of one identity, which need not be said again.
    """
    shorten = terminal.is_terminal(terminal.out())
    terminal.write_table(
        ["sha256", "identity", "profile", "state", "ends", "renews", "generation", "log entry", "standing", "owner"],
        [
            [
                c.sha256[:16] if shorten else c.sha256,
                "" if of_one else c.identity or c.subject,
                c.profile,
                c.state,
                When(c.not_after),
                When(c.renew_after) if c.renew_after else None,
                None if shorten else c.generation,
                None if shorten else c.log_entry,
                c.standing,
                c.owner,
            ]
            for c in items
        ],
        empty="there are no such certificates",
    )


@click.command("show", cls=Command, client=True, example="handclasp cert show web.pem\nhandclasp cert show 7d0c… --pem > web.pem")
@click.argument("certificate", metavar="SHA256|FILE", help="Its fingerprint, or a file that holds it.")
@click.option("--pem", is_flag=True, help="Write only the certificate.")
@pass_state
def show(state: State, certificate: str, pem: bool) -> None:
    """Show what the server knows of one certificate, issued or found, and where it was seen."""
    from handclasp.cli.pem import fingerprint_of
    from handclasp.wire import Certificate

    found = state.api().get(f"/v1/certificates/{fingerprint_of(certificate)}", Certificate, expand="sightings")
    if state.json:
        terminal.write_json(found)
        return
    if pem:
        if found.certificate is None:
            raise HandclaspError(Kind.NOT_FOUND, "only the fingerprint of this certificate is known", hint="its source does not show it")
        terminal.write(found.certificate)
        return
    fields: list[tuple[str, terminal.Cell]] = []
    for field in found.__struct_fields__:
        value = getattr(found, field)
        if field not in ("certificate", "sightings"):
            fields.append((field.replace("_", " "), When(value) if value and field in _TIMES else value))
    terminal.write_fields(fields)
    if found.sightings and terminal.is_terminal(terminal.out()):
        terminal.write("\n")
        sighting_table(found.sightings)


def sighting_table(items: Sequence[Sighting]) -> None:
    """Write where certificates are and were."""
    shorten = terminal.is_terminal(terminal.out())
    terminal.write_table(
        ["sha256", "place", "role", "source", "first seen", "last seen", "ended", "problem"],
        [
            [
                s.sha256[:16] if shorten else s.sha256,
                s.shown,
                s.role,
                s.source,
                When(s.first_seen),
                When(s.last_seen),
                When(s.ended) if s.ended else None,
                s.problem,
            ]
            for s in items
        ],
        empty="it was seen nowhere",
    )


@click.command(
    "export",
    cls=Command,
    client=True,
    example="handclasp cert export --format cbom --out certificates.cdx.json\n"
    "handclasp cert export --format csv --owner team-web --expires-before 30d > ending.csv",
)
@click.option(
    "--format", "format_", type=click.Choice(["csv", "json", "cbom"]), default="json", show_default=True, help="cbom is CycloneDX 1.7."
)
@click.option("--out", metavar="FILE", help="Write it there instead of stdout; the file is there when it is whole.")
@filter_options("certificates")
@pass_state
def export(state: State, format_: str, out: str | None, **options: Any) -> None:
    """Write every certificate that the filters leave, however many: CSV, JSON, or a CycloneDX bill of materials."""
    if state.json and out is None and format_ == "csv":
        raise click.UsageError("--json and a table do not both fit on stdout: give --out FILE, or --format json")
    if out is not None:
        _check_place(Path(out))
    parts = state.api().stream("/v1/certificates:export", format=format_, **filters_of(options))
    if out is None:
        for part in parts:
            terminal.write(part)
        return
    size = _write_whole(Path(out), parts)
    if state.json:
        terminal.write_json({"file": out, "format": format_, "bytes": size})
    terminal.say(f"{out}: {size} bytes")


def _check_place(path: Path) -> None:
    if path.is_dir() or not path.parent.is_dir():
        why = "is a directory" if path.is_dir() else f"cannot be made: there is no directory {path.parent}"
        raise HandclaspError(Kind.BAD_REQUEST, f"{path} {why}", hint="give --out the name of a file")


def _write_whole(path: Path, parts: Iterator[bytes]) -> int:
    """Write the parts beside ``path``, and give it its name when all are there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    size = 0
    try:
        with beside.open("wb") as file, terminal.progress("bytes") as progress:
            for part in parts:
                size += file.write(part)
                progress.advance(len(part))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return size


@click.command(
    "triage",
    cls=Command,
    client=True,
    example="handclasp cert triage 7d0c… --claim --reason 'the old proxy of team-web'\n"
    "handclasp cert list --standing foreign --triage unmanaged   (what is left to decide)",
)
@click.argument("certificate", metavar="SHA256|FILE", help="Its fingerprint, or a file that holds it.")
@click.option("--claim", "decision", flag_value="claimed", help="It is ours, and known.")
@click.option("--dismiss", "decision", flag_value="dismissed", help="It is nobody's concern.")
@click.option("--investigate", "decision", flag_value="investigate", help="Somebody has to look.")
@click.option("--undo", "decision", flag_value="unmanaged", help="Take the decision back.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the log.")
@pass_state
def triage(state: State, certificate: str, decision: str | None, reason: str) -> None:
    """Decide what becomes of a certificate that was found. The decision is logged; the certificate stays where it is."""
    from handclasp.cli.pem import fingerprint_of
    from handclasp.wire import Done
    from handclasp.wire.inventory import TriageRequest

    if decision is None:
        raise click.UsageError("say what you decided: --claim, --dismiss, --investigate or --undo")
    request = TriageRequest(decision=decision, reason=reason)
    done = state.api().call("POST", f"/v1/certificates/{fingerprint_of(certificate)}:triage", Done, body=request)
    if state.json:
        terminal.write_json(done)
    terminal.say(f"{decision} (log entry {done.log_entry})")
