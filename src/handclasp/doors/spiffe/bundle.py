"""The bundle endpoint (SPIFFE Federation, section 5): ``GET /bundle/TRUST-DOMAIN`` on the HTTPS listener, for anybody, without credentials.

Only trust domains that are served here: what we have of others is for our own agents, and whoever wants it asks its publisher. Both
profiles are this one address: by ``https_web`` with the Web PKI certificate of the setting ``web_name``, by ``https_spiffe`` with the
server's own certificate, which carries ``spiffe://TRUST-DOMAIN/handclasp/server``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import msgspec
from prometheus_client import Counter
from starlette.types import Receive, Scope, Send

from handclasp.errors import HandclaspError, Kind, problem_type
from handclasp.wire import Problem

PATH = "/bundle/"
FETCHED = Counter("handclasp_bundle_fetches_total", "Answers of the SPIFFE bundle endpoint, by status.", ["status"])

_STATUS = {Kind.NOT_FOUND: 404, Kind.METHOD_NOT_ALLOWED: 405}
_Answer = tuple[int, list[tuple[bytes, bytes]], bytes]


class BundleEndpoint:
    """An ASGI application for everything below :data:`PATH`."""

    def __init__(self, bundle: Callable[[str], Awaitable[bytes]], refresh_hint: int) -> None:
        """``bundle`` returns the SPIFFE bundle of a trust domain served here, or raises ``not_found``; ``refresh_hint`` in seconds."""
        self._bundle = bundle
        self._max_age = max(1, refresh_hint // 2)  # a cache on the way must not eat up the time that keys are published ahead

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  (a GET has no body)
        """Answer one request."""
        try:
            answer = await self._answer(scope)
        except HandclaspError as error:
            answer = _problem(error)
        status, headers, body = answer
        FETCHED.labels(str(status)).inc()
        headers += [(b"x-content-type-options", b"nosniff"), (b"strict-transport-security", b"max-age=31536000")]
        if status != 304:
            headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Scope) -> _Answer:
        if scope["method"] not in ("GET", "HEAD"):
            raise HandclaspError(Kind.METHOD_NOT_ALLOWED, f"{scope['method']} is not possible here", hint="use GET")
        data = await self._bundle(scope["path"].removeprefix(PATH))
        etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'.encode()
        headers = [(b"etag", etag), (b"cache-control", f"max-age={self._max_age}".encode())]
        given = next((value for name, value in scope["headers"] if name == b"if-none-match"), b"")
        if etag in [tag.strip().removeprefix(b"W/") for tag in given.split(b",")]:
            return 304, headers, b""
        return 200, [(b"content-type", b"application/json"), *headers], data


def _problem(error: HandclaspError) -> _Answer:
    status = _STATUS.get(error.kind, 503)
    detail = error.detail if error.kind in _STATUS else "the bundle cannot be served now"
    kind = error.kind if error.kind in _STATUS else Kind.UNAVAILABLE
    problem = Problem(type=problem_type(kind), title=kind.value.replace("_", " "), status=status, kind=kind.value, detail=detail)
    headers = [(b"content-type", b"application/problem+json"), (b"cache-control", b"no-store")]
    return status, headers + ([(b"allow", b"GET, HEAD")] if status == 405 else []), msgspec.json.encode(problem)
