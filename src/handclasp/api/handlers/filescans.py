"""Scans of files, for the agents that do them."""

from __future__ import annotations

from handclasp.access.principals import CertificatePrincipal
from handclasp.api.routes import Call, Plain, tagged
from handclasp.errors import HandclaspError, Kind
from handclasp.wire import to_json
from handclasp.wire.filescans import FileRecorded, FileScanList, FileSightings


async def file_scans(call: Call) -> Plain:
    """Return the scans that are due for the agent that asks; the same answer has the same tag. Who is no agent has none."""
    agent = _agent(call)
    found = FileScanList(items=[]) if agent is None else await call.services.file_scans.due(agent)
    return tagged(to_json(found), "application/json")


async def file_sightings(call: Call) -> FileRecorded:
    """Take what an agent found in the files of its host; of another's it may say nothing."""
    found: FileSightings = call.body
    agent = _agent(call)
    if agent is None:
        raise HandclaspError(Kind.NOT_ALLOWED, "only an agent does this, with its own certificate")
    return await call.services.file_scans.take(agent, found)


def _agent(call: Call) -> str | None:
    principal = call.principal
    return principal.identity if isinstance(principal, CertificatePrincipal) and principal.is_agent else None
