"""What callers hand to the ledger: a write, and the parts of which it is made. Rows and statements; nothing that does anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy.sql.base import Executable

from handclasp.errors import HandclaspError


class LoggedEntry(Protocol):
    """What the ledger needs of a log entry (see :class:`handclasp.log.entries.Entry`)."""

    @property
    def data(self) -> bytes:
        """The exact bytes that are hashed."""

    @property
    def personal(self) -> Sequence[tuple[str, bytes, str]]:
        """(field, salt, value) for each salted value in it."""

    @property
    def subjects(self) -> Sequence[str]:
        """What it is about, for look-ups."""


@dataclass(slots=True)
class Change:
    """One SQLAlchemy Core statement; with ``expect``, the whole write is undone unless it touches exactly that many rows."""

    statement: Executable
    expect: int | None = None
    conflict: HandclaspError | None = None
    rows: Sequence[Mapping[str, Any]] | None = None
    """When given, the statement runs once for each, with its bind parameters of these names; not together with ``expect``."""


@dataclass(slots=True)
class CertificateRow:
    """A certificate about to be recorded. Times in milliseconds, fingerprints raw. See ``store.tables.certificate`` for the columns."""

    sha256: bytes
    serial: bytes
    der: bytes
    authority_id: int
    identity: str
    owner: str | None
    profile: str
    names: str
    spki_sha256: bytes
    key_type: str
    not_before: int
    not_after: int
    renew_after: int
    renew_before: int
    line: bytes
    generation: int
    predecessor: bytes | None
    granted_by: str
    obtained_by: str
    crl_shard: int


@dataclass(slots=True)
class Write:
    """One unit that becomes durable as a whole or not at all."""

    entries: Sequence[LoggedEntry]
    changes: Sequence[Change] = ()
    certificate: CertificateRow | None = None
    spend_token: str | None = None
    """Id of the token of which this uses one; refused when none is left, or it was revoked meanwhile."""
    spend_jwt: tuple[str, str, int] | None = None
    """(issuer, jti, expires_at) of an OIDC token that may be used once."""
    claimant: str | None = None
    """Who takes the certificate's name as an agent's, where it must be free or theirs: ``token:ID`` or ``METHOD:SUBJECT``. Refused when
    another one's agent has it."""
    bump: bool = False
    """Tell every process that tokens, policy, profiles or authorities changed."""

    @property
    def is_judged(self) -> bool:
        """Whether there is anything beyond its own changes that may stop it."""
        return self.certificate is not None or self.spend_token is not None or self.spend_jwt is not None
