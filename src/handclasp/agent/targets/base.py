"""What every kind of target has in common: the place, what happens after a delivery, and how it is interrupted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from handclasp.agent.content import Content

Wait = Callable[[float], bool]
"""Waits that many seconds; returns True, at once, when the agent is to stop."""


class Interrupted(Exception):  # noqa: N818  (it is no error: the agent was told to stop, and finishes the delivery when it starts again)
    """The agent stops in the middle of a delivery."""


class Place(Protocol):
    """A place of delivery.

    ``kind`` is its word in ``agent.yaml`` (``type``), ``name`` is unique among all targets of an agent and shown everywhere, ``crl`` says
    whether revocation lists belong to what it holds.
    """

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def crl(self) -> bool: ...  # noqa: D102

    def digest(self, content: Content, /) -> str:
        """Digest of what the place is to hold, its own settings included: another one means another delivery."""


@dataclass(frozen=True, slots=True)
class Around:
    """What a delivery is given besides its content. ``identity`` is the name of the identity, ``timeout`` is in seconds.

    ``agent`` is the agent's own identity.
    """

    identity: str
    wait: Wait
    timeout: float
    agent: str = ""


@runtime_checkable
class Delivers(Place, Protocol):
    """A place that is not made of files in generations, and delivers by itself."""

    def deliver(self, content: Content, confirmed: str, around: Around, /) -> str:
        """Deliver and return what names this delivery (``confirmed`` the next time); it may be repeated, and interrupted anywhere.

        Raises ``delivery_failed`` when a step failed and what was there before is back, ``OSError`` when nothing could be written,
        :class:`Interrupted` when ``around.wait`` says that the agent stops.
        """


@dataclass(frozen=True, slots=True)
class Drift:
    """A place is no longer as it was delivered. ``expected``: nobody's doing, and nothing that a person need hear of."""

    words: str
    expected: bool = False


@runtime_checkable
class Watched(Place, Protocol):
    """A place that others can change, or that can end, without our doing: it is looked at in each poll (``targets.watch``)."""

    def drift(self, confirmed: str, around: Around, /) -> Drift | None:
        """Say how it differs from what ``confirmed`` names; None while it does not. It must be cheap. Raises as ``deliver`` does."""


@dataclass(frozen=True, slots=True)
class Call:
    """An HTTP request to an administrative interface of this host: over loopback, or over a unix socket.

    ``target`` is path and query. ``expect`` lists the status codes that mean success. ``body_file`` is sent when it is given.
    """

    host: str
    port: int
    target: str
    socket: Path | None = None
    method: str = "POST"
    expect: tuple[int, ...] = (200, 201, 202, 204)
    headers: tuple[tuple[str, str], ...] = ()
    body_file: Path | None = None

    def __str__(self) -> str:
        """Show it as an address."""
        return f"{self.socket}:{self.target}" if self.socket else f"http://{self.host}:{self.port}{self.target}"


@dataclass(frozen=True, slots=True)
class Reload:
    """How a service is told; exactly one of: a command, a signal to the process in a pid file, a systemd unit, an HTTP call."""

    command: tuple[str, ...] = ()
    signal: int = 0
    pidfile: Path | None = None
    unit: str = ""
    action: str = "reload"
    http: Call | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """Where to see what the service serves: ``host`` and ``port``, or a unix ``socket``. ``starttls`` is a word of ``client.starttls``."""

    host: str
    port: int
    server_name: str
    starttls: str = "none"
    socket: Path | None = None

    @property
    def where(self) -> str:
        """The address as people write it."""
        return str(self.socket) if self.socket else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """One place of delivery and what happens after it. ``timeout`` (seconds) bounds each command, and the look as a whole.

    ``preset`` names the one that filled what the configuration left out, and is empty without one. ``helper`` is the
    socket of the privileged helper where that writes the files and does what comes before the look; None: the agent does.
    """

    name: str
    place: Place
    validate: tuple[str, ...] = ()
    reload: Reload | None = None
    look: Look | None = None
    timeout: float = 30
    preset: str = ""
    helper: Path | None = None
