"""A uvicorn server that requires client certificates and swaps its own while requests go on.

python examples/uvicorn_server.py /etc/myapp/tls 9443
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

from handclasp.client import TLSContext

Message = MutableMapping[str, Any]


async def app(scope: Message, _receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    """Say hello; any ASGI application can stand here."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"hello\n"})


def make_server(directory: str, port: int) -> uvicorn.Server:
    """Return a server for ``app`` with the certificate in ``directory``."""
    tls = TLSContext.from_directory(directory)
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=port,
        ssl_context_factory=lambda _config, _default: tls.server_context(),
        lifespan="off",
        log_level="warning",
    )
    return uvicorn.Server(config)


if __name__ == "__main__":
    make_server(sys.argv[1], int(sys.argv[2])).run()
