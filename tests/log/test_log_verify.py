from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.errors import HandclaspError, Kind
from handclasp.log.checkpoint import SignedCheckpoint, sign_checkpoint
from handclasp.log.merkle import leaf_hash, root_of
from handclasp.log.notes import merge_signatures
from handclasp.log.tiles import encode_bundle
from handclasp.log.verify import Problem, Report, name_differences, verify_directory
from support.logs import NOW, build, cosigner, entry, files, log_signer

KEYS = [log_signer().vkey]
STEPS = [300, 400]
SIZE = sum(STEPS)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[SignedCheckpoint]]:
    directory = tmp_path_factory.mktemp("log")
    return directory, build(directory, STEPS)


@pytest.fixture
def log(original: tuple[Path, list[SignedCheckpoint]], tmp_path: Path) -> Path:
    shutil.copytree(original[0], tmp_path / "log")
    return tmp_path / "log"


def bundle(directory: Path, index: int, change: Callable[[list[bytes]], object]) -> None:
    """Change the entries of one bundle."""
    start = index * 256
    entries = [entry(place) for place in range(start, min(SIZE, start + 256))]
    width = len(entries)
    change(entries)
    path = directory / f"tile/entries/{index:03d}" if width == 256 else directory / f"tile/entries/{index:03d}.p/{width}"
    path.write_bytes(encode_bundle(entries))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def places(report: Report) -> list[tuple[int | None, int | None]]:
    return [(problem.first, problem.last) for problem in report.problems]


def test_a_log_that_is_whole(log: Path, original: tuple[Path, list[SignedCheckpoint]]) -> None:
    report = verify_directory(log, KEYS, kept=[str(checkpoint) for checkpoint in original[1]])
    assert (report.ok, report.entries, report.origin) == (True, SIZE, "log.example.org/handclasp")
    assert report.root == root_of([leaf_hash(entry(index)) for index in range(SIZE)])


def test_an_older_checkpoint_over_newer_tiles_is_whole(log: Path, original: tuple[Path, list[SignedCheckpoint]]) -> None:
    (log / "checkpoint").write_text(str(original[1][1]))  # as in a copy that took the checkpoint first
    assert verify_directory(log, KEYS).ok


@pytest.mark.parametrize("index", [0, 1, 100, 255, 256, 511, 512, 650, 699])
def test_a_changed_entry_is_named(log: Path, index: int) -> None:
    def change(entries: list[bytes]) -> None:
        at = index % 256
        entries[at] = entries[at].replace(b"n", b"m")

    bundle(log, index // 256, change)
    report = verify_directory(log, KEYS)
    assert places(report) == [(index, index)]
    assert str(report.problems[0]) == f"entry {index}: not what was signed: its bytes were changed"


@pytest.mark.parametrize("index", [0, 77, 255, 256, 600, 698])
def test_a_dropped_entry_is_named(log: Path, index: int) -> None:
    bundle(log, index // 256, lambda entries: entries.pop(index % 256))
    report = verify_directory(log, KEYS)
    assert report.problems[0].first == index
    assert "dropped" in report.problems[0].detail or "cut off" in report.problems[0].detail


@pytest.mark.parametrize(("one", "two"), [(0, 1), (5, 200), (256, 511), (690, 699)])
def test_reordered_entries_are_named(log: Path, one: int, two: int) -> None:
    def change(entries: list[bytes]) -> None:
        entries[one % 256], entries[two % 256] = entries[two % 256], entries[one % 256]

    bundle(log, one // 256, change)
    report = verify_directory(log, KEYS)
    assert places(report) == [(one, one), (two, two)]
    assert "reordered" in str(report.problems[0])


def test_an_entry_put_in_is_named(log: Path) -> None:
    bundle(log, 1, lambda entries: (entries.insert(40, b"{}"), entries.pop()))
    report = verify_directory(log, KEYS)
    assert places(report) == [(296, 296)]
    assert "put in before" in str(report.problems[0])


def test_bytes_after_the_last_entry_of_a_bundle_are_named(log: Path) -> None:
    bundle(log, 0, lambda entries: entries.append(b"more"))
    assert places(verify_directory(log, KEYS)) == [(255, 255)]


def test_the_first_entry_after_a_cut_is_named(log: Path) -> None:
    path = log / "tile/entries/001"
    path.write_bytes(path.read_bytes()[: len(encode_bundle(entry(index) for index in range(256, 300)))])
    assert verify_directory(log, KEYS).problems[0] == Problem(300, 511, "cut off from its bundle")


def test_missing_bundles_are_named_as_one(log: Path) -> None:
    (log / "tile/entries/001").unlink()
    shutil.rmtree(log / "tile/entries/002.p")
    assert verify_directory(log, KEYS).problems == [Problem(256, 699, "missing from the log")]


def test_truncation_shows_against_a_checkpoint_kept_elsewhere(tmp_path: Path, original: tuple[Path, list[SignedCheckpoint]]) -> None:
    build(tmp_path, STEPS[:1])
    assert verify_directory(tmp_path, KEYS).ok, "a whole older log cannot be told from a younger one by itself"
    report = verify_directory(tmp_path, KEYS, kept=[str(original[1][-1])])
    assert places(report) == [(300, 699)]
    assert "truncated" in str(report.problems[0])


def test_truncation_shows_against_the_cosigned_checkpoint_beside_it(tmp_path: Path, original: tuple[Path, list[SignedCheckpoint]]) -> None:
    build(tmp_path, STEPS[:1])
    newest = original[1][-1].note
    (tmp_path / "cosigned").write_text(str(merge_signatures(newest, [cosigner().cosign(newest.text, NOW)])))
    report = verify_directory(tmp_path, KEYS, witnesses=[cosigner().vkey])
    assert places(report) == [(300, 699)]
    assert report.witnesses == {"witness.example/w1": 700}


def test_an_entry_changed_with_its_tile_is_narrowed_to_the_block(log: Path) -> None:
    bundle(log, 1, lambda entries: entries.__setitem__(9, b"forged"))
    tile = log / "tile/0/001"
    data = tile.read_bytes()
    tile.write_bytes(data[: 9 * 32] + leaf_hash(b"forged") + data[10 * 32 :])
    report = verify_directory(log, KEYS)
    assert places(report) == [(256, 511)]
    assert "together with its tile" in str(report.problems[0])


def forge_everything(directory: Path, index: int) -> None:
    """Write another log over this one, every tile of it right, and leave the signed checkpoint."""
    note = (directory / "checkpoint").read_text()
    entries = [entry(place) for place in range(SIZE)]
    entries[index] = b"forged"
    for block in range(3):
        part = entries[block * 256 : block * 256 + 256]
        suffix = "" if len(part) == 256 else f".p/{len(part)}"
        (directory / f"tile/entries/{block:03d}{suffix}").write_bytes(encode_bundle(part))
        (directory / f"tile/0/{block:03d}{suffix}").write_bytes(b"".join(map(leaf_hash, part)))
    roots = [root_of([leaf_hash(data) for data in entries[block * 256 : block * 256 + 256]]) for block in range(2)]
    (directory / "tile/1/000.p/2").write_bytes(b"".join(roots))
    (directory / "checkpoint").write_text(note)


@pytest.mark.parametrize(("index", "place"), [(10, (0, 299)), (310, (300, 699)), (690, (300, 699))])
def test_a_log_written_anew_is_narrowed_by_kept_checkpoints(
    log: Path, original: tuple[Path, list[SignedCheckpoint]], index: int, place: tuple[int, int]
) -> None:
    forge_everything(log, index)
    assert places(verify_directory(log, KEYS)) == [(0, 699)]
    assert places(verify_directory(log, KEYS, kept=[str(original[1][1])])) == [place]


def test_two_histories_of_one_size_signed_by_the_log_itself_are_seen(log: Path, original: tuple[Path, list[SignedCheckpoint]]) -> None:
    split = sign_checkpoint(log_signer(), SIZE, b"\x05" * 32)
    report = verify_directory(log, KEYS, kept=[str(split), str(original[1][1])])
    assert places(report) == [(300, 699)]


@pytest.mark.parametrize(
    ("why", "path", "at", "place"),
    [
        ("a hash in a full tile", "tile/0/001", 9 * 32, (265, 265)),
        ("a hash in the last tile", "tile/0/002.p/188", 9 * 32, (521, 521)),
        ("a hash in the tile above", "tile/1/000.p/2", 5, (0, 255)),
    ],
)
def test_a_damaged_tile_is_not_blamed_on_the_entries(log: Path, why: str, path: str, at: int, place: tuple[int, int]) -> None:
    flip(log / path, at)
    report = verify_directory(log, KEYS)
    assert places(report) == [place]
    assert all(problem.intact for problem in report.problems)
    (log / path).unlink()
    report = verify_directory(log, KEYS)
    assert not report.ok
    assert all(problem.intact for problem in report.problems)


@given(st.data())
def test_no_flipped_byte_goes_unseen(
    original: tuple[Path, list[SignedCheckpoint]], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    found = files(original[0])
    path = data.draw(st.sampled_from(sorted(found)))
    at = data.draw(st.integers(0, len(found[path]) - 1))
    directory = tmp_path_factory.mktemp("flipped")
    shutil.copytree(original[0], directory, dirs_exist_ok=True)
    changed = bytearray(found[path])
    changed[at] ^= data.draw(st.integers(1, 255))
    (directory / path).write_bytes(changed)
    report = verify_directory(directory, KEYS)
    shutil.rmtree(directory)
    assert not report.ok
    if path.startswith("tile/entries/"):  # a changed length moves what follows, but the first entry named is the one that was hit
        block = int(path.split("/")[2][:3])
        rest, index = at, block * 256
        while rest >= 2 + len(entry(index)):
            rest, index = rest - 2 - len(entry(index)), index + 1
        assert report.problems[0].first == index


def test_a_directory_without_a_right_checkpoint(log: Path, tmp_path: Path) -> None:
    assert "no checkpoint" in str(verify_directory(tmp_path / "nowhere", KEYS).problems[0])
    assert "whose key is not given" in str(verify_directory(log, [log_signer("other.example").vkey]).problems[0])
    (log / "checkpoint").write_bytes(b"\xff")
    assert not verify_directory(log, KEYS).ok


def test_a_kept_checkpoint_that_is_none_is_the_askers_mistake(log: Path) -> None:
    for note in ("nonsense", str(sign_checkpoint(log_signer(seed=7), 5, b"\x00" * 32))):
        with pytest.raises(HandclaspError) as caught:
            verify_directory(log, KEYS, kept=[note])
        assert caught.value.kind is Kind.VERIFY_FAILED
    other = log_signer("other.example")
    with pytest.raises(HandclaspError, match="of another log"):
        verify_directory(log, [*KEYS, other.vkey], kept=[str(sign_checkpoint(other, 5, b"\x00" * 32))])


HASHES = [leaf_hash(bytes([place])) for place in range(20)]


@given(st.lists(st.sampled_from([*HASHES, b"", b"x"]), max_size=25))
def test_the_first_difference_is_always_named(actual: list[bytes]) -> None:
    if actual == HASHES:
        return
    first = next((at for at, digest in enumerate(HASHES) if at >= len(actual) or actual[at] != digest), 19)
    assert min(place[0] for place in name_differences(actual, HASHES)) == first


def test_measured_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path, [20_000])
    start = time.perf_counter()
    report = verify_directory(tmp_path, KEYS)
    speed = report.entries / (time.perf_counter() - start)
    assert report.ok
    with capsys.disabled():
        print(f"\naudit verify: {speed:,.0f} entries a second")
