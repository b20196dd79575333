"""The load generator: a process of its own that reads a plan from standard input, makes the requests, and prints what it saw as JSON.

It is bounded by the number of requests in the plan, and talks to loopback only.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from typing import Any

import uvloop


class _Connection(asyncio.Protocol):
    """One keep-alive connection that sends the next request when the last is answered. An HTTP library would cost more than the server."""

    def __init__(self, work: _Work) -> None:
        self._work = work
        self._buffer = b""
        self._need = 0
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._next()

    def _next(self) -> None:
        request = self._work.take()
        if request is None:
            self._transport.close()
            self._work.connection_done()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._need:
            head, found, _ = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            self._need = len(head) + 4 + length
        if len(self._buffer) >= self._need:
            body = self._buffer.partition(b"\r\n\r\n")[2]
            self._work.answered(self._buffer[9:12], body, time.perf_counter() - self._sent_at)
            self._buffer, self._need = b"", 0
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._work.fail(exc)


class _Work:
    """Requests to make, shared by all connections, and what came of them."""

    def __init__(self, requests: list[bytes], connections: int) -> None:
        self._requests = iter(requests)
        self._open = connections
        self.seconds: list[float] = []
        self.failed: list[str] = []
        self.done = asyncio.get_running_loop().create_future()

    def take(self) -> bytes | None:
        return next(self._requests, None)

    def answered(self, status: bytes, body: bytes, seconds: float) -> None:
        self.seconds.append(seconds)
        if not status.startswith(b"2") or b'"problem":{' in body:
            self.failed.append(body[:300].decode("utf-8", "replace"))

    def connection_done(self) -> None:
        self._open -= 1
        if not self._open and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


def http_request(path: str, body: bytes, host: str, token: str = "") -> bytes:
    """Return one request as bytes."""
    authorization = f"authorization: Bearer {token}\r\n" if token else ""
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\n{authorization}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _keep_alive(plan: dict[str, Any]) -> dict[str, Any]:
    """All requests over a few connections that stay open; the clock runs from the first byte to the last answer."""
    context = ssl.create_default_context(cafile=plan["ca_file"])
    requests = [http_request(plan["path"], body.encode(), plan["host"], plan["token"]) for body in plan["bodies"]]
    loop, connections = asyncio.get_running_loop(), plan["connections"]
    work = _Work(requests, connections)
    started = time.perf_counter()
    for _ in range(connections):
        await loop.create_connection(lambda: _Connection(work), plan["host"], plan["port"], ssl=context)
    await asyncio.wait_for(work.done, 300)
    return _summary(work, time.perf_counter() - started)


async def _fresh_mtls(plan: dict[str, Any]) -> dict[str, Any]:
    """Each request over a new connection with its own client certificate, a few at a time."""
    loop = asyncio.get_running_loop()
    work = _Work([], 1)
    items = iter(plan["items"])
    contexts = []
    for item in plan["items"]:
        context = ssl.create_default_context(cafile=plan["ca_file"])
        context.load_cert_chain(item["credential_file"])
        contexts.append(context)
    ready = iter(contexts)

    async def client() -> None:
        for item in items:
            one = _Work([http_request(item["path"], item["body"].encode(), plan["host"])], 1)
            await loop.create_connection(lambda one=one: _Connection(one), plan["host"], plan["port"], ssl=next(ready))
            await asyncio.wait_for(one.done, 60)
            work.seconds += one.seconds
            work.failed += one.failed

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(plan["connections"])))
    return _summary(work, time.perf_counter() - started)


def _summary(work: _Work, seconds: float) -> dict[str, Any]:
    ordered = sorted(work.seconds)
    return {
        "requests": len(ordered),
        "failed": len(work.failed),
        "first_failure": work.failed[0] if work.failed else None,
        "seconds": seconds,
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
    }


async def _istio(plan: dict[str, Any]) -> dict[str, Any]:
    """Certificates for a mesh, over connections that stay open."""
    from bench.load_istio import create_certificates

    work = _Work([], 1)
    work.seconds, work.failed, seconds = await create_certificates(plan)
    return _summary(work, seconds)


KINDS = {"keep_alive": _keep_alive, "fresh_mtls": _fresh_mtls, "istio": _istio}


def main() -> None:
    plan = json.load(sys.stdin)
    run = asyncio.run if plan["kind"] == "istio" else uvloop.run  # gRPC's own client knows only asyncio's loop
    print(json.dumps(run(KINDS[plan["kind"]](plan))))


if __name__ == "__main__":
    main()
