"""Health, metrics, and the API's own description."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from handclasp.api.openapi import document
from handclasp.api.routes import Call, Plain, Route, tagged
from handclasp.errors import HandclaspError, Kind
from handclasp.wire import Health


async def healthz(_call: Call) -> Health:
    """Say that this process runs."""
    return Health(status="ok")


async def readyz(call: Call) -> Health:
    """Say whether this process can do its work; 503 with the reasons when not. ``problems`` of one that can are no more than warnings."""
    problems = await call.services.problems()
    if problems:
        raise HandclaspError(Kind.UNAVAILABLE, "; ".join(problems))
    return Health(status="ok", problems=await call.services.warnings())


async def metrics(_call: Call) -> Plain:
    """Serve metrics in the Prometheus text format."""
    return Plain(generate_latest(), CONTENT_TYPE_LATEST)


_described: tuple[Sequence[Route], Plain] | None = None


async def openapi(call: Call) -> Plain:
    """Serve this document. It is the same for as long as the process runs, so it is made once."""
    global _described
    if _described is None or _described[0] is not call.routes:
        _described = (call.routes, tagged(msgspec.json.encode(document(call.routes)), "application/json", max_age=300))
    return _described[1]
