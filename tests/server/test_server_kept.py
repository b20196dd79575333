"""Connections that are kept: beyond a number each serves one request, so that nobody is refused because of others who say nothing."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Receive, Scope, Send

from handclasp.server import process, tls


async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_connections_beyond_a_number_are_closed_after_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "KEPT", 2)

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, bool]:
        """Return the answer, and whether the connection was closed after it."""
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(2) == b"ok"
        closing = b"connection: close" in head
        if closing:
            assert await reader.read() == b""
        return head.splitlines()[0], closing

    async def run() -> None:
        bound = process.bind("127.0.0.1:0")
        server = process._make_server(answer, None)
        task = asyncio.create_task(server.serve(sockets=[bound]))
        address = bound.getsockname()[:2]
        async with asyncio.timeout(30):
            while not server.started:
                await asyncio.sleep(0.001)
            opened = [await asyncio.open_connection(*address) for _ in range(4)]
            for one in opened[:2]:
                assert await ask(*one) == (b"HTTP/1.1 200 OK", True), "there are four, then three"
            for one in opened[2:] * 2:
                assert await ask(*one) == (b"HTTP/1.1 200 OK", False), "these two are kept"
            for _, writer in opened:
                writer.close()
                await writer.wait_closed()
            server.should_exit = True
            await task

    asyncio.run(run())
