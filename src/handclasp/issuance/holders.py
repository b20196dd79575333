"""Who holds a certificate of ours: the principal behind the client certificate that a handshake proved. For every door."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Protocol

from handclasp.access.enrolment import PREFIX as ENROLMENT
from handclasp.access.grants import AGENT_PROFILE
from handclasp.access.principals import CertificatePrincipal
from handclasp.access.tokens import Tokens
from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.enrolling import stored_labels
from handclasp.issuance.issue import Issuance
from handclasp.issuance.rulebook import Rulebook
from handclasp.pki.names import make_names
from handclasp.store.database import Store

_CERTIFICATE = (
    "SELECT i.name, c.names, c.profile, c.line, c.generation, c.granted_by, c.revoked_at, c.not_before, c.not_after,"
    " c.superseded_at FROM certificate c JOIN identity i ON i.id = c.identity_id WHERE c.sha256 = ?"
)


class _Rooms(Protocol):
    """What is needed to know a holder."""

    @property
    def store(self) -> Store: ...
    @property
    def tokens(self) -> Tokens: ...
    @property
    def rulebook(self) -> Rulebook: ...
    @property
    def issuance(self) -> Issuance: ...
    @property
    def clock(self) -> Clock: ...


async def holder_of(rooms: _Rooms, sha256: bytes) -> CertificatePrincipal:
    """Return the holder of one of our certificates, by the hash of all of it, with its state as it is at this moment.

    Raises ``not_authenticated`` where it is none of ours or has expired, ``revoked``, ``unavailable``.
    """
    row = await rooms.store.point(_CERTIFICATE, (sha256,))
    if row is None:
        raise HandclaspError(Kind.NOT_AUTHENTICATED, "this client certificate was not issued by this server")
    identity, names, profile, line, generation, granted_by, revoked_at, not_before, not_after, superseded_at = row
    if revoked_at is not None:
        raise HandclaspError(Kind.REVOKED, "this client certificate is revoked", hint="ask for a new token")
    if not_after <= rooms.clock():
        raise HandclaspError(Kind.NOT_AUTHENTICATED, "this client certificate has expired", hint="ask for a new token")
    others = json.loads(names)
    spiffe = identity if identity.startswith("spiffe://") else None
    return CertificatePrincipal(
        sha256=sha256,
        identity=identity,
        names=make_names(spiffe, others.get("dns", ()), others.get("ip", ()), others.get("email", ())),
        profile=profile,
        line=bytes(line),
        generation=generation,
        granted_by=granted_by,
        labels=await _labels(rooms, granted_by, identity) if profile == AGENT_PROFILE else {},
        is_agent=profile == AGENT_PROFILE,
        superseded_at=superseded_at,
        grace_is_over=superseded_at is not None and rooms.issuance.grace_is_over(superseded_at, not_before, not_after),
    )


async def _labels(rooms: _Rooms, granted_by: str, identity: str) -> Mapping[str, str]:
    """Return the labels of an agent: those of the token that its line began with, or those that its evidence gave."""
    if granted_by.startswith(ENROLMENT):
        return await stored_labels(rooms.store, (await rooms.rulebook.current()).policy, granted_by, identity)
    return await rooms.tokens.labels_of(granted_by)
