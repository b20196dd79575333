"""When an agent asks, over a million simulated decisions: never in a tight loop, never too late, never for nothing after a restart."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import pytest

from handclasp.agent.decide import FAR, Held, Issue, Renew, View, decide
from handclasp.agent.held import what_is_held
from handclasp.agent.state import IdentityState, Obtained
from handclasp.client import renewal

NOW = 1_800_000_000_000
HOUR = 3_600_000
STEPS = 125_000
"""Decisions in each of eight simulated worlds."""


@dataclass
class World:
    """One agent with one identity and a server that comes and goes; times in milliseconds."""

    chance: random.Random
    now: int = NOW
    held: Held | None = None
    window: tuple[int, int] = (0, 0)
    failures: int = 0
    next_attempt: int = 0

    def view(self) -> View:
        return View("w", self.held, failures=self.failures, next_attempt=self.next_attempt)

    def answered(self, ttl: int) -> None:
        after = self.now + int(ttl * self.chance.uniform(0.5, 0.65))
        before, end = after + ttl // 10, self.now + ttl
        at = renewal.draw_renewal(after, before, end, self.now, self.chance.random)
        self.held, self.window = Held(f"{self.now}", end, at, before, "w"), (after, before)
        self.failures, self.next_attempt = 0, renewal.settle_until(end, self.now)

    def refused(self) -> None:
        self.failures += 1
        if self.held is None or self.now >= self.held.not_after:
            self.next_attempt = renewal.back_off(self.now, self.failures, self.chance.random)
            return
        self.next_attempt = renewal.retry_at(
            self.now,
            renew_after=self.window[0],
            renew_before=self.window[1],
            not_after=self.held.not_after,
            random=self.chance.random,
            longest=300 if self.failures == 1 else None,
        )


def interval(world: World) -> float:
    """The interval in which one try is due: the server's spread, or less towards the end; never over ten minutes (milliseconds)."""
    assert world.held is not None
    spread = min(world.window[1] - world.window[0], max(world.held.not_after - world.now, 0) // 4, renewal.LONGEST_RETRY)
    return max(spread, renewal.SHORTEST_RETRY)


@pytest.mark.parametrize("seed", range(8))
def test_a_server_that_comes_and_goes(seed: int) -> None:
    world = World(random.Random(seed))
    ttl = world.chance.choice([20_000, 300_000, HOUR, 24 * HOUR, 30 * 24 * HOUR])
    away_until = 0
    for _ in range(STEPS):
        if world.chance.random() < 0.02:
            away_until = world.now + int(ttl * world.chance.uniform(0, 2))
        decision = decide(world.view(), world.now)
        if not decision.actions:
            assert world.now < decision.wake_at < FAR, "it always comes back"
            if world.held is not None and world.now < world.held.not_after:
                last = max(world.held.not_after, world.now + 2 * renewal.SHORTEST_RETRY)
                assert decision.wake_at <= last, "it never gives up while the certificate is valid"
            early = world.now + int((decision.wake_at - world.now) * world.chance.random())
            assert not decide(world.view(), early).actions, "nor does it ask before it said"
            world.now = decision.wake_at
            continue
        (action,) = decision.actions
        valid = world.held is not None and world.now < world.held.not_after
        assert isinstance(action, Renew if valid else Issue)
        if valid:
            assert world.held is not None
            assert world.now >= world.held.renew_at
        if world.now < away_until:
            least = interval(world) / 2 if valid else renewal.SHORTEST_RETRY
            world.refused()
            assert world.next_attempt >= world.now + min(least, 150_000) - 1, "never more than two tries in an interval"
        else:
            world.answered(ttl)
            assert world.next_attempt >= world.now + 1000, "a certificate settles before anything is asked again"


def from_disk(world: World) -> View:
    """What an agent makes of what is on disk when it starts."""
    assert world.held is not None
    held, (after, before) = world.held, world.window
    times = {"not_after": held.not_after, "renew_after": after, "renew_before": before, "renew_at": held.renew_at, "obtained_at": NOW}
    facts = msgspec.json.encode(Obtained(sha256="00" * 32, identity="x", serial="1", authority="a", wanted="w", **times))
    kept = msgspec.json.encode(IdentityState(failures=world.failures, next_attempt=world.next_attempt))
    obtained, state = msgspec.json.decode(facts, type=Obtained), msgspec.json.decode(kept, type=IdentityState)
    return View("w", what_is_held(obtained, state, world.now), failures=state.failures, next_attempt=state.next_attempt)


@pytest.mark.parametrize("seed", range(4))
def test_a_restart_never_issues_again(seed: int) -> None:
    """What is on disk decides: whenever an agent starts again, it does what it would have done, and issues nothing while one is valid."""
    chance = random.Random(seed)
    for _ in range(10_000):
        world = World(chance)
        world.answered(chance.choice([20_000, HOUR, 24 * HOUR]))
        assert world.held is not None
        for _ in range(chance.randrange(3)):
            at = max(world.held.renew_at, world.next_attempt)
            if at < world.held.not_after:
                world.now = at
                world.refused()
        world.now = chance.randrange(world.now, world.held.not_after)
        again, before = decide(from_disk(world), world.now), decide(world.view(), world.now)
        assert again == before
        assert not any(isinstance(action, Issue) for action in again.actions)
        if again.actions:
            assert world.now >= max(world.held.renew_at, world.next_attempt)


@pytest.mark.parametrize("ahead", [0, HOUR // 2, 3 * HOUR, 365 * 24 * HOUR])
def test_a_clock_that_is_ahead_makes_no_loop_of_requests(ahead: int) -> None:
    """Without a word of the server about its time, a wrong clock costs requests, but a bounded number: two a minute at most."""
    chance = random.Random(ahead)
    world, times = World(chance), []
    while world.now < NOW + 6 * HOUR:
        decision = decide(world.view(), world.now + ahead)
        if decision.actions:
            times.append(world.now)
            obtained_at, world.now = world.now, world.now + ahead
            after = obtained_at + HOUR // 2
            at = renewal.draw_renewal(after, after + HOUR // 10, obtained_at + HOUR, world.now, chance.random)
            world.held = Held("x", obtained_at + HOUR, at, after + HOUR // 10, "w")
            world.next_attempt = renewal.settle_until(obtained_at + HOUR, world.now)
            world.now = obtained_at
        else:
            world.now = min(decision.wake_at - ahead, NOW + 6 * HOUR)
    assert len(times) <= (13 if not ahead else 6 * 120)
    assert all(later - earlier >= 15_000 for earlier, later in pairwise(times))
