"""One request of a browser, and what a page answers with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode

from starlette.types import Receive, Send

from handclasp.access.principals import ConsoleUser
from handclasp.access.sessions import Session
from handclasp.console import nav
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.request import Source
from handclasp.log.notes import VerifierKey

MAX_FORM = 1_048_576 + 65_536  # bytes: a policy document, form-encoded
OF_PAGES = frozenset({"cursor", "was", "row"})
"""What an address says about the page of a list (see :mod:`handclasp.console.turns`), and not about what is looked for."""
MAX_ADDRESS = 8192  # characters of an address that somebody is sent back to


class ApiParameter(Protocol):
    """A query parameter of the API."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def description(self) -> str:
        """What it does, in a sentence."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """JSON schema of its values."""


class Api(Protocol):
    """The API, called in process (see :class:`handclasp.api.internal.InternalApi`)."""

    async def call(
        self,
        principal: ConsoleUser,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        source: Source | None = None,
    ) -> Any:
        """Call a route as the person; raise what it raises."""

    async def send_parts(
        self, parts: AsyncIterator[bytes], headers: list[tuple[bytes, bytes]], receive: Receive, send: Send, *, head: bool = False
    ) -> None:
        """Send an answer as it is made, at the pace of whoever takes it; before anything is sent, raise what making it raises."""

    def parameters(self, path: str) -> Sequence[ApiParameter]:
        """Return the query parameters of a list."""

    def status(self, error: HandclaspError) -> int:
        """Return the HTTP status of an error."""


@dataclass(slots=True)
class Visit:
    """One request: what was asked, by whom, and the API as that person."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[bytes, bytes]
    cookies: Mapping[str, str]
    source: Source
    api: Api
    now: int
    log_key: VerifierKey
    """Whose signature a checkpoint of the log must have."""
    certificate: bytes | None = None
    """SHA-256 of the client certificate that the handshake proved."""
    session: Session | None = None
    params: dict[str, str] = field(default_factory=dict)
    """What the page's path has in its places."""
    form: dict[str, str] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)
    """The form's fields that were sent several times, such as ticked boxes; every field is here too."""

    @property
    def user(self) -> ConsoleUser:
        """The person; only for pages that need one."""
        if self.session is None:
            raise HandclaspError(Kind.NOT_AUTHENTICATED, "you are not signed in")
        return self.session.user

    @property
    def partial(self) -> bool:
        """Whether only the part that changes is wanted (htmx), and not the page around it."""
        return self.headers.get(b"hx-request") == b"true" and self.headers.get(b"hx-history-restore-request") != b"true"

    def can(self, scope: str) -> bool:
        """Tell whether the person has a scope for everything."""
        return scope in self.user.scopes or "admin" in self.user.scopes

    @property
    def search(self) -> dict[str, str]:
        """What is looked for in a list: the filters in the address, without the page of the list."""
        return {name: value for name, value in self.query.items() if name not in OF_PAGES}

    def opens(self, address: str) -> bool:
        """Tell whether the person may see a page of the console."""
        return self.session is not None and nav.opens(self.can, address)

    @property
    def came_from(self) -> str:
        """The page of the console that sent this, by what the browser says (``Referer``); empty where it does not say one of ours."""
        ours = "https://" + self.headers.get(b"host", b"").decode("latin-1")
        said = self.headers.get(b"referer", b"").decode("latin-1")
        return said.removeprefix(ours) if said.startswith(ours + "/console/") and len(said) < MAX_ADDRESS and said.isprintable() else ""

    def can_for(self, scope: str, owner: str | None) -> bool:
        """Tell whether the person may change what belongs to an owner. The API decides; this says which buttons to show."""
        return self.can(scope) or (owner is not None and owner in self.user.teams)

    async def get(self, path: str, query: Mapping[str, str | None] | None = None) -> Any:
        """Return the answer of a GET of the API."""
        given = {name: value for name, value in (query or {}).items() if value}
        return await self.api.call(self.user, "GET", path, given, None, self.source)

    async def find(self, scope: str, path: str, query: Mapping[str, str | None] | None = None) -> Any:
        """As :meth:`get`, for the parts of a page that it can do without: None where it is not there, or the person has not the scope."""
        if not self.can(scope):
            return None
        try:
            return await self.get(path, query)
        except HandclaspError as error:
            if error.kind is Kind.NOT_FOUND:
                return None
            raise

    async def send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Change something through the API."""
        return await self.api.call(self.user, method, path, None, body, self.source)

    def picked(self, *names: str) -> dict[str, str]:
        """Return these query parameters, where they are given and not empty."""
        return {name: self.query[name].strip() for name in names if self.query.get(name, "").strip()}

    def url(self, path: str, **changes: str | None) -> str:
        """Return an address of the console with the present filters, changed."""
        query = {name: value for name, value in ({**self.query, **changes}).items() if value}
        return f"{path}?{urlencode(query)}" if query else path


@dataclass(frozen=True, slots=True)
class Shown:
    """A page: a template and what it shows."""

    template: str
    context: Mapping[str, Any]
    status: int = 200
    cookies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Go:
    """Another page to go to, with something to say there."""

    to: str
    message: str = ""
    bad: bool = False
    cookies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Raw:
    """A download of any size. What fails in its middle ends the connection, so that nobody takes a part for the whole."""

    parts: AsyncIterator[bytes]
    media_type: str
    file_name: str


def as_file(text: str, name: str) -> Raw:
    """Return a short text as a download."""

    async def parts() -> AsyncIterator[bytes]:
        yield text.encode()

    return Raw(parts(), "application/x-pem-file", name)


Answer = Shown | Go | Raw


def read_cookies(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return the cookies of a request; none where they cannot be read."""
    jar: SimpleCookie = SimpleCookie()
    try:
        jar.load(headers.get(b"cookie", b"").decode("latin-1"))
    except CookieError:
        return {}
    return {name: morsel.value for name, morsel in jar.items()}


def read_query(raw: bytes) -> dict[str, str]:
    """Return the query of a page; of a parameter given twice the last counts. Raises ``bad_request``."""
    try:
        return dict(parse_qsl(raw.decode("ascii"), keep_blank_values=False, max_num_fields=100, errors="strict"))
    except ValueError as error:
        raise HandclaspError(Kind.BAD_REQUEST, "the address cannot be read") from error


def read_form(body: bytes) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return a form's fields, the last of each name, and all of each name. Raises ``bad_request``."""
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=500, errors="strict")
    except ValueError as error:
        raise HandclaspError(Kind.BAD_REQUEST, "the form cannot be read") from error
    lists: dict[str, list[str]] = {}
    for name, value in pairs:
        lists.setdefault(name, []).append(value.replace("\r\n", "\n"))
    return {name: values[-1] for name, values in lists.items()}, lists
