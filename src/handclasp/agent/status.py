"""What ``agent check``, ``agent plan``, ``agent status`` and ``agent forget`` do; read from disk, without the server."""

from __future__ import annotations

import os

import msgspec

from handclasp.agent.config import Config, Managed, load_config
from handclasp.agent.decide import Deliver, Issue, TargetView, View, condition, decide
from handclasp.agent.evidence import warning as enrolment_warning
from handclasp.agent.held import what_is_held
from handclasp.agent.loop import state_directory
from handclasp.agent.state import IdentityState, IdentityStore, StateDirectory, target_condition
from handclasp.agent.targets.words import steps
from handclasp.clock import Clock, rfc3339, system_clock
from handclasp.errors import HandclaspError, Kind


class PlannedTarget(msgspec.Struct, kw_only=True):
    """What a delivery to one target does, step by step in words; ``preset`` (may be empty) filled what the configuration left out."""

    name: str
    preset: str
    steps: list[str]


class Planned(msgspec.Struct, kw_only=True):
    """What an agent would do for one identity, in words, and when (RFC 3339; empty: never by itself)."""

    identity: str
    at: str
    actions: list[str]
    targets: list[PlannedTarget] = []


class TargetStatus(msgspec.Struct, kw_only=True):
    """One target: the certificate that it was last seen with, and what is wrong."""

    name: str
    state: str
    sha256: str | None
    last_success: str | None
    last_failure: str | None
    last_failure_at: str | None = None


class IdentityStatus(msgspec.Struct, kw_only=True):
    """One identity. ``state`` is ``ok``, ``renewing``, ``overdue`` or ``failed``; ``slot`` names the part of the agent that wants it."""

    identity: str
    state: str
    sha256: str | None
    not_after: str | None
    renew_at: str | None
    rotations: int
    last_success: str | None
    last_failure: str | None
    targets: list[TargetStatus]
    last_failure_at: str | None = None
    slot: str = ""


class Status(msgspec.Struct, kw_only=True):
    """The whole agent; the first identity is its own. ``healthy`` is False when anything needs a person: ``todo`` says what to do."""

    agent: str
    url: str
    running: bool
    healthy: bool
    identities: list[IdentityStatus]
    todo: list[str] = msgspec.field(default_factory=list)


def check(config_path: str | os.PathLike[str]) -> Config:
    """Return the configuration when it can be used; raise one ``bad_setting`` naming every problem with its line."""
    return load_config(config_path)


def plan(
    config_path: str | os.PathLike[str], state_dir: str | os.PathLike[str] | None = None, *, clock: Clock = system_clock
) -> list[Planned]:
    """Return what an agent with this configuration would do next, identity by identity. Changes nothing; raises ``bad_setting``."""
    config = load_config(config_path)
    state = StateDirectory(state_directory(config, state_dir))
    found = []
    for managed in config.identities:
        planned = _planned(managed, state.identity(managed.name), clock())
        planned.targets = [PlannedTarget(name=one.name, preset=one.preset, steps=steps(one)) for one in managed.targets]
        found.append(planned)
    return found


def status(state_dir: str | os.PathLike[str], *, clock: Clock = system_clock) -> Status:
    """Return how an agent is doing, whether it runs or not. Raises ``bad_setting`` when none is enrolled there."""
    state = StateDirectory(state_dir)
    agent = state.agent()
    running, now = _is_running(state), clock()
    stores = [(agent.identity, "agent", state.own), *((name, slot, state.identity(name, slot)) for slot, name in state.managed())]
    found = [_identity_status(name, slot, store, now) for name, slot, store in stores]
    todo = state.problems() if running else ["the agent does not run: start it, for example with `systemctl start handclasp-agent`"]
    ending = enrolment_warning(agent, state.own.obtained(), now)
    todo += [ending] if ending and ending not in todo else []
    todo += [f"{one.identity}: {words}" for one, view in found for words in _todo(one, view, now)]
    identities = [one for one, _ in found]
    return Status(agent=agent.identity, url=agent.url, running=running, healthy=not todo, identities=identities, todo=todo)


def forget(state_dir: str | os.PathLike[str], identity: str) -> None:
    """Drop the certificate held for ``identity``, so that another is issued when the agent starts again.

    This is how a person allows it after a revocation. Raises ``conflict`` while the agent runs, ``not_found`` for an identity that it does
    not look after.
    """
    state = StateDirectory(state_dir)
    state.agent()
    with state.lease():
        store = state.identity(identity)
        if not store.home.is_dir():
            raise HandclaspError(Kind.NOT_FOUND, f"the agent does not look after {identity}")
        store.forget()
        known = store.load()
        store.save(IdentityState(identity=known.identity, rotations=known.rotations, targets=known.targets))


def _is_running(state: StateDirectory) -> bool:
    try:
        with state.lease():
            return False
    except HandclaspError:
        return True


def _view(store: IdentityStore, names: list[str] | None, wanted: str | None, now: int) -> tuple[View, IdentityState]:
    """The view of the keeper, but with the certificate itself in place of the digests of contents."""
    state = store.load()
    held = what_is_held(store.obtained(), state, now)
    targets = {name: state.targets.get(name) for name in (names if names is not None else state.targets)}
    content = held.sha256 if held else ""
    return View(
        wanted=wanted if wanted is not None else held.wanted if held else "",
        held=held,
        targets=tuple(
            TargetView(name, content, target.certificate, target.failures, target.next_attempt) if target else TargetView(name, content, "")
            for name, target in targets.items()
        ),
        failures=state.failures,
        next_attempt=state.next_attempt,
        blocked=held is not None and state.blocked == held.sha256,
    ), state


def _planned(managed: Managed, store: IdentityStore, now: int) -> Planned:
    view, _ = _view(store, [target.name for target in managed.targets], managed.digest, now)
    decision = decide(view, now)
    if not decision.actions:
        later = decide(view, decision.wake_at) if not view.blocked else decision
        return Planned(
            identity=managed.name, at="" if view.blocked else rfc3339(decision.wake_at), actions=[_words(a) for a in later.actions]
        )
    actions = [_words(action) for action in decision.actions]
    if any(isinstance(action, Issue) for action in decision.actions):
        actions += [f"deliver to {target.name}: its certificate is new" for target in managed.targets]
    return Planned(identity=managed.name, at=rfc3339(now), actions=actions)


def _words(action: object) -> str:
    if isinstance(action, Deliver):
        return f"deliver to {action.target}: {action.why}"
    return f"{type(action).__name__.lower()}: {getattr(action, 'why', '')}".rstrip(": ")


def _identity_status(name: str, slot: str, store: IdentityStore, now: int) -> tuple[IdentityStatus, View]:
    view, state = _view(store, None, None, now)
    held = view.held
    return IdentityStatus(
        identity=name,
        slot=slot,
        state=condition(view, now),
        sha256=held.sha256 if held else None,
        not_after=rfc3339(held.not_after) if held else None,
        renew_at=rfc3339(held.renew_at) if held else None,
        rotations=state.rotations,
        last_success=_time(state.last_success),
        last_failure=state.last_failure or None,
        last_failure_at=_time(state.last_failure_at),
        targets=[
            TargetStatus(
                name=target_name,
                state=target_condition(target, held.sha256 if held else None),
                sha256=target.certificate or None,
                last_success=_time(target.last_success),
                last_failure=target.last_failure or None,
                last_failure_at=_time(target.last_failure_at),
            )
            for target_name, target in state.targets.items()
        ],
    ), view


def _time(at: int) -> str | None:
    return rfc3339(at) if at else None


def _todo(one: IdentityStatus, view: View, now: int) -> list[str]:
    """What a person should do about an identity, or nothing."""
    if one.state in ("ok", "renewing"):
        return []
    said = f": {one.last_failure}" if one.last_failure else ""
    own = one.slot == "agent"
    if view.blocked:
        after = "enrol this host again" if own else f"find out why, then stop the agent and run `handclasp agent forget {one.identity}`"
        return [f"it is not renewed any more{said}; {after}"]
    if view.held is None or now >= view.held.not_after:
        what = "there is no certificate yet" if view.held is None else "its certificate has ended"
        return [f"{what}{said}" + ("; enrol this host again with `handclasp agent enroll`" if own else "")]
    failed = [_failed(target) for target in one.targets if target.state == "failed"]
    return failed or [f"its renewal is overdue, and tried again by itself{said}"]


def _failed(target: TargetStatus) -> str:
    """A delivery that fails: what is in use meanwhile, and why."""
    now = "the previous certificate is in place" if target.last_success else "no certificate has been taken there yet"
    return f"{target.name}: {now}, and it is tried again by itself; see to the service: {target.last_failure}"
