"""``handclasp audit verify``: check the log, or one proof, offline and from copied files. The server is not asked and not trusted."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from handclasp.cli import terminal
from handclasp.cli.command import Command, State, pass_state
from handclasp.errors import HandclaspError, Kind

if TYPE_CHECKING:
    from handclasp.log.notes import VerifierKey
    from handclasp.log.verify import Report


@click.command(
    "verify",
    cls=Command,
    client=True,
    example="handclasp audit verify ./log-copy --vkey-file log.vkey --checkpoint last-month.checkpoint\n"
    "handclasp audit verify --proof web.proof --checkpoint kept.checkpoint --vkey-file log.vkey\n"
    "handclasp audit verify --url https://ca.example.org:8443 --vkey-file log.vkey",
)
@click.argument(
    "directory",
    required=False,
    metavar="[DIR]",
    type=click.Path(file_okay=False, path_type=Path),
    help="Copy of the log's files; without it they are fetched from the server.",
)
@click.option("--vkey-file", "vkey_files", multiple=True, required=True, metavar="FILE", help="The log's verifier key.")
@click.option(
    "--witness-vkey-file", "witness_files", multiple=True, metavar="FILE", help="Verifier key of a witness whose cosignature counts."
)
@click.option("--witnesses", "wanted", type=click.IntRange(0), default=0, help="Fail unless this many witnesses cosigned.")
@click.option("--checkpoint", "checkpoints", multiple=True, metavar="FILE", help="Checkpoint that was kept elsewhere, of any age.")
@click.option("--proof", metavar="FILE", help="Verify this inclusion proof instead of the log.")
@pass_state
def verify(
    state: State,
    directory: Path | None,
    vkey_files: tuple[str, ...],
    witness_files: tuple[str, ...],
    wanted: int,
    checkpoints: tuple[str, ...],
    proof: str | None,
) -> int:
    """Verify the whole log from a copy of its files, or one inclusion proof. Names the entry that is wrong."""
    keys, witnesses = read_vkeys(vkey_files), read_vkeys(witness_files)
    if proof is not None:
        if directory is not None or len(checkpoints) > 1:
            raise click.UsageError("--proof goes with at most one --checkpoint and no directory")
        return _verify_proof(state, proof, checkpoints[0] if checkpoints else None, keys, witnesses, wanted)
    if directory is not None:
        return _verify_directory(state, directory, checkpoints, keys, witnesses, wanted)
    from handclasp.cli.audit_export import copy_log

    with tempfile.TemporaryDirectory(prefix="handclasp-log-") as copy:
        copy_log(state.api(), Path(copy))
        return _verify_directory(state, Path(copy), checkpoints, keys, witnesses, wanted)


def read_vkeys(files: tuple[str, ...]) -> list[VerifierKey]:
    """Return the verifier keys in some files, one a line; empty lines and those that begin with # are skipped."""
    from handclasp.cli.files import read_text
    from handclasp.log.notes import parse_vkey

    keys = []
    for file in files:
        lines = [line.strip() for line in read_text(file).splitlines()]
        found = [parse_vkey(line) for line in lines if line and not line.startswith("#")]
        if not found:
            raise HandclaspError(Kind.BAD_KEY, f"{file} holds no verifier key", hint="it has the form NAME+KEYID+BASE64")
        keys += found
    return keys


def _verify_directory(
    state: State, directory: Path, checkpoints: tuple[str, ...], keys: list[VerifierKey], witnesses: list[VerifierKey], wanted: int
) -> int:
    from handclasp.cli.files import read_text
    from handclasp.log.verify import verify_directory

    kept = [read_text(file) for file in checkpoints]
    with terminal.progress("verifying: entry") as progress:
        report = verify_directory(directory, keys, witnesses=witnesses, kept=kept, progress=lambda _done, _all: progress.advance(65536))
    cosigned = [name for name, size in report.witnesses.items() if size >= report.entries]
    ok = report.ok and len(cosigned) >= wanted
    if state.json:
        terminal.write_json(_report(report, ok))
    else:
        for problem in report.problems:
            terminal.write_verdict("fail", "log", str(problem))
        if report.ok:
            terminal.write_verdict("ok", "log", f"{report.entries} entries of {report.origin} are as they were signed")
        if wanted:
            verdict = "ok" if len(cosigned) >= wanted else "fail"
            terminal.write_verdict(verdict, "witnesses", f"{len(cosigned)} of {wanted} wanted cosigned it: {', '.join(cosigned) or 'none'}")
    return 0 if ok else 1


def _report(report: Report, ok: bool) -> dict[str, object]:
    return {
        "ok": ok,
        "origin": report.origin,
        "entries": report.entries,
        "root": report.root.hex(),
        "witnesses": report.witnesses,
        "problems": [{"first": p.first, "last": p.last, "detail": p.detail, "intact": p.intact} for p in report.problems],
    }


def _verify_proof(
    state: State, proof: str, checkpoint: str | None, keys: list[VerifierKey], witnesses: list[VerifierKey], wanted: int
) -> int:
    import json

    from handclasp.cli.files import read_text
    from handclasp.log.verify import verify_proof

    kept = read_text(checkpoint) if checkpoint else None
    proven = verify_proof(read_text(proof), kept, keys, witnesses=witnesses)
    entry = json.loads(proven.entry)
    ok = len(proven.witnesses) >= wanted
    if state.json:
        facts = {"ok": ok, "origin": proven.origin, "index": proven.index, "tree_size": proven.size}
        terminal.write_json({**facts, "witnesses": list(proven.witnesses), "entry": entry})
    else:
        told = f"entry {proven.index} ({entry.get('type')} at {entry.get('at')}) is in the log {proven.origin} of {proven.size} entries"
        terminal.write_verdict("ok", "proof", told)
        if checkpoint is None:
            terminal.say("checked against the checkpoint inside the proof: one kept elsewhere (--checkpoint) shows more")
        if wanted:
            terminal.write_verdict("ok" if ok else "fail", "witnesses", f"{len(proven.witnesses)} of {wanted} wanted cosigned it")
    return 0 if ok else 1
