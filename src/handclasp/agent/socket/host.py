"""What the socket needs of the agent around it; :class:`handclasp.agent.loop.Agent` is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from handclasp import wire
from handclasp.agent.config import Managed
from handclasp.agent.content import Content
from handclasp.agent.state import StateDirectory


class Holder(Protocol):
    """The keeper of one identity, as far as it matters here."""

    @property
    def managed(self) -> Managed:
        """What it is the keeper of."""

    @property
    def told(self) -> wire.AgentIdentity:
        """How it is, for the server; may be read from any thread."""

    def content(self) -> Content | None:
        """Return what it holds now, or None while there is nothing that can be handed out."""


class Keepers(Protocol):
    """The agent's roster."""

    def add(self, managed: Managed, *, on_change: Callable[..., None] | None = None) -> Holder:
        """Look after an identity from now on; raises ``conflict`` where it is there with other settings."""

    def remove(self, name: str, slot: str = "") -> None:
        """Look after it no longer."""


class Trust(Protocol):
    """Bundles and revocation lists, by trust domain, as the agent holds them; nothing known is empty bytes."""

    def bundle(self, trust_domain: str) -> bytes:
        """Return the X.509 anchors (PEM)."""

    def crl(self, trust_domain: str) -> bytes:
        """Return the CRLs (PEM)."""

    def jwks(self, trust_domain: str) -> bytes:
        """Return the SPIFFE bundle (JSON)."""

    def watch(self, trust_domain: str) -> None:
        """Have all three refreshed from now on."""


class Server(Protocol):
    """The server, asked with the agent's own certificate."""

    def workloads(self, *, etag: str = "") -> tuple[wire.WorkloadList, str] | None:
        """Return the workloads that this agent may serve and their tag, or None while they are those with ``etag``."""

    def jwt_svid(self, request: wire.JwtSvidRequest) -> wire.JwtSvid:
        """Return a JWT-SVID."""


class Host(Protocol):
    """The agent. ``poll`` in seconds."""

    @property
    def roster(self) -> Keepers:
        """Who looks after certificates."""

    @property
    def client(self) -> Server:
        """The server."""

    @property
    def anchors(self) -> Trust:
        """Whom to trust."""

    @property
    def poll(self) -> float:
        """How often the server is asked for changes."""

    @property
    def state(self) -> StateDirectory:
        """What is on disk."""
