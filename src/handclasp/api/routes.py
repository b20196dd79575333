"""What a route is. The table itself is in :mod:`handclasp.api.table`."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from handclasp.access.owned import OWN_SCOPES
from handclasp.access.principals import SCOPES, Principal
from handclasp.api.services import Services
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.request import Source

PUBLIC = "public"
"""Anyone may call it: what everybody who verifies certificates needs."""
SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"strict-transport-security", b"max-age=31536000"),
    (b"referrer-policy", b"no-referrer"),
)
"""Headers of every answer."""
ANY_PRINCIPAL = "principal"
"""Anyone whose identity is proven may call it; the room below decides what they get."""


@dataclass(slots=True)
class Call:
    """One request, authenticated and decoded."""

    services: Services
    source: Source
    path: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[bytes, bytes]
    body: Any = None
    caller: Principal | None = None
    client_certificate: bytes | None = None
    """SHA-256 of the certificate that this connection's handshake proved."""
    routes: Sequence[Route] = ()
    """The table that the application was made from."""

    @property
    def principal(self) -> Principal:
        """The caller; only for routes that are not public."""
        if self.caller is None:
            raise HandclaspError(Kind.NOT_AUTHENTICATED, "this needs a token or a client certificate")
        return self.caller


@dataclass(frozen=True, slots=True)
class Plain:
    """An answer that is not a wire type: text or bytes, with its media type."""

    data: bytes
    media_type: str
    etag: str | None = None
    max_age: int = 0
    """Seconds a cache may keep it."""
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer of any size, sent as it is made. What fails in its middle ends the connection, so that nobody takes a part for the whole.

    Its first part is made before the answer begins: until then an error is answered as any other.
    """

    parts: AsyncIterator[bytes]
    media_type: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


def tagged(data: bytes, media_type: str, max_age: int = 0) -> Plain:
    """Return an answer with a strong ETag of its content, so that who has it need not fetch it again."""
    return Plain(data, media_type, f'"{hashlib.sha256(data).hexdigest()[:32]}"', max_age)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path. A route without a scope cannot be made."""

    method: str
    path: str
    handler: Handler
    scope: str
    summary: str
    request: type[Struct] | None = None
    response: type[Struct] | None = None
    raw_body: str = ""
    """Media type of a body that is handed over as it is."""
    media_type: str = "application/json"
    media_types: tuple[str, ...] = ()
    """Of an answer that comes in several; then ``media_type`` does not count."""
    status: int = 200
    parameters: tuple[Parameter, ...] = ()
    kinds: tuple[Kind, ...] = ()
    """Kinds of error that are particular to it; those that any route can have are added by the document."""
    max_body: int = 0
    """Bytes; 0 is the server's general limit."""
    own_scope: str = ""
    """The scope that whoever acts for the owner of the one identity that it is about has in it (:mod:`handclasp.access.owned`)."""

    def __post_init__(self) -> None:
        if self.scope not in (PUBLIC, ANY_PRINCIPAL) and self.scope not in SCOPES:
            raise ValueError(f"{self.method} {self.path}: {self.scope!r} is not a scope")
        if self.own_scope and self.own_scope not in OWN_SCOPES:
            raise ValueError(f"{self.method} {self.path}: {self.own_scope!r} is nothing that is done for an owner")
