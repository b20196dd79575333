"""The Merkle tree of RFC 6962 section 2.1: hashing, growing, and the two proofs. Pure.

A *node* is named by ``(level, index)``: the root of the complete subtree over leaves ``index * 2**level`` up to the next such one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

from handclasp.errors import HandclaspError, Kind

EMPTY_ROOT = sha256(b"").digest()
"""The root of the tree without leaves."""

MAX_SIZE = 2**63 - 1
"""No tree is bigger (C2SP tlog-witness: a proof has at most 63 hashes)."""

ReadHash = Callable[[int, int], bytes]
"""``read_hash(level, index)`` returns the hash of a node, 32 bytes."""


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of an entry as a leaf."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of the node over two nodes."""
    return sha256(b"\x01" + left + right).digest()


def next_level(nodes: Sequence[bytes]) -> list[bytes]:
    """Return the parents of an even number of neighbouring nodes."""
    return [sha256(b"\x01" + nodes[i] + nodes[i + 1]).digest() for i in range(0, len(nodes), 2)]


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Return the root of the tree over these leaf hashes."""
    tree = CompactTree()
    tree.extend(leaves)
    return tree.root()


class CompactTree:
    """A tree that grows at its right end and remembers only that end: one hash for each bit of its size that is set."""

    __slots__ = ("_open", "size")

    def __init__(self, size: int = 0, read_hash: ReadHash | None = None) -> None:
        """Make the tree of ``size`` leaves whose nodes ``read_hash`` gives; the empty tree needs none."""
        self.size = size
        self._open: list[bytes] = [b""] * size.bit_length()
        """At each level the last complete node, while it still waits for its right sibling; else empty."""
        if read_hash is not None:
            self._open = [read_hash(level, (size >> level) - 1) if size >> level & 1 else b"" for level in range(size.bit_length())]

    def copy(self) -> CompactTree:
        """Return a tree that grows on its own."""
        other = CompactTree()
        other.size, other._open = self.size, self._open.copy()
        return other

    def extend(self, leaves: Sequence[bytes]) -> list[list[bytes]]:
        """Append leaf hashes; return the complete nodes that came into being, by level, in order (level 0: the leaves themselves)."""
        made: list[list[bytes]] = []
        nodes = list(leaves)
        self.size += len(nodes)
        level = 0
        while nodes:
            made.append(nodes)
            if level == len(self._open):
                self._open.append(b"")
            waiting = self._open[level]
            row = [waiting, *nodes] if waiting else nodes
            self._open[level] = row[-1] if len(row) % 2 else b""
            nodes = next_level(row[: len(row) // 2 * 2])
            level += 1
        return made

    def root(self, right: bytes = b"") -> bytes:
        """Return the root hash of the tree as it is, or with one smaller subtree of root ``right`` to its right."""
        root = right
        for node in self._open:
            if node:
                root = node_hash(node, root) if root else node
        return root or EMPTY_ROOT


def inclusion_proof(index: int, size: int, read_hash: ReadHash) -> list[bytes]:
    """Return the audit path of leaf ``index`` in the tree of ``size`` leaves, leaf's sibling first (RFC 6962 section 2.1.1)."""
    if not 0 <= index < size:
        raise HandclaspError(Kind.NOT_FOUND, f"entry {index} is not in a log of {size} entries")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(range_root(middle, end, read_hash))
            end = middle
        else:
            path.append(range_root(start, middle, read_hash))
            start = middle
    path.reverse()
    return path


def consistency_proof(old: int, new: int, read_hash: ReadHash) -> list[bytes]:
    """Return the proof that the tree of ``old`` leaves is the beginning of that of ``new`` leaves (RFC 6962 section 2.1.2)."""
    if not 0 <= old <= new:
        raise HandclaspError(Kind.BAD_REQUEST, f"a log of {new} entries does not grow from one of {old}")
    if old in (0, new):
        return []
    path: list[bytes] = []
    start, end, whole = 0, new, True
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            path.append(range_root(middle, end, read_hash))
            end = middle
        else:
            path.append(range_root(start, middle, read_hash))
            start, whole = middle, False
    if not whole:
        path.append(range_root(start, end, read_hash))
    path.reverse()
    return path


def range_root(start: int, end: int, read_hash: ReadHash) -> bytes:
    """Return the root over leaves ``start`` to ``end``, where ``start`` is a multiple of a power of two that is at least their number."""
    root = b""
    size = end - start
    while size:
        bit = size & -size  # the smallest complete subtree is the rightmost one
        size -= bit
        level = bit.bit_length() - 1
        node = read_hash(level, (start + size) >> level)
        root = node_hash(node, root) if root else node
    return root or EMPTY_ROOT


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf hash ``leaf`` is entry ``index`` of the tree of ``size`` leaves with root ``root``; raise ``verify_failed``."""
    if not 0 <= index < size <= MAX_SIZE:
        raise HandclaspError(Kind.VERIFY_FAILED, f"entry {index} cannot be in a log of {size} entries")
    node: bytes | None = leaf
    place, last, rest = index, size - 1, list(path)
    while last and node:
        if place & 1 or place < last:  # else: a last node without a right sibling, which goes up as it is
            sibling = rest.pop(0) if rest else None
            node = None if sibling is None else node_hash(sibling, node) if place & 1 else node_hash(node, sibling)
        place, last = place >> 1, last >> 1
    if rest or node != root:
        raise HandclaspError(
            Kind.VERIFY_FAILED, f"the inclusion proof of entry {index} does not lead to the root of the log of {size} entries"
        )


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]) -> None:
    """Check that the tree (``old``, ``old_root``) is the beginning of the tree (``new``, ``new_root``); raise ``verify_failed`` if not."""
    if not 0 <= old <= new <= MAX_SIZE:
        raise HandclaspError(Kind.VERIFY_FAILED, f"a log of {new} entries does not grow from one of {old}")
    if old in (0, new):
        expected = EMPTY_ROOT if old == 0 else new_root
        if path or old_root != expected or (new == 0 and new_root != EMPTY_ROOT):
            raise HandclaspError(Kind.VERIFY_FAILED, f"the logs of {old} and {new} entries are not the same log")
        return
    if _grown(old, new, old_root, list(path)) != (old_root, new_root):
        raise HandclaspError(Kind.VERIFY_FAILED, f"the log of {new} entries does not begin with the log of {old} entries")


def _grown(old: int, new: int, old_root: bytes, path: list[bytes]) -> tuple[bytes, bytes] | None:
    """Return both roots as the consistency path gives them, or None when it has the wrong length (RFC 9162 section 2.1.4.2)."""
    place, last = old - 1, new - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    if place:
        if not path:
            return None
        first = second = path.pop(0)
    else:  # the old tree is complete, so its root is where the path begins
        first = second = old_root
    while last:
        if place & 1 or place < last:
            if not path:
                return None
            sibling = path.pop(0)
            if place & 1:
                first, second = node_hash(sibling, first), node_hash(sibling, second)
            else:
                second = node_hash(second, sibling)
        place, last = place >> 1, last >> 1
    return None if path else (first, second)


def _split(count: int) -> int:
    """Return the largest power of two below ``count`` (RFC 6962: k)."""
    return 1 << (count - 1).bit_length() - 1
