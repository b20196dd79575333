"""The leader's jobs about what is old: what the setting allows, what they do, and what they say in figures."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import insert

from handclasp.clock import system_clock
from handclasp.errors import Kind
from handclasp.server import retain
from handclasp.server.settings import Settings
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write
from support.errors import refused
from support.writes import certificate_row, certificate_write, count

DAY = 86_400_000


@pytest.mark.parametrize("value", ["0s", "1h", "30d"])
def test_a_retention_that_can_be(value: str) -> None:
    assert Settings.load({"retention": value}, {}).retention in (0, 3600, 30 * 86400)


def test_a_retention_that_would_forget_what_still_matters() -> None:
    with refused(Kind.BAD_SETTING, "retention"):
        Settings.load({"retention": "59m"}, {})


def test_both_jobs_do_their_work_and_say_so(migrated_url: str) -> None:
    async def run() -> None:
        store = await Store.open(migrated_url, migrate=False)
        now, before = system_clock(), retain.REMOVED.labels("certificate")._value.get()
        old = replace(certificate_row(), not_before=now - 101 * DAY, not_after=now - 100 * DAY)
        new = replace(certificate_row(predecessor=old), not_after=now + DAY)
        older = replace(certificate_row(), not_before=now - 201 * DAY, not_after=now - 200 * DAY, line=old.line, predecessor=old.sha256)
        for row in (old, older, new):
            await store.ledger.commit(certificate_write(row))
        newest = insert(tables.summary).values(identity_id=1, newest=new.sha256, newest_not_after=new.not_after, newest_origin="issued")
        await store.ledger.commit(Write([], [Change(newest)]))
        job = retain.RetentionJob(store, system_clock, 30 * 86400)
        await job.months()
        assert retain.MONTHS._value.get() == (0 if store.is_sqlite else 6)  # four from now on, and those of the two that are old
        await job.remove()
        assert await count(store, tables.certificate) == 2  # the newest, and the first of its line
        assert await count(store, tables.log_entry) == 3
        assert retain.DONE._value.get() == pytest.approx(now / 1000, abs=60)
        if store.is_sqlite:
            assert retain.REMOVED.labels("certificate")._value.get() == before + 1
        await store.close()

    asyncio.run(run())
