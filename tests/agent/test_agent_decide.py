"""The decision core: a table of situations, and what must hold in all of them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handclasp.agent.decide import FAR, Deliver, Held, Issue, Renew, TargetView, View, condition, decide

NOW = 1_800_000_000_000
HELD = Held("aa", NOW + 20_000, NOW + 10_000, NOW + 12_000, "w")
T, OLD, FAILED = TargetView("t", "new", "new"), TargetView("t", "new", "old"), TargetView("t", "new", "old", 2, NOW + 4_000)


@pytest.mark.parametrize(
    ("case", "view", "at", "actions", "wake", "state"),
    [
        ("no certificate: issue", View("w", None), 0, [Issue], 1, "failed"),
        ("no certificate, the last try failed: wait", View("w", None, failures=1, next_attempt=NOW + 900), 0, [], 900, "failed"),
        ("all well: sleep until the renewal time", View("w", HELD, (T,)), 0, [], 10_000, "ok"),
        ("the time has come: renew", View("w", HELD, (T,)), 10_000, [Renew], 10_001, "renewing"),
        ("renewal failed: wait", View("w", HELD, (T,), 1, NOW + 11_000), 10_500, [], 11_000, "renewing"),
        ("still failing after the window: overdue", View("w", HELD, (T,), 3, NOW + 14_000), 13_000, [], 14_000, "overdue"),
        ("the certificate has ended: issue", View("w", HELD, (T,)), 20_000, [Issue], 20_001, "failed"),
        ("the agent's own has ended: nothing helps but a person", View("w", HELD, can_issue=False), 20_000, [], FAR - NOW, "failed"),
        ("the agent's own is renewed", View("w", HELD, can_issue=False), 10_000, [Renew], 10_001, "renewing"),
        ("revoked: not replaced by ourselves", View("w", HELD, (T,), blocked=True), 15_000, [], FAR - NOW, "failed"),
        ("revoked and ended: still not", View("w", HELD, (T,), blocked=True), 25_000, [], FAR - NOW, "failed"),
        ("revoked: what was not delivered yet still is", View("w", HELD, (OLD,), blocked=True), 0, [Deliver], None, "failed"),
        ("other names are wanted: issue", View("v", HELD, (T,)), 0, [Issue], 1, "renewing"),
        ("other names are refused: the old is kept alive", View("v", HELD, (T,), 1, NOW), 10_000, [Renew], 10_001, "renewing"),
        ("the target is behind: deliver", View("w", HELD, (OLD,)), 0, [Deliver], 10_000, "ok"),
        ("delivery failed: wait", View("w", HELD, (FAILED,)), 0, [], 4_000, "failed"),
        ("delivery failed: again", View("w", HELD, (FAILED,)), 4_000, [Deliver], 10_000, "failed"),
        ("renew before delivering what is about to be replaced", View("w", HELD, (OLD,)), 10_000, [Renew, Deliver], 10_001, "renewing"),
        (
            "the clock went back a day after a failure: not a day of waiting",
            View("w", None, failures=1, next_attempt=NOW + 86_400_000),
            0,
            [Issue],
            1,
            "failed",
        ),
    ],
)
def test_table(case: str, view: View, at: int, actions: list[type], wake: int | None, state: str) -> None:
    decision = decide(view, NOW + at)
    assert [type(action) for action in decision.actions] == actions, case
    if wake is not None:
        assert decision.wake_at == NOW + wake, case
    assert condition(view, NOW + at) == state, case


times = st.integers(NOW - 100_000, NOW + 3_000_000)
views = st.builds(
    View,
    wanted=st.sampled_from(["w", "v"]),
    held=st.none() | st.builds(Held, st.just("aa"), times, times, times, st.just("w")),
    targets=st.lists(
        st.builds(TargetView, st.just("t"), st.sampled_from(["", "a", "b"]), st.sampled_from(["", "a"]), st.integers(0, 3), times)
    ).map(tuple),
    failures=st.integers(0, 3),
    next_attempt=times,
    blocked=st.booleans(),
    can_issue=st.booleans(),
)


@given(views, times)
def test_what_always_holds(view: View, now: int) -> None:
    decision = decide(view, now)
    held = view.held
    assert decision.wake_at > now
    obtains = [action for action in decision.actions if isinstance(action, (Issue, Renew))]
    assert len(obtains) <= 1
    if obtains:
        assert decision.actions[0] is obtains[0]
        assert not (view.blocked and held)
    if any(isinstance(action, Issue) for action in obtains):
        assert view.can_issue
        assert held is None or now >= held.not_after or held.wanted != view.wanted, "a good certificate is never issued again"
    if any(isinstance(action, Renew) for action in obtains):
        assert held is not None
        assert held.renew_at <= now < held.not_after, "never before the time that was drawn"
    for action in decision.actions:
        if isinstance(action, Deliver):
            assert any(target.name == action.target and target.content not in ("", target.delivered) for target in view.targets)


@example(View("w", Held("aa", NOW + 1, NOW + 2, NOW, "w"), can_issue=True), NOW)
@given(views, times)
def test_sleeping_until_the_wake_time_never_misses_anything(view: View, now: int) -> None:
    decision = decide(view, now)
    if not decision.actions and decision.wake_at < FAR:
        between = decide(view, (now + decision.wake_at) // 2)
        assert not between.actions or held_back_by_a_clock_that_went_back(view, now)


def held_back_by_a_clock_that_went_back(view: View, now: int) -> bool:
    return view.next_attempt - now > 1_200_000 or any(target.next_attempt - now > 1_200_000 for target in view.targets)
