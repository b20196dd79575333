"""Asking an API server: within a rate, again where that helps, and in pages that fit into memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from handclasp.discovery.kubernetes.access import Access, find_entry, open_http
from handclasp.errors import HandclaspError, Kind

if TYPE_CHECKING:
    from handclasp.discovery.http import Answer, Http
    from handclasp.discovery.tools import Tools

PAGE = 100
"""Objects in a page. A page of Secrets has about 1 MB, and stays in memory until it is read through."""
ATTEMPTS = 5
BACKOFF = 0.2  # seconds before the second attempt; then 0.8, 3.2 and 12.8
PATIENCE = 30.0  # seconds: the longest Retry-After that is waited for
WATCH = 240  # seconds of one watch request; API servers end it within 5 to 10 minutes
_AGAIN = frozenset({429, 500, 502, 503, 504})
_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

T = TypeVar("T")


class GoneError(HandclaspError):
    """The past that was asked for is no longer there (410): list again from the beginning."""

    def __init__(self) -> None:
        super().__init__(Kind.CONFLICT, "the API server no longer has this version")


class StoppedError(Exception):
    """It is time to stop; whoever reads returns."""


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    more: str | None = msgspec.field(default=None, name="continue")


class Page(msgspec.Struct):
    """A page of a list. ``items`` are views of the answer: they are decoded one by one, and what is not asked for is never an object."""

    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class Event(msgspec.Struct):
    """One event of a watch."""

    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""


_PAGES = msgspec.json.Decoder(Page)
_EVENTS = msgspec.json.Decoder(Event)
_STATUS = msgspec.json.Decoder(_Status)


@dataclass(frozen=True, slots=True)
class Missing:
    """Why there is nothing to read: ``forbidden`` or ``unknown`` (the cluster has no such resource)."""

    forbidden: bool
    problem: str


class MissingError(HandclaspError):
    """The API server does not give this, now or later: 403, or 404."""

    def __init__(self, missing: Missing) -> None:
        super().__init__(Kind.NOT_ALLOWED if missing.forbidden else Kind.NOT_FOUND, missing.problem)
        self.forbidden = missing.forbidden


class Api:
    """One API server, for one task at a time or several: they share the rate."""

    def __init__(self, http: Http, tools: Tools, rate: float, where: str) -> None:
        self._http, self._tools, self._interval, self._where = http, tools, 1 / rate, where
        self._free_at = 0.0

    async def page(self, path: str, params: Mapping[str, str], more: str = "", *, limit: int = PAGE, metadata: bool = False) -> Page:
        """Return one page of a list; with ``metadata`` of nothing but the objects' metadata.

        Raises :class:`GoneError` where ``more`` is too old, :class:`MissingError`, and ``unavailable`` after some attempts.
        """
        headers = {"accept": _METADATA} if metadata else None
        while True:
            query = {**params, "limit": str(limit)} | ({"continue": more} if more else {})
            try:
                page: Page = await self._ask(path, query, headers, _PAGES)
            except HandclaspError as error:
                if error.kind is not Kind.TOO_LARGE or limit == 1:
                    raise
                limit = max(1, limit // 4)  # the objects are large; the same page, and fewer of them
            else:
                return page

    async def get(self, path: str, type_: type[T]) -> T:
        """Return one object. Raises as :meth:`page` does."""
        found: T = await self._ask(path, {}, None, msgspec.json.Decoder(type_))
        return found

    async def raw(self, path: str) -> bytes:
        """Return an answer as it is. Raises as :meth:`page` does."""
        found: bytes = await self._ask(path, {}, None, None)
        return found

    async def _ask(self, path: str, params: Mapping[str, str], headers: Mapping[str, str] | None, decoder: Any) -> Any:
        problem: HandclaspError | None = None
        for attempt in range(ATTEMPTS):
            wait = BACKOFF * 4**attempt
            await self._turn()
            try:
                answer = await self._http.get(path, params=params, headers=headers)
                if answer.status == 200:
                    return decoder.decode(answer.body) if decoder is not None else answer.body
                problem = self._refusal(answer, path)
                wait = min(problem.retry_after or wait, PATIENCE)
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                problem = HandclaspError(Kind.UNAVAILABLE, f"{self._where} answers {path} with what cannot be read")
            except HandclaspError as error:
                if error.kind not in (Kind.UNAVAILABLE, Kind.TIMEOUT) or isinstance(error, GoneError | MissingError):
                    raise
                problem = error
            if attempt + 1 < ATTEMPTS and await self._tools.pause(wait):
                raise StoppedError
        assert problem is not None
        raise problem

    def _refusal(self, answer: Answer, path: str) -> HandclaspError:
        """Return what a status says that may be another the next time; raise for the others."""
        if answer.status == 410:
            raise GoneError
        words = f"{answer.status}{_said(answer)}"
        if answer.status in (403, 404):
            raise MissingError(Missing(answer.status == 403, words))
        if answer.status == 401:
            raise HandclaspError(
                Kind.NOT_ALLOWED, f"{self._where} does not take the credential (401)", hint="is the token or certificate still valid?"
            )
        problem = HandclaspError(
            Kind.UNAVAILABLE, f"{self._where} answers {path} with {words}", retry_after=_seconds(answer.headers.get("retry-after", ""))
        )
        if answer.status not in _AGAIN:
            raise MissingError(Missing(True, words))
        return problem

    async def watch(self, path: str, params: Mapping[str, str], version: str, seconds: float) -> AsyncIterator[Event]:
        """Yield what happens after ``version``, for at most so many seconds; bookmarks too. Ends when the server ends it.

        Raises :class:`GoneError` for a version that is too old, whichever way the server says so, and what :meth:`Http.lines` raises.
        """
        limit = max(1, min(WATCH, int(seconds)))
        query = {**params, "watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": str(limit)}
        await self._turn()
        try:
            async for line in self._http.lines(path, params=query, idle=limit + 15.0):
                try:
                    event = _EVENTS.decode(line)
                    if event.type == "ERROR":
                        status = _STATUS.decode(event.object)
                        if status.code == 410:
                            raise GoneError
                        raise HandclaspError(Kind.UNAVAILABLE, f"{self._where} ends the watch of {path} with {status.code}")
                except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
                    raise HandclaspError(Kind.UNAVAILABLE, f"{self._where} sends a watch that cannot be read") from error
                yield event
        except HandclaspError as error:
            if error.kind is Kind.CONFLICT and not isinstance(error, GoneError):
                raise GoneError from error
            raise

    async def _turn(self) -> None:
        """Wait for this request's turn in the rate."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        at = max(now, self._free_at)
        self._free_at = at + self._interval
        if self._tools.stop.is_set() or (at > now and await self._tools.pause(at - now)):
            raise StoppedError


@asynccontextmanager
async def open_api(settings: Access, tools: Tools) -> AsyncIterator[Api]:
    """Return the API of the cluster that settings name."""
    async with open_http(find_entry(settings, tools), tools) as http:
        yield Api(http, tools, settings.rate, f"the API server of {settings.cluster}")


def _said(answer: Answer) -> str:
    """Return the reason in a Status, as far as it is fit to be shown."""
    try:
        message = _STATUS.decode(answer.body).message
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return ""
    shown = "".join(letter if letter.isprintable() else " " for letter in message)[:300]
    return f" ({shown})" if shown and "BEGIN" not in shown and "LS0tLS1" not in shown else ""


def _seconds(text: str) -> float | None:
    return float(text) if text.isdecimal() and len(text) < 6 else None
