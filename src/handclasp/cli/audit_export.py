"""``handclasp audit export``: copy the log's files over the API, so that they can be verified where the server has no hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from handclasp.cli import terminal
from handclasp.cli.command import Command, State, pass_state

if TYPE_CHECKING:
    from handclasp.cli.connection import Api
    from handclasp.log.checkpoint import Checkpoint
    from handclasp.log.tiles import TileStorage

_AT_ONCE = 32
"""Files that are synced together; as many are fetched again at most after an interruption."""


@click.command(
    "export",
    cls=Command,
    client=True,
    example="handclasp audit export ./log-copy && handclasp audit verify ./log-copy --vkey-file log.vkey",
)
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Where the copy is, or is to be.")
@pass_state
def export(state: State, directory: Path) -> None:
    """Copy the log's checkpoint and tiles. Run it again to go on where it stopped, or to bring a copy up to date.

    What is there already is never fetched again and never overwritten. A log that has become shorter, or that is not what the copy says it
    was, is refused, and the copy kept.
    """
    copied = copy_log(state.api(), directory)
    if state.json:
        terminal.write_json({"directory": str(directory), "origin": copied.origin, "entries": copied.size, "root": copied.root.hex()})
    terminal.say(
        f"{copied.size} entries of {copied.origin} are in {directory}; nothing is verified yet: handclasp audit verify {directory}"
    )


def copy_log(api: Api, directory: Path) -> Checkpoint:
    """Bring the copy in ``directory`` up to the server's checkpoint and return that; its signatures are not checked here.

    The checkpoint is asked for first and written last: what the directory's checkpoint speaks for is always there. Raises ``tampered`` when
    the server's log does not hold what the copy holds.
    """
    from handclasp.log.checkpoint import parse_checkpoint
    from handclasp.log.notes import parse_note
    from handclasp.log.tiles import CHECKPOINT, TileStorage

    storage = TileStorage(directory)
    storage.prepare()
    note = api.raw("/log/checkpoint")
    new = parse_checkpoint(parse_note(note).text)
    before = storage.read_note(CHECKPOINT)
    old = parse_checkpoint(parse_note(before).text) if before else None
    if old is not None:
        _check_not_shorter(old, new)
    missing = [path for path in paths_of(new.size) if not (directory / path).exists()]
    with terminal.progress("copying the log: file", len(missing)) as progress:
        for start in range(0, len(missing), _AT_ONCE):
            files = {}
            for path in missing[start : start + _AT_ONCE]:
                files[path] = api.raw(f"/log/{path}")
                progress.advance()
            storage.write(files)
    _check_same_history(storage, old, new)
    storage.write({CHECKPOINT: note})
    storage.remove_partials(path for path in paths_of(new.size) if not path.split("/")[-2].endswith(".p"))
    storage.clear_aside()
    return new


def paths_of(size: int) -> Iterator[str]:
    """Yield the path of every file of a log of ``size`` entries: bundles and tiles, the partial ones too."""
    from handclasp.log.tiles import ENTRIES, WIDTH, tile_path

    level, count = 0, size
    while count:
        for kind in (level, ENTRIES) if level == 0 else (level,):
            yield from (tile_path(kind, index) for index in range(count // WIDTH))
            if count % WIDTH:
                yield tile_path(kind, count // WIDTH, count % WIDTH)
        level, count = level + 1, count // WIDTH


def _check_not_shorter(old: Checkpoint, new: Checkpoint) -> None:
    from handclasp.errors import HandclaspError, Kind

    if old.origin != new.origin:
        raise HandclaspError(Kind.CONFLICT, f"the copy is of the log {old.origin}, the server's is {new.origin}", hint="copy it elsewhere")
    if new.size < old.size or (new.size == old.size and new.root != old.root):
        raise HandclaspError(
            Kind.TAMPERED,
            f"the server shows a log of {new.size} entries that does not hold the {old.size} of the copy",
            hint="the server's log was rolled back or rewritten: keep the copy, it is the evidence",
        )


def _check_same_history(storage: TileStorage, old: Checkpoint | None, new: Checkpoint) -> None:
    """Refuse a log whose files, those kept from the last copy among them, do not lead to its checkpoint and to the copy's."""
    from handclasp.errors import HandclaspError, Kind
    from handclasp.log.tiles import HashReader

    reader = HashReader(storage, new.size)
    if new.size and reader.root() != new.root:
        raise HandclaspError(
            Kind.TAMPERED,
            f"the files of the copy and those of the server do not make up the log of {new.size} entries that the server shows",
            hint="handclasp audit verify on the copy tells whether it was damaged; if not, the server's log was rewritten",
        )
    if old is not None and old.size and reader.root(old.size) != old.root:
        raise HandclaspError(
            Kind.TAMPERED,
            f"the first {old.size} entries of the server's log are not those of the copy",
            hint="keep the copy: its checkpoint is still the old one, and it is the evidence",
        )
