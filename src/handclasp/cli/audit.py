"""``handclasp audit``: the tamper-evident log, as the server shows it. Copies and proofs are checked in modules of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from handclasp.cli import terminal
from handclasp.cli.audit_export import export
from handclasp.cli.audit_verify import verify
from handclasp.cli.audit_witness import witness
from handclasp.cli.command import Group, State, pass_state
from handclasp.cli.options import limit_option
from handclasp.cli.terminal import When


@click.group(cls=Group)
def audit() -> None:
    """The tamper-evident log of every issuance and every decision: read, export, prove, verify."""


audit.add_command(export)
audit.add_command(verify)
audit.add_command(witness)


@audit.command(
    "list",
    client=True,
    example="handclasp audit list --since 1h\nhandclasp audit list --type certificate.revoked --json\n"
    "handclasp audit list --subject agent:spiffe://example.org/agent/web-1",
)
@click.option("--type", "type_", metavar="TYPE", help="Only entries of this type, such as certificate.issued.")
@click.option(
    "--subject",
    metavar="SUBJECT",
    help="Only entries about this: token:ID, agent:IDENTITY, authority:NAME, certificate:SHA256 (revocations, decisions), "
    "identity:NAME (who owns it), owner:NAME, source:NAME, scan:ID, rotation:ID.",
)
@click.option("--since", metavar="TIME", help="Only entries from then on: RFC 3339, or a duration ago such as 1h.")
@click.option("--until", metavar="TIME", help="Only entries up to then.")
@limit_option
@pass_state
def list_(state: State, type_: str | None, subject: str | None, since: str | None, until: str | None, limit: int) -> None:
    """List entries, newest first."""
    from handclasp.wire import LogEntryList

    filters = {"type": type_, "subject": subject, "since": _moment(since), "until": _moment(until)}
    found = state.api().pages("/v1/log/entries", LogEntryList, limit, **filters)
    if state.json:
        terminal.write_json(found)
        return
    terminal.write_table(
        ["index", "at", "type", "who", "what", "why"],
        [[item.index, When(item.entry.get("at", "")), str(item.entry.get("type", "")), *_columns(item.entry)] for item in found.items],
        empty="there are no such entries",
    )


def _columns(entry: Mapping[str, Any]) -> list[list[str]]:
    return [[f"{name}={value}" for name, value in _flat(entry.get(part))] for part in ("who", "what", "why")]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested JSON with dotted names."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        if value:
            yield path, ",".join(str(inner) for inner in value)
    elif value is not None:
        yield path, str(value)


def _moment(text: str | None) -> str | None:
    """Return a time option as RFC 3339: durations count back from now."""
    if text is None:
        return None
    from handclasp.clock import parse_duration, parse_rfc3339, rfc3339
    from handclasp.errors import HandclaspError

    try:
        return rfc3339(parse_rfc3339(text))
    except HandclaspError:
        try:
            return rfc3339(terminal.clock() - round(parse_duration(text) * 1000))
        except HandclaspError as error:
            raise click.BadParameter(f"{text!r} is neither an RFC 3339 time nor a duration such as 1h") from error


@audit.command(client=True, example="handclasp audit show 1042")
@click.argument("index", type=click.IntRange(0), help="The entry's place in the log.")
@pass_state
def show(state: State, index: int) -> None:
    """Show one entry."""
    from handclasp.wire import LogEntry

    found = state.api().get(f"/v1/log/entries/{index}", LogEntry)
    if state.json:
        terminal.write_json(found)
        return
    fields: list[tuple[str, terminal.Cell]] = [("index", found.index), ("leaf hash", found.leaf_hash)]
    fields += [(name, When(value) if name == "at" else value) for name, value in _flat(found.entry)]
    terminal.write_fields(fields)


@audit.command(
    client=True,
    example="handclasp audit prove web.pem --out web.proof\nhandclasp audit verify --proof web.proof --vkey-file log.vkey\n"
    "handclasp audit prove web.pem --checkpoint kept.checkpoint --out web.proof",
)
@click.argument("certificate", required=False, metavar="[SHA256|FILE]", help="The certificate whose issuance is to be proved.")
@click.option("--index", type=click.IntRange(0), help="Prove the entry at this place instead.")
@click.option(
    "--checkpoint", metavar="FILE", help="Prove it against this checkpoint, which was kept elsewhere, instead of the log's newest."
)
@click.option("--out", metavar="FILE", help="Write the proof to FILE instead of stdout.")
@pass_state
def prove(state: State, certificate: str | None, index: int | None, checkpoint: str | None, out: str | None) -> None:
    """Get a proof that an entry is in the log: anyone can check it offline, with the log's key."""
    from handclasp.wire import LogProof

    if (certificate is None) == (index is None):
        raise click.UsageError("name a certificate, or an entry with --index")
    params: dict[str, Any] = {"index": index}
    if certificate is not None:
        from handclasp.cli.pem import fingerprint_of

        params = {"sha256": fingerprint_of(certificate)}
    if checkpoint is not None:
        params["size"] = _size_of(checkpoint)
    found = state.api().get("/v1/log/proof", LogProof, **params)
    if out:
        from handclasp.cli.files import write_file

        write_file(Path(out), found.proof.encode(), 0o644)
    if state.json:
        terminal.write_json(found)
    elif not out:
        terminal.write_text(found.proof)
    terminal.say(f"entry {found.index} in the log of {found.tree_size} entries" + (f"; the proof is in {out}" if out else ""))


def _size_of(file: str) -> int:
    """Return the size in a kept checkpoint. Its signatures are checked where the proof is verified, which needs no server."""
    from handclasp.cli.files import read_text
    from handclasp.log.checkpoint import parse_checkpoint
    from handclasp.log.notes import parse_note

    return parse_checkpoint(parse_note(read_text(file)).text).size


@audit.command(client=True, example="handclasp audit erase 1042")
@click.argument("index", type=click.IntRange(0), help="The entry's place in the log.")
@pass_state
def erase(state: State, index: int) -> None:
    """Erase the personal data behind one entry. The log keeps its salted hash, and keeps verifying."""
    from handclasp.wire import Done, ErasePersonal

    done = state.api().call("POST", "/v1/log/personal:erase", Done, body=ErasePersonal(index=index))
    if state.json:
        terminal.write_json(done)
    terminal.say(f"the personal data of entry {index} is erased (log entry {done.log_entry})")
