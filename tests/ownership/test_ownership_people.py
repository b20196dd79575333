"""What people say of owners: assignments, and links by which an owner confirms or denies."""

from __future__ import annotations

import asyncio
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from handclasp.errors import Kind
from handclasp.store import tables
from handclasp.wire.ownership import (
    AskRequest,
    AssignRequest,
    ConfirmationAnswer,
)
from support.errors import refused
from support.owners import DAY, RULES, WEB, WHO, OwnerWorld, with_owners


def test_people_say(migrated_url: str) -> None:
    async def work(here: OwnerWorld) -> None:
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

    with_owners(migrated_url, work)


def test_confirmation_by_link(migrated_url: str) -> None:
    async def work(here: OwnerWorld) -> None:
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

    with_owners(migrated_url, work)


def test_the_link_of_an_owner_that_left_is_over(migrated_url: str) -> None:
    async def work(here: OwnerWorld) -> None:
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

    with_owners(migrated_url, work)


def test_a_link_is_answered_once_however_many_answer_at_once(migrated_url: str) -> None:
    async def work(here: OwnerWorld) -> None:
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

    with_owners(migrated_url, work)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.tuples(st.sampled_from(["confirm", "deny", "assign"]), st.sampled_from(["shop", "core"])), min_size=1, max_size=5))
def test_who_denied_is_never_the_owner_until_somebody_says_so(words: list[tuple[str, str]]) -> None:
    from support import migrated

    async def work(here: OwnerWorld) -> None:
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
        with_owners(f"sqlite:///{path}", work)
