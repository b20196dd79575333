"""Owners derived, confirmed and denied, on both databases."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from handclasp.errors import Kind
from handclasp.ownership import assign, book
from handclasp.ownership.due import due
from handclasp.store import tables
from handclasp.store.writes import Change, Write
from handclasp.wire.ownership import (
    AskRequest,
    CatalogueEntry,
    OwnerEntry,
    OwnerImport,
    OwnershipTest,
)
from support.errors import refused
from support.owners import API, DB, RULES, WEB, WHO, OwnerWorld, with_owners
from support.writes import certificate_row, certificate_write, token_write


def test_owners_are_derived_and_derived_again(migrated_url: str) -> None:
    async def work(here: OwnerWorld) -> None:
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

    with_owners(migrated_url, work)


def test_who_only_makes_a_certificate_with_the_name_does_not_get_the_identity(migrated_url: str) -> None:
    """Anybody can put a certificate of their own making, with any name, beside labels of their own."""

    async def work(here: OwnerWorld) -> None:
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

    with_owners(migrated_url, work)


def test_equal_again_writes_nothing(migrated_url: str) -> None:
    async def work(here: OwnerWorld) -> None:
        (web,) = await here.identities(WEB)
        await here.teams("shop")
        await here.room.book.apply(RULES, WHO, "test")
        await here.drain()
        before = await here.store.rows(select(tables.assignment))
        assert before
        here.clock.pass_(100)
        await here.room.assigner.derive([web])
        assert await here.store.rows(select(tables.assignment)) == before

    with_owners(migrated_url, work)


def test_a_tokens_owner_is_evidence(migrated_url: str) -> None:
    async def work(here: OwnerWorld) -> None:
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

    with_owners(migrated_url, work)


def test_a_change_while_one_is_derived_is_not_lost(migrated_url: str) -> None:
    async def work(here: OwnerWorld) -> None:
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

    with_owners(migrated_url, work)


def test_directories(migrated_url: str) -> None:
    async def work(here: OwnerWorld) -> None:
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

    with_owners(migrated_url, work)


def test_what_needs_a_person_comes_in_pages(migrated_url: str) -> None:
    async def work(here: OwnerWorld) -> None:
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

    with_owners(migrated_url, work)


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

    async def work(here: OwnerWorld) -> None:
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

    with_owners(migrated_url, work)
