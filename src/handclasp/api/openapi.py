"""The OpenAPI 3.1 document, made from the table of routes and the wire types."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from handclasp import __version__
from handclasp.access.principals import SCOPES
from handclasp.api.problems import STATUS
from handclasp.api.routes import ANY_PRINCIPAL, PUBLIC, Parameter, Route
from handclasp.errors import Kind
from handclasp.wire import Problem

_PATH_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_PATH_SCHEMAS: dict[str, dict[str, Any]] = {
    "index": {"type": "integer", "minimum": 0},
    "shard": {"type": "integer", "minimum": 0},
}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the document of a table of routes as plain values."""
    used = {kind for route in routes for kind in (route.request, route.response) if kind is not None}
    types = sorted(used, key=lambda kind: kind.__name__)
    _, components = msgspec.json.schema_components([*types, Problem], ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(_PATH_PARAMETER.sub(r"{\1}", route.path), {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Handclasp",
            "version": __version__,
            "description": "Certificate identities for mutual TLS: issuance, renewal, revocation, policy, and the log.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "An access token (hct_…) or an OIDC identity token."},
                "certificate": {"type": "mutualTLS", "description": "A certificate issued here."},
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{route.handler.__module__.rpartition('.')[2]}_{route.handler.__name__}_{_slug(route.path)}",
        "summary": route.summary,
        "tags": [route.path.split("/")[2].partition(":")[0] if route.path.startswith("/v1/") else "system"],
        "parameters": [*_path_parameters(route.path), *(_parameter(parameter) for parameter in route.parameters)],
        "responses": _responses(route),
        "security": [] if route.scope == PUBLIC else [{"token": []}, {"certificate": []}],
        "x-scope": route.scope,
    }
    if route.scope in SCOPES:
        operation["description"] = f"Needs the scope `{route.scope}`: {SCOPES[route.scope]}."
    elif route.scope == ANY_PRINCIPAL:
        operation["description"] = "For any proven caller; policy or ownership decides on the result."
    if route.request is not None:
        schema = {"$ref": f"#/components/schemas/{route.request.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    elif route.raw_body:
        operation["requestBody"] = {"required": True, "content": {route.raw_body: {"schema": {"type": "string"}}}}
    return operation


def _slug(path: str) -> str:
    return re.sub(r"\W+", "_", path).strip("_")


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = _PATH_PARAMETER.findall(path)
    return [{"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS.get(name, {"type": "string"})} for name in names]


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {"name": parameter.name, "in": "query", "description": parameter.description, "schema": dict(parameter.schema)}


def _responses(route: Route) -> dict[str, Any]:
    content = {media_type: {"schema": _schema(route, media_type)} for media_type in route.media_types or (route.media_type,)}
    found: dict[str, Any] = {str(route.status): {"description": "Done.", "content": content}}
    for status, kinds in sorted(_kinds_by_status(route).items()):
        found[str(status)] = {
            "description": "One of the kinds " + ", ".join(f"`{kind}`" for kind in kinds) + ".",
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    return found


def _schema(route: Route, media_type: str) -> dict[str, Any]:
    if route.response is not None:
        return {"$ref": f"#/components/schemas/{route.response.__name__}"}
    return {} if "json" in media_type else {"type": "string"}


def _kinds_by_status(route: Route) -> dict[int, list[Kind]]:
    """Kinds of error a route can answer, those of its own and those that every route of its sort has."""
    kinds: list[Kind] = [*route.kinds, Kind.BAD_REQUEST, Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.INTERNAL]
    if route.scope != PUBLIC:
        kinds += [Kind.NOT_AUTHENTICATED, Kind.TOKEN_UNKNOWN, Kind.TOKEN_EXPIRED, Kind.TOKEN_REVOKED, Kind.NOT_ALLOWED, Kind.REVOKED]
        kinds.append(Kind.RATE_LIMITED)
    if route.request is not None or route.method in ("POST", "PUT"):
        kinds += [Kind.TOO_LARGE, Kind.UNSUPPORTED_MEDIA_TYPE]
    found: dict[int, list[Kind]] = {}
    for kind in dict.fromkeys(kinds):
        found.setdefault(STATUS[kind], []).append(kind)
    return found
