"""What is different at the locations of one write: sightings that begin and end, what that makes certificates stand for, and whose owner
is to be derived again. No database: rows in, statements out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row

from handclasp.inventory import statements
from handclasp.inventory.newcomers import Known
from handclasp.inventory.rows import LISTED, SERVED, STANDING_ROLES, USE_ROLES, Look, json_text
from handclasp.inventory.states import Facts, Graces, judge
from handclasp.ownership.due import DUE_BY_NAME
from handclasp.store.writes import Change

Open = dict[tuple[bytes, str], Row[Any]]
"""Open sightings of one location, by fingerprint and role."""


@dataclass(slots=True)
class Outcome:
    """What came of it, for whoever asked and for what is done next."""

    fresh: int = 0
    gone: int = 0
    unreadable: int = 0
    judged: set[bytes] = field(default_factory=set)
    """Certificates that were seen anew or no more."""
    woken: bool = False
    """Whether something came to a place that was known: what disappeared there before is judged again."""


class Differences:
    """Collects what begins and ends at the locations of one write."""

    def __init__(
        self, source_id: int, now: int, known: dict[bytes, Known], graces: Graces, outcome: Outcome, learnt: Collection[bytes] = ()
    ) -> None:
        """``learnt``: of these the bytes came just now, and say more than was known."""
        self._source_id = source_id
        self._now = now
        self._known = known
        self._graces = graces
        self._outcome = outcome
        self._ended: list[dict[str, Any]] = []
        self._opened: list[dict[str, Any]] = []
        self._stands: dict[bytes, dict[str, Any]] = {}
        self._learnt = frozenset(learnt)
        self._doubts: set[bytes] = set(learnt)
        self._arrived: dict[int, None] = {}
        self._due: dict[str, int] = {}

    def add(self, look: Look, row: Row[Any] | None, before: Open) -> None:
        """Add one location: what is there now (``look``), and the sightings that were open."""
        for (sha256, role), sighting in before.items():
            if (sha256, role) not in look.sightings:
                last = sighting.seen_at or look.at
                self._ended.append({"location_id": sighting.location_id, "sha256": sha256, "role": role, "at": look.at, "last": last})
                self._outcome.gone += 1
                if role in STANDING_ROLES:
                    self._doubts.add(sha256)
        for (sha256, role), (chain, how) in look.sightings.items():
            there = before.get((sha256, role))
            if there is not None and (there.chain, there.how) == (chain, how):
                continue
            self._opened.append(
                {"source_id": self._source_id, "key": look.key, "sha256": sha256, "role": role, "chain": chain, "how": how, "at": look.at}
            )
            if there is None:
                self._stand(sha256, role, look.at)
                if row is not None and role in USE_ROLES:
                    self._arrived[row.id] = None
        self._is_due(look, row, before)

    def _stand(self, sha256: bytes, role: str, at: int) -> None:
        known = self._known[sha256]
        if not _counts(known, role):
            return
        if role == LISTED and known.origin == "issued":
            return  # that it exists was known
        self._outcome.judged.add(sha256)
        used = role in USE_ROLES
        facts = Facts(
            known.origin, known.not_after, at, int(used), int(role == LISTED), used, at,
            superseded_at=known.superseded_at, revoked_at=known.revoked_at, ours=known.is_unissued,
        )  # fmt: skip
        judgement = judge(facts, self._now, self._graces)
        assert judgement is not None
        if sha256 not in self._stands and not known.is_seen:
            self._outcome.fresh += 1
        self._stands.setdefault(
            sha256,
            {
                "sha256": sha256, "origin": known.origin, "state": judgement.state, "now": self._now, "identity": known.identity or None,
                "not_after": known.not_after, "at": at, "open": facts.open,
            },
        )  # fmt: skip

    def _is_due(self, look: Look, row: Row[Any] | None, before: Open) -> None:
        """Note whose owner is to be derived again: those that are new here, or all where what says so changed."""
        same_facts = row is not None and row.content is not None and row.facts == json_text(look.observed.facts)
        there = {
            self._known[sha256].identity
            for sha256, role in before
            if role in STANDING_ROLES and sha256 in self._known and sha256 not in self._learnt
        }
        for sha256, role in look.sightings:
            identity = self._known[sha256].identity
            if identity and role in STANDING_ROLES and not (same_facts and identity in there):
                self._due[identity] = look.at

    def changes(self) -> list[Change]:
        """Return what is to be written, in its order."""
        self._outcome.judged |= self._doubts
        self._outcome.woken = bool(self._arrived)
        doubts = [{"sha256": one} for one in sorted(self._doubts - self._stands.keys())]
        due = [{"identity": identity, "at": at} for identity, at in sorted(self._due.items())]
        todo: list[tuple[Any, list[dict[str, Any]]]] = [
            (statements.end_sighting, self._ended),
            (statements.open_sighting, self._opened),
            (statements.doubt_gone, [{"location_id": one} for one in self._arrived]),
            (statements.doubt, doubts),
            (statements.stand, list(self._stands.values())),
            (DUE_BY_NAME, due),
        ]
        return [Change(statement, rows=rows) for statement, rows in todo if rows]


def _counts(known: Known, role: str) -> bool:
    """Tell whether a certificate stands for something because it is seen in this role.

    An authority's does not, wherever it is kept or trusted. One that a server shows as its own does: whoever makes a certificate for an
    appliance often lets it say that it is an authority.
    """
    if known.is_rogue_authority:
        return True
    if known.is_ca:
        return role == SERVED and not known.is_ours
    return role in STANDING_ROLES
