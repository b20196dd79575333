"""Owners derived, confirmed and denied, on both databases."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select, update

from handclasp.errors import Kind
from handclasp.log.entries import parse_entry
from handclasp.ownership import assign, book
from handclasp.ownership.due import due
from handclasp.ownership.room import OwnershipRoom, open_ownership
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write
from handclasp.wire.ownership import (
    AskRequest,
    AssignRequest,
    CatalogueEntry,
    ConfirmationAnswer,
    OwnerEntry,
    OwnerImport,
    OwnershipTest,
)
from support.errors import refused
from support.installation import Ticker
from support.writes import certificate_row, certificate_write, token_write

WHO = {"kind": "test"}
DAY = 86400.0
RULES = """
version: 1
rules:
  - {name: label, workload_label: team, owner: "{value}"}
  - {name: ns, namespace_label: team, owner: "{value}", environment: prod}
  - {name: path, spiffe: "spiffe://example.org/ns/{team}/**", owner: "{team}", tier: 2}
"""


@dataclass
class World:
    store: Store
    clock: Ticker
    room: OwnershipRoom

    async def identities(self, *names: str, owner: str | None = None) -> list[int]:
        rows = [{"name": name, "owner": owner, "created_at": 1} for name in names]
        await self.store.ledger.commit(Write([], [Change(insert(tables.identity).values(row)) for row in rows]))
        found = {row.name: row.id for row in await self.store.rows(select(tables.identity))}
        return [found[name] for name in names]

    async def seen(self, identity_id: int, facts: dict[str, Any], *, source: dict[str, Any] | None = None, origin: str = "found") -> int:
        """Have a certificate of the identity seen at a place with these facts; return the place's number."""
        sha256, number = os.urandom(32), int.from_bytes(os.urandom(3))
        times = {"first_seen_at": 1, "last_seen_at": 1}
        place = {"id": number, "source_id": number, "key": f"k{number}", "kind": "file", "shown": "x", "facts": json.dumps(facts)}
        changes = [
            insert(tables.source).values(
                id=number, name=f"s{number}", kind="x", every=0, facts=json.dumps(source or {}), created_at=1, created_by="x"
            ),
            insert(tables.location).values(place | {"first_seen_at": 1, "tried_at": 1}),
            insert(tables.sighting).values(location_id=number, sha256=sha256, role="served", **times),
            insert(tables.standing).values(
                sha256=sha256, origin=origin, state="seen", since_at=1, identity_id=identity_id, not_after=1, open=1, **times
            ),
        ]
        again = due([identity_id], self.clock())
        assert again is not None
        await self.store.ledger.commit(Write([], [*(Change(change) for change in changes), again]))
        return number

    async def drain(self) -> int:
        looked_at = 0
        while (some := await self.room.assigner.step()) > 0:
            looked_at += some
        return looked_at

    async def owners(self) -> dict[str, str | None]:
        return {row.name: row.owner for row in await self.store.rows(select(tables.identity))}

    async def tallies(self) -> dict[str, int]:
        tally = tables.tally.c
        return {
            row.bucket: row.number
            for row in await self.store.rows(select(tally.bucket, tally.number).where(tally.kind == "owner"))
            if row.number
        }

    async def counted(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for owner in (await self.owners()).values():
            counts[owner or ""] = counts.get(owner or "", 0) + 1
        return counts

    async def teams(self, *names: str, directory: str = "d") -> None:
        owners = [OwnerEntry(name=name) for name in names]
        await self.room.owners.import_(OwnerImport(directory=directory, owners=owners), WHO)

    async def entries(self) -> list[dict[str, Any]]:
        return [parse_entry(data) for data in await self.store.entries(0, 1000)]


@asynccontextmanager
async def world(url: str) -> AsyncIterator[World]:
    clock = Ticker()
    store = await Store.open(url, clock, migrate=False)
    try:
        yield World(store, clock, open_ownership(store, clock, confirm_every=180 * DAY))
    finally:
        await store.close()


def run(url: str, work: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def all_of_it() -> None:
        async with world(url) as here:
            await work(here)

    asyncio.run(all_of_it())


WEB, API, DB = "spiffe://example.org/ns/shop/sa/web", "spiffe://example.org/ns/kube-system/sa/api", "dns:db.example.org"


def test_owners_are_derived_and_derived_again(migrated_url: str) -> None:
    async def work(here: World) -> None:
        web, _, _ = await here.identities(WEB, API, DB)
        place = await here.seen(web, {"namespace": "shop", "namespace_labels": {"team": "core"}}, source={"environment": "dev"})
        await here.teams("shop", "core", "search")
        await here.room.book.apply(RULES, WHO, "test")
        assert await here.room.assigner.progress() == (0, 3)
        assert await here.drain() == 4  # one for its own sake, and all three because of the rules
        assert await here.room.assigner.progress() is None
        assert await here.owners() == {WEB: "core", API: None, DB: None}
        assert await here.tallies() == await here.counted()
        shown = await here.room.views.assignments(WEB)
        assert (shown.owner, shown.tier, shown.environment) == ("core", "2", "prod")
        assert [(one.evidence, one.owner, one.stands) for one in shown.items] == [
            ("namespace", "core", "disputed"),
            ("spiffe", "shop", ""),
            ("catalogue", None, ""),  # what the source says of everything in it
        ]

        # The namespace gets another label.
        again = due([web], here.clock())
        assert again is not None
        facts = json.dumps({"namespace": "shop", "namespace_labels": {"team": "search"}})
        change = Change(update(tables.location).where(tables.location.c.id == place).values(facts=facts))
        await here.store.ledger.commit(Write([], [change, again]))
        assert await here.drain() == 1
        assert (await here.owners())[WEB] == "search"
        assert await here.tallies() == await here.counted()

        # The rules go: nothing is left of what they said.
        await here.room.book.apply("version: 1\n", WHO, "test")
        await here.drain()
        assert set((await here.owners()).values()) == {None}
        assert [row.rule for row in await here.store.rows(select(tables.assignment))] == ["as given"]
        assert await here.tallies() == {"": 3}

    run(migrated_url, work)


def test_who_only_makes_a_certificate_with_the_name_does_not_get_the_identity(migrated_url: str) -> None:
    """Anybody can put a certificate of their own making, with any name, beside labels of their own."""

    async def work(here: World) -> None:
        await here.teams("pay", "mallory")
        await here.room.book.apply(RULES, WHO, "test")
        [mine] = await here.identities("spiffe://example.org/x/pay")
        await here.seen(mine, {"workload_labels": {"team": "mallory"}})
        await here.drain()
        assert await here.owners() == {"spiffe://example.org/x/pay": "mallory"}, "while nothing else is seen, it is what there is"
        await here.seen(mine, {"workload_labels": {"team": "pay"}}, origin="issued")
        await here.drain()
        assert await here.owners() == {"spiffe://example.org/x/pay": "pay"}
        [one] = (await here.room.views.assignments("spiffe://example.org/x/pay")).items
        assert (one.owner, one.stands) == ("pay", "owner")

    run(migrated_url, work)


def test_equal_again_writes_nothing(migrated_url: str) -> None:
    async def work(here: World) -> None:
        (web,) = await here.identities(WEB)
        await here.teams("shop")
        await here.room.book.apply(RULES, WHO, "test")
        await here.drain()
        before = await here.store.rows(select(tables.assignment))
        assert before
        here.clock.pass_(100)
        await here.room.assigner.derive([web])
        assert await here.store.rows(select(tables.assignment)) == before

    run(migrated_url, work)


def test_a_tokens_owner_is_evidence(migrated_url: str) -> None:
    async def work(here: World) -> None:
        for one, owner in (("a", "Team A"), ("b", "Team B"), ("c", None)):
            await here.store.ledger.commit(token_write(one, 0))
            await here.store.ledger.commit(Write([], [Change(update(tables.token).where(tables.token.c.id == one).values(owner=owner))]))
        for identity, grants in ((WEB, ["token:a"]), (API, ["policy:x+token:b", "token:a"]), (DB, ["token:c", "policy:y"])):
            for grant in grants:
                row = certificate_row(identity)
                row.granted_by, row.not_after = grant, here.clock() + 1000
                await here.store.ledger.commit(certificate_write(row))
        ids = [row.id for row in await here.store.rows(select(tables.identity))]
        await here.room.assigner.derive(ids)
        assert await here.owners() == {WEB: "Team A", API: "Team A", DB: None}
        assert [one.stands for one in (await here.room.views.assignments(API)).items] == ["contested", ""]
        here.clock.pass_(10)  # nothing is valid any more: what was last says it
        await here.room.assigner.derive(ids)
        assert (await here.owners())[WEB] == "Team A"

    run(migrated_url, work)


def test_a_change_while_one_is_derived_is_not_lost(migrated_url: str) -> None:
    async def work(here: World) -> None:
        (web,) = await here.identities(WEB)
        again = due([web], here.clock())
        assert again is not None
        await here.store.ledger.commit(Write([], [again]))
        before = here.room.assigner._derive

        async def meanwhile(*arguments: Any) -> None:
            await here.store.ledger.commit(Write([], [again]))
            await before(*arguments)

        here.room.assigner._derive = meanwhile  # type: ignore[method-assign]
        assert await here.room.assigner.step() == 1
        here.room.assigner._derive = before  # type: ignore[method-assign]
        assert await here.room.assigner.step() == 1
        assert await here.room.assigner.step() == 0

    run(migrated_url, work)


def test_people_say(migrated_url: str) -> None:
    async def work(here: World) -> None:
        await here.identities(WEB)
        await here.teams("shop", "core", "gone")
        await here.teams("shop", "core")
        people = here.room.people
        with refused(Kind.NOT_FOUND, "no identity"):
            await people.assign("dns:nobody", AssignRequest(owner="core", reason="x"), WHO, "me")
        with refused(Kind.NOT_FOUND, "no owner"):
            await people.assign(WEB, AssignRequest(owner="nobody", reason="x"), WHO, "me")
        with refused(Kind.CONFLICT, "no directory"):
            await people.assign(WEB, AssignRequest(owner="gone", reason="x"), WHO, "me")
        with refused(Kind.BAD_REQUEST):
            await people.assign(WEB, AssignRequest(reason="x"), WHO, "me")
        await people.assign(WEB, AssignRequest(tier="0", reason="important"), WHO, "me")
        await people.assign(WEB, AssignRequest(owner="core", reason="they said so"), WHO, "me")
        await here.room.book.apply(RULES, WHO, "test")
        await here.drain()
        shown = await here.room.views.assignments(WEB)
        assert (shown.owner, shown.tier, shown.items[0].stands) == ("core", "0", "disputed")
        assert shown.items[0].detail == "me: they said so"
        last = [entry for entry in await here.entries() if entry["type"] == "identity.assigned"][-1]
        assert last["what"] == {"identity": WEB, "owner": "core", "tier": "0", "environment": None}
        assert last["why"] == {"reason": "they said so"}
        overdue, _ = await here.room.views.needing("confirmation", 10, None)
        assert overdue == []
        here.clock.pass_(181 * DAY)
        overdue, _ = await here.room.views.needing("confirmation", 10, None)
        assert [one.identity for one in overdue] == [WEB]
        assert (await here.room.views.owner("core")).overdue == 1
        assert (await here.room.views.ownership()).overdue == 1

    run(migrated_url, work)


def test_confirmation_by_link(migrated_url: str) -> None:
    async def work(here: World) -> None:
        others = [f"spiffe://example.org/ns/shop/sa/s{number}" for number in range(3)]
        await here.identities(WEB, *others)
        await here.teams("shop", "core")
        await here.room.book.apply(RULES, WHO, "test")
        await here.drain()
        people = here.room.people
        asked = await people.ask("shop", AskRequest(), WHO)
        assert asked.identities == sorted([WEB, *others])
        assert asked.path == f"/confirm/{asked.secret}"
        stored = [
            bytes(str(value).encode())
            for table in tables.metadata.sorted_tables
            for row in await here.store.rows(select(table))
            for value in row
        ]
        assert not any(asked.secret.encode() in value for value in stored)
        before = await here.store.rows(select(tables.assignment))
        shown = await people.show(asked.secret)
        assert [one.identity for one in shown.identities] == asked.identities
        assert await here.store.rows(select(tables.assignment)) == before

        for bad in ("", "hcc_", asked.secret[:-1], asked.secret[:-1] + ("A" if asked.secret[-1] != "A" else "B"), "x" * 5000):
            with refused(Kind.NOT_FOUND):
                await people.show(bad)
        for said in (ConfirmationAnswer(), ConfirmationAnswer(confirmed=["dns:x"]), ConfirmationAnswer(confirmed=[WEB], denied=[WEB])):
            with refused(Kind.BAD_REQUEST):
                await people.answer(asked.secret, said, {})
        await people.assign(others[2], AssignRequest(owner="core", reason="moved"), WHO, "me")
        done = await people.answer(
            asked.secret, ConfirmationAnswer(confirmed=[WEB, others[2]], denied=[others[0]]), {"address": "10.0.0.1"}
        )
        assert (done.confirmed, done.denied, done.changed) == (1, 1, [others[2]])
        assert await here.owners() == {WEB: "shop", others[0]: None, others[1]: "shop", others[2]: "core"}
        assert await here.tallies() == await here.counted()
        with refused(Kind.CONFLICT, "answered"):
            await people.answer(asked.secret, ConfirmationAnswer(confirmed=[others[0]]), {})
        assert (await people.show(asked.secret)).answered_at is not None
        assert (await here.room.views.assignments(others[0])).items[-1].evidence == "denied"
        entry = [entry for entry in await here.entries() if entry["type"] == "identity.confirmed"][-1]
        assert (entry["what"]["confirmed"], entry["what"]["denied"]) == ([WEB], [others[0]])
        assert asked.secret not in json.dumps(await here.entries())

        again = await people.ask("shop", AskRequest(), WHO)
        assert again.identities == [others[1]]
        with refused(Kind.CONFLICT, "does not own"):
            await people.ask("shop", AskRequest(identities=[others[2]]), WHO)
        with refused(Kind.BAD_REQUEST, "90d"):
            await people.ask("shop", AskRequest(expires="91d"), WHO)
        here.clock.pass_(15 * DAY)
        with refused(Kind.NOT_FOUND):
            await people.show(again.secret)
        await people.forget()
        assert len(await here.store.rows(select(tables.confirmation))) == 2
        here.clock.pass_(60 * DAY)
        await people.forget()
        assert await here.store.rows(select(tables.confirmation)) == []

    run(migrated_url, work)


def test_the_link_of_an_owner_that_left_is_over(migrated_url: str) -> None:
    async def work(here: World) -> None:
        await here.identities(WEB)
        await here.teams("shop", "core")
        await here.room.book.apply(RULES, WHO, "test")
        await here.drain()
        people = here.room.people
        asked = await people.ask("shop", AskRequest(), WHO)
        await here.teams("core")
        with refused(Kind.NOT_FOUND):
            await people.show(asked.secret)
        with refused(Kind.NOT_FOUND):
            await people.answer(asked.secret, ConfirmationAnswer(confirmed=[WEB]), {})
        await here.teams("shop", "core")
        assert (await people.answer(asked.secret, ConfirmationAnswer(confirmed=[WEB]), {})).confirmed == 1

    run(migrated_url, work)


def test_a_link_is_answered_once_however_many_answer_at_once(migrated_url: str) -> None:
    async def work(here: World) -> None:
        await here.identities(WEB)
        await here.teams("shop")
        await here.room.book.apply(RULES, WHO, "test")
        await here.drain()
        asked = await here.room.people.ask("shop", AskRequest(), WHO)
        answers = [ConfirmationAnswer(confirmed=[WEB]) if number % 2 else ConfirmationAnswer(denied=[WEB]) for number in range(10)]
        said = await asyncio.gather(*(here.room.people.answer(asked.secret, one, {}) for one in answers), return_exceptions=True)
        assert sum(not isinstance(one, BaseException) for one in said) == 1
        rows = await here.store.rows(select(tables.assignment.c.evidence).where(tables.assignment.c.evidence.in_(("confirmed", "denied"))))
        assert len(rows) == 1

    run(migrated_url, work)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.tuples(st.sampled_from(["confirm", "deny", "assign"]), st.sampled_from(["shop", "core"])), min_size=1, max_size=5))
def test_who_denied_is_never_the_owner_until_somebody_says_so(words: list[tuple[str, str]]) -> None:
    from support import migrated

    async def work(here: World) -> None:
        await here.identities(WEB)
        await here.teams("shop", "core")
        await here.room.book.apply(RULES, WHO, "test")
        await here.drain()
        denied: set[str] = set()
        for what, owner in words:
            if what == "assign":
                await here.room.people.assign(WEB, AssignRequest(owner=owner, reason="x"), WHO, "me")
                denied.discard(owner)
            elif (await here.owners())[WEB] == owner:
                asked = await here.room.people.ask(owner, AskRequest(identities=[WEB]), WHO)
                said = {"confirmed": [WEB]} if what == "confirm" else {"denied": [WEB]}
                await here.room.people.answer(asked.secret, ConfirmationAnswer(**said), {})
                (denied.discard if what == "confirm" else denied.add)(owner)
            await here.drain()
            assert (await here.owners())[WEB] not in denied
            assert await here.tallies() == await here.counted()
            table = tables.assignment.c
            rows = await here.store.rows(select(table.owner, table.evidence).where(table.evidence.in_(("confirmed", "denied"))))
            assert {row.owner for row in rows if row.evidence == "denied"} == denied
            assert not denied & {row.owner for row in rows if row.evidence == "confirmed"}

    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "a.db"
        path.write_bytes(migrated.sqlite())
        run(f"sqlite:///{path}", work)


def test_directories(migrated_url: str) -> None:
    async def work(here: World) -> None:
        owners = here.room.owners
        items = [CatalogueEntry(kind="component", name="web", owners=["shop"]), CatalogueEntry(kind="path", name="/x/", owners=["core"])]
        wanted = OwnerImport(directory="b", owners=[OwnerEntry(name="shop", escalation="core"), OwnerEntry(name="core")], catalogue=items)
        dry = await owners.import_(OwnerImport(directory="b", owners=wanted.owners, catalogue=items, dry=True), WHO)
        assert ([one.change for one in dry.changes], dry.applied) == (["added", "added"], False)
        assert await here.store.rows(select(tables.owner)) == []
        first = await owners.import_(wanted, WHO)
        assert (first.applied, first.components, first.paths, first.catalogue_changed) == (True, 1, 1, 2)
        size = len(await here.entries())
        again = await owners.import_(wanted, WHO)
        assert (again.applied, again.changes, again.catalogue_changed) == (False, [], 0)
        assert len(await here.entries()) == size

        await here.identities("spiffe://example.org/ns/x/sa/web")
        rules = 'version: 1\nrules: [{name: c, spiffe: "spiffe://example.org/ns/*/sa/{s}", component: "{s}"}]'
        await here.room.book.apply(rules, WHO, "test")
        await here.drain()
        assert await here.owners() == {"spiffe://example.org/ns/x/sa/web": "shop"}
        left = await owners.import_(OwnerImport(directory="b", owners=[OwnerEntry(name="core")], catalogue=items), WHO)
        assert [(one.change, one.owner) for one in left.changes] == [("left", "shop")]
        needing, _ = await here.room.views.needing("new_owner", 10, None)
        assert [(one.identity, one.owner) for one in needing] == [("spiffe://example.org/ns/x/sa/web", "shop")]
        assert (await here.room.views.assignments("spiffe://example.org/ns/x/sa/web")).owner_left
        assert (await here.room.views.owner("shop")).left_at is not None
        with refused(Kind.CONFLICT, "still owns"):
            await owners.remove("shop", WHO)
        with refused(Kind.CONFLICT, "no directory"):
            await here.room.people.ask("shop", AskRequest(), WHO)
        await owners.import_(OwnerImport(directory="b", owners=[OwnerEntry(name="core")]), WHO)
        await here.drain()
        await owners.remove("shop", WHO)
        with refused(Kind.CONFLICT, "directory b"):
            await owners.remove("core", WHO)
        with refused(Kind.CONFLICT, "directory b"):
            await owners.add(OwnerEntry(name="core"), WHO)
        await owners.add(OwnerEntry(name="hand", escalation="core"), WHO)
        await owners.add(OwnerEntry(name="hand", title="By hand"), WHO)
        with refused(Kind.BAD_REQUEST, "no owner"):
            await owners.add(OwnerEntry(name="other", escalation="nobody"), WHO)
        with refused(Kind.BAD_REQUEST, "circle"):
            await owners.add(OwnerEntry(name="hand", escalation="hand"), WHO)
        found = await here.room.views.owners(10, None, q="HAND")
        assert [(one.name, one.title, one.directory) for one in found] == [("hand", "By hand", "")]
        assert [one.name for one in await here.room.views.owners(1, "core")] == ["hand"]
        assert await here.room.views.owners(10, None, left=True) == []

    run(migrated_url, work)


def test_what_needs_a_person_comes_in_pages(migrated_url: str) -> None:
    async def work(here: World) -> None:
        guessed = [f"spiffe://example.org/ns/unknown-{number}/sa/x" for number in range(5)]
        plain = [f"dns:payment{number}.example.net" for number in range(5)]
        await here.identities(*guessed, *plain)
        await here.teams("payments")
        await here.room.book.apply(RULES, WHO, "test")
        await here.drain()
        found, place = [], None
        for _ in range(10):
            items, place = await here.room.views.needing("owner", 3, place)
            found += items
            if place is None:
                break
        assert [one.identity for one in found] == [*guessed, *plain]
        assert [one.guesses[0].owner for one in found] == [*(f"unknown-{number}" for number in range(5)), *["payments"] * 5]
        state = await here.room.views.ownership()
        assert (state.unowned, state.contested, state.waiting, state.sweep) == (10, 0, 0, None)
        for need in ("decision", "look", "confirmation", "new_owner"):
            assert await here.room.views.needing(need, 3, None) == ([], None)

    run(migrated_url, work)


def test_trying_rules(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In threads: a megabyte of rules takes seconds, and so may a catalogue of twenty thousand patterns."""
    threads = set()

    def noting(module: Any, name: str) -> None:
        done = getattr(module, name)

        def doing(*args: Any) -> Any:
            threads.add(threading.get_ident())
            return done(*args)

        monkeypatch.setattr(module, name, doing)

    for module, name in ((book, "parse_ownership"), (book, "read_ownership"), (book, "Catalogue"), (assign, "evaluate")):
        noting(module, name)

    async def work(here: World) -> None:
        (web,) = await here.identities(WEB)
        await here.teams("shop")
        await here.seen(web, {"workload_labels": {"team": "shop"}})
        tried = await here.room.views.test(OwnershipTest(identity=WEB, text=RULES))
        assert (tried.owner, tried.known, [one.evidence for one in tried.items]) == ("shop", True, ["workload", "spiffe"])
        tried = await here.room.views.test(OwnershipTest(identity=API, facts={"namespace_labels": {"team": "shop"}}, text=RULES))
        assert (tried.owner, tried.known) == ("shop", False)
        assert (await here.room.views.test(OwnershipTest(identity=WEB))).owner is None
        assert (await here.owners())[WEB] is None
        with refused(Kind.BAD_POLICY):
            await here.room.views.test(OwnershipTest(identity=WEB, text="x"))
        assert (await here.room.book.compare(RULES)).changes
        await here.room.book.apply(RULES, WHO, "test")
        assert not (await here.room.book.compare(RULES)).changes
        assert not (await here.room.book.apply(RULES, WHO, "test")).applied
        await here.store.ledger.commit(Write([], [Change(delete(tables.standing))]))
        assert threading.get_ident() not in threads

    run(migrated_url, work)
