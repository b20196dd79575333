"""``handclasp source import``: files are read here, and what is in them is sent in small portions; keys are not."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handclasp.cli import terminal
from handclasp.cli.options import in_path
from handclasp.errors import HandclaspError, Kind

if TYPE_CHECKING:
    from handclasp.cli.command import State
    from handclasp.wire.observations import Observed

AT_ONCE = 250
BYTES_AT_ONCE = 1024 * 1024


def run_import(state: State, name: str, files: Sequence[str], format_: str | None, columns: Mapping[str, str], dry_run: bool) -> int:
    """Send what files hold, and say what came of it. Exits 1 when something in them could not be read."""
    from handclasp.discovery.imports.read import Imported
    from handclasp.wire.observations import Recorded, Sightings

    done, total = Imported(), Recorded(locations=0, changed=0, failed=0, certificates=0, fresh=0, gone=0)
    api, made = (None if dry_run else state.api()), False
    with terminal.progress("certificates") as progress:
        for portion in _portions(_read(files, format_, columns, done)):
            if api is not None:
                if not made:  # not before there is something to tell it: a file that cannot be read leaves no source behind
                    _make_source(api, name)
                    made = True
                from handclasp.wire.discovery import ImportRequest

                body = ImportRequest(sightings=Sightings(observed=portion))
                _add(total, api.call("POST", f"/v1/sources/{in_path(name)}:import", Recorded, body=body))
            progress.advance(len(portion))
    if done.keys:
        terminal.warn(f"{done.keys} private keys are in these files: they were left out; keep such files where nobody reads them")
    _write(state, name, done, total, dry_run)
    return 1 if done.problems else 0


def _make_source(api: Any, name: str) -> None:
    from handclasp.wire.discovery import Source, SourceRequest

    try:
        found = api.get(f"/v1/sources/{in_path(name)}", Source)
    except HandclaspError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
        api.call("POST", "/v1/sources", Source, body=SourceRequest(name=name, kind="import"))
        terminal.say(f"source {name} is added")
        return
    if found.kind != "import":
        raise HandclaspError(Kind.CONFLICT, f"{name} is a source of the kind {found.kind}: it is read, and takes nothing by hand")


def _read(files: Sequence[str], format_: Any, columns: Mapping[str, str], done: Any) -> Iterator[Observed]:
    from handclasp.discovery.imports.read import MAX_FILE, guess_format, read_import

    for file in files:
        data = sys.stdin.buffer.read(MAX_FILE + 1) if file == "-" else Path(file).read_bytes()
        if len(data) > MAX_FILE:
            raise HandclaspError(Kind.TOO_LARGE, f"{file} is larger than {MAX_FILE} bytes", hint="split it")
        try:
            yield from read_import(data, format_ or guess_format(file, data), terminal.clock, done, columns=columns)
        except HandclaspError as error:
            raise HandclaspError(error.kind, f"{file}: {error.detail}", hint=error.hint) from error


def _portions(observed: Iterator[Observed]) -> Iterator[list[Observed]]:
    portion: list[Observed] = []
    size = 0
    for one in observed:
        portion.append(one)
        size += sum(len(seen.der or b"") + sum(map(len, seen.chain)) for seen in one.certificates)
        if len(portion) >= AT_ONCE or size >= BYTES_AT_ONCE:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _add(total: Any, one: Any) -> None:
    for name in ("locations", "changed", "failed", "certificates", "fresh", "gone", "unreadable"):
        setattr(total, name, getattr(total, name) + getattr(one, name))


def _write(state: State, name: str, done: Any, total: Any, dry_run: bool) -> None:
    if state.json:
        counts = {"certificates": done.certificates, "problems": done.problems, "private_keys_left_out": done.keys, "dry_run": dry_run}
        terminal.write_json(counts | {"changed": total.changed, "new": total.fresh, "unreadable": total.unreadable})
        return
    fields: list[tuple[str, Any]] = [("certificates", done.certificates), ("could not be read", done.problems + total.unreadable)]
    if not dry_run:
        fields += [("new", total.fresh), ("changed", total.changed)]
    terminal.write_fields(fields)
    if not dry_run and done.problems + total.unreadable:
        terminal.hint(f"handclasp location list --source {name} --state failed has what could not be read, with the reason")
