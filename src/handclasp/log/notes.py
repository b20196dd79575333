"""Signed notes and their keys (C2SP signed-note), and the signature types a log and its witnesses use. Pure.

A note is text, an empty line, and signature lines ``— NAME BASE64(key id || signature)``. Signatures of unknown keys are ignored, a wrong
signature of a known key condemns the whole note.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from handclasp.errors import HandclaspError, Kind

ED25519 = 0x01
"""An Ed25519 signature over the text: what a log signs with."""
COSIGNATURE_ED25519 = 0x04
"""A timestamped Ed25519 cosignature over a checkpoint: what a witness signs with (C2SP tlog-cosignature)."""
COSIGNATURE_ML_DSA_44 = 0x06
"""The same with ML-DSA-44, which binds the witness's name too."""

MAX_NOTE = 100_000
"""Bytes of a note: room for 16 post-quantum signatures of nearly 5 kB, which every verifier has to accept."""
MAX_SIGNATURES = 64

_KEY_LENGTH = {ED25519: 32, COSIGNATURE_ED25519: 32, COSIGNATURE_ML_DSA_44: 1312}
_SIGNATURE_LENGTH = {ED25519: 64, COSIGNATURE_ED25519: 8 + 64, COSIGNATURE_ML_DSA_44: 8 + 2420}
_NAME = re.compile(r"[^\s+\x00-\x20\x7f]{1,255}")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_DASH = "\u2014 "


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key that may sign notes: name, 4 bytes of id, signature type, key material."""

    name: str
    key_id: bytes
    algorithm: int
    public: bytes

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{b64(bytes([self.algorithm]) + self.public)}"

    @property
    def is_witness(self) -> bool:
        """Whether it makes cosignatures, which carry a time, rather than a log's own signatures."""
        return self.algorithm != ED25519


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line, checked by nobody yet."""

    name: str
    key_id: bytes
    data: bytes

    def __str__(self) -> str:
        return f"{_DASH}{self.name} {b64(self.key_id + self.data)}\n"

    def is_by(self, key: VerifierKey) -> bool:
        """Whether it claims to be made with ``key``."""
        return self.name == key.name and self.key_id == key.key_id


@dataclass(frozen=True, slots=True)
class Note:
    """A parsed note: ``text`` ends in a newline and is what was signed. ``str`` gives back the note."""

    text: str
    signatures: tuple[Signature, ...]

    def __str__(self) -> str:
        return self.text + "\n" + "".join(map(str, self.signatures))


class NoteSigner:
    """A log's signing key: Ed25519 with a name, which should be the log's origin."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.vkey = make_vkey(name, ED25519, key.public_key().public_bytes_raw())

    def sign(self, text: str) -> Signature:
        """Sign a note's text (with its last newline)."""
        return Signature(self.vkey.name, self.vkey.key_id, self._key.sign(text.encode()))


class Cosigner:
    """A witness's signing key: says at which time it saw a checkpoint as the newest consistent one, and nothing else."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.vkey = make_vkey(name, COSIGNATURE_ED25519, key.public_key().public_bytes_raw())

    def cosign(self, text: str, now: int) -> Signature:
        """Cosign a checkpoint's text at ``now`` (milliseconds since the epoch; the signature has whole seconds)."""
        seconds = now // 1000
        signed = self._key.sign(_cosigned_text(text, seconds))
        return Signature(self.vkey.name, self.vkey.key_id, struct.pack(">Q", seconds) + signed)


def make_vkey(name: str, algorithm: int, public: bytes) -> VerifierKey:
    """Return the verifier key with its id computed; raise ``bad_key`` for a name or a length that cannot be."""
    if not _NAME.fullmatch(name):
        raise HandclaspError(Kind.BAD_KEY, f"{name!r} cannot name a note key", hint="no spaces, no plus sign, at most 255 characters")
    if len(public) != _KEY_LENGTH.get(algorithm):
        raise HandclaspError(Kind.BAD_KEY, f"the note key of {name!r} has an unknown signature type or a wrong length")
    return VerifierKey(name, hashlib.sha256(f"{name}\n".encode() + bytes([algorithm]) + public).digest()[:4], algorithm, public)


def parse_vkey(text: str) -> VerifierKey:
    """Return the key written as ``NAME+ID+BASE64``; raise ``bad_key`` when it is not one or its id is not its own."""
    parts = text.strip().split("+", 2)
    material = unb64(parts[2]) if len(parts) == 3 else None
    if not material:
        raise HandclaspError(Kind.BAD_KEY, "a verifier key has the form NAME+KEYID+BASE64")
    try:
        key = make_vkey(parts[0], material[0], material[1:])
    except UnicodeEncodeError as error:
        raise HandclaspError(Kind.BAD_KEY, "the verifier key's name is not Unicode") from error
    if key.key_id.hex() != parts[1]:
        raise HandclaspError(
            Kind.BAD_KEY, f"the verifier key of {key.name!r} has the id {key.key_id.hex()}, not the one written", hint="copy it again"
        )
    return key


def parse_note(text: str | bytes) -> Note:
    """Return a note's parts, nothing verified; raise ``verify_failed`` for what is not a note."""
    text = decode(text)
    body, separator, lines = text.rpartition("\n\n")
    if not separator or not body:
        raise HandclaspError(Kind.VERIFY_FAILED, "the signed note has no empty line before its signatures")
    signatures = parse_signatures(lines)
    if not signatures:
        raise HandclaspError(Kind.VERIFY_FAILED, "the signed note has no signature")
    return Note(body + "\n", signatures)


def decode(text: str | bytes) -> str:
    """Return the text of a note or of a message around one; raise ``verify_failed`` for what no such text may hold."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        size = len(text.encode())
    except UnicodeError as error:
        raise HandclaspError(Kind.VERIFY_FAILED, "a signed note is UTF-8, and this is not") from error
    if size > MAX_NOTE:
        raise HandclaspError(Kind.VERIFY_FAILED, f"a signed note of {size} bytes is over the limit of {MAX_NOTE}")
    if _CONTROL.search(text):
        raise HandclaspError(Kind.VERIFY_FAILED, "a signed note holds no control characters")
    return text


def parse_signatures(lines: str) -> tuple[Signature, ...]:
    """Return the signatures written one a line, each line with its newline; raise ``verify_failed``."""
    if lines and not lines.endswith("\n"):
        raise HandclaspError(Kind.VERIFY_FAILED, "the last signature line has no newline")
    found = lines.split("\n")[:-1]
    if len(found) > MAX_SIGNATURES:
        raise HandclaspError(Kind.VERIFY_FAILED, f"more than {MAX_SIGNATURES} signatures")
    return tuple(map(_signature, found))


def _signature(line: str) -> Signature:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    data = unb64(encoded)
    if not line.startswith(_DASH) or not _NAME.fullmatch(name) or data is None or len(data) < 5:
        raise HandclaspError(Kind.VERIFY_FAILED, "a signature line does not have the form '— NAME BASE64'")
    return Signature(name, data[:4], data[4:])


def verify_note(note: Note, keys: Iterable[VerifierKey]) -> tuple[VerifierKey, ...]:
    """Return the keys among ``keys`` that signed the note, in the order of its signatures.

    Raises ``verify_failed`` when a signature of one of these keys is wrong (even if another is right: the note was tampered with), or when
    none of them signed.
    """
    known = {(key.name, key.key_id): key for key in keys}
    signers: dict[VerifierKey, None] = {}
    for signature in note.signatures:
        key = known.get((signature.name, signature.key_id))
        if key is not None:
            verify_signature(signature, note.text, key)
            signers[key] = None
    if not signers:
        raise HandclaspError(
            Kind.VERIFY_FAILED, "the note is not signed by a known key", hint=f"known are: {', '.join(map(str, known.values())) or 'none'}"
        )
    return tuple(signers)


def verify_signature(signature: Signature, text: str, key: VerifierKey) -> int:
    """Check one signature over a note's text; return its time in seconds since the epoch (0 for a log's own, which has none).

    Raises ``verify_failed``.
    """
    try:
        if len(signature.data) != _SIGNATURE_LENGTH[key.algorithm]:
            raise InvalidSignature
        if key.algorithm == ED25519:
            Ed25519PublicKey.from_public_bytes(key.public).verify(signature.data, text.encode())
            return 0
        seconds = int.from_bytes(signature.data[:8])
        if not 0 < seconds < 2**63:
            raise InvalidSignature
        if key.algorithm == COSIGNATURE_ED25519:
            Ed25519PublicKey.from_public_bytes(key.public).verify(signature.data[8:], _cosigned_text(text, seconds))
        else:
            _verify_ml_dsa(signature.data[8:], text, seconds, key)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
        raise HandclaspError(Kind.VERIFY_FAILED, f"the signature of {key.name} is wrong") from error
    return seconds


def _cosigned_text(text: str, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def _verify_ml_dsa(signature: bytes, text: str, seconds: int, key: VerifierKey) -> None:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey  # absent where the library has no ML-DSA

    MLDSA44PublicKey.from_public_bytes(key.public).verify(signature, ml_dsa_message(text, seconds, key.name))


def ml_dsa_message(text: str, seconds: int, cosigner: str) -> bytes:
    """Return what an ML-DSA-44 cosignature of a checkpoint's text signs: ``cosigned_message`` of C2SP tlog-cosignature, start 0."""
    origin, size, root, *_ = text.split("\n")
    name, log = cosigner.encode(), origin.encode()
    digest = unb64(root)
    if not size.isdecimal() or len(size) > 19 or digest is None or len(digest) != 32 or not 0 < len(log) < 256 or len(name) > 255:
        raise ValueError("not a checkpoint")
    head = b"subtree/v1\n\x00" + bytes([len(name)]) + name + struct.pack(">Q", seconds) + bytes([len(log)]) + log
    return head + struct.pack(">QQ", 0, int(size)) + digest


def merge_signatures(note: Note, more: Sequence[Signature]) -> Note:
    """Return the note with these signatures added, each in the place of an older one by the same key."""
    replaced = {(signature.name, signature.key_id) for signature in more}
    kept = [signature for signature in note.signatures if (signature.name, signature.key_id) not in replaced]
    return Note(note.text, (*kept, *more))


def b64(data: bytes) -> str:
    """Return standard base64 (RFC 4648 section 4), with padding."""
    return base64.b64encode(data).decode()


def unb64(text: str) -> bytes | None:
    """Return the bytes of canonical standard base64, or None: two texts never stand for the same bytes."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if b64(data) == text else None
