"""What goes over the helper's socket: one question and one answer for each connection, each a length (4 bytes, big endian) and JSON.

A question names a target of the configuration and carries a content. There is nowhere to put a path, a command, an owner or a mode.
"""

from __future__ import annotations

import re
import socket
import struct
from typing import Literal

import msgspec

from handclasp.agent.content import Content
from handclasp.errors import HandclaspError, Kind

MAX_QUESTION = 64 * 1024 * 1024
"""Bytes; CRLs are what may be large (base64 adds a third)."""
MAX_ANSWER = 64 * 1024
_GENERATION = re.compile(r"(?:[0-9]{8,12})?")


class Material(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A content: PEM, as base64 on the way."""

    sha256: str
    key: bytes
    certificate: bytes
    chain: bytes
    bundle: bytes
    crl: bytes = b""

    @classmethod
    def of(cls, content: Content) -> Material:
        """Pack a content."""
        return cls(
            sha256=content.sha256,
            key=content.key,
            certificate=content.certificate,
            chain=content.chain,
            bundle=content.bundle,
            crl=content.crl,
        )

    def content(self) -> Content:
        """Unpack it."""
        return Content(self.sha256, self.key, self.certificate, self.chain, self.bundle, self.crl)


class Question(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``bring`` needs a content and takes the last confirmed generation; ``back`` and ``settle`` take what ``bring`` answered."""

    do: Literal["bring", "back", "settle"]
    target: str
    material: Material | None = None
    generation: str = ""
    previous: str = ""


class Answer(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What came of it. ``failed`` is the kind of an error (``os_error``: with its number in ``errno``), ``words`` say it."""

    generation: str = ""
    previous: str = ""
    words: str = ""
    failed: str = ""
    errno: int = 0


def read_question(data: bytes) -> Question:
    """Return a question; raise ``bad_request`` for anything that is not one."""
    try:
        question = msgspec.json.decode(data, type=Question)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HandclaspError(Kind.BAD_REQUEST, "this is not a question that the helper knows") from error
    if not all(_GENERATION.fullmatch(name) for name in (question.generation, question.previous)):
        raise HandclaspError(Kind.BAD_REQUEST, "a generation has a number")
    if (question.do == "bring") != (question.material is not None):
        raise HandclaspError(Kind.BAD_REQUEST, "bring, and only that, has a content")
    if question.do != "bring" and not question.generation:
        raise HandclaspError(Kind.BAD_REQUEST, f"{question.do} needs a generation")
    return question


def read_answer(data: bytes) -> Answer:
    """Return an answer; raise ``delivery_failed`` for anything that is not one."""
    try:
        return msgspec.json.decode(data, type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HandclaspError(Kind.DELIVERY_FAILED, "the helper answered something else than an answer") from error


def send(connection: socket.socket, message: Question | Answer) -> None:
    """Send one message; raises ``OSError``."""
    data = msgspec.json.encode(message)
    connection.sendall(struct.pack(">I", len(data)) + data)


def receive(connection: socket.socket, most: int) -> bytes:
    """Return one message of at most ``most`` bytes. Raises ``OSError``, ``EOFError`` for one that ends early, ``ValueError``."""
    (length,) = struct.unpack(">I", _exactly(connection, 4))
    if length > most:
        raise ValueError(f"a message of {length} bytes; {most} are accepted")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    # Grows with what comes, not with what was announced.
    data = bytearray()
    while len(data) < count:
        part = connection.recv(min(count - len(data), 262_144))
        if not part:
            raise EOFError("the message ends early")
        data += part
    return bytes(data)
