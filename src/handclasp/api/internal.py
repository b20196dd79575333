"""The API, called in process by somebody who is signed in: the same routes, checks, limits, handlers and log entries as over the network.

There is one difference. Whoever acts for an owner may change what belongs to that owner (see :mod:`handclasp.access.owned`), so here the
owner of what a call is about is looked up before it is judged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct
from starlette.routing import compile_path
from starlette.types import Receive, Send

from handclasp.access.owned import acting_for_owner, may_act_for_owners
from handclasp.access.principals import Principal
from handclasp.api.app import Endpoint, Report, generality
from handclasp.api.owned import identity_of_call
from handclasp.api.problems import STATUS
from handclasp.api.routes import PUBLIC, Call, Parameter, Plain, Route, Streamed
from handclasp.api.services import Services
from handclasp.api.streams import Stream, stream
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.request import Source


class InternalApi:
    """A table of routes, without the network around it. For one event loop; any number of calls at once."""

    def __init__(self, routes: Iterable[Route], services: Services, *, report: Report = lambda _error: None) -> None:
        table = tuple(routes)
        by_path: dict[str, dict[str, Route]] = {}
        for route in table:
            by_path.setdefault(route.path, {})[route.method] = route
        self._services = services
        self._endpoints = [
            (*compile_path(path), Endpoint(methods, services, "console", table, report))
            for path, methods in sorted(by_path.items(), key=lambda item: generality(item[0]))
        ]

    def parameters(self, path: str) -> tuple[Parameter, ...]:
        """Return the query parameters of the GET of a path; none where there is no such route."""
        found = self._find(path)
        action = found[0].action("GET") if found is not None else None
        return action.route.parameters if action is not None else ()

    def status(self, error: HandclaspError) -> int:
        """Return the HTTP status that the API answers an error with."""
        return STATUS[error.kind]

    async def call(
        self,
        principal: Principal,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        source: Source | None = None,
    ) -> Struct | Plain | Streamed:
        """Call a route and return its answer. ``body`` is what the JSON would be, and is checked like it.

        Raises what the handler raises, after noting it as the API does.
        """
        source = source or Source("console")
        found = self._find(path)
        scope = {"method": method, "path": path}
        try:
            if found is None or (action := found[0].action(method)) is None or "\0" in path:
                raise HandclaspError(Kind.NOT_FOUND, "there is nothing at this address")
            endpoint, path_params = found
            route = action.route
            if route.scope != PUBLIC:
                if route.own_scope and may_act_for_owners(principal):
                    about = await identity_of_call(self._services.store, path_params, body or {})
                    principal = acting_for_owner(principal, route.own_scope, about)
                endpoint.admit(principal, action, scope, source)
            given = action.decode(msgspec.json.encode(body or {}), {}) if route.request is not None else b""
            asked = action.query({name: value for name, value in (query or {}).items() if value})
            call = Call(self._services, source, path_params, asked, {}, given, principal, None, endpoint.table)
            async with asyncio.timeout(self._services.request_timeout):
                answer: Struct | Plain | Streamed = await route.handler(call)
            return answer
        except TimeoutError as error:
            raise HandclaspError(Kind.TIMEOUT, "this took too long", hint="try again; the server may be overloaded") from error
        except HandclaspError as error:
            if found is None:
                raise
            told = await found[0].note(error, scope, source, principal)
            raise told from None

    async def send_parts(
        self, parts: AsyncIterator[bytes], headers: list[tuple[bytes, bytes]], receive: Receive, send: Send, *, head: bool = False
    ) -> None:
        """Send an answer as it is made, as :func:`handclasp.api.streams.stream` does; raise what making its first part raises.

        Whatever is raised, nothing was sent before.
        """
        first = await anext(parts, b"")
        await stream(send, receive, (200, headers, Stream(first, parts)), head)

    def _find(self, path: str) -> tuple[Endpoint, dict[str, Any]] | None:
        for regex, _, convertors, endpoint in self._endpoints:
            match = regex.match(path)
            if match is not None:
                return endpoint, {name: convertors[name].convert(value) for name, value in match.groupdict().items()}
        return None
