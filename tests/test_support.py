"""The tests' own helpers: what they promise to the other tests."""

from __future__ import annotations

import asyncio
import fcntl

import asyncpg
import pytest

from support import needs
from support.postgres import run_directory, shared_cluster


@pytest.mark.parametrize(
    ("reasons", "line"),
    [
        ([], None),
        (["Skipped: only on Windows"], None),
        (["Skipped: needs nginx"], "not run: 1 test needs nginx (install: apt-get install nginx)"),
        (
            ["Skipped: needs softhsm2", *["Skipped: needs postgresql"] * 4],
            "not run: 4 tests need postgresql, 1 needs softhsm2 (install: apt-get install postgresql softhsm2)",
        ),
    ],
)
def test_one_line_says_what_was_not_run(reasons: list[str], line: str | None) -> None:
    assert needs.summary(reasons) == line


def test_a_missing_program_skips_the_test_and_names_it() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"needs no-such-program$"):
        needs.needs("no-such-program")


def test_a_test_gets_a_database_of_its_own(postgres_url: str) -> None:
    async def tables() -> int:
        connection = await asyncpg.connect(postgres_url)
        try:
            await connection.execute("CREATE TABLE mine (id int)")
            return int(await connection.fetchval("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"))
        finally:
            await connection.close()

    assert asyncio.run(tables()) == 1
    assert shared_cluster().url().rsplit("/", 1)[0] == postgres_url.rsplit("/", 1)[0], "one cluster for the whole run"


def test_the_directory_of_a_run_is_locked_while_it_lives() -> None:
    with (run_directory() / "alive").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
