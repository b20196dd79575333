"""The ASGI application over a table of routes: find the route, know the caller, read the body, call the handler, answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct
from prometheus_client import Counter, Histogram
from starlette.routing import Route as StarletteRoute
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from handclasp.access.authorize import Allowed, Refused, check_scope, check_source
from handclasp.access.limits import network_key
from handclasp.access.masking import masked
from handclasp.access.principals import Principal
from handclasp.api.authenticate import authenticate
from handclasp.api.problems import STATUS, to_problem
from handclasp.api.routes import ANY_PRINCIPAL, PUBLIC, SECURITY, Call, Plain, Route, Streamed
from handclasp.api.services import Services
from handclasp.api.streams import Stream, begin, stream
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.request import Source
from handclasp.log.entries import make_entry
from handclasp.store.writes import Write
from handclasp.wire.base import NAME_PATTERN, NAME_WORDS

REQUESTS = Counter("handclasp_requests_total", "Requests answered, by route and status.", ["method", "path", "status"])
SECONDS = Histogram(
    "handclasp_request_seconds", "Time to answer a request, by route.", ["method", "path"], buckets=(0.005, 0.02, 0.1, 0.5, 2, 10)
)

REFUSED = Counter("handclasp_refused_total", "Requests refused or failed, by kind.", ["kind"])

_REFUSALS = frozenset({401, 403, 429})
_JSON = b"application/json"
_PROBLEM = b"application/problem+json"
_log = logging.getLogger("handclasp.api")


Report = Callable[[HandclaspError], None]
"""Told of each error that is the server's own, so that the health of the process can show it."""


def _nobody(_error: HandclaspError) -> None:
    """Tell nobody."""


def make_app(routes: Iterable[Route], services: Services, *, door: str = "api", report: Report = _nobody) -> ASGIApp:
    """Return the application for a table of routes."""
    table = tuple(routes)
    by_path: dict[str, dict[str, Route]] = {}
    for route in table:
        by_path.setdefault(route.path, {})[route.method] = route
    ordered = sorted(by_path.items(), key=lambda item: generality(item[0]))
    paths = [StarletteRoute(path, endpoint=Endpoint(methods, services, door, table, report)) for path, methods in ordered]
    router = Router(routes=paths, redirect_slashes=False, default=Endpoint({}, services, door, table, report))
    fixed: dict[str, ASGIApp] = {path: route.app for (path, _), route in zip(ordered, paths, strict=True) if "{" not in path}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # The busiest paths have nothing to match: one look-up instead of a walk through regular expressions.
        await (fixed.get(scope["path"]) or router)(scope, receive, send)

    return app


def generality(path: str) -> tuple[bool, int]:
    """Sort fixed paths first (as in the table, the busiest first), then those with the most fixed text: ``{id}:revoke`` before ``{id}``."""
    return ("{" in path, -len(path) if "{" in path else 0)


class Endpoint:
    """One path with its methods, as an ASGI application. Every method reaches it, and it answers 405 itself, as a problem document."""

    def __init__(self, methods: Mapping[str, Route], services: Services, door: str, table: Sequence[Route], report: Report) -> None:
        self._table = table
        self._report = report
        self._services = services
        self._door = door
        self._actions = {name: Action(route) for name, route in methods.items()}
        if "GET" in self._actions:
            self._actions["HEAD"] = self._actions["GET"]
        self._allow = ", ".join(self._actions).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever goes wrong becomes a problem document."""
        began = time.perf_counter()
        action = self._actions.get(scope["method"])
        source = Source(self._door, scope["client"][0] if scope.get("client") else None)
        headers = dict(scope["headers"])
        caller: list[Principal | None] = [None]
        try:
            if action is None:
                raise self._no_action(scope)
            try:
                async with asyncio.timeout(self._services.request_timeout):
                    answer = await self._answer(action, scope, receive, source, headers, caller)
            except TimeoutError as error:
                raise HandclaspError(Kind.TIMEOUT, "this took too long", hint="try again; the server may be overloaded") from error
        except HandclaspError as error:
            answer = await self._refuse(error, scope, source, caller[0])
        except Exception:  # the last line of defence: a bug must not take the connection down or show its inside
            _log.exception("unexpected error in %s %s", scope["method"], _shown_path(scope))
            answer = _problem_answer(HandclaspError(Kind.INTERNAL, "unexpected error"), _shown_path(scope))
        if action is not None:
            action.count(answer[0], time.perf_counter() - began)
        if isinstance(answer[2], Stream):
            await stream(send, receive, answer, scope["method"] == "HEAD")
        else:
            await _send(send, answer, scope["method"] == "HEAD")

    def _no_action(self, scope: Scope) -> HandclaspError:
        if self._actions:
            return HandclaspError(Kind.METHOD_NOT_ALLOWED, f"{scope['method']} is not possible here", hint=f"use {self._allow.decode()}")
        return HandclaspError(Kind.NOT_FOUND, "there is nothing at this address", hint="see /v1/openapi.json")

    async def _answer(
        self, action: Action, scope: Scope, receive: Receive, source: Source, headers: dict[bytes, bytes], caller: list[Principal | None]
    ) -> _Answer:
        services, route = self._services, action.route
        certificate = scope.get("extensions", {}).get("tls", {}).get("client_sha256")
        if route.scope != PUBLIC:
            caller[0] = await authenticate(services, headers, certificate)
            self.admit(caller[0], action, scope, source)
        if "\0" in scope["path"]:  # PostgreSQL has no text with it, and no name of ours
            raise HandclaspError(Kind.NOT_FOUND, "there is nothing at this address", hint="see /v1/openapi.json")
        body = await _read_body(receive, headers, min(route.max_body or services.max_body, services.max_body)) if action.has_body else b""
        query = action.query(_query(scope["query_string"]))
        given = action.decode(body, headers)
        call = Call(services, source, scope.get("path_params", {}), query, headers, given, caller[0], certificate, self._table)
        value = await route.handler(call)
        return await begin(route, value) if isinstance(value, Streamed) else _to_answer(route, value, headers)

    def admit(self, principal: Principal | None, action: Action, scope: Scope, source: Source) -> None:
        """Raise ``not_authenticated``, ``not_allowed`` or ``rate_limited`` unless this caller may call this now."""
        _check_may_call(principal, action.route)
        assert principal is not None
        if not _logs_itself(scope):  # else it is part of that decision
            _insist(check_source(principal, source.address))
        name = principal.describe()
        self._services.principal_limit.check(name)
        if _logs_itself(scope):
            self._services.refused_limit.settle(name)  # every refusal is a log entry, so nobody may have them without end

    def action(self, method: str) -> Action | None:
        """Return what this path does for a method."""
        return self._actions.get(method)

    @property
    def table(self) -> Sequence[Route]:
        """The table of routes that this one belongs to."""
        return self._table

    async def _refuse(self, error: HandclaspError, scope: Scope, source: Source, caller: Principal | None) -> _Answer:
        return _problem_answer(await self.note(error, scope, source, caller), _shown_path(scope), self._allow)

    async def note(self, error: HandclaspError, scope: Scope, source: Source, caller: Principal | None) -> HandclaspError:
        """Log what was a decision and is not in the log yet, slow down who is refused all the time; return what the caller is told."""
        status = STATUS[error.kind]
        REFUSED.labels(error.kind.value).inc()
        if status >= 500:
            self._report(error)
        if caller is not None and status < 500 and error.kind is not Kind.RATE_LIMITED and _logs_itself(scope):
            self._services.refused_limit.owe(caller.describe())
        if status in _REFUSALS and source.address is not None and error.kind is not Kind.RATE_LIMITED:
            try:
                self._services.refused_limit.check(network_key(source.address))
            except HandclaspError as limited:
                return limited
            if scope["path"] != _ENROLMENT and (caller is None or not _logs_itself(scope)):
                await self._log_refusal(error, scope, source, caller)
        elif status >= 500:
            _log.error("%s %s: %s", scope["method"], _shown_path(scope), error)
        return error

    async def _log_refusal(self, error: HandclaspError, scope: Scope, source: Source, caller: Principal | None) -> None:
        entry = make_entry(
            "access.refused",
            at=self._services.clock(),
            who=caller.to_log() if caller is not None else {"kind": "unknown"},
            what={"method": scope["method"], "path": _shown_path(scope)[:200]},
            why={"kind": error.kind.value},
            source=source.to_log(),
        )
        with contextlib.suppress(HandclaspError):  # the database is away: the refusal stands all the same
            await self._services.store.ledger.commit(Write([entry]))


_LOGS_ITSELF = re.compile(r"/v1/certificates(:batch|/[^/]+:(renew|revoke))?|/v1/jwt-svids")


_ENROLMENT = "/v1/agents:enroll"
"""Logs the refusals of callers that nobody knows yet, with what they claimed to be."""


def _logs_itself(scope: Scope) -> bool:
    """Issuance and revocation log their own refusals of a known caller, with more to say."""
    return scope["method"] == "POST" and _LOGS_ITSELF.fullmatch(scope["path"]) is not None


def _shown_path(scope: Scope) -> str:
    """Return the path as it may be logged and shown: without a token that somebody put there by mistake."""
    return masked(scope["path"])


_Answer = tuple[int, list[tuple[bytes, bytes]], bytes | Stream]


_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # the escape itself, and not a backslash that is followed by "u0000"


class Action:
    """A route with what is worth making once: its decoder and its counters."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.has_body = route.method in ("POST", "PUT", "PATCH")
        self._decoder = msgspec.json.Decoder(route.request) if route.request is not None else None
        self._parameters = frozenset(parameter.name for parameter in route.parameters)
        self._counters: dict[int, Any] = {}
        self._seconds = SECONDS.labels(route.method, route.path)

    def query(self, query: dict[str, str]) -> dict[str, str]:
        """Return the query parameters. One that the route does not have is refused: a misspelt filter would show everything."""
        unknown = query.keys() - self._parameters
        if unknown:
            hint = f"it has {', '.join(sorted(self._parameters))}" if self._parameters else "it has none"
            raise HandclaspError(Kind.BAD_REQUEST, f"{min(unknown)[:100]!r} is not a query parameter of this address", hint=hint)
        return query

    def decode(self, body: bytes, headers: Mapping[bytes, bytes]) -> Any:
        """Return the body as the route's request type; as text where it has none."""
        if self._decoder is None:
            return body
        media_type = headers.get(b"content-type", _JSON).partition(b";")[0].strip().lower()
        if media_type != _JSON:
            raise HandclaspError(Kind.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json")
        if b"\\u0000" in body and _NUL.search(body):
            raise HandclaspError(Kind.BAD_REQUEST, "the body cannot be used: a text in it has a NUL")  # PostgreSQL has no such text
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            why = str(error).replace(f"Expected `str` matching regex '{NAME_PATTERN}'", NAME_WORDS)
            raise HandclaspError(Kind.BAD_REQUEST, f"the body cannot be used: {why}") from error

    def count(self, status: int, seconds: float) -> None:
        """Count one answer, and the time it took."""
        self._seconds.observe(seconds)
        counter = self._counters.get(status)
        if counter is None:
            counter = self._counters[status] = REQUESTS.labels(self.route.method, self.route.path, str(status))
        counter.inc()


def _check_may_call(principal: Principal | None, route: Route) -> None:
    if principal is None:
        raise HandclaspError(
            Kind.NOT_AUTHENTICATED,
            "this needs a token or a client certificate",
            hint="set HANDCLASP_TOKEN, or send Authorization: Bearer TOKEN",
        )
    if route.scope != ANY_PRINCIPAL:
        _insist(check_scope(principal, route.scope))


def _insist(decision: Allowed | Refused) -> None:
    if isinstance(decision, Refused):
        raise HandclaspError(decision.kind, decision.reason)


async def _read_body(receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > limit:
        raise HandclaspError(Kind.TOO_LARGE, f"the body has more than {limit} bytes")
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HandclaspError(Kind.BAD_REQUEST, "the connection ended before the body did")
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise HandclaspError(Kind.TOO_LARGE, f"the body has more than {limit} bytes")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts) if len(parts) != 1 else part


def _query(raw: bytes) -> dict[str, str]:
    if not raw:
        return {}
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=50, errors="strict")
    except (ValueError, UnicodeDecodeError) as error:
        raise HandclaspError(Kind.BAD_REQUEST, "the query string cannot be read") from error
    query = dict(pairs)
    if len(query) != len(pairs):
        raise HandclaspError(Kind.BAD_REQUEST, "a query parameter is given twice")
    return query


def _to_answer(route: Route, value: Struct | Plain, headers: Mapping[bytes, bytes]) -> _Answer:
    if not isinstance(value, Plain):
        return route.status, [(b"content-type", _JSON)], msgspec.json.encode(value)
    answer_headers = [(b"content-type", value.media_type.encode()), *value.headers]
    if not any(name == b"cache-control" for name, _ in value.headers):
        answer_headers.append((b"cache-control", f"max-age={value.max_age}".encode() if value.max_age else b"no-cache"))
    if value.etag is not None:
        answer_headers.append((b"etag", value.etag.encode()))
        if value.etag.encode() in [tag.strip().removeprefix(b"W/") for tag in headers.get(b"if-none-match", b"").split(b",")]:
            return 304, answer_headers[1:], b""
    return route.status, answer_headers, value.data


def _problem_answer(error: HandclaspError, path: str, allow: bytes = b"") -> _Answer:
    problem = to_problem(error, path)
    headers = [(b"content-type", _PROBLEM)]
    if problem.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="handclasp"'))
    if problem.status == 405 and allow:
        headers.append((b"allow", allow))
    if error.retry_after is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after + 0.5))).encode()))
    return problem.status, headers, msgspec.json.encode(problem)


async def _send(send: Send, answer: _Answer, head: bool) -> None:
    status, headers, body = answer
    assert isinstance(body, bytes)
    if status != 304:
        headers.append((b"content-length", str(len(body)).encode()))
    headers.extend(SECURITY)
    if not any(name == b"cache-control" for name, _ in headers):
        headers.append((b"cache-control", b"no-store"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body})
