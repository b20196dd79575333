"""The time an agent decides by: the server's, whatever happens to the host's clock."""

from __future__ import annotations

import time
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.agent import status
from handclasp.agent.hours import TOLERANCE, Hours, boot_clock
from handclasp.clock import system_clock
from support.agents import WEB, prepare, running, settled
from support.fake_server import FakeServer, Fault
from support.waiting import eventually

NOW = 1_800_000_000_000
HOUR = 3_600_000


class Clocks:
    """A host: its clock, which may be set, and the time since it was started, which goes on."""

    def __init__(self) -> None:
        self.wall, self.boot = NOW, 5_000
        self.hours = Hours(lambda: self.wall, lambda: self.boot)

    def go(self, seconds: float) -> None:
        self.wall += int(seconds * 1000)
        self.boot += int(seconds * 1000)


def test_a_right_clock_is_taken_as_it_is() -> None:
    host = Clocks()
    assert host.hours() == NOW
    host.hours.answered(formatdate(NOW / 1000, usegmt=True))
    host.go(100.25)
    assert host.hours() == host.wall
    assert (host.hours.ahead, host.hours.problem, host.hours.jumped()) == (0, "", False)


@pytest.mark.parametrize("jump", [-3 * 365 * 24 * HOUR, -HOUR, HOUR, 10 * 365 * 24 * HOUR])
def test_a_clock_that_is_set_changes_nothing_once_the_server_has_answered(jump: int) -> None:
    host = Clocks()
    host.hours.answered(formatdate(NOW / 1000, usegmt=True))
    host.go(60)
    host.wall += jump
    assert abs(host.hours() - (NOW + 60_000)) <= 1000
    assert abs(host.hours.ahead - jump) <= 1000
    assert ("ahead of" if jump > 0 else "behind") in host.hours.problem
    assert host.hours.jumped()
    assert not host.hours.jumped(), "said once"
    host.go(2 * 3600)
    assert abs(host.hours() - (NOW + 60_000 + 2 * HOUR)) <= 1000
    host.wall -= jump
    assert host.hours.problem == ""


def test_a_clock_that_was_wrong_from_the_start_counts_until_the_first_answer() -> None:
    host = Clocks()
    host.wall += HOUR
    assert host.hours() == NOW + HOUR
    host.hours.answered(formatdate(NOW / 1000, usegmt=True), took=0.2)
    assert abs(host.hours() - NOW) <= 1000


def test_time_that_nothing_counted_is_found_with_the_next_answer() -> None:
    """A guest that was paused: neither clock went on, and then somebody set its clock right."""
    host = Clocks()
    host.hours.answered(formatdate(NOW / 1000, usegmt=True))
    host.wall += 8 * HOUR
    assert host.hours.jumped()
    host.hours.answered(formatdate(host.wall / 1000, usegmt=True))
    assert host.hours() == host.wall


@given(st.text() | st.just(formatdate(0)) | st.just("Mon, 99 Jan 99999 00:00:00 GMT"))
def test_what_is_no_date_is_passed_over(text: str) -> None:
    host = Clocks()
    host.hours.answered(text)
    host.hours()


def test_a_step_within_the_tolerance_is_no_matter() -> None:
    host = Clocks()
    host.wall += TOLERANCE
    assert not host.hours.jumped()


@pytest.mark.parametrize("jump", [-5 * 365 * 24 * HOUR, -2 * HOUR, 2 * HOUR, 5 * 365 * 24 * HOUR])
def test_an_agent_whose_clock_jumps_neither_issues_nor_forgets(tmp_path: Path, jump: int) -> None:
    """While it runs: nothing is renewed early, the jump is reported, and the renewal that is due comes in time."""
    offset = 0

    def clock() -> int:
        return time.time_ns() // 1_000_000 + offset

    with FakeServer(ttl=12, window=(0.3, 0.4)) as server:
        config = prepare(server, tmp_path, "[{directory: tls}]")
        with running(config, Hours(clock)) as agent:
            keeper = agent.roster.find(WEB)
            assert keeper is not None
            eventually(lambda: settled(keeper) and server.reports)
            offset = jump
            eventually(lambda: "clock" in " ".join(status(tmp_path / "state").todo))
            assert server.count("/v1/certificates", "POST") - server.count(":renew", "POST") == 2, "nothing is issued again"
            eventually(lambda: keeper.state.rotations >= 2)
            assert all(record.not_after - record.renew_after > 0 for record in server.records.values())
            offset = 0
            eventually(lambda: not any("clock" in words for words in status(tmp_path / "state").todo))
            eventually(lambda: settled(keeper))
        assert server.count("/v1/certificates", "POST") - server.count(":renew", "POST") == 2
        server.assert_content()


def test_a_step_of_the_clock_while_a_renewal_is_under_way(tmp_path: Path) -> None:
    offset = 0

    def clock() -> int:
        return time.time_ns() // 1_000_000 + offset

    with FakeServer(ttl=3600) as server:
        config = prepare(server, tmp_path, "[{directory: tls}]")
        server.faults.append(Fault("/v1/certificates", 2, 503))  # it has failed, and tries again
        with running(config, Hours(clock)) as agent:
            keeper = agent.roster.find(WEB)
            assert keeper is not None
            eventually(lambda: keeper.state.failures)
            offset = -24 * HOUR
            eventually(lambda: settled(keeper))
            assert keeper.obtained is not None
            assert keeper.obtained.renew_after <= keeper.obtained.renew_at <= keeper.obtained.renew_before
        server.assert_content()


def test_a_host_that_slept_for_hours_renews_everything_spread_and_loses_nothing(tmp_path: Path) -> None:
    """Its clocks and the server's went on meanwhile. What ended is obtained with the agent's own certificate, each at its own moment."""
    slept = 0
    hours = Hours(lambda: time.time_ns() // 1_000_000 + slept, lambda: boot_clock() + slept)
    names = [f"{WEB}/{number}" for number in range(6)]
    more = "".join(f"  - identity: {name}\n    targets: [{{directory: t{number}}}]\n" for number, name in enumerate(names))
    with FakeServer(ttl=24 * 3600) as server:
        config = prepare(server, tmp_path, more=more)
        server.ttl = 3600
        with running(config, hours) as agent:
            keepers = agent.roster.keepers()
            eventually(lambda: all(settled(keeper) for keeper in keepers))
            asked = len(server.seen)
            server.ahead = slept = 3 * HOUR
            eventually(lambda: all(keeper.obtained and keeper.obtained.obtained_at > system_clock() + 2 * HOUR for keeper in keepers))
            eventually(lambda: all(settled(keeper) for keeper in keepers))
            times = [seen.at for seen in server.seen[asked:] if seen.path == "/v1/certificates"]
            assert len(times) == len(keepers), "each was obtained once"
            assert max(times) - min(times) > 0.1, "and not all at once"
            assert status(tmp_path / "state", clock=agent.clock).healthy
        server.assert_content()
