"""What each role may ask of the API: every route with every role, against the route's scope. No browser, and nothing is carried out."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path

from handclasp.access.principals import ConsoleUser
from handclasp.access.roles import ROLES, SCOPES_OF
from handclasp.api.internal import InternalApi
from handclasp.api.routes import ANY_PRINCIPAL, PUBLIC, Call, Route
from handclasp.api.table import API
from handclasp.errors import HandclaspError, Kind
from handclasp.server.instance import open_instance
from handclasp.server.settings import Settings
from handclasp.server.setup import initialise
from handclasp.wire import Done

CHANGES = {"POST", "PUT", "DELETE"}
LOOKS = {"/v1/policy:diff", "/v1/profiles:diff", "/v1/ownership:diff", "/v1/ownership:test"}
"""What takes a body, and changes nothing."""


async def _nothing(_call: Call) -> Done:
    return Done(log_entry=0)


def _path(route: Route) -> str:
    return re.sub(r"\{(\w+)(?::\w+)?\}", lambda match: "0" * 64 if match[1] == "sha256" else "0", route.path)


def test_every_route_and_every_role(tmp_path: Path) -> None:
    """A member of a team is one for a team that owns nothing: what is their own is another test's."""

    async def run() -> None:
        settings = Settings.load({"data": str(tmp_path / "data"), "trust_domain": "example.org", "rate_refused": 100_000}, env={})
        await initialise(settings)
        instance = await open_instance(settings)
        try:
            api = InternalApi([replace(route, handler=_nothing) for route in API], instance.services)
            for role in ROLES:
                teams = frozenset({"nobody"}) if role == "team" else frozenset[str]()
                user = ConsoleUser(f"oidc:{role}", role, role, SCOPES_OF[role], teams)
                for route in API:
                    allowed = await _admitted(api, user, route)
                    open_to_all = route.scope in (PUBLIC, ANY_PRINCIPAL)
                    expected = open_to_all or role == "admin" or bool({route.scope, _wider(route.scope)} & SCOPES_OF[role])
                    assert allowed is expected, f"{role}: {route.method} {route.path}"
                    if role in ("auditor", "team") and allowed and not open_to_all:
                        assert route.method not in CHANGES or route.path in LOOKS, f"{role} changes by {route.method} {route.path}"
        finally:
            await instance.close()

    asyncio.run(run())


def _wider(scope: str) -> str:
    return {"certificates:read": "inventory:read"}.get(scope, scope)


async def _admitted(api: InternalApi, user: ConsoleUser, route: Route) -> bool:
    try:
        await api.call(user, route.method, _path(route))
    except HandclaspError as error:
        return not (error.kind is Kind.NOT_ALLOWED and f"needs the scope {route.scope}" in error.detail)
    return True
