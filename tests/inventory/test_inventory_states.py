"""Where certificates stand: each state by itself, and any history against an oracle that knows nothing of the code."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from handclasp.inventory import tallies
from handclasp.inventory.states import ALL_STATES, Facts, Graces, Judgement, judge
from handclasp.issuance.request import IssuedCertificate
from handclasp.wire.observations import Covered, Seen
from support import migrated
from support.inventory import Watch, foreign, rogue, sha, watch
from support.issuing import HERE

HOUR = 3_600_000
NOW = 100 * HOUR
GRACES = Graces(unseen=HOUR, old=HOUR // 6, horizon=24 * HOUR)
ISSUED = Facts("issued", NOW + HOUR, first_seen_at=NOW - HOUR, open=1, issued_at=NOW - 2 * HOUR)
FOUND = Facts("found", NOW + HOUR, first_seen_at=NOW - HOUR, open=1)


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (ISSUED, Judgement("seen", NOW + HOUR)),
        (replace(ISSUED, not_after=NOW), Judgement("expired_served")),
        (replace(ISSUED, not_after=NOW, used_at=NOW), Judgement("expired_served")),
        (replace(ISSUED, not_after=NOW, used_at=NOW - 1), Judgement("seen", NOW + 1_000)),
        (replace(ISSUED, not_after=NOW - 60_000, used_at=NOW - HOUR), Judgement("seen", NOW + 30_000)),
        (replace(ISSUED, not_after=NOW - HOUR, used_at=NOW - 2 * HOUR), Judgement("seen", NOW + 300_000)),
        (replace(ISSUED, revoked_at=NOW, used_at=NOW - HOUR), Judgement("revoked_served")),
        (replace(ISSUED, superseded_at=NOW - HOUR, used_at=NOW), Judgement("old_served", NOW + HOUR)),
        (replace(ISSUED, superseded_at=NOW - HOUR, used_at=NOW - 60_000, not_after=NOW), Judgement("old_served", NOW + 1_000)),
        (replace(ISSUED, superseded_at=NOW - HOUR, used_at=NOW - HOUR), Judgement("seen", NOW + 300_000)),
        (replace(ISSUED, superseded_at=NOW - HOUR, used_at=NOW - HOUR, not_after=NOW + 5), Judgement("seen", NOW + 5)),
        (replace(ISSUED, revoked_at=NOW), Judgement("revoked_served")),
        (replace(ISSUED, revoked_at=NOW, not_after=NOW - 1), Judgement("revoked_served")),
        (replace(ISSUED, superseded_at=NOW - HOUR), Judgement("old_served", NOW + HOUR)),
        (replace(ISSUED, superseded_at=NOW), Judgement("seen", NOW + HOUR // 6)),
        (replace(ISSUED, superseded_at=NOW, not_after=NOW + 5), Judgement("seen", NOW + 5)),
        (replace(ISSUED, open=0), Judgement("gone", NOW + HOUR)),
        (replace(ISSUED, open=0, replaced=True), Judgement("past")),
        (replace(ISSUED, open=0, superseded_at=NOW), Judgement("past")),
        (replace(ISSUED, open=0, revoked_at=NOW), Judgement("past")),
        (replace(ISSUED, open=0, not_after=NOW - 1), Judgement("past")),
        (replace(ISSUED, open=0, first_seen_at=None), Judgement("unseen", NOW + HOUR)),
        (replace(ISSUED, open=0, first_seen_at=None, issued_at=NOW - HOUR + 1), None),
        (replace(ISSUED, open=0, first_seen_at=None, superseded_at=NOW), None),
        (replace(ISSUED, open=0, first_seen_at=None, revoked_at=NOW), None),
        (replace(ISSUED, open=0, first_seen_at=None, apart=True), None),
        (FOUND, Judgement("foreign", NOW + HOUR)),
        (replace(FOUND, not_after=NOW), Judgement("expired_served")),
        (replace(FOUND, not_after=NOW, used_at=NOW - 1), Judgement("foreign", NOW + 1_000)),
        (replace(FOUND, not_after=0), Judgement("foreign")),
        (replace(FOUND, open=0), Judgement("gone", NOW + HOUR)),
        (replace(FOUND, open=0, not_after=0), Judgement("gone")),
        (replace(FOUND, open=0, replaced=True), Judgement("past")),
        (replace(FOUND, open=0, listed=1, used=False), Judgement("foreign", NOW + HOUR)),
        (replace(FOUND, open=0, listed=1, used=False, not_after=0), Judgement("foreign")),
        (replace(FOUND, open=0, listed=1, used=False, not_after=NOW), Judgement("past")),
        (replace(FOUND, open=0, listed=0, used=False), Judgement("past")),
        (replace(FOUND, open=0, listed=1), Judgement("gone", NOW + HOUR)),
        (replace(FOUND, open=0, listed=1, replaced=True), Judgement("past")),
        (replace(FOUND, open=0, listed=1, used=False, ours=True), Judgement("unissued", NOW + HOUR)),
        (replace(FOUND, open=0, listed=1, used=False, ours=True, not_after=NOW), Judgement("past")),
        (replace(ISSUED, open=0, listed=1, first_seen_at=None), Judgement("unseen", NOW + HOUR)),
        (replace(ISSUED, open=0, listed=1), Judgement("gone", NOW + HOUR)),
        (replace(ISSUED, open=0, listed=1, revoked_at=NOW), Judgement("past")),
        (replace(ISSUED, open=0, listed=1, superseded_at=NOW), Judgement("past")),
        (replace(FOUND, ours=True), Judgement("unissued")),
        (replace(FOUND, ours=True, open=0), Judgement("unissued", NOW + HOUR)),
        (replace(FOUND, ours=True, not_after=NOW), Judgement("unissued")),
        (replace(FOUND, ours=True, not_after=NOW, open=0), Judgement("past")),
        (replace(FOUND, ours=True, not_after=NOW - 40 * HOUR), Judgement("expired_served")),  # perhaps issued here, and forgotten
        (replace(FOUND, ours=True, not_after=NOW - 40 * HOUR, first_seen_at=NOW - 30 * HOUR), Judgement("unissued")),
    ],
)
def test_each_state(facts: Facts, wanted: Judgement | None) -> None:
    assert judge(facts, NOW, GRACES) == wanted


_times = st.none() | st.integers(0, 200 * HOUR)


@given(
    st.builds(
        Facts, st.sampled_from(["issued", "found"]), st.integers(0, 200 * HOUR), first_seen_at=_times, open=st.integers(0, 3),
        replaced=st.booleans(), superseded_at=_times, revoked_at=_times, ours=st.booleans(), issued_at=st.integers(0, 200 * HOUR),
        apart=st.booleans(), listed=st.integers(0, 2), used=st.booleans(), used_at=_times,
    ),
    st.integers(0, 200 * HOUR),
)  # fmt: skip
def test_a_judgement_holds_until_it_is_due_and_changes_then(facts: Facts, now: int) -> None:
    found = judge(facts, now, GRACES)
    if found is None:
        return
    assert found.state in ALL_STATES
    if found.due_at is None:
        later = judge(facts, 10**12, GRACES)
        assert later is not None
        assert later.state == found.state
        return
    assert found.due_at > now
    before, after = judge(facts, found.due_at - 1, GRACES), judge(facts, found.due_at, GRACES)
    assert before is not None
    assert before.state == found.state
    assert after is None or after != before


# --- any history --------------------------------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What the oracle knows of one certificate."""

    der: bytes
    origin: str
    issued_at: int
    not_after: int
    superseded_at: int | None = None
    revoked_at: int | None = None
    ours: bool = False
    handle: IssuedCertificate | None = None


@dataclass
class Place:
    """Everything that was ever read at one location: (when, what was there)."""

    unit: str
    reads: list[tuple[int, frozenset[int]]] = field(default_factory=list)
    tried: int = 0
    gone: bool = False
    is_list: bool = False
    """Whether it only says what exists: a CA's list."""


@dataclass
class World:
    """The oracle: it keeps the whole history, and works out every state from its beginning."""

    graces: Graces
    certificates: list[Told] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)

    def state(self, number: int, now: int) -> str | None:
        one = self.certificates[number]
        told = [place for place in self.places.values() if any(number in what for _, what in place.reads)]
        seen = [place for place in told if not place.is_list]
        is_open = any(number in place.reads[-1][1] for place in seen)
        current = one.superseded_at is None and one.revoked_at is None and one.not_after > now
        if told and not seen and one.origin == "found":
            if one.not_after <= now:
                return "past"
            listed = any(number in place.reads[-1][1] for place in told)
            return "unissued" if one.ours else "foreign" if listed else "past"
        if not seen:
            waited = now - one.issued_at >= self.graces.unseen
            return "unseen" if one.origin == "issued" and current and waited else None
        if one.ours and (is_open or one.not_after > now):
            return "unissued"
        if is_open:
            if one.revoked_at is not None:
                return "revoked_served"
            used_at = max(at for place in seen for at, what in place.reads if number in what)
            if one.not_after <= now and used_at >= one.not_after:
                return "expired_served"
            # What ends, and is not read again, is as it was last seen: nobody knows better.
            if one.superseded_at is not None and used_at >= one.superseded_at + self.graces.old:
                return "old_served"
            return "foreign" if one.origin == "found" else "seen"
        if not current or self._replaced(number, seen):
            return "past"
        return "gone"

    @staticmethod
    def _replaced(number: int, seen: Sequence[Place]) -> bool:
        """Another certificate came where it was last, at that moment or later."""
        ends = {}
        for index, place in enumerate(seen):
            for (_, what), (at, after) in pairwise(place.reads):
                if number in what and number not in after:
                    ends[index] = at
        last = max(ends.values())
        for index, end in ends.items():
            if end == last:
                reads = seen[index].reads
                for (_, what), (at, after) in pairwise(reads):
                    if at >= end and after - what - {number}:
                        return True
        return False


async def _one(step: tuple[str, int, int], here: Watch, world: World, token: Any) -> None:
    kind, first, second = step
    here.pass_(0.001)
    certificates = world.certificates
    if kind == "issue":
        handle = await here.house.issue(token, identity=f"spiffe://example.org/prod/{first % 3}")
        row = await here.house.row(handle)
        # What is issued beside an earlier one is no renewal: both stand for themselves.
        certificates.append(Told(bytes(row.der), "issued", here.now, row.not_after, handle=handle))
    elif kind == "found":
        der = foreign(f"h{first}.example.net", now=here.now, lifetime=900 * (1 + second % 4))
        certificates.append(Told(der, "found", here.now, (here.now + 900_000 * (1 + second % 4)) // 1000 * 1000))
    elif kind == "rogue":
        der = await rogue(here, lifetime=900 * (1 + second % 4))
        certificates.append(Told(der, "found", here.now, (here.now + 900_000 * (1 + second % 4)) // 1000 * 1000, ours=True))
    elif kind in ("renew", "revoke"):
        mine = [one for one in certificates if one.handle is not None and one.revoked_at is None]
        alive = [one for one in mine if one.not_after > here.now and one.superseded_at is None]
        if kind == "revoke" and mine:
            one = mine[first % len(mine)]
            assert one.handle is not None
            await here.house.revoker.revoke(one.handle.sha256, "superseded", "", token, HERE, any_certificate=True)
            one.revoked_at = here.now
        elif kind == "renew" and alive:
            one = alive[first % len(alive)]
            assert one.handle is not None
            handle = await here.house.renew(one.handle)
            row = await here.house.row(handle)
            one.superseded_at = here.now
            certificates.append(Told(bytes(row.der), "issued", here.now, row.not_after, handle=handle))
    elif kind == "read" and certificates:
        key = f"p{first % 4}"
        place = world.places.setdefault(key, Place(f"u{first % 2}", is_list=first % 4 == 3))
        role = "listed" if place.is_list else "served"
        what = frozenset(number for number in range(len(certificates)) if second >> (number % 8) & 1 and number % 3 == first % 3)
        await here.see(here.at(key, *(Seen(der=certificates[number].der, role=role) for number in sorted(what)), unit=place.unit))
        place.reads.append((here.now, what))
        place.tried, place.gone = here.now, False
    elif kind == "fail":
        key = f"p{first % 4}"
        if key in world.places:
            await here.see(here.at(key, unit=world.places[key].unit, problem="connection refused"))
            world.places[key].tried = here.now
    elif kind == "cover":
        began = here.now - second % 500_000
        await here.see(covered=[Covered(unit=f"u{first % 2}", began_at=began)])
        for place in world.places.values():
            if place.unit == f"u{first % 2}" and place.tried < began and not place.gone:
                place.reads.append((began, frozenset()))
                place.gone = True
    elif kind == "wait":
        here.pass_((1, 200, 700, 2000)[first % 4])


async def _lives(steps: Sequence[tuple[str, int, int]], directory: Path, url: str) -> None:
    graces = Graces(unseen=1_200_000, old=600_000)
    async with watch(directory, url, graces) as here:
        world = World(graces)
        token = await here.house.token(allow=["spiffe://example.org/prod/*"], expires="24h")
        for step in steps:
            await _one(step, here, world, token)
        await here.settle()
        wanted = {sha(one.der): world.state(number, here.now) for number, one in enumerate(world.certificates)}
        assert await here.states() == {one: state for one, state in wanted.items() if state is not None}
        counted = await here.counts()
        assert counted == {state: n for state in ALL_STATES if (n := list(wanted.values()).count(state))}
        assert await here.reconciler.recount() == {}
        assert await tallies.truth(here.store) == {
            (kind, bucket): number
            for kind in ("state", "expiry", "renewal", "end", "location", "owner")
            for bucket, number in (await tallies.of_kind(here.store, kind)).items()
        }


_STEPS = st.tuples(
    st.sampled_from(
        ["issue", "issue", "found", "rogue", "renew", "revoke", "read", "read", "read", "read", "fail", "cover", "wait", "wait"]
    ),
    st.integers(0, 11),
    st.integers(0, 2**20),
)


@settings(max_examples=12, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # each takes too long to be made smaller
@given(st.lists(_STEPS, min_size=8, max_size=40))
def test_any_history_ends_in_the_states_that_an_oracle_works_out(steps: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "db"
        path.write_bytes(migrated.sqlite())
        asyncio.run(_lives(steps, Path(directory), f"sqlite:///{path}"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_a_long_history_does_so_on_postgresql(migrated_url: str, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    kinds = ["issue", "found", "rogue", "renew", "revoke", *["read"] * 6, "fail", "cover", "wait", "wait"]
    steps = [(dice.choice(kinds), dice.randrange(12), dice.randrange(2**20)) for _ in range(80)]
    asyncio.run(_lives(steps, tmp_path, migrated_url))
