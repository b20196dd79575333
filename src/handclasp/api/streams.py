"""Answers of any size: made, sent and forgotten a part at a time, at the pace of whoever reads them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Send

from handclasp.api.routes import SECURITY, Route, Streamed

PATIENCE = 60.0
"""Seconds that whoever reads an answer may take over one part of it, before the connection is ended."""

_log = logging.getLogger("handclasp.api")


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer whose first part is made."""

    first: bytes
    rest: AsyncIterator[bytes]


async def begin(route: Route, value: Streamed) -> tuple[int, list[tuple[bytes, bytes]], Stream]:
    """Make the first part; what goes wrong up to here is answered as any error is."""
    first = await anext(value.parts, b"")
    headers = [(b"content-type", value.media_type.encode()), *value.headers, *SECURITY, (b"cache-control", b"no-store")]
    return route.status, headers, Stream(first, value.parts)


async def stream(send: Send, receive: Receive, answer: tuple[int, list[tuple[bytes, bytes]], Any], head: bool) -> None:
    """Send the answer, until it is whole or its reader is gone.

    When a part cannot be made, or nobody takes it, this returns without an end of the answer. The server then ends the connection, and no
    client takes what it has for the whole: a chunked answer without its last chunk is incomplete (RFC 9112 section 8).
    """
    status, headers, body = answer
    gone = asyncio.get_running_loop().create_task(_gone(receive))
    try:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        part: bytes | None = None if head else body.first
        while part is not None:
            if gone.done():
                return
            async with asyncio.timeout(PATIENCE):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            part = await anext(body.rest, None)
        await send({"type": "http.response.body", "body": b""})
    except TimeoutError:
        _log.warning("an answer was not read for %d seconds; its connection is ended", PATIENCE)
    except Exception:  # whatever failed, an answer that has begun can only be broken off
        _log.exception("an answer broke off in its middle; its connection is ended")
    finally:
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
        close = getattr(body.rest, "aclose", None)
        if close is not None:
            await close()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
