"""``handclasp collect``: read sources near where they are, for a server far away."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handclasp.cli import terminal
from handclasp.cli.command import Command, State, pass_state
from handclasp.cli.options import log_level_option
from handclasp.clock import parse_duration, system_clock
from handclasp.errors import HandclaspError, Kind

if TYPE_CHECKING:
    from handclasp.discovery.engine import Engine
    from handclasp.discovery.remote import RemoteDesk

FILES = "/etc/handclasp/sources"
_LOOK = 10.0  # seconds between looks at the token's file


@click.command(
    cls=Command,
    client=True,
    example="handclasp collect --token-file /etc/handclasp/token\n"
    "handclasp collect --once --source prod-cluster --token-file collector.token\n"
    "handclasp collect --files ~/kubeconfigs --kind kubernetes --kind istio",
)
@click.option(
    "--once",
    is_flag=True,
    help="End when there has been nothing to do for --patience; exit 1 when something could not be read, or asked for.",
)
@click.option("--patience", default="75s", show_default=True, metavar="DURATION", help="With --once: longer than what a killed one held.")
@click.option("--source", metavar="NAME", help="Read this source only.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Read sources of this kind only; may be given more than once.")
@click.option("--name", metavar="NAME", help="What this collector is called; without it the host's name.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 32), help="Parts that are read at once.")
@click.option(
    "--files",
    multiple=True,
    metavar="DIR",
    help=f"Directory of files that settings may name, such as kubeconfigs; the first is where relative names are [default: {FILES}].",
)
@log_level_option
@pass_state
def collect(
    state: State,
    once: bool,
    patience: str,
    source: str | None,
    kinds: tuple[str, ...],
    name: str | None,
    workers: int,
    files: tuple[str, ...],
    log_level: str,
) -> int:
    """Read the sources that run on collectors, in a cluster or anywhere near what they read, and hand what is there to the server.

    Runs until it is stopped. What a killed collector was reading, another goes on with a minute later. The token needs the scope
    sources:collect; its file is read again when it changes.
    """
    from handclasp.discovery.engine import Engine
    from handclasp.discovery.kinds import KINDS
    from handclasp.discovery.kubernetes.access import ACCOUNT
    from handclasp.discovery.remote import RemoteDesk

    unknown = sorted(set(kinds) - KINDS.keys())
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none: {', '.join(KINDS)}", param_hint="--kind")
    seconds = _patience(patience) if once else None
    terminal.start_logging(log_level)
    follow = _Follow(state)
    follow()  # what cannot be used is said at once
    desk = RemoteDesk(follow, name or socket.gethostname(), source=source, kinds=kinds)
    directories = [Path(directory).expanduser() for directory in files or (FILES,)]
    engine = Engine(desk, system_clock, workers=workers, secrets=[*directories, ACCOUNT])
    with contextlib.closing(follow):
        asyncio.run(_run(engine, desk, seconds))
    if once and desk.refused is not None:
        raise desk.refused
    if state.json:
        terminal.write_json({"given_up": desk.given_up})
    return 1 if once and desk.given_up else 0


class _Follow:
    """The connection to the server, made anew when the token or another setting is another one."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._settings: Any = None
        self._client: Any = None
        self._looked = float("-inf")
        self._stdin = state.token_file == "-"  # noqa: S105  (where the secret is, and not the secret)

    def __call__(self) -> Any:
        from handclasp.cli.connection import make_client, resolve

        if self._client is not None and (self._stdin or time.monotonic() - self._looked < _LOOK):
            return self._client
        try:
            settings = resolve(self._state)
        except HandclaspError:
            if self._client is None:
                raise
            settings = self._settings  # a file that is being written: what worked a moment ago still does
        self._looked = time.monotonic()
        if settings != self._settings:
            if not settings.token:
                raise HandclaspError(Kind.BAD_SETTING, "a collector needs a token", hint="handclasp token create --scope sources:collect")
            self.close()
            self._settings, self._client = settings, make_client(settings)
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


async def _run(engine: Engine, desk: RemoteDesk, patience: float | None) -> None:
    """Run until told to stop, or until nothing was there for ``patience`` seconds."""
    running = asyncio.create_task(engine.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    ending = asyncio.create_task(_end(running, desk, patience)) if patience is not None else None
    with contextlib.suppress(asyncio.CancelledError):
        await running
    if ending is not None:
        ending.cancel()


async def _end(running: asyncio.Task[None], desk: RemoteDesk, patience: float) -> None:
    left = patience
    while left > 0 and not desk.is_refused:
        await asyncio.sleep(min(left, 1.0))
        left = patience if desk.busy else desk.busy_at + patience - time.monotonic()
    running.cancel()


def _patience(text: str) -> float:
    try:
        return max(parse_duration(text), 0.1)
    except HandclaspError as error:
        raise click.BadParameter(error.detail, param_hint="--patience") from error
