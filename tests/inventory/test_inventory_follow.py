"""Following the log, and the figures that come of it; decisions about what was found."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from handclasp.access.principals import ServerPrincipal
from handclasp.clock import rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.inventory import follow, tallies
from handclasp.inventory.filters import parse
from handclasp.inventory.identities import Identities
from handclasp.inventory.overview import Overviews
from handclasp.inventory.resolve import Resolver
from handclasp.inventory.states import Graces
from handclasp.inventory.triage import Triage
from handclasp.store import tables
from handclasp.store.writes import Change, Write
from handclasp.wire.inventory import Figure
from support.errors import refused
from support.inventory import Watch, foreign, sha, watch
from support.issuing import HERE

SPIFFE = "spiffe://example.org/prod/"
HOUR = 3_600_000


async def names_of(here: Watch, identity: str) -> set[str]:
    link, name, table = tables.identity_name.c, tables.name.c, tables.identity.c
    query = (
        select(name.text)
        .join_from(tables.name, tables.identity_name, link.name_id == name.id)
        .join(tables.identity, table.id == link.identity_id)
    )
    return {row.text for row in await here.store.rows(query.where(table.name == identity))}


def test_what_is_issued_becomes_summaries_names_and_counters(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            token = await here.house.token(allow=[SPIFFE + "*"], allow_dns=["*.example.org"])
            first = await here.house.issue(token, identity=SPIFFE + "Web", dns=["web.example.org"])
            hour = tallies.hour_of(here.now)
            renewed = await here.house.renew(first)
            other = await here.house.issue(token, identity=SPIFFE + "db")
            with pytest.raises(HandclaspError):
                await here.house.issue(token, identity="spiffe://example.org/other")
            await here.settle()
            row = await here.store.row(select(tables.summary).where(tables.summary.c.newest == renewed.sha256))
            assert (row.issued, row.newest_origin, row.newest_not_after) == (2, "issued", renewed.not_after)
            assert await names_of(here, SPIFFE + "Web") == {SPIFFE + "web", "web.example.org"}
            assert await tallies.of_kind(here.store, "issued") == {hour: 2}
            assert await tallies.of_kind(here.store, "renewed") == {hour: 1}
            assert await tallies.of_kind(here.store, "refused") == {hour: 1}
            assert await tallies.of_kind(here.store, "owner") == {"": 2}
            assert await here.states() == {renewed.sha256: "unseen", other.sha256: "unseen"}
            assert await here.number(tables.assignment_due) == 2

    asyncio.run(run())


def test_a_write_that_failed_is_made_up_for(migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            token = await here.house.token(allow=[SPIFFE + "*"])
            await here.house.issue(token, identity=SPIFFE + "web")

            async def away(_: Write) -> int:
                raise HandclaspError(Kind.UNAVAILABLE, "the database is away")

            with monkeypatch.context() as outage:
                outage.setattr(here.store.ledger, "commit", away)
                with refused(Kind.UNAVAILABLE):
                    await here.follower.step()
            await here.settle()
            assert await names_of(here, SPIFFE + "web") == {SPIFFE + "web"}
            assert await here.number(tables.assignment_due) == 1

    asyncio.run(run())


def test_it_catches_up_in_batches_and_counts_each_entry_once(migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "AT_ONCE", 3)

    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            token = await here.house.token(allow=[SPIFFE + "*"])
            line = await here.house.issue(token, identity=SPIFFE + "web")
            for _ in range(9):
                line = await here.house.renew(line)
            while await here.follower.step():
                again = follow.Follower(here.store, here.house.here.clock, here.reconciler)  # as after a restart, in every place
                here.follower = again
            (row,) = await here.rows(tables.summary)
            assert (row.issued, bytes(row.newest)) == (10, line.sha256)
            assert await here.states() == {line.sha256: "unseen"}
            assert sum((await tallies.of_kind(here.store, "renewed")).values()) == 9

    asyncio.run(run())


def test_unseen_waits_for_an_age_and_leaves_out_what_handclasp_itself_holds(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url, Graces(unseen=HOUR // 2, old=1)) as here:
            token = await here.house.token(allow=[SPIFFE + "*"])
            server = ServerPrincipal("example.org", ("localhost",))
            await here.house.issue(server, identity="spiffe://example.org/handclasp/server", dns=["localhost"], ttl=HOUR / 1000)
            early = await here.house.issue(token, identity=SPIFFE + "a")
            replaced = await here.house.issue(token, identity=SPIFFE + "b")
            await here.settle()
            assert await here.states() == {}
            here.pass_(1000)
            replacing = await here.house.renew(replaced)
            here.pass_(1000)
            await here.settle()
            assert await here.states() == {early.sha256: "unseen"}
            here.pass_(1000)
            await here.settle()
            assert await here.states() == {early.sha256: "unseen", replacing.sha256: "unseen"}
            here.pass_(3600)
            await here.settle()
            assert await here.states() == {}  # both have ended, and nobody ever saw them
            assert await here.counts() == {}

    asyncio.run(run())


def test_a_revocation_is_seen_at_once_where_it_is_served(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            token = await here.house.token()
            issued = await here.house.issue(token)
            await here.see(here.at("x", await here.der(issued)))
            await here.house.revoker.revoke(issued.sha256, "superseded", "", token, HERE, any_certificate=True)
            await here.settle()
            assert await here.states() == {issued.sha256: "revoked_served"}

    asyncio.run(run())


def numbers(figures: list[Figure]) -> dict[str, int]:
    return {one.name: one.number for one in figures}


def test_the_overview_says_what_the_rows_say(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:

            async def agents() -> dict[str, int]:
                return {"ok": 2, "silent": 1}

            overviews = Overviews(here.store, here.house.here.clock, agents)
            empty = await overviews.overview()
            assert numbers(empty.standings) == dict.fromkeys(numbers(empty.standings), 0)
            assert all(one.level == "fine" for one in (*empty.standings, *empty.identities, empty.overdue, empty.expired))
            token = await here.house.token(allow=[SPIFFE + "*"])
            issued = [await here.house.issue(token, identity=f"{SPIFFE}{number}") for number in range(4)]
            await here.see(
                here.at("a", await here.der(issued[0])), here.at("b", foreign(now=here.now, lifetime=86400 * 20)), here.at("c", problem="x")
            )
            await here.settle()
            row = await here.house.row(issued[0])
            here.house.here.clock.now = max(one.renew_before for one in issued) + 1  # nobody renews: overdue
            await here.house.renew(issued[3])
            owned = update(tables.identity).where(tables.identity.c.id == row.identity_id).values(owner="web")
            await here.store.ledger.commit(Write([], [Change(owned)]))
            await here.settle()
            shown = await overviews.overview()
            assert numbers(shown.standings) | {"seen": 1, "foreign": 1, "unseen": 3} == numbers(shown.standings)
            assert [one.name for one in shown.standings if one.level == "alarm"] == []
            assert numbers(shown.identities) == {"all": 5, "owned": 1, "unowned": 4}
            assert (shown.overdue.number, shown.overdue.level, shown.expired.number) == (3, "alarm", 0)
            assert numbers(shown.expiring) == {"24h": 4, "7d": 4, "30d": 5}
            assert numbers(shown.locations) == {"read": 2, "failed": 1, "gone": 0}
            assert numbers(shown.agents) == {"ok": 2, "silent": 1}
            assert (shown.issued_24h.number, len(shown.issuance), shown.followed) == (5, 24, 0)
            assert shown.issuance[-1].renewed == 1
            here.pass_(2 * 86400)
            await here.settle()
            later = await overviews.overview()
            assert (later.overdue.number, later.expired.number) == (0, 4)
            assert numbers(later.expiring) == {"24h": 0, "7d": 0, "30d": 1}
            await overviews.gauges()

    asyncio.run(run())


def test_an_identity_whose_newest_certificate_is_revoked_is_overdue_until_it_has_another(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            identities = Identities(here.store, here.house.here.clock, Resolver(here.store))
            overviews = Overviews(here.store, here.house.here.clock)

            async def state() -> tuple[str, int]:
                (one,) = (await identities.page(parse("identities", {}, here.now), 10)).items
                listed = (await identities.page(parse("identities", {"state": one.state}, here.now), 10)).items
                assert [each.identity for each in listed] == [one.identity]
                return one.state, (await overviews.overview()).overdue.number

            async def revoke(sha256: bytes) -> None:
                await here.house.revoker.revoke(sha256, "key_compromise", "", ServerPrincipal("example.org"), HERE, any_certificate=True)
                await here.settle()

            token = await here.house.token(allow=[SPIFFE + "*"])
            first = await here.house.issue(token, identity=SPIFFE + "web")
            second = await here.house.renew(first)
            await here.settle()
            await revoke(first.sha256)  # an older one
            assert await state() == ("ok", 0)
            await revoke(second.sha256)
            here.pass_(1)
            assert await state() == ("overdue", 1)
            await here.house.issue(token, identity=SPIFFE + "web", ttl=900)  # which ends before the one that is revoked
            await here.settle()
            assert await state() == ("ok", 0)

    asyncio.run(run())


def test_the_timeline_has_every_hour_and_day(tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path) as here:
            overviews = Overviews(here.store, here.house.here.clock)
            issued = await here.house.issue(await here.house.token())
            await here.settle()
            begin = here.now // HOUR * HOUR
            hours = await overviews.timeline(begin - HOUR, begin + 3 * HOUR)
            assert [one.at for one in hours.items] == [rfc3339(begin + n * HOUR) for n in range(-1, 3)]
            assert [one.issued for one in hours.items] == [0, 1, 0, 0]
            assert [one.expiring for one in hours.items].index(1) == (issued.not_after - begin) // HOUR + 1
            assert sum(one.renewing for one in hours.items) == 1
            days = await overviews.timeline(begin - 40 * 86_400_000, begin + 40 * 86_400_000, "day")
            assert 81 <= len(days.items) <= 82
            assert sum(one.issued for one in days.items) == sum(one.expiring for one in days.items) == 1
            for since, until, by in ((5, 5, "hour"), (0, 10**12, "hour"), (0, 10**12, "week"), (-1, 5, "day"), (0, 1 << 60, "day")):
                with refused(Kind.BAD_REQUEST):
                    await overviews.timeline(since, until, by)

    asyncio.run(run())


def test_a_decision_is_kept_with_its_reason_and_logged(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            triage = Triage(here.store, here.house.here.clock)
            leaf = foreign(now=here.now)
            await here.see(here.at("x", leaf))
            admin: Any = await here.house.token(name="admin")
            await triage.decide(sha(leaf), "investigate", "", admin)
            index = await triage.decide(sha(leaf), "dismissed", "ask bob@example.org", admin)
            (row,) = await here.rows(tables.found)
            assert (row.triage, row.triage_reason, row.triage_by, row.triage_at) == (
                "dismissed",
                "ask bob@example.org",
                admin.describe(),
                here.now,
            )
            assert await here.states() == {sha(leaf): "foreign"}  # what is dismissed is still there
            entry = (await here.house.entries())[index]
            assert (entry["type"], entry["what"]["before"], entry["what"]["decision"]) == (
                "certificate.triaged",
                "investigate",
                "dismissed",
            )
            assert "bob" not in str(entry)
            issued = await here.house.issue(await here.house.token())
            for sha256, decision, reason, kind in (
                (bytes(32), "claimed", "", Kind.NOT_FOUND),
                (issued.sha256, "claimed", "", Kind.CONFLICT),
                (sha(leaf), "burn", "", Kind.BAD_REQUEST),
                (sha(leaf), "dismissed", " ", Kind.BAD_REQUEST),
                (sha(leaf), "claimed", "\x1b[2J", Kind.BAD_REQUEST),
            ):
                with refused(kind):
                    await triage.decide(sha256, decision, reason, admin)

    asyncio.run(run())


def test_a_counter_that_somebody_broke_is_put_right(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            await here.see(here.at("x", foreign(now=here.now)))
            assert await here.reconciler.recount() == {}
            tally = tables.tally
            await here.store.ledger.commit(Write([], [Change(update(tally).where(tally.c.bucket == "foreign").values(number=7))]))
            assert await here.reconciler.recount_if_due() == {}  # the first day only begins
            assert await here.reconciler.recount_if_due() == {}
            here.pass_(86_400)
            assert await here.reconciler.recount_if_due() == {("state", "foreign"): 6}
            assert await here.counts() == {"foreign": 1}

    asyncio.run(run())
