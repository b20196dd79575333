"""Rate limits and the guard over outgoing connections."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.access.egress import check_address, check_url
from handclasp.access.limits import Limiter
from handclasp.errors import HandclaspError, Kind
from support.access import or_refused


class Time:
    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now


def passes(limiter: Limiter, key: str = "a", cost: int = 1) -> bool:
    with or_refused(Kind.RATE_LIMITED):
        limiter.check(key, cost)
        return True
    return False


def test_a_burst_then_the_rate() -> None:
    time = Time()
    limiter = Limiter(10, 5, time)
    assert [passes(limiter) for _ in range(6)] == [True] * 5 + [False]
    time.now += 100
    assert [passes(limiter) for _ in range(2)] == [True, False]
    assert passes(limiter, "another key")


def test_retry_after_is_when_it_works_again() -> None:
    time = Time()
    limiter = Limiter(2, 1, time)
    limiter.check("a")
    with pytest.raises(HandclaspError) as caught:
        limiter.check("a")
    assert caught.value.retry_after == pytest.approx(0.5)
    time.now += 500
    assert passes(limiter)


def test_a_batch_costs_its_size_and_a_huge_one_a_full_burst() -> None:
    time = Time()
    limiter = Limiter(10, 10, time)
    assert passes(limiter, cost=8)
    assert not passes(limiter, cost=8)
    assert passes(limiter, cost=2)
    time.now += 1000
    assert passes(limiter, cost=1000)
    assert not passes(limiter)


def test_a_clock_set_back_locks_nobody_out() -> None:
    time = Time()
    limiter = Limiter(10, 5, time)
    assert passes(limiter)
    time.now -= 900_000
    assert not passes(limiter)
    time.now += 200
    assert passes(limiter)


def test_memory_is_bounded() -> None:
    limiter = Limiter(1, 1, Time(), max_keys=10)
    for number in range(100):
        limiter.check(str(number))
    assert not passes(limiter, "99")
    assert passes(limiter, "1")


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_a_limit_that_makes_no_sense(rate: float, burst: int) -> None:
    with pytest.raises(HandclaspError):
        Limiter(rate, burst, Time())


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 20), st.integers(1, 10))
def test_never_more_than_burst_and_rate_in_any_window(steps: list[int], rate: int, burst: int) -> None:
    time = Time()
    limiter = Limiter(rate, burst, time)
    passed = []
    for step in steps:
        time.now += step
        if passes(limiter):
            passed.append(time.now)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + rate * (passed[last] - passed[first]) / 1000 + 1e-6


REFUSED = [
    "http://example.org/",
    "ftp://example.org/",
    "file:///etc/passwd",
    "https://",
    "https://u:p@example.org/",
    "https://u@example.org/",
    "https://169.254.169.254/latest",
    "https://[fe80::1]/",
    "https://[::ffff:169.254.169.254]/",
    "https://metadata.google.internal/",
    "https://Metadata.Google.Internal./",
    "https://127.0.0.1/",
    "https://[::1]/",
    "https://0.0.0.0/",
    "https://100.100.100.200/",
    "https://224.0.0.1/",
    "https://[fd00:ec2::254]/",
    "https://exämple.org/",
    "https://a\n.org/",
    "https://a:99999/",
    "https://[::1",
    "x",
    "",
]


@pytest.mark.parametrize("url", REFUSED)
def test_a_url_that_is_not_fetched(url: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        check_url(url)
    assert caught.value.kind is Kind.NOT_ALLOWED


def test_urls_and_addresses_that_are_fetched() -> None:
    for url in ("https://example.org/x", "https://10.0.0.1:6443/", "https://[fd00::1]/", "https://kubernetes.default.svc"):
        check_url(url)
    check_url("http://127.0.0.1:1/", insecure=True)
    check_address("10.0.0.1")
    check_address("64:ff9b::a00:1")
    for address in ("169.254.169.254", "127.0.0.1", "::1", "fe80::1%eth0", "::ffff:127.0.0.1", "2002:a9fe:a9fe::1", "no", ""):
        with pytest.raises(HandclaspError):
            check_address(address)
    # Where a translator is on the way, these are the addresses of metadata services.
    for address in ("64:ff9b::a9fe:a9fe", "64:ff9b:1::169.254.169.254", "64:ff9b::100.100.100.200", "::169.254.169.254"):
        with pytest.raises(HandclaspError):
            check_address(address, insecure=True)
    with pytest.raises(HandclaspError):
        check_url("https://169.254.169.254/", insecure=True)


@given(st.text(max_size=80))
def test_any_text_is_a_url_or_a_refusal(text: str) -> None:
    for url in (text, "https://" + text):
        with or_refused(Kind.NOT_ALLOWED):
            check_url(url)


def test_who_owes_waits_until_it_is_paid_however_it_was_packed() -> None:
    """Counted after the fact: a large cost is not forgotten, and no debt lasts for more than a minute."""
    time = Time()
    limiter = Limiter(10, 20, time)
    limiter.settle("a")
    limiter.owe("a", 20)
    limiter.settle("a")
    limiter.owe("a", 100)
    with pytest.raises(HandclaspError) as caught:
        limiter.settle("a")
    assert (caught.value.kind, caught.value.retry_after) == (Kind.RATE_LIMITED, 10)
    limiter.settle("b")
    time.now += 10_000
    limiter.settle("a")
    limiter.owe("a", 1_000_000)
    time.now += 60_000
    limiter.settle("a")
    limiter.owe("a", 1_000_000)
    time.now -= 3_600_000
    limiter.settle("a")  # a clock that was set back locks nobody out
