"""Checkpoints (C2SP tlog-checkpoint): a log's size and root as a signed note, and the messages that carry one to a witness. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from handclasp.errors import HandclaspError, Kind
from handclasp.log.merkle import MAX_SIZE
from handclasp.log.notes import Note, NoteSigner, VerifierKey, b64, decode, parse_note, unb64, verify_note

MAX_PROOF = 63
"""Hashes in a proof: a tree of 2**63 leaves needs no more."""

_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log says of itself: which log, how many entries, and the root of its tree. ``str`` gives the text that is signed."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()
    """Lines that others put in their checkpoints; ours have none."""

    def __str__(self) -> str:
        return "\n".join((self.origin, str(self.size), b64(self.root), *self.extensions)) + "\n"


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint with the note it came in, and the known keys that signed it. ``str`` gives the note."""

    checkpoint: Checkpoint
    note: Note
    signers: tuple[VerifierKey, ...]

    def __str__(self) -> str:
        return str(self.note)

    @property
    def witnesses(self) -> tuple[VerifierKey, ...]:
        """The known witnesses that cosigned it."""
        return tuple(key for key in self.signers if key.is_witness)


def parse_checkpoint(text: str) -> Checkpoint:
    """Return the checkpoint in a note's text; raise ``verify_failed`` for what is not one."""
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
        raise HandclaspError(Kind.VERIFY_FAILED, "a checkpoint has three lines at least: origin, size, root")
    root = unb64(lines[2])
    size = parse_number(lines[1])
    if root is None or len(root) != 32:
        raise HandclaspError(Kind.VERIFY_FAILED, "the checkpoint's root is not the base64 of 32 bytes")
    return Checkpoint(lines[0], size, root, tuple(lines[3:-1]))


def parse_number(text: str) -> int:
    """Return a decimal size or index below 2**63 without leading zeroes; raise ``verify_failed``."""
    if not _NUMBER.fullmatch(text) or int(text) > MAX_SIZE:
        raise HandclaspError(Kind.VERIFY_FAILED, f"{text[:40]!r} is not a size or an index")
    return int(text)


def sign_checkpoint(signer: NoteSigner, size: int, root: bytes) -> SignedCheckpoint:
    """Sign the checkpoint of the log that has the signer's name. The caller has made the tree durable, and never signs two histories."""
    checkpoint = Checkpoint(signer.vkey.name, size, root)
    text = str(checkpoint)
    return SignedCheckpoint(checkpoint, Note(text, (signer.sign(text),)), (signer.vkey,))


def open_checkpoint(note: str | bytes | Note, vkeys: Iterable[VerifierKey], witnesses: Iterable[VerifierKey] = ()) -> SignedCheckpoint:
    """Return a checkpoint that one of the log keys ``vkeys`` signed under its own origin, and whoever of ``witnesses`` cosigned.

    Raises ``verify_failed``: not a note, not a checkpoint, not signed by its log, or a known key's signature is wrong.
    """
    parsed = note if isinstance(note, Note) else parse_note(note)
    checkpoint = parse_checkpoint(parsed.text)
    own = [key for key in vkeys if not key.is_witness and key.name == checkpoint.origin]
    if not own:
        raise HandclaspError(Kind.VERIFY_FAILED, f"the checkpoint is of the log {checkpoint.origin!r}, whose key is not given")
    signers = verify_note(parsed, [*own, *witnesses])
    if not any(key in own for key in signers):
        raise HandclaspError(Kind.VERIFY_FAILED, f"the checkpoint is not signed by its log, {checkpoint.origin}")
    return SignedCheckpoint(checkpoint, parsed, signers)


def add_checkpoint_request(old: int, proof: Sequence[bytes], note: Note) -> bytes:
    """Return the body of a witness's ``add-checkpoint``: the size it knows, the consistency proof from there, the new checkpoint."""
    return "".join((f"old {old}\n", *(b64(node) + "\n" for node in proof), "\n", str(note))).encode()


def parse_add_checkpoint_request(body: bytes) -> tuple[int, list[bytes], Note]:
    """Return old size, consistency proof and note of an ``add-checkpoint`` body; raise ``verify_failed`` for anything else."""
    head, separator, note = decode(body).partition("\n\n")
    lines = head.split("\n")
    if not separator or not lines[0].startswith("old "):
        raise HandclaspError(
            Kind.VERIFY_FAILED, "an add-checkpoint request has an old size line, proof lines, an empty line and a checkpoint"
        )
    return parse_number(lines[0][4:]), parse_hashes(lines[1:]), parse_note(note)


def parse_hashes(lines: Sequence[str]) -> list[bytes]:
    """Return the hashes written one a line in base64, at most 63; raise ``verify_failed``."""
    hashes = [unb64(line) for line in lines]
    found = [node for node in hashes if node is not None and len(node) == 32]
    if len(found) != len(lines) or len(lines) > MAX_PROOF:
        raise HandclaspError(Kind.VERIFY_FAILED, f"a proof is at most {MAX_PROOF} lines, each the base64 of 32 bytes")
    return found
