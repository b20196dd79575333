"""What becomes of a certificate that was found: somebody decides, with a reason, and the log keeps it."""

from __future__ import annotations

from sqlalchemy import select, update

from handclasp.access.principals import Principal
from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind
from handclasp.log.entries import make_entry
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

DECISIONS: tuple[str, ...] = ("claimed", "dismissed", "investigate", "unmanaged")
"""It is ours and known; it is nobody's concern; somebody is at it; nobody has said anything (takes a decision back)."""

MAX_REASON = 1000


class Triage:
    """Decides about found certificates. Any number of calls at once; the last one counts, and every one is in the log."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def decide(self, sha256: bytes, decision: str, reason: str, by: Principal) -> int:
        """Record a decision, and return the place of its log entry. Durable on return.

        A decision changes nothing about where the certificate stands: what is dismissed is still there. Raises ``bad_request`` for an
        unknown decision, and for ``dismissed`` without a reason; ``not_found`` for a certificate that was not found, ``conflict`` for one
        that was issued here.
        """
        if decision not in DECISIONS:
            raise HandclaspError(Kind.BAD_REQUEST, f"{decision[:100]!r} is not a decision", hint=f"one of {', '.join(DECISIONS)}")
        reason = reason.strip()
        if len(reason) > MAX_REASON or not reason.replace("\n", " ").isprintable():
            raise HandclaspError(Kind.BAD_REQUEST, f"the reason is longer than {MAX_REASON} characters, or has some that do not print")
        if decision == "dismissed" and not reason:
            raise HandclaspError(Kind.BAD_REQUEST, "a certificate is dismissed for a reason", hint="say why nobody need look at it")
        found = tables.found
        row = await self._store.row(select(found.c.triage, tables.identity.c.name).join_from(
            found, tables.identity, tables.identity.c.id == found.c.identity_id, isouter=True).where(found.c.sha256 == sha256))  # fmt: skip
        if row is None:
            raise await self._not_found(sha256)
        now = self._clock()
        identity = row.name or ""
        entry = make_entry(
            "certificate.triaged",
            at=now,
            who=by.to_log(),
            what={
                "sha256": sha256.hex(), "decision": decision, "before": row.triage,
                "identity": "email" if identity.startswith("email:") else identity,
            },
            personal={"reason": reason} if "@" in reason else None,
            why={"reason": reason} if reason and "@" not in reason else None,
            subjects=[f"certificate:{sha256.hex()}"],
        )  # fmt: skip
        values = {"triage": decision, "triage_by": by.describe(), "triage_at": now, "triage_reason": reason or None}
        gone = HandclaspError(Kind.NOT_FOUND, "this certificate is not known any more")
        change = Change(update(found).where(found.c.sha256 == sha256).values(**values), expect=1, conflict=gone)
        return await self._store.ledger.commit(Write([entry], [change]))

    async def _not_found(self, sha256: bytes) -> HandclaspError:
        issued = await self._store.row(select(tables.certificate.c.sha256).where(tables.certificate.c.sha256 == sha256))
        if issued is not None:
            return HandclaspError(
                Kind.CONFLICT, "this certificate was issued here: there is nothing to decide", hint="revoke it, or have it replaced"
            )
        return HandclaspError(Kind.NOT_FOUND, "no certificate with this fingerprint was found")
