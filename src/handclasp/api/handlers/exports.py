"""Export certificates: everything that the filters leave, streamed."""

from __future__ import annotations

from handclasp.api.routes import Call, Streamed
from handclasp.clock import rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.inventory import filters
from handclasp.inventory.export import FORMATS


async def export(call: Call) -> Streamed:
    """Answer with a document of every certificate that fits; when it breaks off, so does the connection."""
    wanted = call.query.get("format", "json")
    if wanted not in FORMATS:
        raise HandclaspError(Kind.BAD_REQUEST, f"format: {wanted[:100]!r} is not one", hint=f"one of {', '.join(FORMATS)}")
    now = call.services.clock()
    given = filters.parse("certificates", call.query, now)
    write, media_type, ending = FORMATS[wanted]
    pages = call.services.inventory.certificates.walk(given)
    name = f"certificates-{rfc3339(now - now % 1000).replace(':', '')}.{ending}"
    disposition = (b"content-disposition", f'attachment; filename="{name}"'.encode())
    return Streamed(write(pages, given, now), media_type, (disposition,))
