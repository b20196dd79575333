"""What a door may use of the rooms below: the server hands its own services to each door, which sees no more of them than this."""

from __future__ import annotations

from typing import Protocol

from handclasp.access.clusters import Clusters
from handclasp.access.limits import Limiter
from handclasp.access.tokens import Tokens
from handclasp.authority.authorities import Authorities
from handclasp.clock import Clock
from handclasp.issuance.issue import Issuance
from handclasp.issuance.rulebook import Rulebook
from handclasp.store.database import Store


class Rooms(Protocol):
    """One installation, as one process sees it."""

    @property
    def store(self) -> Store:
        """For look-ups, and for entries of the log that say who was refused."""

    @property
    def authorities(self) -> Authorities:
        """For chains and anchors."""

    @property
    def rulebook(self) -> Rulebook:
        """For the rules in force."""

    @property
    def tokens(self) -> Tokens:
        """For what a certificate's line began with."""

    @property
    def clusters(self) -> Clusters:
        """For service accounts."""

    @property
    def issuance(self) -> Issuance:
        """The one way to a certificate."""

    @property
    def clock(self) -> Clock:
        """The time."""

    @property
    def principal_limit(self) -> Limiter:
        """Requests of one caller."""

    @property
    def refused_limit(self) -> Limiter:
        """Refused requests of one caller, or from one network."""

    @property
    def request_timeout(self) -> float:
        """Seconds that one request may take."""
