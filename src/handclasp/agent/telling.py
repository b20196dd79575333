"""How an identity is, in the words that the server, ``agent status`` and the metrics show."""

from __future__ import annotations

from handclasp import wire
from handclasp.agent.decide import View, condition
from handclasp.agent.state import IdentityState, TargetState, target_condition
from handclasp.clock import rfc3339
from handclasp.errors import HandclaspError, Kind

_SHORT = 2000


def in_words(error: Exception) -> str:
    """Return what went wrong, and what to do about it where the error knows."""
    if not isinstance(error, HandclaspError):
        return f"{type(error).__name__}: {error}"
    if error.kind is Kind.SUPERSEDED:
        return f"another holder of this identity renewed it: {error.detail}"
    return f"{error.detail} ({error.hint})" if error.hint else error.detail


def tell(name: str, view: View, state: IdentityState, now: int) -> wire.AgentIdentity:
    """Return what the server is told about one identity."""
    sha256 = view.held.sha256 if view.held else None
    problems = [state.last_failure] if state.failures or view.blocked else []
    problems += [f"{target}: {one.last_failure}" for target, one in state.targets.items() if one.failures]
    return wire.AgentIdentity(
        identity=name,
        sha256=sha256,
        not_after=rfc3339(view.held.not_after) if view.held else None,
        renew_at=rfc3339(view.held.renew_at) if view.held else None,
        state=condition(view, now),
        targets=[_tell_target(target, one, sha256) for target, one in state.targets.items()],
        rotations=state.rotations,
        last_success=rfc3339(state.last_success) if state.last_success else None,
        last_failure="\n".join(problems)[:_SHORT] or None,
    )


def _tell_target(name: str, state: TargetState, sha256: str | None) -> wire.AgentTarget:
    return wire.AgentTarget(
        name=name[:1024],
        state=target_condition(state, sha256),
        sha256=state.certificate or None,
        last_success=rfc3339(state.last_success) if state.last_success else None,
        last_failure=state.last_failure[:_SHORT] or None,
    )
