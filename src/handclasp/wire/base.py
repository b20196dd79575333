"""What all requests and responses share: names, bounded texts, the two bases, and what any call may answer."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct, field

NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=NAME_PATTERN)]
NAME_WORDS = "a name has letters, digits, '.', '_' and '-', and begins with a letter or a digit"
Duration = Annotated[str, Meta(min_length=2, max_length=32, examples=["90s", "1h", "24h"])]
Pem = Annotated[str, Meta(max_length=65536)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
NameList = Annotated[list[Annotated[str, Meta(min_length=1, max_length=512)]], Meta(max_length=100)]
PatternList = Annotated[list[Annotated[str, Meta(min_length=1, max_length=512)]], Meta(max_length=1000)]


class Request(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of what a client sends."""


class Response(Struct, kw_only=True):
    """Base of what the server answers."""


class Problem(Response, kw_only=True):
    """RFC 9457 problem document; ``kind`` is the machine-readable reason (see :class:`handclasp.errors.Kind`)."""

    type: str
    title: str
    status: int
    kind: str
    detail: str
    hint: str = ""
    instance: str = ""


class Done(Response, kw_only=True):
    """A change that has nothing to show but that it is durable and logged."""

    log_entry: int


class Health(Response, kw_only=True):
    """Liveness or readiness, with one line for each part that is not well."""

    status: str
    problems: list[str] = field(default_factory=list)


def to_json(value: Struct) -> bytes:
    """Encode a wire value."""
    return msgspec.json.encode(value)
