"""A part of an agent, and the agent as its parts see it."""

from __future__ import annotations

import threading
from typing import Protocol

from handclasp.agent.anchors import Anchors
from handclasp.agent.config import Config
from handclasp.agent.hours import Hours
from handclasp.agent.roster import Roster
from handclasp.agent.state import StateDirectory
from handclasp.client.api import ApiClient


class Part(Protocol):
    """Something that runs beside the identities, in threads of its own."""

    def start(self) -> None:
        """Begin; raises ``HandclaspError`` or ``OSError`` when it cannot, and is then not stopped."""

    def stop(self) -> None:
        """End, and return when it has ended."""

    def problems(self) -> list[str]:
        """Return what needs a person now, in words."""


class Whole(Protocol):
    """What parts may use of the agent (:class:`handclasp.agent.loop.Agent`), from any thread."""

    identity: str
    """The agent's own."""
    config: Config
    roster: Roster
    """Who is looked after."""
    client: ApiClient
    """Asks the server, and shows the agent's own certificate."""
    anchors: Anchors
    state: StateDirectory
    clock: Hours
    poll: float
    """Seconds between two rounds."""
    stop: threading.Event
    """Set when the agent ends, and not when it only reads its configuration again."""
    troubles: dict[str, str]
    """Parts that could not start, and why."""

    def problems(self) -> list[str]:
        """Return what needs a person, besides what the identities say themselves."""
