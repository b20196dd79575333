"""Where a certificate stands: what was issued held against what is seen. Pure; the only place that decides it.

Facts go in, one state comes out, with the moment at which time alone may change it. A certificate has one state; where several would fit,
the first in :data:`STATES` counts. Times are ms since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

UNISSUED = "unissued"
REVOKED_SERVED = "revoked_served"
EXPIRED_SERVED = "expired_served"
OLD_SERVED = "old_served"
FOREIGN = "foreign"
GONE = "gone"
SEEN = "seen"
UNSEEN = "unseen"
PAST = "past"

STATES: tuple[str, ...] = (UNISSUED, REVOKED_SERVED, EXPIRED_SERVED, OLD_SERVED, FOREIGN, GONE, SEEN, UNSEEN)
"""The states that people look at, the most urgent first."""
ALL_STATES: tuple[str, ...] = (*STATES, PAST)
"""``past`` too: was seen, and its time is over. It was replaced, ended or was revoked, and is nowhere any more, as it should be. So is what
was only ever listed, and has ended or is listed no more."""


@dataclass(frozen=True, slots=True)
class Graces:
    """How long what is normal for a moment may last. Milliseconds."""

    unseen: int = 3_600_000
    """A certificate that is younger need not have been seen yet."""
    old: int = 600_000
    """A certificate may be seen for so long beside its successor."""
    horizon: int = 0
    """For how long expired certificates that were issued here are remembered at least; what is first seen longer after its end and is not
    known may have been issued here and forgotten, so nothing is concluded from that it is not known. 0: nothing is ever forgotten."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about one certificate."""

    origin: str
    """``issued`` or ``found``."""
    not_after: int
    """0 where the source does not say, or it cannot be read."""
    first_seen_at: int | None = None
    """When it was first seen in use, for a found one also listed; None for one that was never seen."""
    open: int = 0
    """Places where it is now, served or stored."""
    listed: int = 0
    """Lists that name it now: a CA's, a log's, an imported one. That it exists is no use of it."""
    used: bool = True
    """For a found one: whether it was ever seen served or stored, and not only listed."""
    used_at: int | None = None
    """When it was last seen in use; None where that is not known, and then it is in use as long as ``open`` says so. A place that was not
    read since a certificate ended may have got another long ago."""
    replaced: bool = False
    """Whether, where it was last, another certificate came at the same moment or later."""
    superseded_at: int | None = None
    revoked_at: int | None = None
    ours: bool = False
    """For a found one: an authority of ours signed it."""
    issued_at: int = 0
    apart: bool = False
    """For an issued one: Handclasp itself holds it (its own listeners, its agents), so nobody need see it."""


RECHECK_MIN, RECHECK_MAX = 1_000, 300_000
"""Milliseconds between looks at whether a place was read again since what was seen there should have gone."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One state, and when to judge again if no fact changes; None for never."""

    state: str
    due_at: int | None = None


def judge(facts: Facts, now: int, graces: Graces) -> Judgement | None:
    """Return where a certificate stands at ``now``; None for one that was never seen, of which nothing need be said."""
    if facts.first_seen_at is None:
        return _never_seen(facts, now, graces)
    ended = bool(facts.not_after) and facts.not_after <= now
    end = facts.not_after or None
    if _unissued(facts, graces) and (facts.open or not ended):
        return Judgement(UNISSUED, None if facts.open or end is None else end)
    if facts.open:
        return _is_seen(facts, now, graces, ended, None if ended else end)
    over = facts.replaced or facts.superseded_at is not None or facts.revoked_at is not None
    if ended or over:
        return Judgement(PAST)
    if facts.origin == "found" and not facts.used:
        return Judgement(FOREIGN, end) if facts.listed else Judgement(PAST)
    return Judgement(GONE, end)


def _unissued(facts: Facts, graces: Graces) -> bool:
    """Tell whether it is ours by its signature, and cannot have been forgotten when it was first seen."""
    if facts.origin != "found" or not facts.ours:
        return False
    seen = facts.first_seen_at or 0
    return not graces.horizon or not facts.not_after or seen <= facts.not_after + graces.horizon


def _is_seen(facts: Facts, now: int, graces: Graces, ended: bool, end: int | None) -> Judgement:
    if facts.revoked_at is not None:
        return Judgement(REVOKED_SERVED)
    good = FOREIGN if facts.origin == "found" else SEEN
    if ended and _was_used(facts, facts.not_after):
        return Judgement(EXPIRED_SERVED)
    due = _again(facts.not_after, now) if ended else end
    if facts.superseded_at is None:
        return Judgement(good, due)
    old_at = facts.superseded_at + graces.old
    if old_at > now:
        return Judgement(good, min(old_at, due or old_at))
    if _was_used(facts, old_at):
        return Judgement(OLD_SERVED, due)
    return Judgement(good, min(_again(old_at, now), due or now + RECHECK_MAX))


def _was_used(facts: Facts, since: int) -> bool:
    """Tell whether it was seen in use at ``since`` or later. (What was revoked counts as in use until a place is read without it.)"""
    return facts.used_at is None or facts.used_at >= since


def _again(since: int, now: int) -> int:
    """Return when to look again: soon after the moment that counts, and more and more seldom."""
    return now + min(max((now - since) // 2, RECHECK_MIN), RECHECK_MAX)


def _never_seen(facts: Facts, now: int, graces: Graces) -> Judgement | None:
    """Return ``unseen`` for one that should have been seen by now: issued long enough ago, and still the one to use."""
    current = facts.superseded_at is None and facts.revoked_at is None and facts.not_after > now
    if facts.origin != "issued" or facts.apart or not current or facts.issued_at + graces.unseen > now:
        return None
    return Judgement(UNSEEN, facts.not_after)
