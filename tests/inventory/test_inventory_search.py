"""Searches, against the same filters told over plain facts: on both databases, in pages of any size, with walks that give up at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.errors import HandclaspError, Kind
from handclasp.inventory import resolve
from handclasp.inventory.filters import ANY, CERTIFICATES, IDENTITIES, LISTS, LOCATIONS, Filters, parse, parse_all
from handclasp.inventory.identities import Identities
from handclasp.inventory.places import Places
from handclasp.inventory.resolve import Resolver
from handclasp.inventory.sample import Sample
from handclasp.inventory.search import Inventory
from handclasp.inventory.walk import Found, Pace, Plan, Walker
from handclasp.store.database import Store
from support.errors import refused
from support.estate import DAY, HOUR, NOW, Estate, Fact

Choices = dict[str, Callable[[random.Random, Estate], str]]


def clock() -> int:
    return NOW


def _fact(r: random.Random, estate: Estate) -> Fact:
    return r.choice(estate.facts)


def _part(r: random.Random, text: str) -> str:
    start = r.randrange(max(1, len(text) - 2))
    return text[start : start + r.choice([2, 3, 5, 12])] or text


CHOICES: Choices = {
    "identity": lambda r, e: r.choice(e.identities)["name"],
    "name": lambda r, e: r.choice(
        ["*.example.org", "*.prod.example.com", "*web*", "*0%_*", r.choice(sorted(r.choice(e.identities)["names"]))]
    ),
    "spiffe": lambda r, _e: r.choice(["spiffe://example.org/prod", "example.org/dev", "spiffe://example.org", "example.org/prod/we"]),
    "issuer": lambda r, _e: r.choice(["prod-issuing", "CN=Foreign CA,O=Acme", "acme", "100%_s", "example", "nobody"]),
    "owner": lambda r, _e: r.choice(["team-web", "team-ledger", "none", "nobody-known"]),
    "tier": lambda r, _e: r.choice(["1", "2"]),
    "environment": lambda _r, _e: "prod",
    "state": lambda r, _e: r.choice(["valid", "superseded", "expired", "revoked"]),
    "standing": lambda r, _e: r.choice(["unissued", "foreign", "expired_served", "seen", "gone", "unseen", "past"]),
    "origin": lambda r, _e: r.choice(["issued", "found"]),
    "source": lambda r, _e: r.choice(["edge", "files", "nowhere"]),
    "key_type": lambda r, _e: r.choice(["p256", "p384", "rsa2048"]),
    "key": lambda r, e: _fact(r, e).key.hex(),
    "serial": lambda r, e: f"{int.from_bytes(_fact(r, e).serial, 'big'):x}",
    "sha256": lambda r, e: _fact(r, e).sha256.hex()[: r.choice([4, 5, 64])],
    "profile": lambda r, _e: r.choice(["workload", "agent", "none-such"]),
    "authority": lambda r, _e: r.choice(["prod-issuing", "dev-issuing", "none-such"]),
    "expires_after": lambda r, _e: r.choice(["-2d", "0s", "2027-01-15", "-1h"]),
    "expires_before": lambda r, _e: r.choice(["7d", "2d", "2027-03-01T00:00:00Z"]),
    "ca": lambda r, _e: r.choice(["true", "false"]),
    "triage": lambda r, _e: r.choice(["unmanaged", "claimed", "dismissed"]),
    "q": lambda r, e: r.choice(
        [_part(r, r.choice(_fact(r, e).names or ["web"])), "web", "team-", "legacy", "root of 100%", "acme", "prod-iss", "a-b", "%", "ex",
         _fact(r, e).sha256.hex()[:10], f"{int.from_bytes(_fact(r, e).serial, 'big'):x}"[:11]]
    ),
}  # fmt: skip
LIKELY = ("q", "state", "owner", "name", "origin", "standing", "spiffe", "key_type", "expires_after")


def fits(fact: Fact, name: str, text: str, estate: Estate) -> bool:
    """What a filter means, in as few words as can be."""
    meaning = parse("certificates", {name: text}, NOW)
    wanted = getattr(meaning, name)
    if name == "name":
        tests = {"exact": str.__eq__, "suffix": str.endswith, "part": str.__contains__}
        return any(tests[wanted.kind](one, wanted.text) for one in fact.names)
    if name == "spiffe":
        return fact.identity is not None and (fact.identity == wanted or fact.identity.startswith(f"{wanted}/"))
    if name == "issuer":
        ours = fact.authority or ("dev-issuing" if fact.issuer == "CN=Example dev-issuing" else "")
        signed = f"CN=Example {ours}" if ours else ""
        return any(wanted in one.lower() for one in (fact.issuer, ours, signed) if one)
    if name == "authority":
        return wanted in (fact.authority, "dev-issuing" if fact.issuer == "CN=Example dev-issuing" else None)
    if name == "owner":
        return fact.owner == (None if wanted == "none" else wanted) and (wanted != "none" or fact.identity is not None)
    if name == "source":
        return wanted in fact.sources
    if name == "sha256":
        return wanted[0] <= fact.sha256 <= wanted[1]
    if name in ("expires_after", "expires_before"):
        return fact.not_after >= wanted if name == "expires_after" else fact.not_after < wanted
    if name == "q":
        return _has_text(fact, wanted, estate)
    return getattr(fact, name) == wanted


def _has_text(fact: Fact, q: str, estate: Estate) -> bool:
    def begins(one: Fact) -> bool:
        return one.sha256.hex().startswith(q) or f"{int.from_bytes(one.serial, 'big'):x}".startswith(q)

    if len(q) >= 8 and set(q) <= set("0123456789abcdef") and any(begins(one) for one in estate.facts):
        return begins(fact)
    return any(q in one for one in (*fact.names, (fact.owner or ""), fact.subject.lower())) or fits(fact, "issuer", q, estate)


async def every(inventory: Inventory, query: dict[str, str], limit: int) -> list[str]:
    """Every fingerprint, page by page."""
    filters = parse("certificates", query, NOW)
    found: list[str] = []
    after, keys = None, []
    for _ in range(2000):
        page = await inventory.certificates(filters, limit, after)
        assert len(page.items) <= limit
        found += [one.sha256 for one in page.items]
        if page.next is None:
            return found
        assert page.next not in keys, "a walk that does not go on"
        after = page.next
        keys.append(after)
    raise AssertionError("a walk without end")


@pytest.mark.parametrize("seed", range(3))
def test_searches_find_what_fits_and_nothing_else(migrated_url: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # With few worth listing, and short walks, every way of searching is gone; small numbers stand for millions.
    monkeypatch.setattr(resolve, "FEW", (3, 12, 4000)[seed])
    monkeypatch.setattr(resolve, "MANY", (1, 3, 300)[seed])
    monkeypatch.setattr("handclasp.inventory.walk.FIRST_STRETCH", (7, 40, 1000)[seed])
    monkeypatch.setattr("handclasp.inventory.plans.FEW_CERTIFICATES", (4, 20, 50_000)[seed])
    monkeypatch.setattr(resolve, "PATIENCE", 10.0)
    monkeypatch.setattr("handclasp.inventory.sample.FROM", (1, 1, 20_000)[seed])
    estate, r = Estate(seed), random.Random(seed)

    async def run() -> None:
        store = await Store.open(migrated_url, clock, migrate=False)
        await estate.store(store)
        inventory = Inventory(store, clock, seconds=0.0 if seed == 0 else 1.0)
        queries: list[dict[str, str]] = [{}, *({name: choose(r, estate)} for name, choose in CHOICES.items())]
        for _ in range(20):
            names = {r.choice(LIKELY if r.random() < 0.7 else tuple(CHOICES)) for _ in range(r.choice([2, 3, 4]))}
            queries.append({name: CHOICES[name](r, estate) for name in sorted(names)})
        for query in queries:
            if r.random() < 0.5:
                query["sort"] = r.choice(["expires", "-expires"])
            wanted = [f for f in estate.facts if all(fits(f, n, t, estate) for n, t in query.items() if n != "sort")]
            wanted.sort(key=lambda f: (f.not_after, f.sha256), reverse=query.get("sort") != "expires")
            found = await every(inventory, query, r.choice([1, 7, 1000]) if len(wanted) < 30 else 50)
            assert found == [f.sha256.hex() for f in wanted], f"{query} in {estate.describe()}"
        await store.close()

    asyncio.run(run())


def test_lists_are_the_same_when_what_is_tried_takes_too_long(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    estate, r, rows, tried = Estate(4), random.Random(4), Store.rows, []

    async def late(self: Store, statement: Any, *, within: float | None = None) -> Any:
        if within is None:
            return await rows(self, statement)
        tried.append(statement)
        raise HandclaspError(Kind.TIMEOUT, "this query took too long")

    queries = [
        {name: CHOICES[name](r, estate) for name in r.sample(("q", "owner", "spiffe", "name", "state", "origin"), 2)} for _ in range(15)
    ]

    async def run() -> None:
        store = await Store.open(migrated_url, clock, migrate=False)
        await estate.store(store)
        found = [await every(Inventory(store, clock), query, 7) for query in queries]
        monkeypatch.setattr(Store, "rows", late)
        assert [await every(Inventory(store, clock), query, 7) for query in queries] == found
        assert tried
        monkeypatch.undo()
        # Those that were listed, but are too many to be sorted in time.
        monkeypatch.setattr("handclasp.inventory.walk.Walker._sort", late_sort)
        assert [await every(Inventory(store, clock), query, 7) for query in queries] == found
        await store.close()

    sort = Walker._sort

    async def late_sort(self: Walker, plan: Plan, within: float | None = None) -> Found:
        if within is not None:
            raise HandclaspError(Kind.TIMEOUT, "this query took too long")
        return await sort(self, plan)

    asyncio.run(run())


def test_a_walk_that_is_full_does_not_wait_for_one_that_finds_nothing(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What was found has other names, and ends later: the page of what was issued is not cut short by the walk through that.
    monkeypatch.setattr("handclasp.inventory.walk.FIRST_STRETCH", 5)
    monkeypatch.setattr("handclasp.inventory.walk.LONGEST_STRETCH", 5)
    monkeypatch.setattr(resolve, "FEW", 0)
    estate = Estate(6, found=200)

    async def run() -> None:
        store = await Store.open(migrated_url, clock, migrate=False)
        await estate.store(store)
        page = await Inventory(store, clock, seconds=30.0).certificates(parse("certificates", {"profile": "workload"}, NOW), 10)
        both = await Inventory(store, clock, seconds=30.0).certificates(parse("certificates", {"q": "example"}, NOW), 10)
        assert (len(page.items), len(both.items)) == (10, 10)
        await store.close()

    asyncio.run(run())


def test_a_pace_is_learned_and_slowness_of_a_moment_is_not_believed() -> None:
    pace = Pace(1e-6)
    guessed = pace.rows("kind", 0.01)
    pace.took("kind", 1000, 0.0001)
    assert pace.rows("kind", 0.01) > 5 * guessed
    quick = pace.rows("kind", 0.01)
    pace.took("kind", 1000, 0.0002)
    assert quick / 2 < pace.rows("kind", 0.01) < quick
    for _ in range(50):
        pace.took("kind", 1000, 0.1)
    assert pace.rows("kind", 0.01) < 200
    assert pace.rows("other", 0.01) == guessed
    assert pace.rows("kind", -1.0) == 0


def test_a_sample_tells_how_many_have_a_text(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handclasp.inventory.sample.FROM", 1)
    estate = Estate(7)

    async def run() -> None:
        store = await Store.open(migrated_url, clock, migrate=False)
        await estate.store(store)
        sample = Sample(store)
        assert sample.guess("web", ANY) is None
        sample.refresh(len(estate.identities))
        while sample.guess(None, ANY) is None:
            await asyncio.sleep(0.01)
        assert sample.population == len(estate.identities)

        def those(**own: str) -> list[dict[str, Any]]:
            return [one for one in estate.identities if all(one[name] == (None if text == "none" else text) for name, text in own.items())]

        for own in ({}, {"owner": "team-web"}, {"owner": "none", "environment": "prod"}, {"tier": "1"}):
            for text in ("web", "example", "50%", "nowhere"):
                wanted = sum(any(text in name for name in one["names"]) for one in those(**own))
                assert sample.guess(text, Filters(**own)) == wanted, (text, own)
        below = [one for one in estate.identities if one["name"].startswith("spiffe://example.org/prod/")]
        assert sample.guess(None, Filters(spiffe="spiffe://example.org/prod")) == len(below)
        await store.close()

    asyncio.run(run())


def test_pages_while_certificates_come_and_go_show_none_twice_and_miss_none_that_stays(migrated_url: str) -> None:
    estate = Estate(9)

    async def run() -> None:
        store = await Store.open(migrated_url, clock, migrate=False)
        late = estate.rows[list(estate.rows)[-1]]
        await estate.store(store)
        assert late
        inventory = Inventory(store, clock)
        before = await every(inventory, {}, 1000)
        filters = parse("certificates", {}, NOW)
        first = await inventory.certificates(filters, 20)
        from sqlalchemy import delete

        from handclasp.store import tables
        from handclasp.store.writes import Change, Write

        gone = [bytes.fromhex(before[5]), bytes.fromhex(before[100])]
        for table in (tables.certificate, tables.found):
            await store.ledger.commit(Write([], [Change(delete(table).where(table.c.sha256.in_(gone)))]))
        seen = [one.sha256 for one in first.items]
        page = first
        while page.next is not None:
            page = await inventory.certificates(filters, 20, page.next)
            seen += [one.sha256 for one in page.items]
        assert len(set(seen)) == len(seen)
        assert set(before) - set(seen) == {before[100]}
        await store.close()

    asyncio.run(run())


def test_one_certificate_is_shown_whether_issued_or_found(migrated_url: str) -> None:
    estate = Estate(2)

    async def run() -> None:
        store = await Store.open(migrated_url, clock, migrate=False)
        await estate.store(store)
        inventory = Inventory(store, clock)
        found = next(fact for fact in estate.facts if fact.origin == "found" and not fact.ca)
        shown = await inventory.certificate(found.sha256)
        assert (shown.origin, shown.identity, shown.owner, shown.standing) == ("found", found.identity, found.owner, found.standing)
        assert (shown.profile, shown.log_entry, shown.certificate) == (None, None, None)
        with refused(Kind.NOT_FOUND):
            await inventory.certificate(bytes(32))
        await store.close()

    asyncio.run(run())


@pytest.mark.parametrize("counted", [1, 1000])
def test_identities_are_listed_by_name_and_by_end(migrated_url: str, counted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Identities with more certificates than are counted have a way of their own, and what is kept of them is right here.
    monkeypatch.setattr("handclasp.inventory.identities._COUNTED", counted)
    monkeypatch.setattr("handclasp.inventory.identities.FIRST_STRETCH", 3)
    monkeypatch.setattr("handclasp.inventory.identities.LONGEST_STRETCH", 5)
    monkeypatch.setattr("handclasp.inventory.identities.ANSWER_SECONDS", {True: 0.0, False: 0.0})
    estate = Estate(5)
    with_certificates = {fact.identity for fact in estate.facts if fact.origin == "issued"}

    async def run() -> None:
        store = await Store.open(migrated_url, clock, migrate=False)
        await estate.store(store)
        identities = Identities(store, clock, Resolver(store))

        async def names(limit: int, **query: str) -> list[str]:
            found: list[str] = []
            after = None
            for _ in range(500):
                page = await identities.page(parse("identities", query, NOW), limit, after)
                found += [one.identity for one in page.items]
                if page.next is None:
                    return found
                after = page.next
            raise AssertionError("a walk without end")

        everybody = [row["name"] for row in estate.identities]
        for limit in (1, 4, 100):
            assert sorted(await names(limit)) == sorted(everybody)
        ends = {name: max(f.not_after for f in estate.facts if f.identity == name and f.origin == "issued") for name in with_certificates}
        for sort, sign in (("expires", 1), ("-expires", -1)):
            found = await names(3, sort=sort)
            assert set(found) == with_certificates
            assert [ends[name] * sign for name in found] == sorted(ends[name] * sign for name in with_certificates)
        assert set(await names(2, owner="none")) == {row["name"] for row in estate.identities if row["owner"] is None}
        assert set(await names(2, q="team-led")) == {row["name"] for row in estate.identities if row["owner"] == "team-ledger"}
        assert set(await names(2, q="ldr")) == set()
        assert set(await names(9, standing="gone")) == {fact.identity for fact in estate.facts if fact.standing == "gone"}
        assert set(await names(9, state="expired")) == {name for name, end in ends.items() if end <= NOW}
        for state in ("ok", "overdue", "expired"):
            whole = await names(9, state=state)
            by_end = await names(2, state=state, sort="expires")
            assert set(by_end) == set(whole), state
            assert [ends[name] for name in by_end] == sorted(ends[name] for name in by_end)
            assert [ends[name] for name in await names(3, state=state, sort="-expires", q="e")] == sorted(
                (ends[one] for one in await names(9, state=state, q="e")), reverse=True
            )
        soon = {name for name, end in ends.items() if NOW - DAY <= end < NOW + 2 * DAY}
        assert set(await names(2, expires_after="-1d", expires_before="2d", sort="expires")) == soon
        assert set(await names(9, expires_after="-1d", expires_before="2d")) == soon
        fact = next(fact for fact in estate.facts if fact.origin == "found" and not fact.ca)
        assert await names(9, q=fact.sha256.hex()[:12]) == [fact.identity]
        page = await identities.page(parse("identities", {}, NOW), 100, None)
        for one in page.items:
            mine = [f for f in estate.facts if f.identity == one.identity and f.origin == "issued"]
            assert one.certificates == len(mine)
            assert one.newest is None or bytes.fromhex(one.newest) in {f.sha256 for f in mine if f.not_after == ends[one.identity]}
        await store.close()

    asyncio.run(run())


def test_locations_and_sightings(migrated_url: str) -> None:
    estate = Estate(3)

    async def run() -> None:
        store = await Store.open(migrated_url, clock, migrate=False)
        await estate.store(store)
        places = Places(store)

        async def numbers(**query: str) -> list[int]:
            return [one.id for one in (await places.locations(parse("locations", query, NOW), 100)).items]

        assert await numbers() == [11, 12, 21, 22]
        assert await numbers(source="edge") == [11, 12]
        assert await numbers(source="nowhere") == []
        assert await numbers(state="failed") == [12, 22]
        assert await numbers(state="gone") == []
        assert await numbers(host="files-1") == [21]
        assert await numbers(q="EDGE-2:") == [12]
        first = await places.locations(parse("locations", {}, NOW), 3)
        assert (len(first.items), first.next) == (3, 21)
        shown = await places.location(11)
        assert (shown.source, shown.state) == ("edge", "read")
        assert shown.sightings is not None
        there = [s for s in shown.sightings if s.ended is None]
        assert {bytes.fromhex(s.sha256) for s in there} == {
            row["sha256"] for table, rows in estate.rows.items() if table.name == "sighting" for row in rows
            if row["location_id"] == 11 and row["ended_at"] is None
        }  # fmt: skip
        with refused(Kind.NOT_FOUND):
            await places.location(5)
        page = await places.sightings(10, location=12, now=False)
        assert page.items
        assert all(s.ended is not None and s.location == 12 for s in page.items)
        everywhere = {s.id for s in (*page.items, *(await places.sightings(500, location=12, now=True)).items)}
        at_place: list[int] = []
        before = None
        while True:
            part = await places.sightings(4, before, location=12)
            at_place += [s.id for s in part.items]
            before = part.next
            if before is None:
                break
        assert at_place == sorted(at_place, reverse=True)
        assert everywhere <= set(at_place)
        again = await places.sightings(3)
        rest = await places.sightings(500, again.next)
        ids = [s.id for s in (*again.items, *rest.items)]
        assert ids == sorted(ids, reverse=True)
        await store.close()

    asyncio.run(run())


# --- filters ------------------------------------------------------------------------------------------------------------------------------

MOMENTS = [
    ("7d", NOW + 7 * DAY),
    ("-1h", NOW - HOUR),
    ("+1h", NOW + HOUR),
    ("2027-01-15", 1_799_971_200_000),
    ("2027-01-15T08:00:00+01:00", 1_799_996_400_000),
]


@pytest.mark.parametrize(("text", "at"), MOMENTS)
def test_moments(text: str, at: int) -> None:
    assert parse("certificates", {"expires_before": text}, NOW).expires_before == at


BAD = [
    ("state", "active"), ("standing", "lost"), ("origin", ""), ("sort", "name"), ("ca", "yes"), ("key", "abcd"), ("key", "zz"),
    ("serial", "0"),
    ("serial", "12g4"), ("sha256", "abc"), ("expires_after", "7"), ("expires_after", "2027-13-01"), ("expires_before", "99999999d"),
    ("name", "a*b"), ("name", "*"), ("spiffe", "spiffe://"), ("spiffe", "/prod"), ("q", "a\0b"), ("q", "x" * 2049), ("owner", "\ud800"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), BAD)
def test_a_filter_that_cannot_be_read_says_which(name: str, text: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        parse("certificates", {name: text}, NOW)
    assert caught.value.kind is Kind.BAD_REQUEST
    assert caught.value.detail.startswith(f"{name}: ")


def test_a_window_has_a_beginning_before_its_end() -> None:
    with refused(Kind.BAD_REQUEST):
        parse("certificates", {"expires_after": "7d", "expires_before": "1d"}, NOW)


def test_filters_of_another_list_are_refused_where_nothing_else_may_stand() -> None:
    with refused(Kind.BAD_REQUEST):
        parse_all("identities", {"profile": "workload"}, NOW)
    assert parse_all("certificates", {"profile": "workload"}, NOW).profile == "workload"


@given(st.sampled_from(sorted({one.name for one in (*CERTIFICATES, *IDENTITIES, *LOCATIONS)})), st.text(max_size=80))
def test_no_text_crashes_a_filter(name: str, text: str) -> None:
    for which in LISTS:
        try:
            parse(which, {name: text}, NOW)
        except HandclaspError as error:
            if error.kind is not Kind.BAD_REQUEST:
                raise
