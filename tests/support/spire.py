"""A SPIRE server's admin API, on a Unix socket or over mutual TLS. It pages, checks what it is asked, and fails on demand."""

from __future__ import annotations

import asyncio
import ssl
import threading
from pathlib import Path
from typing import Any

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream

from handclasp.proto import spire_pb2 as pb

API = "/spire.api.server."


class FakeSpire:
    """Use as a context manager. ``page`` is how many it gives at a time, whatever is asked."""

    def __init__(self, path: Path | None = None, *, tls: ssl.SSLContext | None = None, page: int = 2) -> None:
        self.path, self.page, self._tls = path, page, tls
        self.bundle = pb.Bundle(trust_domain="example.org")
        self.federated: list[pb.Bundle] = []
        self.agents: list[pb.Agent] = []
        self.entries: list[pb.Entry] = []
        self.asked: list[tuple[str, str]] = []
        """(method, page token) of each call."""
        self.fails: dict[str, Status] = {}
        self.lost_tokens = False
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> FakeSpire:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = Server([self])
        if self.path is not None:
            await server.start(path=str(self.path))
        else:
            await server.start("127.0.0.1", 0, ssl=self._tls)
            assert server._server is not None
            self.port = server._server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        await server.wait_closed()

    def __mapping__(self) -> dict[str, Handler]:
        def unary(function: Any, request: Any, answer: Any) -> Handler:
            return Handler(function, Cardinality.UNARY_UNARY, request, answer)

        return {
            f"{API}bundle.v1.Bundle/GetBundle": unary(self._get_bundle, pb.GetBundleRequest, pb.Bundle),
            f"{API}bundle.v1.Bundle/ListFederatedBundles": unary(
                self._lister("federated", "bundles"), pb.ListFederatedBundlesRequest, pb.ListFederatedBundlesResponse
            ),
            f"{API}agent.v1.Agent/ListAgents": unary(self._lister("agents", "agents"), pb.ListAgentsRequest, pb.ListAgentsResponse),
            f"{API}entry.v1.Entry/ListEntries": unary(self._lister("entries", "entries"), pb.ListEntriesRequest, pb.ListEntriesResponse),
        }

    def _check(self, name: str, token: str) -> None:
        self.asked.append((name, token))
        if name in self.fails:
            raise GRPCError(self.fails[name], "with words that stay here")

    async def _get_bundle(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        self._check("bundle", "")
        await stream.send_message(self.bundle)

    def _lister(self, name: str, field: str) -> Any:
        async def answer(stream: Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            assert request is not None
            self._check(name, request.page_token)
            if self.lost_tokens and request.page_token:
                raise GRPCError(Status.INVALID_ARGUMENT, "could not parse token")
            assert request.page_size == 500
            start = int(request.page_token.removeprefix("from-") or "0")
            items = getattr(self, name)
            more = f"from-{start + self.page}" if start + self.page < len(items) else ""
            kind = {"federated": pb.ListFederatedBundlesResponse, "agents": pb.ListAgentsResponse, "entries": pb.ListEntriesResponse}[name]
            await stream.send_message(kind(**{field: items[start : start + self.page], "next_page_token": more}))

        return answer
