"""``handclasp init``, ``serve`` and ``up``: what the command line calls."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from socket import socket
from typing import Any

import uvloop

from handclasp.errors import HandclaspError, Kind
from handclasp.pki.bundles import pem_bundle
from handclasp.server import process
from handclasp.server.instance import open_instance
from handclasp.server.logs import configure
from handclasp.server.settings import Settings, parse_listen
from handclasp.server.setup import admin_token_file, initialise, write_private
from handclasp.server.supervisor import Supervisor


def init(settings: Settings) -> dict[str, Any]:
    """Make an installation; return what was made and where things are. Repeating it changes nothing."""
    configure(settings)
    with DataLock(settings):
        made = _run(initialise(settings, http_url=public_http(settings, None)))
        _run(_write_ca_file(settings))
    return {
        "made": made,
        "data": str(settings.data),
        "database": settings.database_url.split("@")[-1],
        "ca_file": str(ca_file(settings)),
        "admin_token_file": str(admin_token_file(settings)),
    }


def up(settings: Settings) -> int:
    """Initialise what is not initialised, then serve. Returns the exit code."""
    return _start(settings, make=True)


def serve(settings: Settings) -> int:
    """Serve an installation that was initialised before. Returns the exit code."""
    return _start(settings, make=False)


def ca_file(settings: Settings) -> Path:
    """Return where the trust bundle is written for local use."""
    return settings.data / "ca.pem"


def _start(settings: Settings, *, make: bool) -> int:
    configure(settings)
    with DataLock(settings):
        https, http, grpc = _bind_all(settings)
        if make:
            _run(initialise(settings, http_url=public_http(settings, http[0] if http else None)))
        _run(_write_ca_file(settings))
        if settings.workers == 1:
            _run(process.serve(settings, *_of_worker(0, https, http, grpc), ready=lambda: _ready(settings, https[0], http, grpc)))
            return 0

        def work(worker: int, ready: Callable[[], None]) -> None:
            _run(process.serve(settings, *_of_worker(worker, https, http, grpc), worker=worker, ready=ready))

        return Supervisor(int(settings.workers), work, lambda: _ready(settings, https[0], http, grpc)).run()


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return uvloop.run(work)


def _bind_all(settings: Settings) -> tuple[list[socket], list[socket], list[socket]]:
    """Bind every listener before anything else is done, so that a taken port is the first thing one hears of."""
    count = int(settings.workers)
    http, grpc = ([] if listen == "off" else _bind(listen, count) for listen in (settings.http, settings.grpc))
    return _bind(settings.https, count), http, grpc


def _of_worker(worker: int, https: list[socket], http: list[socket], grpc: list[socket]) -> tuple[socket, socket | None, socket | None]:
    return https[worker], http[worker] if http else None, grpc[worker] if grpc else None


def _bind(listen: str, count: int) -> list[socket]:
    try:
        first = process.bind(listen, share=count > 1)
        return [first, *(process.bind(process.address_of(first), share=True) for _ in range(count - 1))]
    except OSError as error:
        raise HandclaspError(
            Kind.BAD_SETTING, f"cannot listen on {listen}: {error.strerror}", hint="choose another port, or 0 for a free one"
        ) from error


def public_http(settings: Settings, bound: socket | None) -> str:
    """Return the address under which CRLs will be found, empty where it cannot be known.

    It is written into certificates, so it must not change afterwards.
    """
    if settings.http == "off":
        return ""
    host, port = parse_listen(settings.http)
    if bound is not None:
        port = bound.getsockname()[1]
    if port == 0:
        return ""
    names = settings.name or ((host,) if host not in ("0.0.0.0", "::") else settings.names)  # noqa: S104
    name = names[0]
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


async def _write_ca_file(settings: Settings) -> None:
    instance = await open_instance(settings)
    try:
        anchors = [anchor for name in instance.authorities.trust_domains for anchor in instance.authorities.anchors(name)]
        write_private(ca_file(settings), pem_bundle(anchors))
        ca_file(settings).chmod(0o644)
        vkey = settings.data / "log.vkey"
        write_private(vkey, f"{instance.log_signer.vkey}\n")
        vkey.chmod(0o644)
    finally:
        await instance.close()


def _ready(settings: Settings, https: socket, http: list[socket], grpc: list[socket]) -> None:
    """Say that everything listens: to people on standard error, to scripts in the ready file."""
    facts = {
        "https": f"https://{_reachable(process.address_of(https))}",
        "console": f"https://{_reachable(process.address_of(https))}/console/",
        "http": f"http://{_reachable(process.address_of(http[0]))}" if http else None,
        "grpc": _reachable(process.address_of(grpc[0])) if grpc else None,
        "ca_file": str(ca_file(settings)),
        "admin_token_file": str(admin_token_file(settings)),
        "log_vkey_file": str(settings.data / "log.vkey"),
        "pid": os.getpid(),
    }
    url = name_in_certificate(str(facts["https"]), settings.names)
    client = f"HANDCLASP_URL={url} HANDCLASP_CA={facts['ca_file']} HANDCLASP_TOKEN_FILE={facts['admin_token_file']}"
    print(
        f"handclasp serves at {url}\n  console       {url}/console/ (sign in with the admin token)\n"
        f"  trust bundle  {facts['ca_file']}\n  admin token   {facts['admin_token_file']}\n"
        f"  try: {client} handclasp doctor",
        file=sys.stderr,
        flush=True,
    )
    if settings.ready_file is not None:
        write_private(settings.ready_file, json.dumps(facts, indent=1) + "\n")


def name_in_certificate(url: str, names: tuple[str, ...]) -> str:
    """Return the address with a name that the server's certificate has, when the one that it listens on is not among them."""
    host, _, port = url.removeprefix("https://").rpartition(":")
    if host.strip("[]") in names:
        return url
    return f"https://[{names[0]}]:{port}" if ":" in names[0] else f"https://{names[0]}:{port}"


def _reachable(address: str) -> str:
    """Return an address that a client on this machine can connect to."""
    return address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")


class DataLock:
    """Hold the data directory: SQLite has one writing process, and two servers would sign two histories."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._descriptor = -1

    def __enter__(self) -> None:
        self._settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._descriptor = os.open(self._settings.data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise HandclaspError(
                Kind.CONFLICT,
                f"another handclasp process uses {self._settings.data}",
                hint="stop the server first; start it again afterwards",
            ) from error

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
