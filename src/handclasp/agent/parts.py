"""Parts of an agent that only run where they are configured: each is imported when it is."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from handclasp.agent.config import Config
from handclasp.agent.part import Part, Whole
from handclasp.agent.seal import Seal, read_key
from handclasp.errors import HandclaspError

if TYPE_CHECKING:
    from handclasp.agent.config.socket import SocketSettings

_log = logging.getLogger("handclasp.agent")
_CHILDREN = "handclasp.agent.targets.exec"
"""Loaded where there are children: those that the configuration no longer has must be stopped."""


def state_seal(config: Config) -> Seal:
    """Return how private keys are kept; raise ``bad_setting`` when the key for that cannot be read."""
    found = config.section("state_key")
    if found is None:
        return Seal()
    return Seal(read_key(found.file), read_key(found.previous) if found.previous else None)


def start_parts(agent: Whole) -> list[Part]:
    """Start everything that is configured. What cannot start is said, and keeps no certificate from being renewed."""
    started: list[Part] = []
    for name, make in _MAKERS.items():
        settings = agent.config.section(name)
        if settings is None:
            continue
        try:
            part = make(agent, settings)
            part.start()
        except (HandclaspError, OSError) as error:
            agent.troubles[name] = f"the {name} part cannot start: {error}"
            _log.error("%s", agent.troubles[name])
            continue
        started.append(part)
    if any(hasattr(target.place, "drift") for managed in agent.config.identities for target in managed.targets) or _CHILDREN in sys.modules:
        from handclasp.agent.targets.watch import Watch

        watch = Watch(agent)
        watch.start()
        started.append(watch)
    return started


def _metrics(agent: Whole, settings: tuple[str, int]) -> Part:
    from handclasp.agent.metrics import Metrics

    return Metrics(agent, settings)


def _socket(agent: Whole, settings: SocketSettings) -> Part:
    from handclasp.agent.socket.server import SocketServer

    return SocketServer(agent, settings, clock=agent.clock)


_MAKERS: dict[str, Callable[..., Part]] = {"metrics": _metrics, "socket": _socket}
