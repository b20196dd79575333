"""What each state means and what is to be done about it, in words: the same for the command line, the API and the console. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from handclasp.clock import parse_rfc3339
from handclasp.inventory import states
from handclasp.wire import Identity
from handclasp.wire.inventory import MayIssue, NextStep, Standing
from handclasp.wire.ownership import Assignment

ALARM, ATTENTION, FINE = "alarm", "attention", "fine"


@dataclass(frozen=True, slots=True)
class Words:
    """One reconciliation state in words."""

    title: str
    meaning: str
    advice: str
    level: str


STANDINGS: dict[str, Words] = {
    states.UNISSUED: Words(
        "signed by our authority, never issued here",
        "The signature is that of an authority of ours, and the log has no such certificate: somebody else used its key.",
        "Treat the authority's key as lost until you know who signed it: find where it is served, revoke what else that key signed, "
        "and replace the authority.",
        ALARM,
    ),
    states.REVOKED_SERVED: Words(
        "revoked, and still served",
        "It was revoked, and something still shows it to clients.",
        "Deliver the successor and reload what serves it; clients that check revocation refuse it already.",
        ALARM,
    ),
    states.EXPIRED_SERVED: Words(
        "expired, and still served",
        "Its time is over, and something still shows it to clients.",
        "Renew it where it is served, and reload; then put an agent there, so that it does not happen again.",
        ALARM,
    ),
    states.OLD_SERVED: Words(
        "renewed, and the old one still served",
        "Its successor was issued, and something still shows the old one.",
        "Reload what serves it: the new certificate was obtained and not put in use.",
        ATTENTION,
    ),
    states.FOREIGN: Words(
        "of a foreign issuer",
        "It was seen, and no authority of ours signed it.",
        "Claim it for its owner, dismiss it with a reason (both: handclasp cert triage), or replace it with one issued here.",
        ATTENTION,
    ),
    states.GONE: Words(
        "disappeared",
        "It is still valid, and is not where it was seen; nothing was seen in its place.",
        "Find out whether what used it was shut down; if so, revoke it.",
        ATTENTION,
    ),
    states.SEEN: Words("issued and seen", "It was issued here and is where it should be.", "", FINE),
    states.UNSEEN: Words(
        "issued, never seen",
        "It was issued some time ago, it is the current one, and no source has seen it.",
        "Add a source that reads where it is used, or ask its owner whether it is used at all.",
        ATTENTION,
    ),
}
"""Each state that people look at, in words."""


def describe(state: str, count: int) -> Standing:
    """Return one state with its count, as the API shows it."""
    words = STANDINGS[state]
    return Standing(
        standing=state, count=count, title=words.title, meaning=words.meaning, advice=words.advice, level=words.level if count else FINE
    )


@dataclass(frozen=True, slots=True)
class Subject:
    """What is known of an identity when its next steps are asked for."""

    identity: Identity
    standing: Sequence[Any]
    """Rows with ``sha256``, ``state`` and ``open``, of certificates that do not stand as they should."""
    evidence: Sequence[Assignment]
    grants: Sequence[MayIssue]
    agents: Sequence[str]
    denied_by: str | None


def next_steps(subject: Subject, now: int) -> list[NextStep]:
    """Return what is to be done about an identity, the most urgent first; nothing when all is well."""
    steps = [*_standing_steps(subject), *_renewal_steps(subject, now), *_owner_steps(subject, now)]
    return sorted(steps, key=lambda step: step.level != ALARM)


def _standing_steps(subject: Subject) -> list[NextStep]:
    order = {state: place for place, state in enumerate(states.STATES)}
    steps = []
    for row in sorted(subject.standing, key=lambda one: order.get(one.state, len(order))):
        words = STANDINGS.get(row.state)
        if words is None or not words.advice:
            continue
        places = f", at {row.open} place{'' if row.open == 1 else 's'}" if row.open else ""
        sha256 = bytes(row.sha256).hex()
        steps.append(
            NextStep(
                kind=row.state,
                level=words.level,
                text=f"the certificate {sha256[:16]} is {words.title}{places}. {words.advice}",
                command=f"handclasp cert triage {sha256} --claim" if row.state == states.FOREIGN else f"handclasp cert show {sha256}",
                sha256=sha256,
            )
        )
    return steps


def _renewal_steps(subject: Subject, now: int) -> list[NextStep]:
    one = subject.identity
    steps = []
    if subject.denied_by is not None:
        steps.append(
            NextStep(
                kind="denied",
                level=ATTENTION,
                text=f"the deny rule {subject.denied_by} keeps everybody from renewing it",
                command="handclasp policy show",
            )
        )
    if one.newest_origin != "issued" or one.newest_not_after is None:
        return steps
    held = f"; looked after by {', '.join(subject.agents)}" if subject.agents else "; no agent looks after it"
    command = f"handclasp agent show {subject.agents[0]}" if subject.agents else ""
    if one.state == "expired":
        age = now - parse_rfc3339(one.newest_not_after)
        steps.append(
            NextStep(
                kind="expired",
                level=ALARM if age < 604_800_000 else ATTENTION,
                text=f"its newest certificate ended {one.newest_not_after} and was not renewed{held}",
                command=command,
                sha256=one.newest,
            )
        )
    elif one.state == "overdue":
        steps.append(
            NextStep(
                kind="overdue",
                level=ALARM,
                text=f"renewal is overdue since {one.newest_renew_before}, and the certificate ends {one.newest_not_after}{held}",
                command=command,
                sha256=one.newest,
            )
        )
    if one.state in ("ok", "overdue") and not subject.grants and not subject.agents and subject.denied_by is None:
        text = "no grant and no token covers its name any more: it can be renewed only by the grant that it began with"
        steps.append(NextStep(kind="no_grant", level=ATTENTION, text=text, command="handclasp policy show"))
    return steps


def _owner_steps(subject: Subject, now: int) -> list[NextStep]:
    one = subject.identity
    if one.owner is None:
        said = next((f"; {e.owner} is a guess ({e.rule})" for e in subject.evidence if e.owner and e.evidence != "denied"), "")
        command = f"handclasp identity assign {one.identity} --owner OWNER --reason REASON"
        return [NextStep(kind="unowned", level=ATTENTION, text=f"nobody owns it{said}", command=command)]
    steps = []
    others = sorted({e.owner for e in subject.evidence if e.owner and e.owner != one.owner and e.evidence != "denied"})
    if any(e.stands in ("disputed", "contested") for e in subject.evidence) and others:
        text = f"it is {one.owner}'s, and something says that it is {' or '.join(others)}'s"
        command = f"handclasp identity assign {one.identity} --owner {one.owner} --reason REASON"
        steps.append(NextStep(kind="conflict", level=ATTENTION, text=text, command=command))
    for e in subject.evidence:
        if e.confirm_by is not None and parse_rfc3339(e.confirm_by) <= now:
            text = f"{e.owner or one.owner} is to confirm again that it is theirs, since {e.confirm_by}"
            steps.append(NextStep(kind="confirm", level=ATTENTION, text=text, command=f"handclasp owner ask {e.owner or one.owner}"))
    return steps
