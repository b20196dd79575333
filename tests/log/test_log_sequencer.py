from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from handclasp import faults
from handclasp.errors import HandclaspError, Kind
from handclasp.log.sequencer import BATCH, Sequencer
from handclasp.log.tiles import TileStorage
from handclasp.log.verify import verify_directory
from support.logs import Entries, build, entry, files, log_signer

KEYS = [log_signer().vkey]


def reopened(directory: Path, entries: Entries) -> Sequencer:
    return asyncio.run(Sequencer.open(entries.read, TileStorage(directory), log_signer()))


def tampered(directory: Path, entries: Entries) -> str:
    before = files(directory)
    with pytest.raises(HandclaspError) as caught:
        reopened(directory, entries)
    assert caught.value.kind is Kind.TAMPERED
    assert files(directory) == before, "nothing is written, so nothing is signed"
    return caught.value.detail


@pytest.mark.parametrize("steps", [[], [1], [255, 1, 1], [256, 256], [100] * 7, [513], [BATCH, 1], [2 * BATCH + 3]])
def test_the_tree_does_not_depend_on_the_steps(tmp_path: Path, steps: list[int]) -> None:
    build(tmp_path / "a", steps)
    report = verify_directory(tmp_path / "a", KEYS)
    assert (report.ok, report.entries, report.problems) == (True, sum(steps), [])
    build(tmp_path / "b", [sum(steps)] if steps else [])
    one, two = files(tmp_path / "a"), files(tmp_path / "b")
    assert one["checkpoint"] == two["checkpoint"]
    assert {path: data for path, data in two.items() if ".p/" not in path}.items() <= one.items()


def test_a_step_without_entries_writes_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        entries = Entries(3)
        sequencer = await Sequencer.open(entries.read, TileStorage(tmp_path), log_signer())
        assert await sequencer.step() == 3
        before = sequencer.checkpoint
        assert await sequencer.step() == 0
        assert sequencer.checkpoint is before
        sequencer.close()

    asyncio.run(run())


@pytest.mark.parametrize("first", [0, 1, 255, 256, 300, 512])
def test_a_restart_goes_on_where_it_was(tmp_path: Path, first: int) -> None:
    build(tmp_path / "whole", [first, 300])
    build(tmp_path / "parts", [first])

    async def run() -> None:
        entries = Entries(first + 300)
        sequencer = await Sequencer.open(entries.read, TileStorage(tmp_path / "parts"), log_signer())
        assert sequencer.size == first
        assert await sequencer.step() == 300
        sequencer.close()

    asyncio.run(run())
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_steps_at_once_do_not_meet(tmp_path: Path) -> None:
    async def run() -> list[int]:
        entries = Entries(1000)
        sequencer = await Sequencer.open(entries.read, TileStorage(tmp_path), log_signer())
        counts = await asyncio.gather(*(sequencer.step() for _ in range(5)))
        sequencer.close()
        return counts

    assert sorted(asyncio.run(run())) == [0, 0, 0, 0, 1000]
    assert verify_directory(tmp_path, KEYS).ok


def test_one_sequencer_at_a_time(tmp_path: Path) -> None:
    first = reopened(tmp_path, Entries())
    with pytest.raises(HandclaspError) as caught:
        reopened(tmp_path, Entries())
    assert caught.value.kind is Kind.CONFLICT
    first.close()
    reopened(tmp_path, Entries()).close()


# --- what must not be signed ------------------------------------------------------------------------------------------------------------


def test_a_database_that_lost_entries_is_refused(tmp_path: Path) -> None:
    build(tmp_path, [300])
    assert "only 280 of them" in tampered(tmp_path, Entries(280))


def test_a_database_with_another_entry_is_refused(tmp_path: Path) -> None:
    build(tmp_path, [300])
    entries = Entries(300)
    entries.rows[270] = entry(270, "forged")
    assert "entry 270" in tampered(tmp_path, entries)


@pytest.mark.parametrize(
    "path",
    ["tile/0/002.p/88", "tile/1/000.p/2", "tile/entries/002.p/88", "checkpoint"],
)
def test_damaged_files_at_the_edge_are_refused(tmp_path: Path, path: str) -> None:
    build(tmp_path, [600])
    file = tmp_path / path
    data = file.read_bytes()
    file.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
    tampered(tmp_path, Entries(600))
    file.unlink()
    tampered(tmp_path, Entries(600))


def test_a_checkpoint_of_another_key_is_refused(tmp_path: Path) -> None:
    build(tmp_path, [10])
    with pytest.raises(HandclaspError) as caught:
        asyncio.run(Sequencer.open(Entries(10).read, TileStorage(tmp_path), log_signer(seed=5)))
    assert caught.value.kind is Kind.TAMPERED


def test_a_directory_that_cannot_be_written_is_a_clear_answer_and_nothing_is_lost(tmp_path: Path) -> None:
    async def run() -> None:
        entries = Entries(10)
        storage = TileStorage(tmp_path / "log")
        sequencer = await Sequencer.open(entries.read, storage, log_signer())
        (tmp_path / "log/tile").write_text("in the way")
        with pytest.raises(HandclaspError) as caught:
            await sequencer.step()
        assert caught.value.kind is Kind.UNAVAILABLE
        assert sequencer.size == 0
        (tmp_path / "log/tile").unlink()
        assert await sequencer.step() == 10
        sequencer.close()

    asyncio.run(run())
    assert verify_directory(tmp_path / "log", KEYS).entries == 10


def test_a_directory_that_is_a_file_is_a_clear_answer(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    with pytest.raises(HandclaspError) as caught:
        reopened(tmp_path / "log", Entries())
    assert caught.value.kind is Kind.UNAVAILABLE


def test_an_entry_no_bundle_can_hold_is_never_taken(tmp_path: Path) -> None:
    async def run() -> None:
        async def read(start: int, limit: int) -> Sequence[bytes]:
            return [b"x" * 70_000][start:]

        sequencer = await Sequencer.open(read, TileStorage(tmp_path), log_signer())
        with pytest.raises(HandclaspError) as caught:
            await sequencer.step()
        assert caught.value.kind is Kind.INTERNAL
        sequencer.close()

    asyncio.run(run())


# --- kill -9 at every step --------------------------------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, sys
from pathlib import Path
from support.logs import Entries, log_signer
from handclasp.log.sequencer import Sequencer
from handclasp.log.tiles import TileStorage

async def main(directory, before, after):
    entries = Entries(before)
    sequencer = await Sequencer.open(entries.read, TileStorage(Path(directory)), log_signer())
    await sequencer.step()
    print(sequencer.checkpoint.checkpoint.size, flush=True)
    entries.grow(after)
    await sequencer.step()
    print(sequencer.checkpoint.checkpoint.size, flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""

# A new log writes its first checkpoint, a step of 250 entries three files, the next one of 300 seven; each passes the points of the room.
KILLS = [
    *(f"log.file.{point}:{count}:kill" for point in ("written", "renamed") for count in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)),
    *(f"log.step.{point}:{count}:kill" for point in ("read", "tiles", "partials", "published") for count in (1, 2)),
]


def run_program(directory: Path, fault: str, before: int = 250, after: int = 300) -> subprocess.CompletedProcess[str]:
    source, tests = Path(faults.__file__).parents[1], Path(__file__).parents[1]
    environment = {**os.environ, "HANDCLASP_FAULT": fault, "PYTHONPATH": f"{source}:{tests}"}
    command = [sys.executable, "-c", PROGRAM, str(directory), str(before), str(after)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_every_point_is_killed_at() -> None:
    assert {name for name in faults.POINTS if name.startswith("log.")} == {fault.split(":")[0] for fault in KILLS}


@pytest.mark.parametrize("fault", KILLS)
def test_a_kill_at_any_step_leaves_a_log_that_goes_on(tmp_path: Path, fault: str) -> None:
    directory = tmp_path / "log"
    killed = run_program(directory, fault)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    published = [int(line) for line in killed.stdout.split()]
    if (directory / "checkpoint").exists():
        report = verify_directory(directory, KEYS)
        assert report.ok, report.problems
        assert report.entries >= max(published, default=0), "what was published is never taken back"
    kept = [note] if (note := TileStorage(directory).read_note("checkpoint")) else []
    assert run_program(directory, "", 550, 0).returncode == 0
    assert verify_directory(directory, KEYS, kept=kept).ok
    build(tmp_path / "never-killed", [250, 300])
    expected = files(tmp_path / "never-killed")
    found = files(directory)
    assert {path: found.get(path) for path in expected} == expected
    assert not list((directory / ".aside").iterdir())


def test_a_step_that_fails_is_done_again(tmp_path: Path) -> None:
    failed = run_program(tmp_path / "log", "log.file.renamed:6:fail")
    assert failed.returncode == 1
    assert "unavailable" in failed.stderr
    assert run_program(tmp_path / "log", "", 550, 0).returncode == 0
    assert verify_directory(tmp_path / "log", KEYS).entries == 550
