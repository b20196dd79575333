"""The desk of a collector: what it sends when, and what it does when the server is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from handclasp.discovery.leases import Leased, Progress
from handclasp.discovery.remote import RemoteDesk, portions
from handclasp.errors import HandclaspError, Kind
from handclasp.wire.discovery import LeaseRequest, PartLease, PartRecord, PartRecorded
from handclasp.wire.observations import Covered, Observed, Seen, Sightings
from support.errors import refused

LEASED = Leased("scan-1", 3, "lease-1", 0, "s", "kubernetes", {}, {}, {}, {}, "", 5, False, 60.0)


class FakeServer:
    """Answers of a server, one after the other; the last one again and again."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = list(answers), list[tuple[str, Any]]()

    def call(self, method: str, path: str, *, body: Any, response: type[Any]) -> Any:
        assert method == "POST"
        self.asked.append((path, msgspec.json.decode(msgspec.json.encode(body), type=type(body))))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, HandclaspError):
            raise answer
        assert isinstance(answer, response)
        return answer

    @property
    def records(self) -> list[PartRecord]:
        return [body for _, body in self.asked if isinstance(body, PartRecord)]


AWAY, HELD, LOST = HandclaspError(Kind.UNAVAILABLE, "away", retry_after=0.01), PartRecorded(held=True), PartRecorded(held=False)


def observed(number: int, size: int = 100) -> Observed:
    return Observed(key=f"k{number}", kind="kubernetes", shown="x", at=1, certificates=[Seen(der=b"x" * size)])


def run(server: FakeServer, act: Callable[[RemoteDesk], Any], **more: Any) -> Any:
    async def main() -> Any:
        desk = RemoteDesk(lambda: server, "worker", **more)  # type: ignore[arg-type,return-value]
        return await act(desk)

    return asyncio.run(main())


def test_a_lease_is_taken_and_an_empty_server_is_not_asked_all_the_time() -> None:
    lease = PartLease(scan="scan-1", part=0, lease="l", source="s", kind="k", settings={"a": 1}, began_at=7, seconds=30.0)
    server = FakeServer(lease, PartLease())

    async def act(desk: RemoteDesk) -> list[Leased | None]:
        return [await desk.take() for _ in range(4)]

    found = run(server, act, source="s", kinds=["k"])
    assert (found[0].scan, found[0].settings, found[0].began_at, found[0].seconds) == ("scan-1", {"a": 1}, 7, 30.0)
    assert found[1:] == [None, None, None]
    assert [(path, body) for path, body in server.asked] == [
        ("/v1/scans:lease", LeaseRequest(worker="worker", source="s", kinds=["k"]))
    ] * 2


@pytest.mark.parametrize(("kind", "for_good"), [(Kind.NOT_ALLOWED, True), (Kind.NOT_FOUND, True), (Kind.UNAVAILABLE, False)])
def test_what_the_server_gives_nothing_for_is_known_and_not_asked_all_the_time(kind: Kind, for_good: bool) -> None:
    server = FakeServer(HandclaspError(kind, "no"), PartLease())

    async def act(desk: RemoteDesk) -> None:
        with pytest.raises(HandclaspError):
            await desk.take()
        assert desk.refused is not None
        assert (desk.refused.kind, desk.is_refused) == (kind, for_good)
        assert await desk.take() is None
        assert len(server.asked) == 1
        desk._nothing_at = float("-inf")
        assert await desk.take() is None
        assert (desk.refused, desk.is_refused) == (None, False)

    run(server, act)


def test_large_reports_are_sent_in_portions_and_the_place_with_the_last() -> None:
    server = FakeServer(HELD)
    sightings = Sightings(observed=[observed(n, 100_000) for n in range(20)], covered=[Covered(unit="u", began_at=1)])
    run(server, lambda desk: desk.report(LEASED, sightings, Progress(place="half", total=3, read=2, problem="p")))
    assert len(server.records) > 3
    assert [one.key for record in server.records for one in record.sightings.observed] == [f"k{n}" for n in range(20)]
    assert all(len(msgspec.json.encode(record)) < 1_000_000 for record in server.records)
    assert [record.place for record in server.records] == [None] * (len(server.records) - 1) + ["half"]
    assert [len(record.sightings.covered) for record in server.records][-2:] == [0, 1]
    assert (server.records[-1].total, server.records[-1].read, server.records[-1].problem) == (3, 2, "p")
    assert sum(record.total for record in server.records) == 3


def test_an_empty_report_is_one_request() -> None:
    assert [len(one.observed) for one in portions(Sightings())] == [0]


def test_a_server_that_is_away_for_a_moment_loses_nothing() -> None:
    server = FakeServer(AWAY, HandclaspError(Kind.RATE_LIMITED, "slow", retry_after=0.01), HELD)
    run(server, lambda desk: desk.done(LEASED, Sightings(observed=[observed(1)]), Progress(place="p")))
    assert [(len(one.sightings.observed), one.done, one.place) for one in server.records] == [(1, True, "p")] * 3


def test_a_lost_lease_is_a_conflict() -> None:
    with refused(Kind.CONFLICT):
        run(FakeServer(LOST), lambda desk: desk.report(LEASED, Sightings(), Progress()))


def test_what_was_read_under_a_lost_lease_is_let_go_of() -> None:
    """One error for all of them would keep what each had read, by its traceback."""
    errors = []
    for _ in range(2):
        with pytest.raises(HandclaspError) as caught:
            run(FakeServer(LOST), lambda desk: desk.report(LEASED, Sightings(), Progress()))
        errors.append(caught.value)
    assert errors[0] is not errors[1]


@pytest.mark.parametrize("kind", [Kind.NOT_ALLOWED, Kind.TOO_LARGE, Kind.BAD_REQUEST])
def test_a_refusal_is_not_repeated(kind: Kind) -> None:
    server = FakeServer(HandclaspError(kind, "no"))
    with refused(kind):
        run(server, lambda desk: desk.report(LEASED, Sightings(), Progress()))
    assert len(server.records) == 1


@pytest.mark.parametrize("answer", [LOST, HandclaspError(Kind.NOT_ALLOWED, "no")])
def test_who_has_lost_a_part_is_not_busy_with_it(answer: Any) -> None:
    """``collect --once`` waits until nobody is."""

    async def act(desk: RemoteDesk) -> bool:
        leased = await desk.take()
        assert leased is not None
        assert desk.busy
        desk._heard[leased.lease] = float("-inf")  # nothing was said for long
        if answer is LOST:
            assert not await desk.held(leased)
        else:
            with refused(Kind.NOT_ALLOWED):
                await desk.failed(leased, Sightings(), Progress(), "it cannot be read", final=False)
        return desk.busy

    assert run(FakeServer(PartLease(scan="scan-1", part=3, lease="lease-1", seconds=60.0), answer), act) is False


def test_whether_a_lease_is_held_is_asked_when_it_is_time() -> None:
    server = FakeServer(PartLease(scan="scan-1", part=3, lease="lease-1", seconds=60.0), LOST)

    async def act(desk: RemoteDesk) -> tuple[bool, bool, bool]:
        leased = await desk.take()
        assert leased is not None
        fresh = await desk.held(leased)
        asked = len(server.records)
        desk._heard.clear()
        return fresh, asked == 0, await desk.held(leased)

    assert run(server, act) == (True, True, False)
    server = FakeServer(AWAY)
    assert run(server, lambda desk: desk.held(LEASED)) is True, "a server that is away takes nothing from anybody"


def test_failures_and_release() -> None:
    server = FakeServer(HELD)

    async def act(desk: RemoteDesk) -> int:
        await desk.failed(LEASED, Sightings(), Progress(), "403", final=True)
        await desk.release(LEASED)
        return desk.given_up

    assert run(server, act) == 1
    first, second = server.records
    assert (first.gives_up, first.final, first.problem, first.done) == (True, True, "403", False)
    assert second.released
