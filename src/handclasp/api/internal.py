"""The API, called in process by somebody who is signed in: the same routes, checks, limits, handlers and log entries as over the network.

There is one difference. Whoever acts for an owner (see :data:`handclasp.access.roles.OWN_SCOPES`) may change what belongs to that owner,
and nothing else, so here the owner of what a call is about is looked up before it is judged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import select
from starlette.routing import compile_path

from handclasp.access.principals import ConsoleUser, Principal
from handclasp.api.app import Endpoint, Report, generality
from handclasp.api.paging import read_sha256
from handclasp.api.problems import STATUS
from handclasp.api.routes import PUBLIC, Call, Parameter, Plain, Route, Streamed
from handclasp.api.services import Services
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.request import Source
from handclasp.store import tables


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
                principal = await self._with_own(principal, route, path_params, body or {})
                endpoint.admit(principal, action, scope)
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

    def _find(self, path: str) -> tuple[Endpoint, dict[str, Any]] | None:
        for regex, _, convertors, endpoint in self._endpoints:
            match = regex.match(path)
            if match is not None:
                return endpoint, {name: convertors[name].convert(value) for name, value in match.groupdict().items()}
        return None

    # --- acting for an owner --------------------------------------------------------------------------------------------------------

    async def _with_own(self, principal: Principal, route: Route, path: Mapping[str, Any], body: Mapping[str, Any]) -> Principal:
        """Return the caller with the scopes that they have for the owner of what the call is about."""
        if not isinstance(principal, ConsoleUser) or not principal.teams or (route.method, route.path) not in _OWN:
            return principal
        wanted = _OWN[route.method, route.path]
        owner = await self._owner(path, body)
        return replace(principal, scopes=principal.scopes | {wanted}) if owner in principal.teams else principal

    async def _owner(self, path: Mapping[str, Any], body: Mapping[str, Any]) -> str | None:
        """Return who owns the one identity that a call is about, beyond dispute; None when it is about more than one, or nobody's."""
        identity = tables.identity.c
        wanted = select(identity.id, identity.owner)
        if "sha256" in path:
            sha256 = read_sha256(path["sha256"])
            for table in (tables.certificate, tables.found):
                of = wanted.join_from(tables.identity, table, identity.id == table.c.identity_id).where(table.c.sha256 == sha256)
                row = await self._services.store.row(of)
                if row is not None:
                    return await self._undisputed(row.id, row.owner)
            return None
        name = path["identity"] if "identity" in path else body.get("identity")
        # A rotation takes patterns, and "dns:*.example.org" is the name of one identity and a pattern that covers those of others.
        if not isinstance(name, str) or "*" in name:
            return None
        row = await self._services.store.row(wanted.where(identity.name == name))
        return None if row is None else await self._undisputed(row.id, row.owner)

    async def _undisputed(self, identity_id: int, owner: str | None) -> str | None:
        """Return the owner if people said so, or the token that obtained the certificates, or nothing says otherwise.

        What is left is evidence from places, against other evidence. A copy of a certificate can lie anywhere, and whoever put it there
        must not be able to act on the identity of somebody else; a person decides, and then it counts.
        """
        if owner is None:
            return None
        said = tables.assignment.c
        winner = said.stands.in_(("owner", "disputed", "contested"))
        sure = (said.stands == "owner") | said.evidence.in_(("confirmed", "token"))
        query = select(said.owner).where(said.identity_id == identity_id, said.owner == owner, winner, sure)
        return str(owner) if await self._services.store.row(query) is not None else None


_OWN: Mapping[tuple[str, str], str] = {
    ("POST", "/v1/certificates/{sha256}:revoke"): "certificates:revoke",
    ("POST", "/v1/certificates/{sha256}:triage"): "inventory:write",
    ("POST", "/v1/identities/{identity:path}:assign"): "owners:write",
    ("POST", "/v1/rotations"): "certificates:rotate",
}
"""What whoever acts for an owner may do with that owner's own, and the scope that it takes. Each is about one identity."""
