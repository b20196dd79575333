"""An instance in this process: made once, led by one, and stopped without a step left half done."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

from handclasp.errors import HandclaspError, Kind
from handclasp.log.verify import verify_directory
from handclasp.server.instance import Instance, open_instance
from handclasp.server.jobs import Jobs
from handclasp.server.settings import Settings
from handclasp.server.setup import admin_token_file, initialise
from handclasp.store import tables
from handclasp.store.writes import Change, Write
from support.errors import refused
from support.writes import log_entry

OPERATIONS = Path(__file__).resolve().parents[2] / "docs/operations.md"


class OwnStub:
    """Stands for the server's own certificate, which these tests are not about."""

    async def renew_if_due(self) -> None:
        pass


def settings_for(directory: Path, **more: Any) -> Settings:
    return Settings(data=directory / "data", trust_domain="example.org", crl_shards=1, **more)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[Instance, Jobs]]:
    await initialise(settings)
    instance = await open_instance(settings)
    try:
        yield instance, Jobs(instance, OwnStub())  # type: ignore[arg-type]
    finally:
        await instance.close()


def signed_size(instance: Instance) -> int:
    checkpoint = instance.settings.data / "log" / "checkpoint"
    return int(checkpoint.read_text().splitlines()[1]) if checkpoint.exists() else -1


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_an_installation_is_made_once(tmp_path: Path) -> None:
    async def run() -> None:
        assert await initialise(settings_for(tmp_path)) is True
        token = admin_token_file(settings_for(tmp_path)).read_text()
        assert await initialise(settings_for(tmp_path)) is False
        assert await initialise(Settings(data=tmp_path / "data")) is False  # no trust domain said: the one that is there
        with refused(Kind.BAD_SETTING, "example.org", "example.net"):
            await initialise(Settings(data=tmp_path / "data", trust_domain="example.net"))
        assert admin_token_file(settings_for(tmp_path)).read_text() == token
        instance = await open_instance(settings_for(tmp_path))
        principal = await instance.services.tokens.authenticate(token.strip())
        assert principal.scopes == {"admin"}
        await instance.close()

    asyncio.run(run())


def test_nothing_initialised_is_a_clear_answer(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "passphrase").write_text("correct horse battery staple")
    (tmp_path / "data" / "passphrase").chmod(0o600)
    with refused(Kind.BAD_SETTING, "initialised"):
        asyncio.run(open_instance(settings_for(tmp_path)))


def test_who_leads_again_after_losing_the_lock_goes_on_with_the_log(tmp_path: Path) -> None:
    """The first term ends with its database connection; the log's directory must be free for the next one, also of this process."""
    terms: list[str] = []

    @asynccontextmanager
    async def leader(name: str) -> AsyncIterator[bool]:
        terms.append(name)
        try:
            async with asyncio.timeout(0.3 if len(terms) == 1 else None):
                yield True
        except TimeoutError as error:
            raise HandclaspError(Kind.UNAVAILABLE, "the lock was lost") from error

    async def run() -> None:
        async with opened(settings_for(tmp_path)) as (instance, jobs):
            instance.store.leader = leader  # type: ignore[method-assign, assignment]
            jobs.start()
            await until(lambda: len(terms) > 1)
            index = await instance.store.ledger.commit(Write([log_entry()]))
            await until(lambda: signed_size(instance) > index)
            await jobs.stop()
        assert len(terms) == 2

    asyncio.run(run())


def test_stopping_waits_for_the_step_that_is_being_taken(tmp_path: Path) -> None:
    """Two steps at once would write the same files; and the last step brings everything in that was committed."""

    async def run() -> None:
        async with opened(settings_for(tmp_path)) as (instance, jobs):
            write, inside, most = instance.services.tiles.write, [], []
            started = threading.Event()

            def slow(files: Mapping[str, bytes]) -> None:
                inside.append(1)
                most.append(len(inside))
                started.set()
                time.sleep(0.1)
                write(files)
                inside.pop()

            jobs.start()
            await until(lambda: signed_size(instance) > 0)
            instance.services.tiles.write = slow  # type: ignore[method-assign]
            index = await instance.store.ledger.commit(Write([log_entry() for _ in range(300)]))
            await asyncio.to_thread(started.wait)
            more = await instance.store.ledger.commit(Write([log_entry()]))
            await jobs.stop()
            assert most
            assert max(most) == 1
            committed = await instance.store.point("SELECT size FROM log_head WHERE id = ?", (1,))
            assert committed is not None
            assert more >= index + 300, "another job may have written an entry of its own"
            assert signed_size(instance) == committed[0] > more
        report = verify_directory(tmp_path / "data" / "log", [instance.log_signer.vkey])
        assert report.ok, report.problems

    asyncio.run(run())


def test_every_job_is_in_the_documentation(tmp_path: Path) -> None:
    """Whoever is told that one fails must be able to look it up."""

    async def run() -> set[str]:
        async with opened(settings_for(tmp_path)) as (_, jobs):
            before = asyncio.all_tasks()
            jobs.start()
            running: set[str] = set()
            while "retention" not in running:
                await asyncio.sleep(0.01)
                running = {task.get_name() for task in asyncio.all_tasks() - before}
            await jobs.stop()
            return {name for name in running if not name.startswith("Task-")}

    names = asyncio.run(run())
    (line,) = [line for line in OPERATIONS.read_text().splitlines() if line.startswith("| `handclasp_job_failing")]
    assert {"log", "leader", "crl", "agents"} <= names
    assert names <= set(re.findall(r"`([a-z-]+)`", line))


def test_a_job_that_ended_keeps_nobody_from_taking_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: Jobs) -> None:
        raise RuntimeError("a bug outside of what is reported")

    async def run() -> None:
        monkeypatch.setattr(Jobs, "_keep_judging", broken)
        async with opened(settings_for(tmp_path)) as (instance, jobs):
            jobs.start()
            await until(lambda: signed_size(instance) >= 0)
            index = await instance.store.ledger.commit(Write([log_entry(1)]))
            await jobs.stop()
            assert signed_size(instance) > index

    asyncio.run(run())


def test_who_was_heard_of_is_written_at_the_end(tmp_path: Path) -> None:
    async def run() -> None:
        await initialise(settings_for(tmp_path))
        row = {"identity_id": 1, "hostname": "h", "version": "1", "enrolled_at": 1}
        async with opened(settings_for(tmp_path)) as (instance, _):
            identity = insert(tables.identity).values(id=1, name="spiffe://example.org/agent/h", created_at=1)
            await instance.store.ledger.commit(Write([], [Change(identity), Change(insert(tables.agent).values(row))]))
            instance.services.contacts.note(1, 5)
        async with opened(settings_for(tmp_path)) as (instance, _):
            (agent,) = await instance.store.rows(select(tables.agent.c.last_contact_at))
            assert agent.last_contact_at == 5

    asyncio.run(run())
