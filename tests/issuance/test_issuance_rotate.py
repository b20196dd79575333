"""Rotations: every certificate that is meant, and no other, is pulled forward; flat, never later, step by step, and to the end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from handclasp.access.principals import TokenPrincipal
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance import rotate
from handclasp.issuance.progress import Progresses
from handclasp.issuance.rotate import Rotations
from handclasp.issuance.selection import Selection, select_all, select_authority, select_identities, stored_selection
from handclasp.issuance.suggestions import Suggestions
from handclasp.issuance.window import POLL_SLACK, pulled_window, rotation_span, spread_points
from handclasp.store import tables
from handclasp.store.writes import CertificateRow, Change, Write
from support.errors import refused
from support.issuing import HERE, House, fresh_csr, house
from support.writes import certificate_row, certificate_write

HOUR = 3_600_000
WINDOW = st.integers(0, 10**9)


# --- windows ----------------------------------------------------------------------------------------------------------------------------


@given(
    renew_after=WINDOW, length=st.integers(0, 10**8), rest=st.integers(1, 10**9), now=WINDOW, ahead=st.integers(0, 10**8),
    pulled=st.integers(0, 10**7),
)  # fmt: skip
def test_a_pulled_window_is_never_later_and_never_in_the_past(
    renew_after: int, length: int, rest: int, now: int, ahead: int, pulled: int
) -> None:
    renew_before = renew_after + length
    not_after = renew_before + rest
    after, before = pulled_window(renew_after, renew_before, not_after, now=now, point=now + ahead, length=pulled)
    assert before <= renew_before
    assert after <= max(now, renew_after)
    assert after <= before < not_after
    if renew_before <= now:
        assert (after, before) == (renew_after, renew_before), "what is overdue stays overdue"
    else:
        assert now <= after <= before
        assert before <= now + ahead + pulled, "and not later than the rotation wants"


@given(begins=WINDOW, length=st.integers(1_000, 10**9), count=st.integers(0, 400), seed=st.integers())
def test_points_are_spread_evenly_inside_the_rotation(begins: int, length: int, count: int, seed: int) -> None:
    first, last, each = rotation_span(begins, begins + length)
    assert begins <= first <= last <= last + each <= begins + length
    points = spread_points(count, first, last, random.Random(seed))
    assert len(points) == count
    assert all(first <= point <= last for point in points)
    for number, point in enumerate(sorted(points)):  # one in each equal part: no second has more than its share
        assert first + number * (last - first) / count - 1 <= point <= first + (number + 1) * (last - first) / count


def test_agents_hear_of_a_rotation_before_its_first_window() -> None:
    first, _, _ = rotation_span(0, 600_000)
    assert first == POLL_SLACK
    assert rotation_span(0, 40_000)[0] == 10_000, "a short one begins after a quarter of its time"


# --- what is meant ----------------------------------------------------------------------------------------------------------------------

NAMES = [
    "spiffe://example.org/prod/web", "spiffe://example.org/prod/web/canary", "spiffe://example.org/prod/db", "spiffe://example.org/prodx",
    "spiffe://example.net/prod/web", "spiffe://example.org/agent/host", "dns:web.example.org", "dns:a.b.example.org", "dns:example.org",
    "email:ops@example.org", "ip:10.1.2.3", "spiffe://example.org/prod/x_y", "spiffe://example.org/prod/xzy",
]  # fmt: skip

MEANT = [
    ("spiffe://example.org/prod/*", {0, 2, 11, 12}),
    ("spiffe://example.org/prod/**", {0, 1, 2, 11, 12}),
    ("spiffe://example.org/prod/web", {0}),
    ("spiffe://example.org/prod/x_y", {11}),
    ("spiffe://example.org/*/web", {0}),
    ("spiffe://example.org/**", {0, 1, 2, 3, 5, 11, 12}),
    ("dns:*.example.org", {6}),
    ("dns:WEB.example.org", {6}),
    ("dns:example.org", {8}),
    ("email:*@example.org", {9}),
    ("ip:10.0.0.0/8", {10}),
    ("ip:10.1.2.4", set()),
]


@pytest.mark.parametrize(("pattern", "meant"), MEANT)
def test_patterns_mean_what_they_mean_in_policy(pattern: str, meant: set[int]) -> None:
    selection = select_identities(pattern)
    assert {number for number, name in enumerate(NAMES) if selection.covers(name)} == meant


@pytest.mark.parametrize("pattern", ["", "web", "*", "**", "spiffe://*/web", "spiffe://example.org/pro*", "dns:", "dns:*", "ip:x",
                                     "email:*", "spiffe://example.org/{claim}", "spiffe://example.org", "x" * 3000, "\0"])  # fmt: skip
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with refused(Kind.BAD_REQUEST):
        select_identities(pattern)


@given(st.text() | st.sampled_from(NAMES).map(lambda name: name + "*"))
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    try:
        selection = select_identities(text)
    except HandclaspError as error:
        assert error.kind is Kind.BAD_REQUEST  # noqa: PT017  (whether it raises is not known here)
    else:
        assert all(name.startswith(selection.prefix) for name in NAMES if selection.covers(name)), "the database would hide it"


# --- rotations on a database ------------------------------------------------------------------------------------------------------------


@dataclass
class Rotating:
    """A house, and the rotations in it."""

    house: House
    rotations: Rotations
    suggestions: Suggestions
    progress: Progresses
    admin: TokenPrincipal

    @property
    def now(self) -> int:
        return self.house.here.clock()

    async def add(self, identity: str, *, age: float = 0, lifetime: int = HOUR, **changes: Any) -> CertificateRow:
        """Record a certificate that was issued ``age`` seconds ago; ``changes`` are columns afterwards."""
        row = certificate_row(identity)
        begin = self.now - round(age * 1000)
        row.authority_id = self.house.here.authorities.find("issuing").id
        row.not_before, row.not_after = begin, begin + lifetime
        row.renew_after, row.renew_before = begin + lifetime // 2, begin + lifetime * 3 // 5
        await self.house.here.store.ledger.commit(certificate_write(row))
        if changes:
            await self.change(row.sha256, **changes)
        return row

    async def change(self, sha256: bytes, **values: Any) -> None:
        statement = update(tables.certificate).where(tables.certificate.c.sha256 == sha256).values(**values)
        await self.house.here.store.ledger.commit(Write([], [Change(statement, expect=1)]))

    async def start(self, selection: Selection, within: float = 600, reason: str = "") -> str:
        planned = await self.rotations.plan(selection, within)
        return await self.rotations.start(planned, reason, self.admin, HERE)

    async def items(self, rotation_id: str) -> set[bytes]:
        item = tables.rotation_item.c
        rows = await self.house.here.store.rows(select(item.sha256).where(item.rotation_id == rotation_id))
        return {bytes(row.sha256) for row in rows}

    async def row(self, sha256: bytes) -> Any:
        return await self.house.here.store.row(select(tables.certificate).where(tables.certificate.c.sha256 == sha256))

    async def rotation(self, rotation_id: str) -> Any:
        return await self.house.here.store.row(select(tables.rotation).where(tables.rotation.c.id == rotation_id))


@asynccontextmanager
async def rotating(directory: Path, url: str = "") -> AsyncIterator[Rotating]:
    async with house(directory, url) as opened:
        here = opened.here
        suggestions = Suggestions(here.store)
        rotations = Rotations(here.store, here.authorities, suggestions, here.clock, random=random.Random(7))
        admin = await opened.token(name="admin", scopes=["certificates:rotate"], allow=[], profiles=[])
        yield Rotating(opened, rotations, suggestions, Progresses(here.store, here.clock), admin)


def test_every_live_certificate_that_is_meant_is_an_item_and_no_other(tmp_path: Path, database_url: str) -> None:
    async def run() -> None:
        async with rotating(tmp_path, database_url) as here:
            live = [await here.add(name) for name in NAMES]
            web = NAMES[0]
            dead = [
                await here.add(web, age=3700),
                await here.add(web, superseded_by=bytes(32), superseded_at=here.now),
                await here.add(web, revoked_at=here.now, revocation_reason=0),
                await here.add(web, obtained_by="server"),
            ]
            other = await here.add(web, authority_id=99)
            for pattern, meant in MEANT:
                wanted = {live[number].sha256 for number in meant} | ({other.sha256} if 0 in meant else set())
                planned = await here.rotations.plan(select_identities(pattern), 600)
                assert planned.total == len(wanted), pattern
                before = await here.suggestions.tag()
                rotation_id = await here.rotations.start(planned, "", here.admin, HERE)
                assert await here.items(rotation_id) == wanted, pattern
                assert (await here.rotation(rotation_id)).total == len(wanted)
                assert await here.suggestions.tag() != before
            issuing = await here.start(select_authority("issuing", here.house.here.authorities))
            assert await here.items(issuing) == {row.sha256 for row in live}
            everything = await here.start(select_all())
            assert await here.items(everything) == {row.sha256 for row in [*live, other]}
            assert not await here.items(everything) & {row.sha256 for row in dead}
            with refused(Kind.UNKNOWN_AUTHORITY):
                select_authority("root", here.house.here.authorities)

    asyncio.run(run())


def test_windows_are_pulled_into_the_rotation_in_chunks(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotate, "CHUNK", 7)

    async def run() -> None:
        async with rotating(tmp_path, database_url) as here:
            rows = [await here.add(f"spiffe://example.org/prod/n{number % 5}", age=number * 60, lifetime=HOUR) for number in range(40)]
            rotation_id = await here.start(select_all())
            first, last, length = rotation_span(here.now, here.now + 600_000)
            assert await here.items(rotation_id) == {row.sha256 for row in rows}
            pulled = 0
            for row in rows:
                new = await here.row(row.sha256)
                assert new.renew_before <= row.renew_before
                if row.renew_before <= here.now:
                    assert (new.renew_after, new.renew_before) == (row.renew_after, row.renew_before)
                    continue
                pulled += 1
                assert here.now <= new.renew_after <= new.renew_before < new.not_after
                assert new.renew_before <= here.now + 600_000
                if row.renew_after > last + length:
                    assert first <= new.renew_after <= last
            assert 0 < pulled < len(rows)
            entry = [one for one in await here.house.entries() if one["type"] == "rotation.started"]
            assert [(one["what"]["certificates"], one["what"]["all"], one["who"]["name"]) for one in entry] == [(40, True, "admin")]
            stored = await here.rotation(rotation_id)
            assert stored.place is None
            assert (await here.house.entries())[stored.log_index] == entry[0]

    asyncio.run(run())


def test_what_is_issued_afterwards_is_not_concerned_and_an_interrupted_one_goes_on(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotate, "CHUNK", 3)
    monkeypatch.setattr(rotate, "AT_ONCE", -1)

    async def run() -> None:
        async with rotating(tmp_path, database_url) as here:
            rows = [await here.add(NAMES[number % 3]) for number in range(10)]
            rotation_id = await here.start(select_all(), reason="drill")
            assert await here.items(rotation_id) == set()
            (progress,) = await here.progress.of([await here.rotation(rotation_id)])
            assert (progress.total, progress.state) == (10, "running"), "what was counted, until all are told"
            await here.add(NAMES[0])
            assert await here.rotations.tell(rotation_id, seconds=-1) is False
            await asyncio.gather(*(here.rotations.tell(rotation_id) for _ in range(3)))  # workers that do not know of one another
            here.house.here.clock.pass_(3000)
            assert await here.rotations.resume() in ([], [rotation_id])
            assert await here.items(rotation_id) == {row.sha256 for row in rows}
            assert await here.rotations.resume() == []
            assert (await here.rotation(rotation_id)).total == 10

    asyncio.run(run())


def test_a_rotation_that_is_told_late_leaves_time_to_renew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotate, "AT_ONCE", -1)

    async def run() -> None:
        async with rotating(tmp_path) as here:
            row = await here.add(NAMES[0], lifetime=24 * HOUR)
            rotation_id = await here.start(select_all())
            here.house.here.clock.pass_(1200)  # the server was away
            await here.rotations.resume()
            new, stored = await here.row(row.sha256), await here.rotation(rotation_id)
            assert here.now <= new.renew_after <= new.renew_before <= stored.ends_at == here.now + 150_000

    asyncio.run(run())


def test_progress_is_counted_from_the_certificates(tmp_path: Path, database_url: str) -> None:
    async def run() -> None:
        async with rotating(tmp_path, database_url) as here:
            agent_token = await here.house.token(
                name="agents", agent=True, allow=[NAMES[0], "spiffe://example.org/agent/h1"], profiles=["agent", "workload"]
            )
            agent = await here.house.issue(agent_token, identity="spiffe://example.org/agent/h1", profile="agent")
            web = await here.house.issue(await here.house.holder(agent), identity=NAMES[0], profile="workload")
            newer = await here.house.renew(web)  # by its holder: the line tells whose it is
            loose, revoked, ends = await here.add(NAMES[2]), await here.add(NAMES[2]), await here.add(NAMES[2], age=3000)
            rotation_id = await here.start(select_all())

            async def told() -> tuple[int, ...]:
                (one,) = await here.progress.of([await here.rotation(rotation_id)])
                return one.total, one.replaced, one.gone, one.waiting, one.state  # type: ignore[return-value]

            assert await told() == (5, 0, 0, 5, "running")
            pending = {one.sha256: one for one in await here.progress.pending(rotation_id)}
            assert set(pending) == {agent.sha256, newer.sha256, loose.sha256, revoked.sha256, ends.sha256}
            assert pending[newer.sha256].agent == pending[agent.sha256].agent == "spiffe://example.org/agent/h1"
            assert pending[loose.sha256].agent is None
            await here.house.renew(newer)
            await here.change(revoked.sha256, revoked_at=here.now, revocation_reason=0)
            here.house.here.clock.pass_(650)
            assert await told() == (5, 1, 2, 2, "running"), "not late while agents may still be asking"
            here.house.here.clock.pass_(100)
            assert await told() == (5, 1, 2, 2, "late")
            assert await here.progress.settle() == 0
            here.house.here.clock.pass_(24 * 3600)
            assert await told() == (5, 1, 4, 0, "done")
            assert await here.progress.settle() == 1
            assert await here.items(rotation_id) == set()
            assert await told() == (5, 1, 4, 0, "done")
            assert await here.progress.settle() == 0
            count = await here.house.here.store.row(select(func.count().label("n")).select_from(tables.rotation_item))
            assert count is not None
            assert count.n == 0

    asyncio.run(run())


def test_the_tag_changes_with_revocations_and_not_with_renewals(tmp_path: Path, database_url: str) -> None:
    async def run() -> None:
        async with rotating(tmp_path, database_url) as here:
            token = await here.house.token()
            issued = await here.house.issue(token, fresh_csr())
            before = await here.suggestions.tag()
            second = await here.house.renew(issued)
            assert await here.suggestions.tag() == before
            states = {one.sha256: one.state(here.now) for one in await here.suggestions.of([issued.sha256, second.sha256, bytes(32)])}
            assert states == {issued.sha256: "superseded", second.sha256: "valid"}
            await here.house.revoker.revoke(second.sha256, "superseded", "", token, HERE, any_certificate=True)
            after = await here.suggestions.tag()
            assert after != before
            assert await Suggestions(here.house.here.store).tag() == after
            assert [one.state(here.now) for one in await here.suggestions.of([second.sha256])] == ["revoked"]

    asyncio.run(run())


@pytest.mark.parametrize("within", [0, 0.5, 31 * 86400])
def test_a_time_out_of_bounds_is_refused(tmp_path: Path, within: float) -> None:
    async def run() -> None:
        async with rotating(tmp_path) as here:
            with refused(Kind.BAD_REQUEST, "takes from"):
                await here.rotations.plan(select_all(), within)

    asyncio.run(run())


def test_selections_are_stored_and_read_back(tmp_path: Path) -> None:
    async def run() -> None:
        async with rotating(tmp_path) as here:
            authorities = here.house.here.authorities
            for selection in (select_all(), select_identities("dns:*.example.org"), select_authority("issuing", authorities)):
                again = stored_selection(selection.to_json(), authorities)
                assert (again.what, again.value, again.authority_id, again.prefix) == (
                    selection.what, selection.value, selection.authority_id, selection.prefix,
                )  # fmt: skip
            assert await here.rotations.concerns("dns:a.example.org", "issuing", 0) is False
            await here.start(select_identities("dns:*.example.org"))
            assert await here.rotations.concerns("dns:a.example.org", "issuing", 0) is True
            assert await here.rotations.concerns("dns:a.example.net", "issuing", 0) is False
            assert await here.rotations.concerns("dns:a.example.org", "issuing", 10**6) is False
            await here.start(select_authority("issuing", authorities))
            assert await here.rotations.concerns("dns:a.example.net", "issuing", 0) is True

    asyncio.run(run())


def test_a_large_rotation_is_told_beside_the_request_that_starts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotate, "CHUNK", 3)
    monkeypatch.setattr(rotate, "FEW", 5)

    async def run() -> None:
        async with rotating(tmp_path) as here:
            rows = [await here.add(NAMES[number % 3]) for number in range(10)]
            rotation_id = await here.start(select_all())
            assert await here.items(rotation_id) != {row.sha256 for row in rows}, "nobody waited for that"
            await here.rotations.finish_telling()
            assert await here.items(rotation_id) == {row.sha256 for row in rows}
            assert (await here.rotation(rotation_id)).place is None

    asyncio.run(run())
