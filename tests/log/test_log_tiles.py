from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.errors import HandclaspError, Kind
from handclasp.log.merkle import leaf_hash, root_of
from handclasp.log.tiles import HashReader, TileStorage, decode_bundle, encode_bundle, parse_tile_path, tile_path
from support.errors import allowing
from support.logs import build, entry, files


@pytest.mark.parametrize(
    ("level", "index", "width", "path"),
    [
        (0, 0, 256, "tile/0/000"),
        (0, 1_234_067, 256, "tile/0/x001/x234/067"),  # the example of C2SP tlog-tiles
        (5, 999, 1, "tile/5/999.p/1"),
        (63, 1000, 255, "tile/63/x001/000.p/255"),
        ("entries", 273, 112, "tile/entries/273.p/112"),
    ],
)
def test_paths(level: int | str, index: int, width: int, path: str) -> None:
    assert tile_path(level, index, width) == path
    assert parse_tile_path(path) == (level, index, width)


@pytest.mark.parametrize(
    "path",
    [
        "", "checkpoint", "tile/0", "tile/0/0", "tile/64/000", "tile/00/000", "tile/0/x000/000", "tile/0/001/000", "tile/0/000.p/0",
        "tile/0/000.p/256", "tile/0/000.p/01", "tile/../000", "tile/0/../../../etc/passwd", "/tile/0/000", "tile/0/000\n",
        "tile/0/" + "x001/" * 40 + "000",
        "tile/-1/000", ".aside/x", "tile/0/\u0661\u0662\u0663",
    ],
)  # fmt: skip
def test_only_paths_of_the_log_are_served(tmp_path: Path, path: str) -> None:
    for call in (lambda: parse_tile_path(path), lambda: TileStorage(tmp_path).read(path)):
        with pytest.raises(HandclaspError) as caught:
            call()
        assert caught.value.kind is Kind.NOT_FOUND


@given(st.text(st.sampled_from("tile/0123456789x.pentris"), max_size=30) | st.text(max_size=30))
def test_a_path_is_read_only_as_it_is_written(path: str) -> None:
    with allowing(Kind.NOT_FOUND):
        assert tile_path(*parse_tile_path(path)) == path


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_bundles_read_back(entries: list[bytes]) -> None:
    assert decode_bundle(encode_bundle(entries), len(entries)) == entries
    with pytest.raises(HandclaspError) as caught:
        decode_bundle(encode_bundle(entries), len(entries) + 1)
    assert caught.value.kind is Kind.TAMPERED


@given(st.binary(max_size=100), st.integers(0, 256))
def test_reading_a_bundle_never_crashes(data: bytes, width: int) -> None:
    with allowing(Kind.TAMPERED):
        assert len(decode_bundle(data, width)) == width


def test_golden_bytes_of_a_bundle() -> None:
    assert encode_bundle([b"ab", b"", b"x" * 258]) == b"\x00\x02ab\x00\x00\x01\x02" + b"x" * 258


def test_golden_files_of_a_log(tmp_path: Path) -> None:
    build(tmp_path, [3, 300])
    found = {path: hashlib.sha256(data).hexdigest()[:16] for path, data in files(tmp_path).items()}
    assert found == {
        "checkpoint": "eca13d4b897cf09e",
        "tile/0/000": "9ab6b1ae8b8abb77",
        "tile/0/001.p/47": "882388e2373a6a04",
        "tile/1/000.p/1": "82b5342861e5e308",
        "tile/entries/000": "edd26da3eab02c24",
        "tile/entries/001.p/47": "737a0b8af9e1cf43",
    }


def test_which_files_a_log_of_70000_entries_has(tmp_path: Path) -> None:
    build(tmp_path, [70_000])  # the example of C2SP tlog-tiles, but for the partial tiles of steps on the way
    found = files(tmp_path)
    assert len([path for path in found if path.startswith("tile/0/") and ".p/" not in path]) == 273
    assert len([path for path in found if path.startswith("tile/entries/") and ".p/" not in path]) == 273
    assert {"tile/0/273.p/112", "tile/entries/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1", "checkpoint"} <= set(found)
    assert all(len(data) == 8192 for path, data in found.items() if path.startswith(("tile/0", "tile/1")) and ".p/" not in path)


def test_partial_files_go_when_the_full_one_is_there(tmp_path: Path) -> None:
    build(tmp_path, [1, 1, 250, 3])
    assert {path for path in files(tmp_path) if ".p/" in path} == {
        f"tile/{row}/000.p/{width}" for row in (0, "entries") for width in (1, 2, 252, 255)
    }
    build(tmp_path / "b", [1, 1, 250, 3, 1, 1])
    assert {path for path in files(tmp_path / "b") if ".p/" in path} == {"tile/0/001.p/1", "tile/entries/001.p/1", "tile/1/000.p/1"}


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 511, 512, 600])
def test_every_node_and_every_earlier_root_can_be_read(tmp_path: Path, size: int) -> None:
    build(tmp_path, [size])
    reader = HashReader(TileStorage(tmp_path), size)
    leaves = [leaf_hash(entry(index)) for index in range(size)]
    for level in range(size.bit_length()):
        for index in range(size >> level):
            if index % 37 == 0:
                assert reader(level, index) == root_of(leaves[index << level : (index + 1) << level])
    for earlier in range(0, size + 1, 41):
        assert reader.root(earlier) == root_of(leaves[:earlier])
    for level, index in ((0, size), (size.bit_length(), 0), (40, 0)):
        with pytest.raises(HandclaspError) as caught:
            reader(level, index)
        assert caught.value.kind is Kind.NOT_FOUND


def test_reading_as_it_is_served(tmp_path: Path) -> None:
    build(tmp_path, [10, 250])
    storage = TileStorage(tmp_path)
    for path, data in files(tmp_path).items():
        assert storage.read(path) == data
    assert storage.read("tile/0/000.p/10") == storage.read("tile/0/000")[:320], "a removed partial tile is answered from the full one"
    assert storage.read("tile/entries/000.p/10") == encode_bundle([entry(index) for index in range(10)])
    assert storage.read_bundle(0) == [entry(index) for index in range(256)]
    assert storage.read_bundle(1, 4) == [entry(index) for index in range(256, 260)]


def test_a_tile_of_the_wrong_length_is_not_served(tmp_path: Path) -> None:
    build(tmp_path, [300])
    (tmp_path / "tile/0/000").write_bytes(b"x" * 100)
    (tmp_path / "tile/0/001.p/44").write_bytes(b"x" * 100)
    for path in ("tile/0/000", "tile/0/001.p/44"):
        with pytest.raises(HandclaspError) as caught:
            TileStorage(tmp_path).read(path)
        assert caught.value.kind is Kind.TAMPERED
