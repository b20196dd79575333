"""Properties of the times at which certificates are renewed and failures repeated."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from handclasp.client.renewal import LONGEST_RETRY, SHORTEST_RETRY, back_off, draw_renewal, is_due, retry_at

NOW = 1_800_000_000_000
draws = st.floats(0, 1, exclude_max=True)
lifetimes = st.integers(1_000, 30 * 86_400_000)


@given(lifetimes, draws)
def test_the_draw_lies_in_the_window_and_leaves_time_to_try_again(lifetime: int, draw: float) -> None:
    after, before, end = NOW + lifetime * 5 // 10, NOW + lifetime * 6 // 10, NOW + lifetime
    drawn = draw_renewal(after, before, end, NOW, lambda: draw)
    assert after <= drawn <= max(before, NOW + 1000)


@given(st.integers(-(10**9), 10**9), draws)
def test_a_wrong_clock_never_makes_a_loop(skew: int, draw: float) -> None:
    now = NOW + skew
    assert draw_renewal(NOW + 10_000, NOW + 12_000, NOW + 20_000, now, lambda: draw) >= now + 1000


@given(lifetimes, st.integers(0, 10**8), draws)
def test_one_try_in_each_interval_and_never_a_tight_loop(lifetime: int, late: int, draw: float) -> None:
    after, before, end = NOW + lifetime * 5 // 10, NOW + lifetime * 6 // 10, NOW + lifetime
    now = before + late
    wait = retry_at(now, renew_after=after, renew_before=before, not_after=end, random=lambda: draw) - now
    spread = max(before - after, SHORTEST_RETRY)
    assert SHORTEST_RETRY // 2 <= wait <= 1.5 * min(spread, LONGEST_RETRY)


def test_an_outage_until_shortly_before_the_end_is_survived() -> None:
    # A 20 s certificate whose server is away from its renewal until 17 s: some try falls into the last three seconds.
    after, before, end = NOW + 10_000, NOW + 12_000, NOW + 20_000
    for draw in (0.0, 0.5, 0.999):
        now, tries = before, []
        while now < end:
            tries.append(now)
            now = retry_at(now, renew_after=after, renew_before=before, not_after=end, random=lambda d=draw: d)
        assert any(NOW + 17_000 <= at < end for at in tries), draw
        assert len(tries) < 20


@given(st.integers(1, 200), draws)
def test_back_off_grows_and_is_bounded(failures: int, draw: float) -> None:
    assert SHORTEST_RETRY <= back_off(NOW, failures, lambda: draw) - NOW <= 90_000


def test_the_servers_wish_is_kept_up_to_a_limit() -> None:
    assert retry_at(NOW, renew_after=NOW, renew_before=NOW, not_after=NOW, random=lambda: 0.0, retry_after=30) == NOW + 30_000
    assert back_off(NOW, 1, lambda: 0.0, retry_after=10**9) == NOW + LONGEST_RETRY


def test_a_clock_that_went_back_does_not_postpone_for_hours() -> None:
    assert is_due(NOW, NOW)
    assert not is_due(NOW + 1000, NOW)
    assert is_due(NOW + 86_400_000, NOW)
