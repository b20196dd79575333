"""A witness (C2SP tlog-witness): it remembers the newest checkpoint of each log it knows and cosigns only what grows from it.

:func:`add_checkpoint` is the whole decision, pure; :class:`Witness` keeps the state in a directory. Run one where the log's operator has no
hand: a log that was rolled back or rewritten finds no cosignature any more.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from handclasp.clock import Clock
from handclasp.errors import HandclaspError
from handclasp.log.checkpoint import Checkpoint, open_checkpoint, parse_add_checkpoint_request, parse_checkpoint
from handclasp.log.merkle import EMPTY_ROOT, verify_consistency
from handclasp.log.notes import Cosigner, Note, VerifierKey, merge_signatures, parse_note
from handclasp.log.tiles import TileStorage

_TEXT = "text/plain; charset=utf-8"
_SIZE = "text/x.tlog.size"


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP answer."""

    status: int
    body: bytes
    content_type: str = _TEXT


@dataclass(frozen=True, slots=True)
class Cosigned:
    """A checkpoint to be remembered, durably, before its cosignature leaves: the note holds the log's signature and ours."""

    note: Note
    response: Response


def log_id(origin: str) -> str:
    """Return the name under which a witness keeps and serves a log: hex SHA-256 of its origin."""
    return hashlib.sha256(origin.encode()).hexdigest()


def origin_of(body: bytes) -> str:
    """Return which log an ``add-checkpoint`` body is about; raise ``verify_failed`` for what is no such body."""
    return parse_checkpoint(parse_add_checkpoint_request(body)[2].text).origin


def add_checkpoint(
    body: bytes, keys: Sequence[VerifierKey], latest: Checkpoint | None, cosigner: Cosigner, now: int
) -> Cosigned | Response:
    """Answer an ``add-checkpoint`` request for a log with these ``keys`` (none: an unknown log), last cosigned as ``latest``.

    ``now`` is in milliseconds since the epoch. Returns a :class:`Cosigned` to be kept first and answered then, or a refusal. Never raises.
    """
    try:
        old, proof, note = parse_add_checkpoint_request(body)
        seen = parse_checkpoint(note.text)
    except HandclaspError as error:
        return _refusal(400, error.detail)
    if not keys:
        return _refusal(404, "this witness does not know that log")
    try:
        signed = open_checkpoint(note, keys)
    except HandclaspError as error:
        return _refusal(403, error.detail)
    if old > seen.size:
        return _refusal(400, f"the old size {old} is above the checkpoint's {seen.size}")
    known = latest.size if latest else 0
    if old != known:
        return Response(409, f"{known}\n".encode(), _SIZE)
    try:
        verify_consistency(old, seen.size, latest.root if latest else EMPTY_ROOT, seen.root, proof)
    except HandclaspError as error:
        return _refusal(422, error.detail)
    signature = cosigner.cosign(note.text, now)
    own = [line for line in note.signatures if any(line.is_by(key) for key in signed.signers)]
    return Cosigned(merge_signatures(Note(note.text, tuple(own)), [signature]), Response(200, str(signature).encode()))


def _refusal(status: int, reason: str) -> Response:
    return Response(status, f"{reason}\n".encode())


class Witness:
    """A witness with its state in a directory: ``<log id>/checkpoint`` for each log. Several processes may share the directory."""

    def __init__(self, directory: Path, cosigner: Cosigner, logs: Mapping[str, Sequence[VerifierKey]], clock: Clock) -> None:
        """Witness the ``logs``: keys by origin."""
        self._storage = TileStorage(directory)
        self._cosigner = cosigner
        self._logs = dict(logs)
        self._clock = clock
        directory.mkdir(parents=True, exist_ok=True)

    def respond(self, method: str, path: str, body: bytes = b"") -> Response:
        """Answer a request below the witness's prefix: ``POST /add-checkpoint``, ``GET /<log id>/checkpoint``. Raises OSError."""
        if path == "/add-checkpoint":
            return self.add_checkpoint(body) if method == "POST" else _refusal(405, "add-checkpoint is a POST")
        for origin in self._logs:
            if path == f"/{log_id(origin)}/checkpoint" and method == "GET":
                note = self._storage.read_note(path[1:])
                return _refusal(404, "nothing was cosigned for that log yet") if note is None else Response(200, note.encode())
        return _refusal(404, "a witness has /add-checkpoint and /<log id>/checkpoint")

    def add_checkpoint(self, body: bytes) -> Response:
        """Answer ``add-checkpoint``; a cosignature is returned only after the checkpoint it is on is durable. Raises OSError."""
        try:
            origin = origin_of(body)
        except HandclaspError as error:
            return _refusal(400, error.detail)
        with self._alone():  # checking and keeping are one step, or two requests could roll the log back between them
            latest = self._latest(origin)
            answer = add_checkpoint(body, self._logs.get(origin, ()), latest, self._cosigner, self._clock())
            if isinstance(answer, Response):
                return answer
            self._storage.prepare()
            self._storage.write({f"{log_id(origin)}/checkpoint": str(answer.note).encode()})
            return answer.response

    def _latest(self, origin: str) -> Checkpoint | None:
        if origin not in self._logs:
            return None
        note = self._storage.read_note(f"{log_id(origin)}/checkpoint")
        return None if note is None else parse_checkpoint(parse_note(note).text)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._storage.directory / ".lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
