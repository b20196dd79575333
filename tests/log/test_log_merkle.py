from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.errors import HandclaspError, Kind
from handclasp.log.merkle import (
    EMPTY_ROOT,
    CompactTree,
    ReadHash,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

# The eight leaves, and roots of the trees of 1 to 8 of them, that implementations of RFC 6962 have tested each other with since the RFC.
LEAVES = [
    bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def slow_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, as it is written there."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256().digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(slow_root(leaves[:split]), slow_root(leaves[split:]))


def leaves_of(size: int) -> list[bytes]:
    return [leaf_hash(index.to_bytes(4)) for index in range(size)]


def reader(leaves: list[bytes]) -> ReadHash:
    def read(level: int, index: int) -> bytes:
        part = leaves[index << level : (index + 1) << level]
        assert len(part) == 1 << level, "only complete nodes are read"
        return slow_root(part)

    return read


def test_known_roots() -> None:
    for size, root in enumerate(ROOTS, 1):
        assert root_of([leaf_hash(leaf) for leaf in LEAVES[:size]]).hex() == root
    assert root_of([]) == EMPTY_ROOT == hashlib.sha256(b"").digest()


def test_known_inclusion_path() -> None:
    path = inclusion_proof(5, 8, reader([leaf_hash(leaf) for leaf in LEAVES]))
    assert [node.hex() for node in path] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


@given(st.lists(st.integers(0, 300), max_size=6))
def test_growing_in_parts_gives_the_same_tree(parts: list[int]) -> None:
    leaves = leaves_of(sum(parts))
    tree, start = CompactTree(), 0
    rows: dict[int, list[bytes]] = {}
    for part in parts:
        for level, nodes in enumerate(tree.copy().extend(leaves[start : start + part])):
            rows.setdefault(level, []).extend(nodes)
        tree.extend(leaves[start : start + part])
        start += part
        assert (tree.size, tree.root()) == (start, slow_root(leaves[:start]))
    read = reader(leaves)
    for level, nodes in rows.items():
        assert nodes == [read(level, index) for index in range(len(leaves) >> level)]
    assert CompactTree(len(leaves), read).root() == tree.root()


@given(st.integers(1, 200), st.data())
def test_inclusion_holds_for_the_entry_and_for_nothing_else(size: int, data: st.DataObject) -> None:
    leaves = leaves_of(size)
    index = data.draw(st.integers(0, size - 1))
    root = slow_root(leaves)
    path = inclusion_proof(index, size, reader(leaves))
    verify_inclusion(leaves[index], index, size, path, root)
    other = data.draw(st.integers(0, size + 3).filter(lambda place: place != index))
    at = data.draw(st.integers(0, max(0, len(path) - 1)))
    wrong = [
        (b"\x01" * 32, index, path, root),
        (leaves[index], other, path, root),
        (leaves[index], index, [*path, b"\x00" * 32], root),
        (leaves[index], index, path, b"\x02" * 32),
        *([(leaves[index], index, path[:at] + path[at + 1 :], root)] if path else []),
        *([(leaves[index], index, [*path[:at], b"\x03" * 32, *path[at + 1 :]], root)] if path else []),
    ]
    for leaf, place, nodes, head in wrong:
        with pytest.raises(HandclaspError) as caught:
            verify_inclusion(leaf, place, size, nodes, head)
        assert caught.value.kind is Kind.VERIFY_FAILED


@given(st.integers(0, 200), st.integers(0, 200), st.data())
def test_consistency_holds_for_a_beginning_and_for_nothing_else(one: int, two: int, data: st.DataObject) -> None:
    old, new = sorted((one, two))
    leaves = leaves_of(new)
    first, second = slow_root(leaves[:old]), slow_root(leaves)
    path = consistency_proof(old, new, reader(leaves))
    verify_consistency(old, new, first, second, path)
    wrong = [(b"\x01" * 32, second, path), (first, second, [*path, b"\x00" * 32])]
    if old:
        wrong.append((first, b"\x02" * 32, path))
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        wrong += [(first, second, path[:at] + path[at + 1 :]), (first, second, [*path[:at], b"\x03" * 32, *path[at + 1 :]])]
    for before, after, nodes in wrong:
        with pytest.raises(HandclaspError) as caught:
            verify_consistency(old, new, before, after, nodes)
        assert caught.value.kind is Kind.VERIFY_FAILED


@given(st.integers(-2, 2**70), st.integers(-2, 2**70), st.lists(st.binary(min_size=32, max_size=32), max_size=70))
def test_no_numbers_and_no_path_crash_a_verifier(one: int, two: int, path: list[bytes]) -> None:
    for check in (lambda: verify_inclusion(b"a", one, two, path, b"b"), lambda: verify_consistency(one, two, b"a", b"b", path)):
        with pytest.raises(HandclaspError):
            check()


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5)])
def test_no_proof_of_an_entry_that_is_not_there(index: int, size: int) -> None:
    with pytest.raises(HandclaspError) as caught:
        inclusion_proof(index, size, reader([]))
    assert caught.value.kind is Kind.NOT_FOUND


def test_no_proof_that_a_log_shrank() -> None:
    with pytest.raises(HandclaspError) as caught:
        consistency_proof(5, 4, reader([]))
    assert caught.value.kind is Kind.BAD_REQUEST
