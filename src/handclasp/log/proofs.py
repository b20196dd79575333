"""Inclusion proofs as text that can be checked by anyone, without the server (C2SP tlog-proof). Pure.

The optional ``extra`` data of the format holds the entry itself, so that one file is the whole proof. It is trusted no further than the
proof goes: the tree's root commits to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from handclasp.errors import HandclaspError, Kind
from handclasp.log.checkpoint import SignedCheckpoint, open_checkpoint, parse_hashes, parse_number, sign_checkpoint
from handclasp.log.entries import MAX_ENTRY
from handclasp.log.merkle import ReadHash, consistency_proof, inclusion_proof, leaf_hash, range_root, verify_consistency, verify_inclusion
from handclasp.log.notes import MAX_NOTE, Note, NoteSigner, VerifierKey, b64, parse_note, unb64

HEADER = "c2sp.org/tlog-proof@v1"

MAX_TEXT = MAX_NOTE + MAX_ENTRY * 2
"""Characters of a proof with its entry."""


@dataclass(frozen=True, slots=True)
class Proof:
    """An inclusion proof, nothing verified. ``str`` gives the text."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: Note
    entry: bytes | None = None

    def __str__(self) -> str:
        extra = [] if self.entry is None else [f"extra {b64(self.entry)}"]
        return "\n".join((HEADER, *extra, f"index {self.index}", *map(b64, self.path), "", str(self.checkpoint)))


@dataclass(frozen=True, slots=True)
class Proven:
    """What a verified proof shows: this entry is at this index of the log of ``size`` entries, and these witnesses saw that log."""

    index: int
    entry: bytes
    size: int
    origin: str
    witnesses: tuple[str, ...]


def make_proof(index: int, checkpoint: SignedCheckpoint, read_hash: ReadHash, entry: bytes | None = None) -> Proof:
    """Return the proof that entry ``index`` is in the log as ``checkpoint`` has it; raise ``not_found`` when it is not that long."""
    return Proof(index, tuple(inclusion_proof(index, checkpoint.checkpoint.size, read_hash)), checkpoint.note, entry)


def checkpoint_at(size: int, newest: SignedCheckpoint, signer: NoteSigner, read_hash: ReadHash) -> SignedCheckpoint:
    """Return the log's checkpoint at an earlier ``size``, to prove against one that somebody kept: the same bytes as then.

    It is signed only after a consistency proof to ``newest``: tiles that were tampered with raise ``verify_failed`` instead.
    """
    now = newest.checkpoint
    if not 0 <= size <= now.size:
        raise HandclaspError(Kind.NOT_FOUND, f"the log has {now.size} entries, not {size}")
    if size == now.size:
        return newest
    root = range_root(0, size, read_hash)
    verify_consistency(size, now.size, root, now.root, consistency_proof(size, now.size, read_hash))
    return sign_checkpoint(signer, size, root)


def parse_proof(text: str | bytes) -> Proof:
    """Return the proof in a text; raise ``verify_failed`` for what is not one."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise HandclaspError(Kind.VERIFY_FAILED, "the proof is not UTF-8") from error
    head, separator, note = text.partition("\n\n") if len(text) <= MAX_TEXT else ("", "", "")
    first, *lines = head.split("\n")
    if not separator or first != HEADER:
        raise HandclaspError(Kind.VERIFY_FAILED, f"a proof begins with the line {HEADER}")
    entry = None
    if lines and lines[0].startswith("extra "):
        entry = unb64(lines.pop(0)[6:])
        if entry is None:
            raise HandclaspError(Kind.VERIFY_FAILED, "the extra data of the proof is not base64")
    if not lines or not lines[0].startswith("index "):
        raise HandclaspError(Kind.VERIFY_FAILED, "the proof has no index line")
    return Proof(parse_number(lines[0][6:]), tuple(parse_hashes(lines[1:])), parse_note(note), entry)


def verify_proof(
    text: str | bytes,
    checkpoint: str | bytes | None,
    vkeys: Iterable[VerifierKey],
    *,
    entry: bytes | None = None,
    witnesses: Iterable[VerifierKey] = (),
    consistency: Sequence[bytes] = (),
) -> Proven:
    """Check a proof with the log's keys, and against ``checkpoint``, a note kept elsewhere, when there is one.

    ``entry`` is what the proof must be about; without it the entry inside the proof is taken. A kept checkpoint of the same size must have
    the same root. One of another size needs the ``consistency`` proof between the two. Raises ``verify_failed``.
    """
    keys, known = tuple(vkeys), tuple(witnesses)
    proof = parse_proof(text)
    signed = open_checkpoint(proof.checkpoint, keys, known)
    data = proof.entry if entry is None else entry
    if data is None:
        raise HandclaspError(Kind.VERIFY_FAILED, "the proof does not hold its entry, and no entry was given")
    if checkpoint is not None:
        _check_same_log(signed, open_checkpoint(checkpoint, keys, known), consistency)
    shown = signed.checkpoint
    verify_inclusion(leaf_hash(data), proof.index, shown.size, proof.path, shown.root)
    return Proven(proof.index, data, shown.size, shown.origin, tuple(key.name for key in signed.witnesses))


def _check_same_log(one: SignedCheckpoint, other: SignedCheckpoint, consistency: Sequence[bytes]) -> None:
    old, new = sorted((one.checkpoint, other.checkpoint), key=lambda checkpoint: checkpoint.size)
    if old.origin != new.origin:
        raise HandclaspError(
            Kind.VERIFY_FAILED, f"the kept checkpoint is of the log {other.checkpoint.origin}, the proof of {one.checkpoint.origin}"
        )
    if 0 < old.size < new.size and not consistency:
        raise HandclaspError(
            Kind.VERIFY_FAILED,
            f"the proof is for the log of {one.checkpoint.size} entries, the kept checkpoint for {other.checkpoint.size}",
            hint="ask for the proof at the size of the kept checkpoint",
        )
    verify_consistency(old.size, new.size, old.root, new.root, consistency)
