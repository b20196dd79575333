"""Scans of files, for the agents that do them."""

from __future__ import annotations

from handclasp.access.principals import CertificatePrincipal
from handclasp.api.routes import Call, Plain, tagged
from handclasp.errors import HandclaspError, Kind
from handclasp.wire import to_json
from handclasp.wire.filescans import FileRecorded, FileSightings


async def file_scans(call: Call) -> Plain:
    """Return the scans that are due for the agent that asks; the same answer has the same tag."""
    return tagged(to_json(await call.services.file_scans.due(_agent(call))), "application/json")


async def file_sightings(call: Call) -> FileRecorded:
    """Take what an agent found in the files of its host; of another's it may say nothing."""
    found: FileSightings = call.body
    return await call.services.file_scans.take(_agent(call), found)


def _agent(call: Call) -> str:
    principal = call.principal
    if not isinstance(principal, CertificatePrincipal) or not principal.is_agent:
        raise HandclaspError(Kind.NOT_ALLOWED, "only an agent does this, with its own certificate")
    return principal.identity
