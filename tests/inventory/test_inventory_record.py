"""Recording: what is seen becomes rows once, a change is a sighting that ends and one that begins, and failing to look is no absence."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from handclasp.errors import Kind
from handclasp.inventory import tallies
from handclasp.pki.reading import NOT_ONE
from handclasp.store import tables
from handclasp.store.writes import Change, Write
from handclasp.wire.observations import Covered, Seen
from support.errors import refused
from support.installation import BASE, BY
from support.inventory import foreign, rogue, sha, watch
from support.issuing import HERE


def test_three_issued_two_served_one_foreign_one_unissued(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            token = await here.house.token(allow=["spiffe://example.org/prod/*"])
            issued = [await here.house.issue(token, identity=f"spiffe://example.org/prod/{name}") for name in ("a", "b", "c")]
            ders = [await here.der(one) for one in issued]
            strange, ours = foreign(now=here.now), await rogue(here)
            done = await here.see(*(here.at(f"tls:host-{n}:443", der) for n, der in enumerate([*ders[:2], strange, ours])))
            assert (done.locations, done.changed, done.fresh, done.certificates) == (4, 4, 4, 4)
            await here.settle()
            states = await here.states()
            assert states == {
                sha(ders[0]): "seen", sha(ders[1]): "seen", sha(ders[2]): "unseen", sha(strange): "foreign", sha(ours): "unissued",
            }  # fmt: skip
            assert await here.counts() == {"seen": 2, "unseen": 1, "foreign": 1, "unissued": 1}
            entries = [one for one in await here.house.entries() if one["type"] == "certificate.unissued"]
            assert [one["what"]["sha256"] for one in entries] == [sha(ours).hex()]
            again = await here.see(*(here.at(f"tls:host-{n}:443", der) for n, der in enumerate([*ders[:2], strange, ours])))
            assert (again.locations, again.changed, again.fresh) == (4, 0, 0)
            assert await here.number(tables.sighting) == 4

    asyncio.run(run())


def test_what_came_along_in_a_chain_is_not_counted(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            leaf, above = foreign("leaf.example.org", now=here.now), foreign("above.example.org", now=here.now)
            done = await here.see(here.at("tls:host:443", Seen(der=leaf, chain=[above])))
            assert (done.certificates, done.fresh) == (1, 1)
            assert {bytes(row.sha256) for row in await here.rows(tables.found)} == {sha(leaf), sha(above)}

    asyncio.run(run())


def test_what_is_only_listed_exists_and_is_not_in_use(migrated_url: str, tmp_path: Path) -> None:
    """A CA's list, a log or an imported table says what there is; only what is served or stored is seen."""

    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            token = await here.house.token()
            mine, revoked = [await here.house.issue(token) for _ in range(2)]
            await here.house.revoker.revoke(revoked.sha256, "superseded", "", token, HERE, any_certificate=True)
            ended = foreign("old.example.net", now=here.now - 3_600_000, lifetime=60)
            strange, ours, there = foreign("a.example.net", now=here.now), await rogue(here), foreign("b.example.net", now=here.now)
            everything = [await here.der(mine), await here.der(revoked), ended, strange, ours, there]
            done = await here.see(
                *(here.at(f"ca:{n}", Seen(der=one, role="listed"), kind="ca", unit="ca") for n, one in enumerate(everything)),
                here.at("web", there),
            )
            assert done.fresh == 4, "what is issued here was known, and nobody has seen it yet"
            await here.settle()
            wanted = {mine.sha256: "unseen", sha(ended): "past", sha(strange): "foreign", sha(ours): "unissued", sha(there): "foreign"}
            assert await here.states() == wanted
            assert {bytes(row.sha256): row.open for row in await here.rows(tables.standing) if row.open} == {sha(there): 1}
            here.pass_(1)
            await here.see(here.at("web"))
            assert await here.states() == wanted | {sha(there): "gone"}, "it was in use, and is no more, whatever the list says"
            await here.see(here.at("file", everything[0]), source=2)
            assert (await here.states())[mine.sha256] == "seen"
            await here.recorder.forget_source(2)
            await here.settle()
            assert await here.states() == wanted | {sha(there): "gone"}
            await here.see(covered=[Covered(unit="ca", began_at=here.now + 1)])
            here.pass_(1)
            await here.see(covered=[Covered(unit="ca", began_at=here.now)])
            assert await here.states() == wanted | {sha(there): "gone", sha(strange): "past"}
            assert await here.reconciler.recount() == {}

    asyncio.run(run())


def test_what_was_not_read_since_it_ended_is_not_said_to_be_served(migrated_url: str, tmp_path: Path) -> None:
    """A place that is read once a day may have got its next certificate an hour after the look; then there is nothing to cry about."""

    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            short, other = foreign("a.example.net", now=here.now, lifetime=3600), foreign("b.example.net", now=here.now, lifetime=3600)
            await here.see(here.at("a", short), here.at("b", other))
            here.pass_(3600 + 7200)
            await here.settle()
            assert await here.states() == {sha(short): "foreign", sha(other): "foreign"}, "nobody looked since"
            here.pass_(400)
            await here.settle()
            assert await here.states() == {sha(short): "foreign", sha(other): "foreign"}
            await here.see(here.at("a", short), here.at("b", problem="connection timed out"))
            await here.settle()
            assert await here.states() == {sha(short): "expired_served", sha(other): "foreign"}, "one was read, with what has ended"
            await here.see(here.at("b"))
            assert (await here.states())[sha(other)] == "past"

    asyncio.run(run())


def test_a_change_ends_one_sighting_and_begins_another(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            first, second, above = foreign("a.example.net", now=here.now), foreign("a.example.net", now=here.now), foreign(ca=True)
            began = here.now
            await here.see(here.at("tls:a:443", Seen(der=first, role="served", chain=[above], how={"tls": "1.2"})))
            here.pass_(60)
            await here.see(
                here.at("tls:a:443", Seen(der=first, role="served", chain=[above], how={"tls": "1.3"}))
            )  # the same one, seen otherwise
            here.pass_(60)
            done = await here.see(here.at("tls:a:443", Seen(der=second, role="served", chain=[above], how={"tls": "1.3"})))
            assert (done.changed, done.fresh, done.gone) == (1, 1, 1)
            rows = {bytes(row.sha256): row for row in await here.rows(tables.sighting)}
            assert rows.keys() == {sha(first), sha(second), sha(above)}
            was = rows[sha(first)]
            assert (was.first_seen_at, was.last_seen_at, was.ended_at) == (began, began + 60_000, began + 120_000)
            assert was.how == '{"tls":"1.3"}'
            assert rows[sha(second)].chain == f'["{sha(above).hex()}"]'
            assert (rows[sha(above)].role, rows[sha(above)].first_seen_at, rows[sha(above)].ended_at) == ("chain", began, None)
            assert await here.states() == {sha(first): "past", sha(second): "foreign"}
            assert await here.number(tables.identity, tables.identity.c.name == "dns:a.example.net") == 1

    asyncio.run(run())


def test_the_same_again_is_one_timestamp_for_hundreds_of_places_together(
    migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            pool = [foreign(f"s{number}.example.net", now=here.now) for number in range(20)]
            mine = await here.der(await here.house.issue(await here.house.token()))

            def looks() -> list[Any]:
                held = [[mine, pool[number % 20], pool[-1]] if number % 3 else [pool[number % 20]] for number in range(600)]
                if here.now % 2:  # in any order
                    held = [one[::-1] for one in held]
                return [here.at(f"tls:h{number}:443", *one, facts={"namespace": "web"}) for number, one in enumerate(held)]

            await here.see(*looks())
            await here.settle()
            before = [await here.rows(table) for table in (tables.sighting, tables.standing, tables.found, tables.tally)]
            writes: list[list[Change]] = []
            commit = here.store.ledger.commit

            async def counted(write: Write) -> int:
                writes.append(list(write.changes))
                assert not write.entries
                return int(await commit(write))

            monkeypatch.setattr(here.store.ledger, "commit", counted)
            here.pass_(1.001)
            told = await here.see(*looks())
            assert (told.locations, told.changed, told.fresh) == (600, 0, 0)
            assert len(writes) == 3, "250 places in each"
            assert all(len(changes) == 2 for changes in writes), "their times; and what waited for its place to be read again"
            assert {row.seen_at for row in await here.rows(tables.location)} == {here.now}
            assert before == [await here.rows(table) for table in (tables.sighting, tables.standing, tables.found, tables.tally)]

    asyncio.run(run())


def test_failing_to_look_is_no_absence(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            leaf = foreign(now=here.now)
            await here.see(here.at("a", leaf, unit="rack"), here.at("b", leaf, unit="rack"), here.at("c", leaf, unit="rack"))
            here.pass_(60)
            began = here.now
            here.pass_(1)
            done = await here.see(
                here.at("a", unit="rack", problem="refused\0"), here.at("new", unit="rack", problem="timeout"),
                here.at("b", leaf, unit="rack"), covered=[Covered(unit="rack", began_at=began)],
            )  # fmt: skip
            assert (done.locations, done.failed, done.changed, done.gone) == (1, 2, 0, 1)
            rows = {row.key: row for row in await here.rows(tables.location)}
            assert (rows["a"].problem, rows["a"].tried_at, rows["a"].seen_at) == ("refused\\x00", here.now, began - 60_000)
            assert [rows[key].gone_at for key in ("a", "b", "c", "new")] == [None, None, began, None]
            assert {row.location_id for row in await here.rows(tables.sighting) if row.ended_at is None} == {rows["a"].id, rows["b"].id}
            assert await here.states() == {sha(leaf): "foreign"}
            assert await tallies.of_kind(here.store, "location") == {"read": 1, "failed": 2, "gone": 1}
            here.pass_(1)
            assert (await here.see(here.at("c", leaf, unit="rack"))).changed == 1  # it is back
            assert await tallies.of_kind(here.store, "location") == {"read": 2, "failed": 2}

    asyncio.run(run())


def test_what_cannot_be_read_is_kept_with_the_reason(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            long = "x" * 4000
            strange = [
                b"",
                b"\x30\x80no certificate",
                Seen(sha256=bytes(range(32)), identity="dns:CDN.example.net", not_after=here.now + 5000),
            ]
            observed = here.at(f"file:{long}", *strange, shown=f"/a\0b/{long}", unit=long, host="h\ud800", details={"owner": "a\0b\ud800"})
            done = await here.see(observed)
            assert (done.fresh, done.unreadable, done.certificates) == (3, 2, 3)
            rows = {bytes(row.sha256): row for row in await here.rows(tables.found)}
            assert rows[sha(b"")].problem == NOT_ONE
            assert (rows[sha(b"")].subject, rows[sha(b"")].not_after, bytes(rows[sha(b"")].der)) == ("", 0, b"")
            told = rows[bytes(range(32))]
            assert (told.der, told.not_after) == (None, here.now + 5000)
            assert (await here.rows(tables.identity))[-1].name == "dns:cdn.example.net"
            assert set((await here.states()).values()) == {"foreign"}
            here.pass_(1)
            assert (await here.see(here.at(f"file:{long}", *strange, shown="other", unit=long))).changed == 1
            assert await here.number(tables.location) == 1

    asyncio.run(run())


def test_bytes_fill_what_was_only_a_fingerprint(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            ours = await rogue(here)
            await here.see(here.at("a", Seen(sha256=sha(ours))))
            assert await here.states() == {sha(ours): "foreign"}
            here.pass_(1)
            await here.see(here.at("b", ours))
            assert await here.states() == {sha(ours): "unissued"}
            assert [one["type"] for one in await here.house.entries()].count("certificate.unissued") == 1
            (row,) = await here.rows(tables.found)
            assert (bytes(row.der), row.key_type) == (ours, "p256")

    asyncio.run(run())


def test_authorities_of_ours_are_known_and_a_rogue_one_is_not_missed(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            root, issuing = (here.house.here.authorities.find(name) for name in ("root", "issuing"))
            token = await here.house.token()
            leaf = await here.der(await here.house.issue(token))
            forged = await rogue(here, "", ca=True)
            strange = foreign("evil", now=here.now, ca=True, issuer="example.org issuing")  # only the name is ours
            await here.see(
                here.at("a", Seen(der=leaf, role="served", chain=[issuing.der, root.der])),
                here.at(
                    "b", Seen(der=root.der, role="anchor"), Seen(der=forged, role="anchor"), Seen(der=strange, role="anchor"), kind="file"
                ),
            )
            rows = {bytes(row.sha256): row for row in await here.rows(tables.found)}
            assert [rows[sha(one)].authority_id for one in (root.der, issuing.der, forged, strange)] == [
                root.id,
                issuing.id,
                issuing.id,
                None,
            ]
            assert await here.states() == {sha(leaf): "seen", sha(forged): "unissued"}
            (place,) = [row for row in await here.rows(tables.location) if row.key == "b"]
            assert bytes(place.anchors) == sha(b"".join(sorted((sha(root.der), sha(forged), sha(strange)))))

    asyncio.run(run())


def test_a_retired_authority_of_the_same_name_still_counts(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            ours = [await rogue(here)]
            await here.house.here.authorities.create_issuing("second", "root", by=BY, base_url=BASE)
            await here.house.here.authorities.retire("issuing", by=BY)
            ours.append(await rogue(here))
            await here.see(*(here.at(f"p{number}", one) for number, one in enumerate(ours)))
            assert set((await here.states()).values()) == {"unissued"}

    asyncio.run(run())


def test_owners_are_due_for_what_is_new_and_where_evidence_changes(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:

            async def due() -> list[str]:
                identities = {row.id: row.name for row in await here.rows(tables.identity)}
                found = sorted(identities[row.identity_id] for row in await here.rows(tables.assignment_due))
                await here.store.ledger.commit(Write([], [Change(delete(tables.assignment_due))]))
                return found

            await here.settle()
            assert await due() == []
            one, other = foreign("a.example.net", now=here.now), foreign("a.example.net", now=here.now)
            await here.see(here.at("x", one, facts={"namespace": "web"}))
            assert await due() == ["dns:a.example.net"]
            here.pass_(1)
            await here.see(here.at("x", other, facts={"namespace": "web"}))  # its next certificate, at the same place
            assert await due() == []
            here.pass_(1)
            await here.see(here.at("x", other, facts={"namespace": "shop"}))
            assert await due() == ["dns:a.example.net"]

    asyncio.run(run())


def test_a_clock_ahead_and_an_old_observation_change_nothing_later(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            first, second = foreign("a.example.net", now=here.now), foreign("b.example.net", now=here.now)
            await here.see(here.at("x", first, at=here.now + 10**9))
            here.pass_(1)
            assert (await here.see(here.at("x", second))).changed == 1
            assert (await here.see(here.at("x", first, at=here.now - 5000))).changed == 0
            open_now = [bytes(row.sha256) for row in await here.rows(tables.sighting) if row.ended_at is None]
            assert open_now == [sha(second)]

    asyncio.run(run())


def test_a_source_that_is_removed_takes_its_sightings_along(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            issued = await here.house.issue(await here.house.token())
            mine, strange, both = await here.der(issued), foreign("a.example.net", now=here.now), foreign("b.example.net", now=here.now)
            await here.see(here.at("x", mine), here.at("y", strange), here.at("z", both))
            await here.see(here.at("z", both), source=2)
            await here.settle()
            await here.recorder.forget_source(1)
            await here.settle()
            assert {row.source_id for row in await here.rows(tables.location)} == {2}
            assert await here.number(tables.sighting) == 1
            assert await here.states() == {sha(mine): "unseen", sha(both): "foreign"}
            await here.see(here.at("x", both))
            await here.see(here.at("list", Seen(der=both, role="listed"), kind="ca"), source=3)
            here.pass_(1)
            await here.see(here.at("x"))
            await here.recorder.forget_source(2)
            await here.settle()
            assert await here.states() == {sha(mine): "unseen", sha(both): "gone"}
            await here.recorder.forget_source(1)
            await here.settle()
            assert await here.states() == {sha(mine): "unseen", sha(both): "foreign"}, "nobody knows any more that it was in use"
            assert await here.reconciler.recount() == {}

    asyncio.run(run())


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "cupboard"}, {"at": -1}, {"certificates": [Seen(der=b"x", role="chain")]}, {"certificates": [Seen(sha256=b"short")]}],
)
def test_what_no_source_may_say_is_refused_before_anything_is_recorded(tmp_path: Path, wrong: dict[str, Any]) -> None:
    async def run() -> None:
        async with watch(tmp_path) as here:
            with refused(Kind.BAD_REQUEST):
                await here.see(here.at("fine", foreign()), here.at("wrong", **wrong))
            assert await here.number(tables.location) == 0

    asyncio.run(run())


@given(
    st.lists(st.binary(max_size=60), max_size=3),
    st.text(max_size=40),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
@settings(max_examples=20)
def test_nothing_that_is_seen_can_stop_recording(ders: list[bytes], text: str, facts: dict[str, str]) -> None:
    async def run(directory: Path) -> None:
        async with watch(directory) as here:
            done = await here.see(here.at(text, *ders, shown=text, unit=text, host=text, facts=facts, details=facts), covered=[
                Covered(unit=text, began_at=here.now)])  # fmt: skip
            assert (done.locations, done.unreadable) == (1, len({*ders}))

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(Path(directory)))
