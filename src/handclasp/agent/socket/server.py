"""The socket as a part of the agent: a thread with an event loop of its own, so that nobody's delivery waits for it nor it for theirs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time

from handclasp.agent.config.socket import SocketSettings
from handclasp.agent.socket.attest.table import attestors
from handclasp.agent.socket.connection import Connection
from handclasp.agent.socket.core import Core
from handclasp.agent.socket.host import Host
from handclasp.agent.socket.limits import Limits
from handclasp.agent.socket.listen import Listener
from handclasp.clock import Clock, system_clock
from handclasp.errors import HandclaspError

_log = logging.getLogger("handclasp.agent.socket")
_AGAIN = 5.0
_LOOK = 5.0


class SocketServer:
    """Serves the Workload API and SDS until :meth:`stop`. A socket that cannot be made is tried again, and is a problem meanwhile."""

    def __init__(self, agent: Host, settings: SocketSettings, *, clock: Clock = system_clock) -> None:
        self._agent, self._settings, self._clock = agent, settings, clock
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._core: Core | None = None
        self._begun = threading.Event()
        self._trouble = ""
        self._connections: set[Connection] = set()

    def start(self) -> None:
        """Begin; returns when the socket is there, or has been found impossible for now. Raises nothing."""
        # What hostile bytes make grpclib say would fill the log; what matters is said here.
        logging.getLogger("grpclib").setLevel(logging.CRITICAL)
        self._thread = threading.Thread(target=self._run, name="socket", daemon=True)
        self._thread.start()
        self._begun.wait(10)

    def stop(self) -> None:
        """End every stream and remove the socket; returns when that is done."""
        if self._thread is None:
            return
        self._begun.wait(10)
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(15)
        self._thread = None

    def problems(self) -> list[str]:
        """Return what is wrong with it, in words."""
        core = self._core
        return ([self._trouble] if self._trouble else []) + (core.problems() if core is not None else [])

    def _run(self) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                asyncio.run(self._main())
        except Exception as error:  # the agent lives on without its socket, and says so
            _log.exception("the socket has ended")
            self._trouble = f"the socket has ended: {type(error).__name__}"
        finally:
            self._begun.set()

    async def _main(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._core = core = Core(self._agent, self._settings, attestors(self._settings), self._clock)
        follow = asyncio.create_task(core.run())
        try:
            while True:
                listener = self._listen()
                if listener is not None:
                    await self._serve(core, listener)
                self._begun.set()
                await asyncio.sleep(_AGAIN)
        finally:
            follow.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await follow
            core.close()

    def _listen(self) -> Listener | None:
        settings = self._settings
        try:
            listener = Listener(settings.path, settings.mode, settings.group)
        except HandclaspError as error:
            if self._trouble != error.detail:
                _log.error("%s", error.detail)
            self._trouble = error.detail
            return None
        self._trouble = ""
        _log.info("the Workload API and SDS are served on %s", settings.path)
        return listener

    async def _serve(self, core: Core, listener: Listener) -> None:
        """Serve until cancelled, or until the socket's file is not ours any more."""
        limits = Limits(self._settings.connections)

        def connection() -> Connection:
            made = Connection(core, limits, self._connections.discard)
            self._connections.add(made)
            return made

        server: asyncio.AbstractServer | None = None
        try:
            server = await asyncio.get_running_loop().create_unix_server(connection, sock=listener.socket, backlog=256)
            self._begun.set()
            while listener.there():
                await asyncio.sleep(_LOOK)
                for one in list(self._connections):
                    one.look(time.monotonic())
            self._trouble = f"the socket {listener.path} was removed or replaced by somebody; it is made again"
            _log.warning("%s", self._trouble)
        finally:
            if server is not None:
                server.close()
            listener.close()
            connections = list(self._connections)
            for one in connections:
                one.end()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3):
                    for one in connections:
                        await one.ended()
            for one in connections:
                one.abort()
