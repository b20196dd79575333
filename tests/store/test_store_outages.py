"""Databases that fill up, stop and come back: a clear answer meanwhile, nothing lost, nothing twice, and work goes on by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from handclasp.errors import HandclaspError, Kind
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write
from support import needs
from support.errors import refused
from support.postgres import Cluster, start_cluster
from support.writes import certificate_row, certificate_write, check_whole, count, log_entry, token_write

ON_SQLITE = pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)


async def commit_until_refused(store: Store, limit: int = 200) -> tuple[list[tuple[int, Write]], Write]:
    committed = []
    for number in range(limit):
        write = certificate_write(certificate_row(f"spiffe://example.org/{number}"))
        write.entries = [log_entry("x" * 20_000)]
        try:
            committed.append((await store.ledger.commit(write), write))
        except HandclaspError as error:
            if error.kind is not Kind.UNAVAILABLE or not error.retry_after:
                raise
            return committed, write
    raise AssertionError("it never became full")


@ON_SQLITE
def test_a_full_database_is_unavailable_and_loses_nothing(migrated_url: str) -> None:
    async def run() -> None:
        store = await Store.open(migrated_url, migrate=False)
        await store.ledger.commit(Write([log_entry()]))
        backend = store.ledger._backend
        pages = backend.connection.execute("PRAGMA page_count").fetchone()[0]  # type: ignore[attr-defined]
        connect = backend.connect

        async def connect_to_a_small_disk() -> None:
            await connect()
            backend.connection.execute(f"PRAGMA max_page_count={pages + 20}")  # type: ignore[attr-defined]

        backend.connect = connect_to_a_small_disk  # type: ignore[method-assign]
        await connect_to_a_small_disk()
        committed, lost = await commit_until_refused(store)
        assert committed
        with refused(Kind.UNAVAILABLE, "full"):
            await store.ledger.commit(lost)
        await check_whole(store, committed, [lost])
        backend.connect = connect  # type: ignore[method-assign]
        await connect()  # there is space again
        committed.append((await store.ledger.commit(lost), lost))
        await check_whole(store, committed, [])
        await store.close()

    asyncio.run(run())


@ON_SQLITE
def test_an_identity_of_a_write_that_was_lost_is_not_mistaken_for_the_next_one(migrated_url: str) -> None:
    """A row number that was rolled back goes to somebody else: whoever remembers it puts certificates under another's name."""

    async def run() -> None:
        store = await Store.open(migrated_url, migrate=False)
        first, second = (certificate_write(certificate_row(f"spiffe://example.org/{name}")) for name in ("first", "second"))
        backend = store.ledger._backend
        commit = backend.commit

        async def full() -> None:
            raise sqlite3.OperationalError("database or disk is full")

        backend.commit = full  # type: ignore[method-assign]
        with refused(Kind.UNAVAILABLE):
            await store.ledger.commit(first)
        backend.commit = commit  # type: ignore[method-assign]
        done = [(await store.ledger.commit(write), write) for write in (second, first)]
        await check_whole(store, done, [])
        await store.close()

    asyncio.run(run())


@ON_SQLITE
def test_who_was_refused_only_because_of_a_lost_write_may_try_again(migrated_url: str) -> None:
    """Two uses of a one-use token in a commit that fails: none was spent, so none was told that it is spent."""

    async def run() -> None:
        store = await Store.open(migrated_url, migrate=False, window=0.01)
        await store.ledger.commit(token_write("one"))
        backend = store.ledger._backend
        commit = backend.commit

        async def full() -> None:
            backend.commit = commit  # type: ignore[method-assign]
            raise OSError("no space left on device")

        backend.commit = full  # type: ignore[method-assign]
        writes = [certificate_write(certificate_row(), spend_token="one") for _ in range(2)]
        results = await asyncio.gather(*map(store.ledger.commit, writes), return_exceptions=True)
        assert [one.kind for one in results if isinstance(one, HandclaspError)] == [Kind.UNAVAILABLE] * 2
        assert isinstance(await store.ledger.commit(writes[0]), int)
        await store.close()

    asyncio.run(run())


FULL_DISK = """
import asyncio, resource, signal, sys
from handclasp.errors import HandclaspError
from handclasp.store.database import Store
from handclasp.store.writes import Write
from support.writes import certificate_row, certificate_write, check_whole, log_entry

async def main(url):
    store = await Store.open(url, migrate=False)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
    committed, lost = [], []
    for number in range(60):
        write = certificate_write(certificate_row(f"spiffe://example.org/{number}"))
        write.entries = [log_entry("x" * 30_000)]
        try:
            committed.append((await store.ledger.commit(write), write))
        except HandclaspError as error:
            assert error.kind.value == "unavailable", error
            lost.append(write)
    assert committed and lost, (len(committed), len(lost))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for write in lost:
        committed.append((await store.ledger.commit(write), write))
    await check_whole(store, committed, [])
    await store.close()
    print(len(lost))

asyncio.run(main(sys.argv[1]))
"""


@ON_SQLITE
def test_files_that_may_not_grow_any_more(migrated_url: str) -> None:
    """The write-ahead log itself cannot be written, as on a disk without space; when there is space again, everything goes through."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", FULL_DISK, migrated_url], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


@ON_SQLITE
def test_a_database_that_somebody_else_writes_for_too_long(migrated_url: str) -> None:
    """A second writer (a backup tool, say) makes writes unavailable while it lasts, and no longer."""

    async def run() -> None:
        store = await Store.open(migrated_url, migrate=False)
        await store.ledger.commit(Write([log_entry()]))
        store.ledger._backend.connection.execute("PRAGMA busy_timeout=50")  # type: ignore[attr-defined]
        with contextlib.closing(sqlite3.connect(migrated_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with refused(Kind.UNAVAILABLE, "locked"):
                await store.ledger.commit(Write([log_entry()]))
            assert await count(store, tables.log_entry) == 1  # reading goes on
            other.execute("ROLLBACK")
        assert await store.ledger.commit(Write([log_entry()])) == 1
        await store.close()

    asyncio.run(run())


# --- PostgreSQL ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """A PostgreSQL of these tests' own, which they may crash; with fsync, because what survives is what they are about."""
    needs.needs("postgresql")
    with tempfile.TemporaryDirectory(prefix="handclasp-pg-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        cluster = start_cluster(directory, durable=True)
        try:
            yield cluster
        finally:
            with contextlib.suppress(RuntimeError):
                cluster.stop("immediate")


async def eventually_committed(store: Store, write: Write) -> int:
    deadline = time.monotonic() + 30
    while True:
        try:
            return await store.ledger.commit(write)
        except HandclaspError as error:
            if error.kind is not Kind.UNAVAILABLE or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


def test_a_database_server_that_crashes_under_load_and_comes_back(own_cluster: Cluster) -> None:
    """Whatever was answered is there, once; whatever was not is there with all of it or not at all; then work goes on by itself."""
    url = own_cluster.url(own_cluster.create_database())

    async def run() -> None:
        store = await Store.open(url)
        answered: list[tuple[int, Write]] = []
        doubtful: list[Write] = []
        stopping = asyncio.Event()

        async def client() -> None:
            while not stopping.is_set():
                write = certificate_write(certificate_row(f"spiffe://example.org/{len(answered) % 10}"))
                try:
                    answered.append((await store.ledger.commit(write), write))
                except HandclaspError as error:
                    if error.kind is not Kind.UNAVAILABLE:
                        raise
                    doubtful.append(write)
                    await asyncio.sleep(0.05)

        clients = [asyncio.create_task(client()) for _ in range(8)]
        while len(answered) < 50:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(own_cluster.stop, "immediate")
        with refused(Kind.UNAVAILABLE):
            await store.ledger.commit(Write([log_entry()]))
        with refused(Kind.UNAVAILABLE):
            await store.rows(select(tables.log_head))
        with refused(Kind.UNAVAILABLE):
            await store.point("SELECT size FROM log_head WHERE id = ?", (1,))
        await asyncio.to_thread(own_cluster.start)
        before = len(answered)
        while len(answered) < before + 50:
            await asyncio.sleep(0.01)
        stopping.set()
        await asyncio.gather(*clients)
        stored = {bytes(row.sha256): row.log_index for row in await store.rows(select(tables.certificate))}
        happened = [
            (stored[write.certificate.sha256], write) for write in doubtful if write.certificate and write.certificate.sha256 in stored
        ]
        assert len(happened) <= 8  # only who was in the commit that nobody heard the end of
        await check_whole(store, answered + happened, [write for write in doubtful if write not in [one for _, one in happened]])
        await store.close()

    asyncio.run(run())


def test_a_restart_while_nothing_was_written_costs_nobody_a_write(own_cluster: Cluster) -> None:
    url = own_cluster.url(own_cluster.create_database())

    async def run() -> None:
        store = await Store.open(url)
        assert await store.ledger.commit(Write([log_entry()])) == 0
        await asyncio.to_thread(own_cluster.stop, "fast")
        await asyncio.to_thread(own_cluster.start)
        assert await store.ledger.commit(Write([log_entry()])) == 1
        assert await count(store, tables.log_entry) == 2
        await store.close()

    asyncio.run(run())


def test_who_lost_the_lock_stops_leading(own_cluster: Cluster) -> None:
    """The lock goes with the connection. A leader that does not notice goes on beside the next one."""
    url = own_cluster.url(own_cluster.create_database())

    async def run() -> None:
        one, two = await Store.open(url), await Store.open(url)
        with refused(Kind.UNAVAILABLE):
            async with one.leader("jobs") as leading:
                assert leading
                await asyncio.to_thread(own_cluster.stop, "immediate")
                await asyncio.to_thread(own_cluster.start)
                async with asyncio.timeout(20):
                    await asyncio.Event().wait()
        await eventually_committed(two, Write([log_entry()]))
        async with two.leader("jobs") as leading:
            assert leading
        await one.close()
        await two.close()

    asyncio.run(run())


def test_a_process_that_stands_still_in_a_write_does_not_keep_others_from_writing(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handclasp.store.backend.STANDSTILL", 0.3)

    async def run() -> None:
        one, two = await Store.open(postgres_url), await Store.open(postgres_url, migrate=False)
        await one.ledger.commit(Write([log_entry()]))
        backend = one.ledger._backend
        await backend.begin()
        await backend.fetch(one.ledger._sql.head)  # the lock of every writer; and now it says nothing any more
        async with asyncio.timeout(20):
            await two.ledger.commit(Write([log_entry()]))
        with contextlib.suppress(HandclaspError):  # it finds out that its session is gone, and goes on with another
            await one.ledger.commit(Write([log_entry()]))
        assert await one.ledger.commit(Write([log_entry()])) >= 2
        await two.close()
        await one.close()

    asyncio.run(run())


def test_a_leader_that_stands_still_is_followed_by_another(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handclasp.store.database.LEADER_SILENCE", 0.3)
    monkeypatch.setattr("handclasp.store.database.LEADER_POLL", 2.0)

    async def run() -> None:
        one, two = await Store.open(postgres_url), await Store.open(postgres_url, migrate=False)
        with refused(Kind.UNAVAILABLE):
            async with one.leader("jobs") as leading, asyncio.timeout(20):
                assert leading
                while True:
                    async with two.leader("jobs") as following:
                        if following:
                            break
                    await asyncio.sleep(0.05)
                await asyncio.Event().wait()  # until it looks
        await two.close()
        await one.close()

    asyncio.run(run())


def test_a_change_made_elsewhere_is_seen_after_an_outage(own_cluster: Cluster) -> None:
    url = own_cluster.url(own_cluster.create_database())

    async def run() -> None:
        one, two = await Store.open(url), await Store.open(url)
        await asyncio.to_thread(own_cluster.stop, "immediate")
        await asyncio.sleep(0.6)  # at least one look at the generation fails
        await asyncio.to_thread(own_cluster.start)
        before = two.generation
        changed = Change(update(tables.meta).where(tables.meta.c.name == "generation").values(value=tables.meta.c.value))
        await eventually_committed(one, Write([log_entry()], [changed], bump=True))
        async with asyncio.timeout(5):
            while two.generation == before:
                await asyncio.sleep(0.02)
        await one.close()
        await two.close()

    asyncio.run(run())
