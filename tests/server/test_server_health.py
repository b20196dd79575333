"""What makes a process say that it is not ready; and that an altered log is noticed, by whoever asks and by what goes through it."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text
from test_server_jobs import OwnStub, opened, settings_for, signed_size, until

from handclasp.api.handlers import log as handlers
from handclasp.api.handlers import system
from handclasp.api.routes import Call
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.request import Source
from handclasp.log.entries import make_entry
from handclasp.log.sequencer import Sequencer
from handclasp.server import health as health_module
from handclasp.server.health import LAG_LIMIT, NO_TRIGRAMS, Health
from handclasp.server.instance import Instance
from handclasp.server.jobs import Jobs
from handclasp.server.scrub import Scrub
from handclasp.store.writes import Change, Write
from support.errors import refused
from support.writes import certificate_row, certificate_write, log_entry


def call(instance: Instance, query: dict[str, str] | None = None, **path: str) -> Call:
    return Call(instance.services, Source("api"), path, query or {}, {})


def alter(instance: Instance, sql: str, *arguments: Any) -> None:
    with sqlite3.connect(instance.settings.data / "handclasp.db", timeout=30) as connection:
        assert connection.execute(sql, arguments).rowcount == 1
    connection.close()


def forge(instance: Instance, index: int) -> None:
    forged = make_entry("policy.compared", at=1, who={"kind": "test"}, what={"forged": index}).data
    alter(instance, 'UPDATE log_entry SET entry = ? WHERE "index" = ?', forged, index)


@asynccontextmanager
async def with_log(tmp_path: Path, *entries: Any) -> AsyncIterator[tuple[Instance, int]]:
    """An instance whose log has these entries under its checkpoint, and the index of the first."""
    async with opened(settings_for(tmp_path)) as (instance, _):
        first = await instance.store.ledger.commit(Write(entries))
        sequencer = await Sequencer.open(instance.store.entries, instance.services.tiles, instance.log_signer)
        await sequencer.step()
        sequencer.close()
        yield instance, first


def test_a_tampered_log_is_reported_and_revocations_are_published_all_the_same(tmp_path: Path) -> None:
    async def run() -> None:
        async with with_log(tmp_path, log_entry()) as (instance, index):
            assert await instance.services.problems() == []
            forge(instance, index)
            jobs = Jobs(instance, OwnStub())  # type: ignore[arg-type]
            jobs.start()

            async def lines() -> str:
                return "; ".join(await instance.services.problems())

            async with asyncio.timeout(30):
                while "the log cannot be continued" not in await lines() or "copy of the log was altered" not in await lines():
                    await asyncio.sleep(0.02)
                while True:  # never published before, so there is one to publish, and it is
                    name = instance.authorities.issuing()[0].name
                    try:
                        assert await instance.services.crls.get(name, 0)
                        break
                    except HandclaspError:
                        await asyncio.sleep(0.02)
            await jobs.stop()

    asyncio.run(run())


def test_names_without_an_index_are_a_warning_and_keep_nobody_from_work(migrated_url: str, tmp_path: Path) -> None:
    """PostgreSQL's own extension is missing where its role may not install it; SQLite always has its index."""

    async def run() -> None:
        async with opened(settings_for(tmp_path, database=migrated_url)) as (instance, _):
            if not instance.store.is_sqlite:
                await instance.store.ledger.commit(Write([], [Change(text("DROP INDEX ix_name_trigram"))]))
                health = await system.readyz(call(instance))
                assert (health.status, health.problems) == ("ok", [NO_TRIGRAMS])
                again = "CREATE INDEX ix_name_trigram ON name USING gin (text gin_trgm_ops)"  # as the warning says
                await instance.store.ledger.commit(Write([], [Change(text(again))]))
            assert (await system.readyz(call(instance))).problems == []

    asyncio.run(run())


def test_a_log_that_can_be_opened_again_is_continued(tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(settings_for(tmp_path)) as (instance, jobs):
            aside = instance.settings.data / "log" / ".aside"
            aside.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text("in the way")
            jobs.start()
            await asyncio.sleep(0.3)
            assert signed_size(instance) == -1
            aside.unlink()
            await until(lambda: signed_size(instance) > 0)
            await jobs.stop()

    asyncio.run(run())


def test_crls_that_fail_and_a_witness_that_saw_more_make_a_process_unready(tmp_path: Path) -> None:
    """A witness that is merely away does not."""
    vkey = SimpleNamespace(name="witness")

    async def run(kind: Kind, expected: list[str]) -> None:
        async with opened(settings_for(tmp_path)) as (instance, jobs):

            async def ask(_clients: Any) -> dict[str, HandclaspError | None]:
                return {"witness": HandclaspError(kind, "it says so"), "other": None}

            async def fail() -> list[tuple[str, int]]:
                raise HandclaspError(Kind.UNAVAILABLE, "the token is away")

            instance.witnesses = ((vkey, "http://127.0.0.1:9"),)  # type: ignore[assignment]
            instance.services.cosignatures.request = ask  # type: ignore[method-assign]
            if expected:
                instance.services.crls.publish_dirty = fail  # type: ignore[method-assign]
            jobs.start()
            await asyncio.sleep(0.2)
            if expected:
                await until(lambda: len(instance.health.problems()) == len(expected))
            assert instance.health.problems() == expected
            await jobs.stop()
            assert instance.health.problems() == []

    asyncio.run(run(Kind.UNAVAILABLE, []))
    asyncio.run(run(Kind.TAMPERED, ["revocation lists cannot be published", "a witness has seen another history of the log"]))


def test_a_log_lags_when_the_checkpoint_does_not_reach_what_was_seen() -> None:
    now = 0.0
    health = Health(lambda: now)
    for second in range(60):  # always a little behind, as under load: no lag
        now = float(second)
        health.saw_log(100 * second + 50, 100 * second)
    assert health.problems() == []
    for _ in range(int(LAG_LIMIT) + 2):
        now += 1
        health.saw_log(100_000, 6_000)
    assert "behind" in health.problems()[0]
    health.saw_log(100_000, 100_000)
    assert health.problems() == []


def test_the_log_on_a_machine_that_does_not_lead_says_nothing_about_lag(tmp_path: Path) -> None:
    """It may be an old one, from when this machine led."""

    async def run() -> None:
        async with with_log(tmp_path, log_entry()) as (instance, _):
            seen: list[tuple[int, int]] = []
            instance.health.saw_log = lambda head, size: seen.append((head, size))  # type: ignore[method-assign]
            jobs = Jobs(instance, OwnStub())  # type: ignore[arg-type]
            await instance.store.ledger.commit(Write([log_entry()]))
            await jobs._watch()
            jobs.start()
            await until(lambda: (instance.settings.data / "log" / ".leading").exists())
            await until(lambda: len(seen) > 2)
            await jobs.stop()
            assert seen[0][0] == seen[0][1]

    asyncio.run(run())


def test_a_commit_that_the_database_cannot_take_is_not_ready_until_one_succeeds(tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(settings_for(tmp_path)) as (instance, jobs):
            backend = instance.store.ledger._backend
            execute = backend.commit

            async def full() -> None:
                raise sqlite3.OperationalError("database or disk is full")

            backend.commit = full  # type: ignore[method-assign]
            with refused(Kind.UNAVAILABLE):
                await instance.store.ledger.commit(Write([log_entry()]))
            assert await instance.services.problems() == ["the database cannot be written"]
            with refused(Kind.UNAVAILABLE):
                await jobs._watch()
            backend.commit = execute  # type: ignore[method-assign]
            await jobs._watch()  # it tries by itself: no request may come while this is unready
            assert await instance.services.problems() == []

    asyncio.run(run())


def test_nothing_to_issue_with_and_no_space_are_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with opened(settings_for(tmp_path)) as (instance, _):
            await instance.authorities.retire("issuing", by={"kind": "test"})
            await instance.authorities.refresh()
            assert instance.authorities.issuing()  # its certificates are alive, and it signs no more
            assert await instance.services.problems() == ["there is no issuing authority"]
            monkeypatch.setattr(health_module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**30, 2**30 - 2**20, 2**20))
            assert "almost full" in (await instance.services.problems())[1]

    asyncio.run(run())


def test_issuances_and_commits_are_counted(tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(settings_for(tmp_path)) as (instance, _):
            counter = health_module.ISSUED.labels("workload")
            before = counter._value.get()
            await instance.store.ledger.commit(certificate_write(certificate_row()))
            assert counter._value.get() == before + 1

    asyncio.run(run())


def test_an_altered_entry_is_not_served(tmp_path: Path) -> None:
    async def run() -> None:
        async with with_log(tmp_path, log_entry("one"), log_entry("two")) as (instance, index):
            assert (await handlers.show_entry(call(instance, index=str(index)))).index == index
            assert [one.index for one in (await handlers.list_entries(call(instance, {"limit": "2"}))).items] == [index + 1, index]
            scrub = Scrub(instance.store.entries, instance.services.tiles, instance.services.cosignatures)
            await scrub.run()
            forge(instance, index)
            with refused(Kind.TAMPERED, str(index)):
                await handlers.show_entry(call(instance, index=str(index)))
            with refused(Kind.TAMPERED, str(index)):
                await handlers.prove(call(instance, {"index": str(index)}))
            with refused(Kind.TAMPERED, str(index)):
                await handlers.list_entries(call(instance))
            assert (await handlers.list_entries(call(instance, {"limit": "1"}))).items[0].index == index + 1  # that one is right
            for _ in range(2):  # a finding stays one
                with refused(Kind.TAMPERED, str(index)):
                    await scrub.run()

    asyncio.run(run())


def test_personal_data_that_is_not_what_was_hashed_is_not_served(tmp_path: Path) -> None:
    async def run() -> None:
        entry = log_entry(personal={"reason": "lost laptop"})
        async with with_log(tmp_path, entry) as (instance, index):
            shown = await handlers.show_entry(call(instance, index=str(index)))
            assert shown.entry["personal"]["reason"]["value"] == "lost laptop"
            alter(instance, "UPDATE log_personal SET value = 'stolen laptop' WHERE \"index\" = ?", index)
            with refused(Kind.TAMPERED, "reason"):
                await handlers.show_entry(call(instance, index=str(index)))

    asyncio.run(run())


def test_tampering_that_a_request_meets_makes_the_process_unready(tmp_path: Path) -> None:
    from handclasp.api.app import make_app
    from handclasp.api.routes import PUBLIC, Route

    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(dict(message))

    async def run() -> None:
        async with with_log(tmp_path, log_entry()) as (instance, index):
            forge(instance, index)
            route = Route("GET", "/entry/{index}", handlers.show_entry, PUBLIC, "Show.")
            app = make_app([route], instance.services, report=instance.health.report)
            scope = {"type": "http", "method": "GET", "path": f"/entry/{index}", "root_path": "", "headers": [], "query_string": b""}
            await app(scope, None, send)  # type: ignore[arg-type]
            assert json.loads(sent[1]["body"])["kind"] == "tampered"
            assert "is not what was signed" in (await instance.services.problems())[0]

    asyncio.run(run())


def test_filters_apply_together_with_a_subject(tmp_path: Path) -> None:
    async def run() -> None:
        about = {"subjects": ["token:a"]}
        entries = [
            make_entry(kind, at=at, who={"kind": "test"}, what={}, **about)  # type: ignore[arg-type]
            for at, kind in ((1000, "token.created"), (2000, "token.revoked"), (3000, "token.created"))
        ]
        async with with_log(tmp_path, *entries, log_entry()) as (instance, index):

            async def found(**query: str) -> list[int]:
                items = (await handlers.list_entries(call(instance, {"subject": "token:a", **query}))).items
                return [one.index - index for one in items]

            assert await found() == [2, 1, 0]
            assert await found(type="token.created") == [2, 0]
            assert await found(since="1970-01-01T00:00:02Z") == [2, 1]
            assert await found(until="1970-01-01T00:00:02Z", type="token.created") == [0]
            with refused(Kind.BAD_REQUEST, "token.invented"):
                await found(type="token.invented")

    asyncio.run(run())
