"""Who may call what: every route with every sort of caller, against what the table of routes says."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from handclasp.access.principals import SCOPES
from handclasp.api.problems import STATUS, to_problem
from handclasp.api.routes import ANY_PRINCIPAL, PUBLIC, Route
from handclasp.api.table import API, PLAIN_HTTP
from handclasp.errors import HandclaspError, Kind
from support.live import Answer, Client, Live
from support.oidc import Issuer

UNKNOWN = hashlib.sha256(b"no certificate has this fingerprint").hexdigest()
VALUES = {
    "sha256": UNKNOWN, "id": "a" * 16, "name": "none", "trust_domain": "example.org", "index": "0", "path": "0/000",
    "authority": "issuing", "shard": "0", "secret": "hcc_none", "number": "0", "identity": "spiffe://example.org/agent/none",
}  # fmt: skip
"""What stands for each path parameter."""
BODY = b"{}"
"""A body that passes no request type, so that who may call still changes nothing."""

NARROWER = {"inventory:read": "certificates:read"}
"""Scopes that hold a narrower one."""

IDENTITY = "spiffe://example.org/scopes/web"

# What any proven caller may ask, and what the room below then says: by path and caller, where it is not the answer of everyone else.
OF_THE_ROOM: dict[str, dict[str, tuple[int, Kind | None]]] = {
    "/v1/certificates": {"": (400, Kind.BAD_REQUEST)},
    "/v1/certificates:batch": {"": (400, Kind.BAD_REQUEST)},
    "/v1/certificates/{sha256}:renew": {"": (400, Kind.BAD_REQUEST)},
    "/v1/certificates/{sha256}:revoke": {"": (403, Kind.NOT_ALLOWED), "admin": (404, Kind.NOT_FOUND)},
    "/v1/certificates/{sha256}:renewal-info": {
        "": (403, Kind.NOT_ALLOWED),
        "admin": (404, Kind.NOT_FOUND),
        "agent certificate": (404, Kind.NOT_FOUND),
    },
    "/v1/certificates:renewal-info": {"": (400, Kind.BAD_REQUEST)},
    "/v1/jwt-svids": {"": (400, Kind.BAD_REQUEST)},
}


def path_of(route: Route) -> str:
    return re.sub(r"\{(\w+)(?::\w+)?\}", lambda match: VALUES[match[1]], route.path)


def call(client: Client, route: Route) -> Answer:
    return client(route.method, path_of(route), BODY if route.method in ("POST", "PUT") else None)


class Callers:
    """One client for each sort of caller."""

    NAMES = (
        "nobody", "junk", "unknown token", "revoked token", "expired token", "issuing token", "agent certificate", "workload certificate",
        "revoked certificate", "oidc token", "admin",
    )  # fmt: skip

    def __init__(self, live: Live, issuer: Issuer) -> None:
        self._live, self._issuer, self._stack = live, issuer, ExitStack()
        self._made: dict[str, Client] = {}

    def __getitem__(self, name: str) -> Client:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def with_scopes(self, *scopes: str) -> Client:
        name = "scopes " + ",".join(scopes)
        if name not in self._made:
            self._made[name] = self._client(self._live.token(*scopes))
        return self._made[name]

    def close(self) -> None:
        self._stack.close()

    def _client(self, *credentials: object) -> Client:
        return self._stack.enter_context(self._live.client(*credentials))  # type: ignore[arg-type]

    def _make(self, name: str) -> Client:
        live = self._live
        match name:
            case "nobody":
                return self._client()
            case "junk":
                return self._client("c3VwZXJzZWNyZXQ")
            case "unknown token":
                return self._client(f"hct_{'a' * 16}_{'b' * 43}")
            case "revoked token":
                created = live.create_token("admin")
                with live.client(live.admin_token) as admin:
                    admin("POST", f"/v1/tokens/{created['id']}:revoke").ok()
                return self._client(created["token"])
            case "expired token":
                return self._client(live.token("admin", expires="1ms"))
            case "issuing token":
                return self._client(live.issuing_token(IDENTITY))
            case "agent certificate":
                return self._client(None, live.holder("spiffe://example.org/agent/scopes", profile="agent"))
            case "workload certificate":
                return self._client(None, live.holder(IDENTITY))
            case "revoked certificate":
                holder = live.holder(f"{IDENTITY}/revoked")
                with live.client(live.admin_token) as admin:
                    admin("POST", f"/v1/certificates/{holder.sha256}:revoke", {}).ok()
                return self._client(None, holder)
            case "oidc token":
                self._issuer.apply(live, identities=[IDENTITY], claims={"team": "scopes"})
                return self._client(self._issuer.token(sub="job", team="scopes"))
        return self._client(live.admin_token)


@pytest.fixture(scope="module")
def callers(live: Live, issuer: Issuer) -> Iterator[Callers]:
    made = Callers(live, issuer)
    yield made
    made.close()


REFUSED_AT_THE_DOOR = {
    "nobody": Kind.NOT_AUTHENTICATED,
    "junk": Kind.TOKEN_UNKNOWN,
    "unknown token": Kind.TOKEN_UNKNOWN,
    "revoked token": Kind.TOKEN_REVOKED,
    "expired token": Kind.TOKEN_EXPIRED,
    "revoked certificate": Kind.REVOKED,
}
HOLDS = {"agent certificate": {"agents:report"}, "admin": set(SCOPES)}
"""Scopes of callers that are not API tokens made for one."""


def test_every_route_says_who_may_call_it() -> None:
    for route in (*API, *PLAIN_HTTP):
        assert route.scope in {PUBLIC, ANY_PRINCIPAL, *SCOPES}, route.path
    with pytest.raises(ValueError, match="is not a scope"):
        Route("GET", "/x", API[0].handler, "", "no scope")
    assert all(route.scope == PUBLIC for route in PLAIN_HTTP), "nobody can be known without TLS"
    assert {route.path for route in API if route.scope == ANY_PRINCIPAL} == set(OF_THE_ROOM)
    assert len({(route.method, route.path) for route in API}) == len(API)


def test_what_owners_may_do_with_their_own_is_about_one_identity() -> None:
    assert {(route.method, route.path): route.own_scope for route in API if route.own_scope} == {
        ("POST", "/v1/certificates/{sha256}:revoke"): "certificates:revoke",
        ("POST", "/v1/certificates/{sha256}:triage"): "inventory:write",
        ("POST", "/v1/identities/{identity:path}:assign"): "owners:write",
        ("POST", "/v1/rotations"): "certificates:rotate",
    }
    with pytest.raises(ValueError, match="nothing that is done for an owner"):
        Route("GET", "/x", API[0].handler, "policy:write", "x", own_scope="policy:write")


def test_what_is_public_is_what_everybody_who_verifies_needs() -> None:
    assert {route.path for route in API if route.scope == PUBLIC} == {
        "/v1/bundles", "/v1/bundles/{trust_domain}", "/v1/bundles/{trust_domain}.pem", "/v1/crls/{trust_domain}.pem", "/v1/openapi.json",
        "/healthz", "/readyz", "/v1/agents:challenge", "/v1/agents:enroll", "/v1/confirmations/{secret}", "/confirm/{secret}",
    }  # fmt: skip


def test_every_kind_of_error_has_a_status_and_a_problem_document() -> None:
    assert set(Kind) - set(STATUS) == {Kind.DELIVERY_FAILED}, "only what never reaches a server may be without"
    for kind, status in STATUS.items():
        problem = to_problem(HandclaspError(kind, "why", hint="do this"), "/here")
        assert (problem.status, problem.kind, problem.instance) == (status, kind.value, "/here")
        assert problem.type == f"urn:handclasp:problem:{kind.value}"
        assert problem.title
        internal = kind in (Kind.INTERNAL, Kind.VERIFY_FAILED, Kind.TAMPERED)
        assert (problem.detail == "why") is not internal, "what is wrong inside is not told"


@pytest.mark.parametrize("name", Callers.NAMES)
def test_every_route_with(name: str, callers: Callers) -> None:
    client = callers[name]
    wrong = []
    for route in API:
        answer = call(client, route)
        if route.scope == PUBLIC:
            taken = route.path in ("/v1/agents:enroll", "/confirm/{secret}") and answer.kind == Kind.BAD_REQUEST.value
            right = answer.status in (200, 404) or taken
        elif name in REFUSED_AT_THE_DOOR:
            kind = REFUSED_AT_THE_DOOR[name]
            right = (answer.status, answer.kind) == (STATUS[kind], kind.value)
            right = right and (answer.status == 401) == ("www-authenticate" in answer.headers)
        elif route.scope == ANY_PRINCIPAL:
            expected = OF_THE_ROOM[route.path]
            status, of_room = expected.get(name, expected[""])
            right = (answer.status, answer.kind) == (status, of_room.value if of_room else "")
        elif route.scope in HOLDS.get(name, ()):
            right = answer.status not in (401, 403) and answer.status < 500
        else:
            right = (answer.status, answer.kind) == (403, Kind.NOT_ALLOWED.value) and route.scope in answer.text
        if not right:
            wrong.append(f"{route.method} {route.path} ({route.scope}): {answer.status} {answer.text[:200]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("scope", sorted(set(SCOPES) - {"admin"}))
def test_a_scope_opens_its_own_routes_and_no_other(scope: str, callers: Callers) -> None:
    client, wrong = callers.with_scopes(scope), []
    for route in API:
        if route.scope in (PUBLIC, ANY_PRINCIPAL):
            continue
        answer = call(client, route)
        opened = answer.status < 500 and answer.kind not in (Kind.NOT_ALLOWED, Kind.NOT_AUTHENTICATED)
        shut = (answer.status, answer.kind) == (403, Kind.NOT_ALLOWED.value)
        if not (opened if route.scope in (scope, NARROWER.get(scope)) else shut):
            wrong.append(f"{route.method} {route.path} ({route.scope}): {answer.status} {answer.text[:200]}")
    assert not wrong, "\n".join(wrong)


def test_without_one_scope_all_others_together_do_not_open_its_routes(callers: Callers) -> None:
    every = sorted(set(SCOPES) - {"admin"})
    for scope in every:
        routes = [route for route in API if route.scope == scope]
        client = callers.with_scopes(*(other for other in every if scope not in (other, NARROWER.get(other))))
        for route in routes:
            call(client, route).refused(Kind.NOT_ALLOWED, scope)


@pytest.mark.parametrize("scope", ["certificates:read", "certificates:revoke"])
def test_the_scopes_that_the_room_below_looks_at(scope: str, callers: Callers) -> None:
    """Holders ask about their own certificates; for all others' there is a scope, and only that one opens it."""
    client = callers.with_scopes(scope)
    read, revoke = (client("GET", f"/v1/certificates/{UNKNOWN}:renewal-info"), client("POST", f"/v1/certificates/{UNKNOWN}:revoke", {}))
    assert read.kind == (Kind.NOT_FOUND if scope == "certificates:read" else Kind.NOT_ALLOWED)
    assert revoke.kind == (Kind.NOT_FOUND if scope == "certificates:revoke" else Kind.NOT_ALLOWED)


def test_every_path_leads_to_its_own_route(admin: Client) -> None:
    """A path with a parameter must not take what another route is there for, such as ``{id}:revoke``."""
    methods: dict[str, set[str]] = {}
    for route in API:
        methods.setdefault(route.path, set()).add(route.method)
    for route in API:
        answer = admin("PATCH", path_of(route), b"")
        answer.refused(Kind.METHOD_NOT_ALLOWED)
        allowed = set(answer.headers["allow"].split(", "))
        assert allowed - {"HEAD"} == methods[route.path], route.path
        assert ("HEAD" in allowed) == ("GET" in allowed)


def test_refusals_are_in_the_log_with_who_and_what(live: Live, admin: Client) -> None:
    token = live.create_token("log:read")
    with live.client(token["token"]) as client:
        client("GET", "/v1/certificates").refused(Kind.NOT_ALLOWED)
    entries = admin.get("/v1/log/entries", type="access.refused", limit=1000)["items"]
    mine = [item["entry"] for item in entries if item["entry"]["who"].get("id") == token["id"]]
    assert [entry["what"] for entry in mine] == [{"method": "GET", "path": "/v1/certificates"}]
    assert mine[0]["why"] == {"kind": "not_allowed"}
    assert mine[0]["from"] == {"door": "api", "address": "127.0.0.1"}
