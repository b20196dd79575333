"""What an agent does next for one identity: a pure function of what it has, what it should have, and the time.

Nothing here reads a file, a clock or a socket, so that every rule below can be tested as a table:

* no certificate, or one that has ended, or one for other names than are wanted now: issue;
* the renewal time that was drawn for this certificate has come: renew;
* a certificate that was revoked is not replaced by ourselves: whoever revoked it had a reason;
* a target that does not hold the newest content: deliver;
* nothing before its next attempt, which whoever failed has set.

Times are milliseconds since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from handclasp.client.renewal import is_due

FAR = 2**62


@dataclass(frozen=True, slots=True)
class Held:
    """The certificate that an agent holds. ``wanted`` is the digest of the configuration that it was obtained for."""

    sha256: str
    not_after: int
    renew_at: int
    renew_before: int
    wanted: str


@dataclass(frozen=True, slots=True)
class TargetView:
    """One target: digests of what it should hold (empty: nothing to deliver yet) and of what it is known to hold."""

    name: str
    content: str
    delivered: str
    failures: int = 0
    next_attempt: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """Everything that decides what happens to one identity."""

    wanted: str
    held: Held | None
    targets: tuple[TargetView, ...] = ()
    failures: int = 0
    next_attempt: int = 0
    blocked: bool = False
    """The certificate held was revoked."""
    can_issue: bool = True
    """False for the agent's own certificate where it cannot enrol again by itself."""


@dataclass(frozen=True, slots=True)
class Issue:
    """Obtain a certificate on the agent's own credential."""

    why: str


@dataclass(frozen=True, slots=True)
class Renew:
    """Renew the certificate held, as its holder."""

    why: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """Bring a target up to date."""

    target: str
    why: str


Action: TypeAlias = Issue | Renew | Deliver


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now, in order, and when to decide again if nothing else happens."""

    actions: tuple[Action, ...]
    wake_at: int


def decide(view: View, now: int) -> Decision:
    """Decide. With no action, ``wake_at`` is later than ``now``; after each action the caller decides afresh."""
    actions: list[Action] = []
    obtain_at, action = _obtain(view, now)
    if action is not None and obtain_at <= now:
        actions.append(action)
    wakes = [obtain_at]
    for target in view.targets:
        if not target.content or target.content == target.delivered:
            continue
        if target.failures == 0 or is_due(target.next_attempt, now):
            actions.append(Deliver(target.name, "delivered for the first time" if not target.delivered else "its content has changed"))
        else:
            wakes.append(target.next_attempt)
    return Decision(tuple(actions), max(min(wakes), now + 1))


def _obtain(view: View, now: int) -> tuple[int, Issue | Renew | None]:
    """When the next certificate is to be obtained, and how."""
    held = view.held
    attempt_at = now if is_due(view.next_attempt, now) else view.next_attempt
    if held is None:
        return (attempt_at, Issue("there is no certificate yet")) if view.can_issue else (FAR, None)
    if view.blocked:
        return FAR, None
    if now >= held.not_after:
        return (attempt_at, Issue("the certificate has ended")) if view.can_issue else (FAR, None)
    # Where other names are wanted and refused, the old certificate is kept alive meanwhile: it is what the service runs on.
    if view.can_issue and held.wanted != view.wanted and not (view.failures and now >= held.renew_at):
        return attempt_at, Issue("the configuration of the identity has changed")
    # A renewal time beyond the end is nobody's plan, but where one was given, the end is looked at in time.
    return max(min(held.renew_at, held.not_after), attempt_at), Renew("its renewal time has come")


def condition(view: View, now: int) -> str:
    """Return ``ok``, ``renewing``, ``overdue`` or ``failed``: what the agent reports and ``agent status`` shows."""
    held = view.held
    if held is None or now >= held.not_after or view.blocked or any(target.failures for target in view.targets):
        return "failed"
    if now > max(held.renew_before, held.renew_at):
        return "overdue"
    return "renewing" if now >= held.renew_at or held.wanted != view.wanted else "ok"
