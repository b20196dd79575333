"""An asyncio server that lets in only the identities it knows, and greets them by name.

python examples/asyncio_server.py /etc/myapp/tls 9443 'spiffe://example.org/prod/*'
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from handclasp.client import TLSContext, peer_identity


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each line with the identity of whoever sent it."""
    identity = peer_identity(writer.get_extra_info("ssl_object"))
    while line := await reader.readline():
        writer.write(f"{identity}: ".encode() + line)
        await writer.drain()
    writer.close()


async def start(directory: str, port: int, peers: Sequence[str]) -> asyncio.Server:
    """Return a running server; clients whose identity is not in ``peers`` do not get past the handshake."""
    tls = TLSContext.from_directory(directory)
    return await asyncio.start_server(greet, "127.0.0.1", port, ssl=tls.server_context(peers=peers))


async def main() -> None:
    """Serve until stopped."""
    directory, port, *peers = sys.argv[1:]
    async with await start(directory, int(port), peers) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
