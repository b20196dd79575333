"""One serving process: the instance, its listeners, its jobs, from start to a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from handclasp import __version__
from handclasp.api.app import make_app
from handclasp.api.table import API, PLAIN_HTTP
from handclasp.doors.spiffe.bundle import PATH as BUNDLE_PATH
from handclasp.doors.spiffe.bundle import BundleEndpoint
from handclasp.log.entries import make_entry
from handclasp.server.console import with_console
from handclasp.server.instance import Instance, open_instance
from handclasp.server.jobs import Jobs, every
from handclasp.server.own import OwnCertificate
from handclasp.server.settings import Settings, parse_listen
from handclasp.server.tls import KEPT, PeerCertificateProtocol, SwappableTls
from handclasp.server.web import WebCertificate
from handclasp.store.writes import Write

if TYPE_CHECKING:
    from handclasp.server.grpc import GrpcListener

FILES = 65_536  # open files that are enough for every listener's connections
GRACE = 10  # seconds that requests under way may take to end at shutdown
_log = structlog.get_logger("handclasp.server")


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handling: one process has several."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def bind(listen: str, *, share: bool = False) -> socket.socket:
    """Return a listening socket; with ``share``, one of several on the same address, among which the kernel spreads connections."""
    host, port = parse_listen(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind((host, port))
        bound.listen(2048)
    except OSError:
        bound.close()
        raise
    bound.setblocking(False)
    bound.set_inheritable(True)
    return bound


def address_of(bound: socket.socket) -> str:
    """Return ``HOST:PORT`` of a listening socket, as a client would write it."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def serve(
    settings: Settings,
    https: socket.socket,
    http: socket.socket | None,
    grpc: socket.socket | None = None,
    *,
    worker: int = 0,
    ready: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT; ``ready`` is called once everything listens."""
    started = time.monotonic()
    _allow_connections()
    instance = await open_instance(settings, worker=worker, migrate=False)
    try:
        await _serve(instance, https, http, grpc, ready, started)
    finally:
        await instance.close()


async def _serve(
    instance: Instance,
    https: socket.socket,
    http: socket.socket | None,
    grpc: socket.socket | None,
    ready: Callable[[], None],
    started: float,
) -> None:
    tls = SwappableTls(tls12=instance.settings.tls12)
    mesh_tls = SwappableTls(tls12=instance.settings.tls12, alpn="h2")
    own, web = OwnCertificate(instance, tls, mesh_tls), WebCertificate(instance.settings, tls)
    await own.renew()
    jobs = Jobs(instance, own, web)
    jobs.start()
    try:
        await _listen(instance, _Sockets(https, tls, http, grpc, mesh_tls), ready, started)
    finally:
        await jobs.stop()
    _log.info("stopped")


@dataclass(frozen=True, slots=True)
class _Sockets:
    https: socket.socket
    tls: SwappableTls
    http: socket.socket | None
    grpc: socket.socket | None
    mesh_tls: SwappableTls

    def addresses(self) -> dict[str, str]:
        named = {"https": self.https, "http": self.http, "grpc": self.grpc}
        return {name: address_of(bound) if bound is not None else "off" for name, bound in named.items()}


async def _listen(instance: Instance, on: _Sockets, ready: Callable[[], None], started: float) -> None:
    """Answer on the sockets until a signal comes, and end the requests that are under way."""
    report = instance.health.report
    https_app = with_console(instance, _with_doors(instance, make_app(API, instance.services, report=report)))
    servers = [(_make_server(https_app, on.tls), on.https)]
    if on.http is not None:
        servers.append((_make_server(make_app(PLAIN_HTTP, instance.services, door="http", report=report), None), on.http))
    stop = _stop_on_signal()
    loop = asyncio.get_running_loop()
    running = [loop.create_task(server.serve(sockets=[bound]), name=address_of(bound)) for server, bound in servers]
    mesh = await _start_grpc(instance, on.mesh_tls, on.grpc) if on.grpc is not None else None
    limit = instance.settings.request_timeout
    slow = partial(_close_slow, [server for server, _ in servers], limit)
    async with _beside(every(min(5.0, limit), "slow-connections", slow, instance.health)):
        while not all(server.started for server, _ in servers):  # noqa: ASYNC110  (uvicorn has a flag, and no event)
            await asyncio.sleep(0.005)
        await _log_start(instance)
        _log.info("serving", **on.addresses(), seconds=round(time.monotonic() - started, 3))
        _settle_memory()
        ready()
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([stopped, *running], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for server, _ in servers:
            server.should_exit = True
        await asyncio.gather(*running, *([mesh.stop(GRACE)] if mesh is not None else []))


async def _start_grpc(instance: Instance, tls: SwappableTls, bound: socket.socket) -> GrpcListener:
    """Serve the doors that speak gRPC. Most servers have none of them, and need not load what they stand on."""
    from handclasp.doors.istio.service import IstioDoor
    from handclasp.server.grpc import GrpcListener

    doors = [IstioDoor(instance.services, instance.health.report)]
    listener = GrpcListener([door.mapping() for door in doors], tls, limit=instance.settings.request_timeout)
    await listener.start(bound)
    return listener


def _with_doors(instance: Instance, app: ASGIApp) -> ASGIApp:
    """Return the application of the HTTPS listener: the API, and the doors that speak HTTP in their own way."""
    bundles = instance.services.bundles
    endpoint = BundleEndpoint(bundles.own, bundles.refresh_hint)

    async def choose(scope: Scope, receive: Receive, send: Send) -> None:
        await (endpoint if scope["path"].startswith(BUNDLE_PATH) else app)(scope, receive, send)

    return choose


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run ``work`` beside the body, and end it with the body."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _allow_connections() -> None:
    """Take as many open files as we may have: the usual 1,024 of a shell would be full with as many agents."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    with contextlib.suppress(ValueError, OSError):
        if wanted > resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _settle_memory() -> None:
    """Take everything that was loaded until now out of the garbage collector's sight, and have it look less often.

    A request makes a few hundred short-lived objects and no cycles that matter; looking for them at the default pace costs about 6 % of an
    issuance.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _make_server(app: ASGIApp, tls: SwappableTls | None) -> _Server:
    config = uvicorn.Config(
        app,
        http=PeerCertificateProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=2 * KEPT,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE,
        backlog=2048,
        h11_max_incomplete_event_size=65536,
    )
    config.load()
    if tls is not None:
        config.ssl = tls.outer
    return _Server(config)


def _stop_on_signal() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _close_slow(servers: list[_Server], limit: float) -> None:
    """End connections that take for ever to send the head of a request."""
    now = asyncio.get_running_loop().time()
    for server in servers:
        for connection in list(server.server_state.connections):
            if isinstance(connection, PeerCertificateProtocol):
                connection.close_if_slow(now, limit)


async def _log_start(instance: Instance) -> None:
    what = {"version": __version__, "database": "sqlite" if instance.store.is_sqlite else "postgresql"}
    entry = make_entry("server.started", at=instance.clock(), who={"kind": "server"}, what=what)
    await instance.store.ledger.commit(Write([entry]))
    await instance.services.warnings()  # which says them in this process's log
