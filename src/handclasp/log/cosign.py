"""Cosignatures for our own log: asking witnesses for them, taking those that are handed in, and keeping the newest cosigned checkpoint.

The log's ``checkpoint`` carries the log's signature only, because it moves on each second; ``cosigned`` beside it is the newest one that a
witness has seen. A proof against that one shows more.
"""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Awaitable, Callable, Sequence

from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind
from handclasp.log.checkpoint import SignedCheckpoint, add_checkpoint_request, open_checkpoint, parse_number
from handclasp.log.merkle import consistency_proof
from handclasp.log.notes import Note, Signature, VerifierKey, decode, merge_signatures, parse_note, parse_signatures, verify_signature
from handclasp.log.tiles import CHECKPOINT, COSIGNED, HashReader, TileStorage

CLOCK_SKEW = 300
"""Seconds by which a witness's clock may be ahead of ours before its cosignature is refused."""

Post = Callable[[str, bytes], Awaitable[tuple[int, bytes]]]
"""``status, body = await post(url, body)``: an HTTP POST that follows no redirect, has a timeout, and raises OSError or HandclaspError."""


class WitnessClient:
    """Asks one witness for cosignatures (C2SP tlog-witness, ``add-checkpoint``). One request at a time."""

    def __init__(self, vkey: VerifierKey, prefix: str, post: Post) -> None:
        """Know the witness by its key and the URL prefix of its submissions."""
        self.vkey = vkey
        self._url = prefix.rstrip("/") + "/add-checkpoint"
        self._post = post
        self._known = 0
        """The size the witness has last cosigned, as far as we know; it tells us when we are wrong."""

    async def request(self, checkpoint: SignedCheckpoint, storage: TileStorage) -> tuple[Signature, ...]:
        """Return the witness's cosignatures on a checkpoint whose tiles are in ``storage``, verified.

        Raises ``tampered`` when the witness has seen another history than ours, ``unavailable`` when it does not answer as one.
        """
        size = checkpoint.checkpoint.size
        for _ in range(2):  # the second time with the size it told us
            reader = HashReader(storage, size)
            path = await asyncio.to_thread(consistency_proof, min(self._known, size), size, reader)
            status, body = await self._send(add_checkpoint_request(min(self._known, size), path, checkpoint.note))
            if status == 200:
                found = self._verified(body, checkpoint.note.text)
                self._known = size
                return found
            if status != 409:
                break
            self._known = self._told_size(body)
            if self._known > size:
                raise HandclaspError(
                    Kind.TAMPERED,
                    f"the witness {self.vkey.name} has cosigned a log of {self._known} entries, this one has {size}",
                    hint="this log may have been rolled back: verify its files against a checkpoint kept elsewhere",
                )
        if status == 422:
            raise HandclaspError(Kind.TAMPERED, f"the witness {self.vkey.name} says that this log does not grow from the one it cosigned")
        raise HandclaspError(Kind.UNAVAILABLE, f"the witness {self.vkey.name} answered with status {status}")

    async def _send(self, body: bytes) -> tuple[int, bytes]:
        try:
            return await self._post(self._url, body)
        except OSError as error:
            raise HandclaspError(Kind.UNAVAILABLE, f"the witness {self.vkey.name} cannot be reached") from error

    def _verified(self, body: bytes, text: str) -> tuple[Signature, ...]:
        try:
            own = tuple(line for line in parse_signatures(decode(body)) if line.is_by(self.vkey))
            for line in own:
                verify_signature(line, text, self.vkey)
        except HandclaspError as error:
            raise HandclaspError(
                Kind.UNAVAILABLE, f"the witness {self.vkey.name} answered with a wrong cosignature: {error.detail}"
            ) from error
        if not own:
            raise HandclaspError(Kind.UNAVAILABLE, f"the witness {self.vkey.name} answered without its cosignature")
        return own

    def _told_size(self, body: bytes) -> int:
        try:
            return parse_number(decode(body).removesuffix("\n"))
        except HandclaspError as error:
            raise HandclaspError(Kind.UNAVAILABLE, f"the witness {self.vkey.name} answered with a conflict and no size") from error


class Cosignatures:
    """The newest cosigned checkpoint of a log: asks for it, takes it, keeps it. Any process that may write the directory can use it."""

    def __init__(self, storage: TileStorage, log: VerifierKey, witnesses: Sequence[VerifierKey], clock: Clock) -> None:
        """Take cosignatures of these ``witnesses`` on checkpoints that ``log`` signed."""
        self._storage = storage
        self._log = log
        self._witnesses = tuple(witnesses)
        self._clock = clock

    def newest(self) -> SignedCheckpoint:
        """Return the log's checkpoint, cosigned if that is the cosigned one. Raises ``tampered``; ``not_found`` before the first."""
        signed = self._open(CHECKPOINT)
        if signed is None:
            raise HandclaspError(Kind.NOT_FOUND, "the log has no checkpoint yet")
        cosigned = self.cosigned()
        return cosigned if cosigned is not None and cosigned.note.text == signed.note.text else signed

    def cosigned(self) -> SignedCheckpoint | None:
        """Return the newest checkpoint that one of the witnesses cosigned, or None. Raises ``tampered``."""
        return self._open(COSIGNED)

    async def request(self, clients: Sequence[WitnessClient]) -> dict[str, HandclaspError | None]:
        """Ask all witnesses at once for the newest checkpoint; keep what they give. Returns, by witness, None or why it gave nothing."""
        checkpoint = self.newest()

        async def ask(client: WitnessClient) -> HandclaspError | None:
            try:
                lines = await client.request(checkpoint, self._storage)
                await asyncio.to_thread(self._take, checkpoint.note, lines)
            except HandclaspError as error:
                return error
            return None

        answers = await asyncio.gather(*(ask(client) for client in clients))
        return {client.vkey.name: answer for client, answer in zip(clients, answers, strict=True)}

    def accept(self, text: str | bytes) -> SignedCheckpoint:
        """Take cosignatures that were handed in, durable on return; return the checkpoint with all it has now.

        Either a whole cosigned checkpoint of this log, or signature lines alone, which must be for the newest or the newest cosigned one.
        Raises ``verify_failed`` when no known witness signed, or wrongly, or for a time that has not come.
        """
        text = decode(text)
        if not text.startswith("\u2014 "):
            note = open_checkpoint(text, [self._log]).note
            return self._take(note, note.signatures)
        lines = parse_signatures(text)
        candidates = [self.newest(), *filter(None, [self.cosigned()])]
        for candidate in candidates[:-1]:
            try:
                return self._take(candidate.note, lines)
            except HandclaspError:
                continue  # perhaps they are for the other one
        return self._take(candidates[-1].note, lines)

    def _take(self, note: Note, lines: Sequence[Signature]) -> SignedCheckpoint:
        good: list[Signature] = []
        for line in lines:
            for key in filter(line.is_by, self._witnesses):
                if verify_signature(line, note.text, key) > self._clock() // 1000 + CLOCK_SKEW:
                    raise HandclaspError(Kind.VERIFY_FAILED, f"the cosignature of {key.name} has a time that has not come yet")
                good.append(line)
        if not good:
            raise HandclaspError(Kind.VERIFY_FAILED, "none of the cosignatures is by a witness that this log knows")
        own = tuple(line for line in note.signatures if line.is_by(self._log))
        return self._keep(merge_signatures(Note(note.text, own), good))

    def _keep(self, note: Note) -> SignedCheckpoint:
        taken = open_checkpoint(note, [self._log], self._witnesses)
        with (self._storage.directory / ".cosign").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            before = self.cosigned()
            if before is not None and before.note.text == note.text:
                own = {(line.name, line.key_id) for line in note.signatures}
                kept = [line for line in before.note.signatures if (line.name, line.key_id) not in own]
                taken = open_checkpoint(merge_signatures(note, kept), [self._log], self._witnesses)
            elif before is not None and before.checkpoint.size > taken.checkpoint.size:
                return taken  # right, and of no more use: a newer one is cosigned
            try:
                self._storage.write({COSIGNED: str(taken).encode()})
            except OSError as error:
                raise HandclaspError(Kind.UNAVAILABLE, f"the log's directory cannot be written: {error.strerror}") from error
        return taken

    def _open(self, name: str) -> SignedCheckpoint | None:
        text = self._storage.read_note(name)
        if text is None:
            return None
        try:
            return open_checkpoint(parse_note(text), [self._log], self._witnesses)
        except HandclaspError as error:
            raise HandclaspError(Kind.TAMPERED, f"the log's {name} file is not what the log signed: {error.detail}") from error
