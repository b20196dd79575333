"""Where the inventory could say something that is not so: facts that come late, clocks that go back, sources that go."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from cryptography import x509
from sqlalchemy import insert, select

from handclasp.authority.keystore import KeyStore
from handclasp.inventory import adopt, reconcile
from handclasp.inventory.detail import SHOWN, Details
from handclasp.inventory.identities import Identities
from handclasp.inventory.places import Places
from handclasp.inventory.resolve import Resolver
from handclasp.inventory.retention import Retention
from handclasp.inventory.search import Inventory
from handclasp.inventory.states import Graces
from handclasp.pki.ca import self_signed_root, sign_issuing
from handclasp.store import tables
from handclasp.store.writes import Change, Write
from handclasp.wire.observations import Covered, Seen
from support.authorities import key_of
from support.installation import BASE, BY, PASSPHRASE
from support.inventory import SOURCE, foreign, rogue, sha, watch

DAY = 86_400


async def unissued_entries(here: Any) -> int:
    return [one["type"] for one in await here.house.entries()].count("certificate.unissued")


def test_bytes_that_come_to_the_same_place_are_judged(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            ours = await rogue(here)
            await here.see(here.at("a", Seen(sha256=sha(ours), role="listed"), kind="ca"))
            assert await here.states() == {sha(ours): "foreign"}
            here.pass_(1)
            await here.see(here.at("a", Seen(der=ours, role="listed"), kind="ca"))
            assert await here.states() == {sha(ours): "unissued"}
            (row,) = await here.rows(tables.standing)
            (found,) = await here.rows(tables.found)
            assert (row.not_after, row.identity_id) == (found.not_after, found.identity_id)

    asyncio.run(run())


def test_a_rogue_authority_that_another_source_still_sees_stands(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            forged = await rogue(here, "", ca=True)
            await here.see(here.at("a", Seen(der=forged, role="anchor"), kind="file"))
            await here.see(here.at("a", foreign(now=here.now), Seen(der=forged, role="anchor")), source=2)
            await here.recorder.forget_source(1)
            await here.settle()
            assert (await here.states())[sha(forged)] == "unissued"

    asyncio.run(run())


def test_a_served_certificate_is_in_use_even_if_it_calls_itself_an_authority(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            own = foreign("appliance.example.net", now=here.now, ca=True, issuer="appliance.example.net", lifetime=60)
            await here.see(here.at("tls:appliance:443", own))
            assert await here.states() == {sha(own): "foreign"}
            here.pass_(61)
            await here.see(here.at("tls:appliance:443", own))
            await here.settle()
            assert await here.states() == {sha(own): "expired_served"}

    asyncio.run(run())


def test_what_was_told_of_a_certificate_is_forgotten_when_its_bytes_say_otherwise(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            leaf = foreign("real.example.net", now=here.now)
            await here.see(here.at("a", Seen(sha256=sha(leaf), role="listed", identity="dns:told.example.net", not_after=here.now + 10**7)))
            here.pass_(1)
            await here.see(here.at("b", leaf))
            rows = await here.store.rows(
                select(tables.identity.c.name, tables.summary.c.newest).join_from(
                    tables.identity, tables.summary, tables.summary.c.identity_id == tables.identity.c.id
                )
            )
            assert {row.name: bytes(row.newest) for row in rows if row.newest == sha(leaf)} == {"dns:real.example.net": sha(leaf)}

    asyncio.run(run())


def test_a_clock_that_was_ahead_and_is_put_right_stops_nothing(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            first, second = foreign("a.example.net", now=here.now), foreign("b.example.net", now=here.now)
            here.pass_(DAY)
            await here.see(here.at("x", first, unit="u"), here.at("y", first, unit="u"), covered=[Covered(unit="u", began_at=here.now)])
            here.pass_(-DAY)
            began = here.now
            here.pass_(1)
            told = await here.see(here.at("x", second, unit="u"), covered=[Covered(unit="u", began_at=began)])
            assert told.changed == 1
            open_now = [bytes(row.sha256) for row in await here.rows(tables.sighting) if row.ended_at is None]
            assert open_now == [sha(second)]

    asyncio.run(run())


def test_what_ended_by_a_clock_that_was_ahead_has_not_ended(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            leaf = foreign(now=here.now, lifetime=3600)
            here.pass_(DAY)
            await here.see(here.at("x", leaf))
            assert await here.states() == {sha(leaf): "expired_served"}
            here.pass_(-DAY)
            await here.settle()
            assert await here.states() == {sha(leaf): "foreign"}

    asyncio.run(run())


def test_a_clock_that_was_ahead_is_put_right_for_all_at_once(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(reconcile, "AT_ONCE", 2)

    async def run() -> None:
        async with watch(tmp_path) as here:
            leaves = [foreign(f"{number}.example.net", now=here.now, lifetime=3600) for number in range(5)]
            here.pass_(DAY)
            await here.see(here.at("x", *leaves))
            assert set((await here.states()).values()) == {"expired_served"}
            here.pass_(-DAY)
            for _ in range(3):
                await here.settle()
            assert await here.states() == {sha(leaf): "foreign" for leaf in leaves}

    asyncio.run(run())


def test_an_authority_that_is_imported_later_is_ours_and_what_it_signed_too(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            authorities, root = here.house.here.authorities, here.house.here.authorities.find("root")
            request = authorities.request("second", "example.org")
            root_key, key = authorities.crl_key(root), KeyStore(tmp_path / "keys", PASSPHRASE).load("file:second.key")
            assert root_key is not None
            subject = "example.org issuing"
            second = sign_issuing(root_key, root.der, request, subject=subject, now=here.now, lifetime=90 * DAY, serial=77)
            signer = (x509.load_der_x509_certificate(second), key)
            leaf = foreign("", uri="spiffe://example.org/prod/early", subject={}, signer=signer, now=here.now)
            below = foreign("below", ca=True, signer=signer, now=here.now)
            other = foreign("other", issuer=subject, now=here.now)
            await here.see(here.at("tls:a:443", leaf, other), here.at("b", *(Seen(der=one, role="anchor") for one in (second, below))))
            await here.settle()
            assert await here.states() == {sha(leaf): "foreign", sha(other): "foreign", sha(second): "unissued"}
            await authorities.import_issuing("second", "root", second, by=BY, base_url=BASE)
            await here.settle()
            assert await here.states() == {sha(leaf): "unissued", sha(other): "foreign", sha(below): "unissued"}
            logged = [one["what"]["sha256"] for one in await here.house.entries() if one["type"] == "certificate.unissued"]
            assert sorted(logged) == sorted(one.hex() for one in map(sha, (second, leaf, below)))
            found = {bytes(row.sha256): row.authority_id for row in await here.rows(tables.found)}
            assert found[sha(leaf)] == found[sha(below)] == authorities.find("second").id
            assert await here.reconciler.recount() == {}
            await here.settle()
            assert len([one for one in await here.house.entries() if one["type"] == "certificate.unissued"]) == 3

    asyncio.run(run())


def test_authorities_that_are_imported_together_are_none_that_was_never_issued(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            authorities, root_key = here.house.here.authorities, key_of("p256", 8)
            root = self_signed_root(root_key, common_name="far root", now=here.now, lifetime=90 * DAY, serial=5)
            request, subject = authorities.request("second", "example.org"), "example.org issuing"
            second = sign_issuing(root_key, root, request, subject=subject, now=here.now, lifetime=80 * DAY, serial=77)
            await here.see(here.at("tls:a:443", root, Seen(der=second, role="served")))
            assert await here.states() == {sha(root): "foreign", sha(second): "foreign"}
            await authorities.import_root("far", "example.org", root, by=BY, base_url=BASE)
            await authorities.import_issuing("second", "far", second, by=BY, base_url=BASE)
            await here.settle()
            assert await here.states() == {}
            assert await unissued_entries(here) == 0

    asyncio.run(run())


def test_everything_that_an_imported_authority_signed_is_looked_at(migrated_url: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(adopt, "AT_ONCE", 2)

    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            authorities, root_key = here.house.here.authorities, key_of("p256", 8)
            root = self_signed_root(root_key, common_name="far root", now=here.now, lifetime=90 * DAY, serial=5)
            signer = (x509.load_der_x509_certificate(root), root_key)
            names = [f"spiffe://example.org/prod/{number}" for number in range(7)]
            many = [
                foreign("", uri=uri, subject={}, signer=signer, now=here.now, lifetime=3600 * (n // 3)) for n, uri in enumerate(names, 3)
            ]
            await here.see(*(here.at(f"tls:{n}:443", one) for n, one in enumerate(many)))
            await authorities.import_root("far", "example.org", root, by=BY, base_url=BASE)
            await here.settle()
            assert await here.states() == {sha(one): "unissued" for one in many}

    asyncio.run(run())


def test_what_may_have_been_forgotten_is_not_logged_as_never_issued(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url, Graces(unseen=0, old=0, horizon=DAY * 1000)) as here:
            old = await rogue(here, lifetime=60)
            here.pass_(3 * DAY)
            lately = await rogue(here, "spiffe://example.org/prod/late", lifetime=60)
            here.pass_(3600)
            await here.see(here.at("a", old), here.at("b", lately))
            assert await here.states() == {sha(old): "expired_served", sha(lately): "unissued"}
            assert await unissued_entries(here) == 1

    asyncio.run(run())


def test_names_of_places_that_become_the_same_are_one_place(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            first, second = foreign("a.example.net", now=here.now), foreign("b.example.net", now=here.now)
            await here.see(here.at("x\x00", first), here.at("x\\x00", second))
            assert await here.number(tables.sighting, tables.sighting.c.ended_at.is_(None)) == 1

    asyncio.run(run())


def test_a_certificate_that_is_everywhere_hides_no_other_of_its_line(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            made = {"name": "s", "kind": "network", "every": 0, "runs": "server", "created_at": here.now, "created_by": "test"}
            await here.store.ledger.commit(Write([], [Change(insert(tables.source).values(id=SOURCE, **made))]))
            token = await here.house.token(allow=["spiffe://example.org/prod/*"])
            first = await here.house.issue(token, identity="spiffe://example.org/prod/web")
            second = await here.house.renew(first)
            await here.see(here.at("old", await here.der(first)))
            der = await here.der(second)
            await here.see(*(here.at(f"tls:h{number}:443", der) for number in range(3 * SHOWN)))
            await here.settle()
            clock = here.house.here.clock
            inventory, places = Inventory(here.store, clock), Places(here.store)
            details = Details(here.store, clock, inventory, Identities(here.store, clock, Resolver(here.store)), places)
            line = (await details.lineage("spiffe://example.org/prod/web", 10)).lineage.items
            seen = {one.certificate.sha256: (len(one.sightings), one.more_sightings) for one in line}
            assert seen == {first.sha256.hex(): (1, False), second.sha256.hex(): (SHOWN, True)}
            assert {one.certificate.granted_by for one in line} == {f"token:{token.id}"}

    asyncio.run(run())


def test_what_ended_long_ago_where_nobody_looks_any_more_goes_and_comes_back_when_it_is_read(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url, Graces(unseen=0, old=0, horizon=3 * DAY * 1000)) as here:
            token = await here.house.token(allow=["spiffe://example.org/prod/*"], expires="30d")
            one = await here.house.issue(token, identity="spiffe://example.org/prod/web")
            der, ever = await here.der(one), foreign("ever.example.net", now=here.now, lifetime=400 * DAY)
            await here.see(here.at("gone host", der, ever, unit="u"), here.at("empty", unit="u"), here.at("failing", der, unit="u"))
            retention = Retention(here.store, here.house.here.clock, 3 * DAY, pause=0)
            await retention.make_months()
            await here.settle()
            await retention.run()
            here.pass_(60 * DAY)
            await retention.run()
            assert await here.number(tables.location) == 3, "nobody can say that it is gone"
            here.pass_(80 * DAY)
            token = await here.house.token(allow=["spiffe://example.org/prod/*"])
            await here.house.issue(token, identity="spiffe://example.org/prod/web")  # so the old one is not its newest
            await here.see(here.at("failing", unit="u", problem="timed out"))
            await here.settle()
            for _ in range(2):
                await retention.run()
                await here.settle()
            assert one.sha256 not in {bytes(row.sha256) for row in await here.rows(tables.certificate)}
            assert {row.key for row in await here.rows(tables.location)} == {"gone host", "failing"}
            assert [bytes(row.sha256) for row in await here.rows(tables.sighting)] == [sha(ever)]
            assert (await here.states())[sha(ever)] == "foreign", "what has not ended stays where it was seen last"
            await here.see(here.at("gone host", der, ever, unit="u"))
            await here.settle()
            assert (await here.states())[sha(der)] == "expired_served"
            assert await unissued_entries(here) == 0
            assert await here.reconciler.recount() == {}

    asyncio.run(run())


def test_a_place_that_is_read_again_while_old_ones_are_forgotten_is_left_alone(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            der = foreign("old.example.net", now=here.now, lifetime=DAY)
            await here.see(here.at("host", der))
            here.pass_(200 * DAY)
            retention = Retention(here.store, here.house.here.clock, 3 * DAY, pause=0)
            commit = here.store.ledger.commit

            async def late(write: Write) -> int:
                here.store.ledger.commit = commit
                await here.see(here.at("host", der))
                return await commit(write)

            here.store.ledger.commit = late
            await asyncio.wait_for(retention.run(), 30)
            assert here.store.ledger.commit == commit
            assert await here.number(tables.sighting, tables.sighting.c.ended_at.is_(None)) == 1

    asyncio.run(run())
