"""The ledger, on both databases: all of a write or nothing, and the order of commits is the order of the log."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, update

from handclasp.errors import HandclaspError, Kind
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import CertificateRow, Change, Write
from support.errors import refused
from support.writes import WEB, block_change, certificate_row, certificate_write, check_whole, count, log_entry, revoke_change, token_write

OTHER = "spiffe://example.org/prod/db"
ON_POSTGRESQL = pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)


@asynccontextmanager
async def opened(url: str, **more: Any) -> AsyncIterator[Store]:
    store = await Store.open(url, migrate=False, **more)
    try:
        yield store
    finally:
        await store.close()


def on_store(url: str, work: Callable[[Store], Awaitable[None]], **more: Any) -> None:
    async def run() -> None:
        async with opened(url, **more) as store:
            await work(store)

    asyncio.run(run())


async def outcomes(store: Store, writes: list[Write]) -> tuple[list[tuple[int, Write]], list[tuple[Write, Kind]]]:
    """Commit all at once; return what was committed, and what was refused and why."""
    committed, refusals = [], []
    for write, result in zip(writes, await asyncio.gather(*map(store.ledger.commit, writes), return_exceptions=True), strict=True):
        if isinstance(result, HandclaspError):
            refusals.append((write, result.kind))
        else:
            assert isinstance(result, int), result
            committed.append((result, write))
    return committed, refusals


# --- random mixes -----------------------------------------------------------------------------------------------------------------------

_FEW = st.integers(0, 3)
_OPERATIONS = st.one_of(
    st.tuples(st.just("issue"), _FEW, st.integers(0, 5), st.none() | _FEW),
    st.tuples(st.just("issue with changes"), _FEW, st.integers(0, 5), st.booleans()),
    st.tuples(st.just("renew"), st.integers(0, 1000), st.none() | _FEW),
    st.tuples(st.just("revoke"), st.integers(0, 1000)),
    st.tuples(st.just("block"), st.integers(0, 1000)),
    st.tuples(st.just("identity token"), _FEW, _FEW),
    st.tuples(st.just("conflict")),
    st.tuples(st.just("poison")),
    st.tuples(st.just("entries"), _FEW),
)
NEVER = update(tables.token).where(tables.token.c.id == "nobody").values(used=1)
TWICE = insert(tables.meta).values(name="generation", value="1")


class Mix:
    """Turns operations into writes; each example has names of its own, on the database of all."""

    def __init__(self, base: list[tuple[int, Write]]) -> None:
        self.name = os.urandom(4).hex()
        self.keys = [os.urandom(32) for _ in range(6)]
        self.rows = [write.certificate for _, write in base if write.certificate is not None]

    def identity(self, number: int) -> str:
        return f"spiffe://example.org/{self.name}/{number}"

    def token(self, number: int) -> str:
        return f"{self.name}-{number}"

    def write(self, operation: tuple[Any, ...]) -> Write:
        match operation:
            case ("issue", identity, key, token):
                row = certificate_row(self.identity(identity), spki=self.keys[key])
                return certificate_write(row, spend_token=None if token is None else self.token(token))
            case ("issue with changes", identity, key, good):
                row = certificate_row(self.identity(identity), spki=self.keys[key])
                touch = update(tables.meta).where(tables.meta.c.name == "generation").values(value=tables.meta.c.value)
                return certificate_write(row, changes=[Change(touch, expect=1), Change(touch if good else NEVER, expect=1)])
            case ("renew", choice, token) if self.rows:
                old = self.rows[choice % len(self.rows)]
                new = certificate_row(old.identity, predecessor=old)
                return certificate_write(new, spend_token=None if token is None else self.token(token))
            case ("revoke", choice) if self.rows:
                return Write([log_entry()], [revoke_change(self.rows[choice % len(self.rows)])])
            case ("block", choice) if self.rows:
                return Write([log_entry()], [block_change(self.rows[choice % len(self.rows)].spki_sha256)])
            case ("identity token", identity, jti):
                return certificate_write(certificate_row(self.identity(identity)), spend_jwt=("https://i", f"{self.name}-{jti}", 2**50))
            case ("conflict",):
                return Write([log_entry()], [Change(NEVER, expect=1)])
            case ("poison",):
                return Write([log_entry()], [Change(TWICE)])
            case ("entries", number):
                return Write([log_entry(personal={"email": "a@example.org"}, subjects=["token:a"]) for _ in range(number)])
        return Write([log_entry()])


def test_whatever_is_written_at_once_rows_and_log_agree(migrated_url: str) -> None:
    """Dense entries, rows one to one with them, nothing of what was refused, never more uses than a token has."""
    committed: list[tuple[int, Write]] = []
    with asyncio.Runner() as runner:
        store = runner.run(Store.open(migrated_url, migrate=False))

        @settings(max_examples=15)
        @given(st.lists(_OPERATIONS, min_size=1, max_size=40), st.integers(0, 3))
        def mix(operations: list[tuple[Any, ...]], uses: int) -> None:
            async def run() -> None:
                made = Mix(committed[-50:])
                tokens, _ = await outcomes(store, [token_write(made.token(number), uses) for number in range(4)])
                writes = [made.write(operation) for operation in operations]
                done, refusals = await outcomes(store, writes)
                committed.extend(tokens + done)
                assert len({index for index, write in done if write.entries}) == sum(bool(write.entries) for _, write in done)
                await check_whole(store, committed, [write for write, _ in refusals])
                assert all(write in [one for one, _ in refusals] for write in writes if any(c.statement is TWICE for c in write.changes))

            runner.run(run())

        mix()
        runner.run(store.close())


def test_the_order_of_commits_is_the_order_of_the_log(migrated_url: str) -> None:
    """Who commits after another's answer stands behind it in the log."""

    async def work(store: Store) -> None:
        before = -1

        async def chain() -> None:
            last = -1
            for _ in range(10):
                index = await store.ledger.commit(Write([log_entry(), log_entry()]))
                assert index > last + (1 if last >= 0 else 0)
                last = index

        await asyncio.gather(*(chain() for _ in range(10)))
        before = await store.ledger.commit(Write([log_entry()]))
        assert before == 200

    on_store(migrated_url, work)


# --- one use, many users ----------------------------------------------------------------------------------------------------------------


def test_a_hundred_parallel_uses_of_a_one_use_token_give_one_certificate(migrated_url: str) -> None:
    async def work(store: Store) -> None:
        await store.ledger.commit(token_write("one"))
        done, refusals = await outcomes(store, [certificate_write(certificate_row(), spend_token="one") for _ in range(100)])
        assert len(done) == 1
        assert [kind for _, kind in refusals] == [Kind.TOKEN_SPENT] * 99
        assert await count(store, tables.certificate) == 1

    on_store(migrated_url, work)


@ON_POSTGRESQL
def test_also_from_two_stores_at_once(migrated_url: str) -> None:
    async def run() -> None:
        async with opened(migrated_url) as one, opened(migrated_url) as two:
            index = await one.ledger.commit(token_write("three", uses=3))
            writes = [[certificate_write(certificate_row(), spend_token="three") for _ in range(50)] for _ in range(2)]
            both = await asyncio.gather(outcomes(one, writes[0]), outcomes(two, writes[1]))
            done = [item for part, _ in both for item in part]
            assert len(done) == 3
            assert {kind for _, part in both for _, kind in part} == {Kind.TOKEN_SPENT}
            assert sorted(index for index, _ in done) == [index + 1, index + 2, index + 3]
            assert await count(two, tables.certificate) == 3

    asyncio.run(run())


@ON_POSTGRESQL
def test_two_stores_write_one_log_without_gaps(migrated_url: str) -> None:
    async def run() -> None:
        async with opened(migrated_url) as one, opened(migrated_url) as two:
            key = os.urandom(32)
            writes = [
                [certificate_write(certificate_row(f"spiffe://example.org/{n % 7}", spki=key if n % 9 == 0 else None)) for n in range(60)]
                for _ in range(2)
            ]
            both = await asyncio.gather(outcomes(one, writes[0]), outcomes(two, writes[1]))
            committed = [item for done, _ in both for item in done]
            await check_whole(one, committed, [write for _, part in both for write, _ in part])

    asyncio.run(run())


# --- what is refused, and what stays ----------------------------------------------------------------------------------------------------


def test_a_conflict_undoes_only_its_own_write(migrated_url: str) -> None:
    async def work(store: Store) -> None:
        changed = update(tables.meta).where(tables.meta.c.name == "generation").values(value="77")
        conflict = HandclaspError(Kind.SUPERSEDED, "somebody was first")
        bad = Write([log_entry()], [Change(changed, expect=1), Change(NEVER, expect=1, conflict=conflict)])
        good = [certificate_write(certificate_row()) for _ in range(5)]
        done, refusals = await outcomes(store, [*good[:2], bad, *good[2:]])
        assert [write for _, write in done] == good
        assert refusals == [(bad, Kind.SUPERSEDED)]
        found = await store.row(select(tables.meta.c.value).where(tables.meta.c.name == "generation"))
        assert found is not None
        assert found.value != "77"
        await check_whole(store, done, [bad])

    on_store(migrated_url, work)


POISON = [
    ("a row that is there already", lambda: Write([log_entry()], [Change(TWICE)])),
    ("a certificate that is there already", lambda: certificate_write(_FIRST)),
    (
        "a number that fits no column",
        lambda: Write([log_entry()], [Change(update(tables.log_head).where(tables.log_head.c.id == 9).values(size=2**70))]),
    ),
    ("text that cannot be encoded", lambda: Write([log_entry()], [Change(update(tables.token).values(name="\ud800"))])),
]
_FIRST = certificate_row()


@pytest.mark.parametrize("make", [make for _, make in POISON], ids=[name for name, _ in POISON])
def test_one_bad_write_does_not_take_the_others_down(migrated_url: str, make: Callable[[], Write]) -> None:
    async def work(store: Store) -> None:
        first = await outcomes(store, [certificate_write(_FIRST), token_write("two", uses=2)])
        poison = make()
        good = [certificate_write(certificate_row(f"spiffe://example.org/{n}"), spend_token="two") for n in range(2)]
        done, refusals = await outcomes(store, [good[0], poison, good[1]])
        assert [write for _, write in done] == good
        assert refusals == [(poison, Kind.CONFLICT)]
        await check_whole(store, first[0] + done, [poison] if poison.certificate is None else [])

    on_store(migrated_url, work)


@ON_POSTGRESQL
def test_text_with_a_nul_is_one_refusal_on_postgresql(migrated_url: str) -> None:
    """PostgreSQL stores no NUL in text. Once it took the whole batch down as "unavailable"."""

    async def work(store: Store) -> None:
        good, poison = certificate_write(certificate_row()), token_write("a\0b")
        done, refusals = await outcomes(store, [good, poison])
        assert [write for _, write in done] == [good]
        assert refusals == [(poison, Kind.CONFLICT)]

    on_store(migrated_url, work)


def _with(**more: Any) -> Callable[[CertificateRow], Write]:
    return lambda row: certificate_write(certificate_row(row.identity), **more)


REFUSED: list[tuple[str, list[Callable[[CertificateRow], Write]], Callable[[CertificateRow], Write], Kind]] = [
    (
        "a key of another identity",
        [],
        lambda row: certificate_write(certificate_row(OTHER, spki=row.spki_sha256), spend_token="one"),
        Kind.REUSED_KEY,
    ),
    (
        "a blocked key",
        [lambda row: Write([], [block_change(row.spki_sha256)])],
        lambda row: certificate_write(certificate_row(row.identity, spki=row.spki_sha256), spend_token="one"),
        Kind.BLOCKED_KEY,
    ),
    (
        "a revoked predecessor",
        [lambda row: Write([], [revoke_change(row)])],
        lambda row: certificate_write(certificate_row(row.identity, predecessor=row), spend_token="one"),
        Kind.REVOKED,
    ),
    (
        "a predecessor that is not there",
        [],
        lambda row: certificate_write(certificate_row(row.identity, predecessor=certificate_row(row.identity)), spend_token="one"),
        Kind.REVOKED,
    ),
    ("an identity token used before", [_with(spend_jwt=("i", "j", 1))], _with(spend_jwt=("i", "j", 1), spend_token="one"), Kind.REPLAYED),
    (
        "a token revoked meanwhile",
        [lambda _: Write([], [Change(update(tables.token).values(revoked_at=1))])],
        _with(spend_token="one", spend_jwt=("i", "k", 1)),
        Kind.TOKEN_REVOKED,
    ),
    (
        "a token with no use left, for a new identity and a renewal",
        [_with(spend_token="one")],
        lambda row: certificate_write(certificate_row(OTHER, predecessor=row), spend_token="one", spend_jwt=("i", "k", 1)),
        Kind.TOKEN_SPENT,
    ),
    ("a token that does not exist", [], _with(spend_token="none"), Kind.TOKEN_REVOKED),
]


@pytest.mark.parametrize("together", [False, True], ids=["after", "together"])
@pytest.mark.parametrize(("before", "make", "kind"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_refused_leaves_nothing_behind(
    migrated_url: str, together: bool, before: list[Callable[[CertificateRow], Write]], make: Callable[[CertificateRow], Write], kind: Kind
) -> None:
    """Also when what stands in the way is committed in the same transaction: a revocation counts at once."""

    async def work(store: Store) -> None:
        row = certificate_row()
        first, _ = await outcomes(store, [certificate_write(row), token_write("one")])
        earlier, bad = [one(row) for one in before], make(row)
        if together:
            done, refusals = await outcomes(store, [*earlier, bad])
        else:
            done, _ = await outcomes(store, earlier)
            _, refusals = await outcomes(store, [bad])
        assert refusals == [(bad, kind)]
        await check_whole(store, first + done, [bad])
        found = await store.row(select(tables.certificate.c.superseded_by).where(tables.certificate.c.sha256 == row.sha256))
        assert found is not None
        assert found.superseded_by is None

    on_store(migrated_url, work, window=0.01)


async def newest_of(store: Store) -> list[bytes]:
    certificate = tables.certificate.c
    return [bytes(row.sha256) for row in await store.rows(select(certificate.sha256).where(certificate.superseded_by.is_(None)))]


@pytest.mark.parametrize("together", [True, False])
def test_a_line_has_one_end_however_often_its_end_is_renewed(migrated_url: str, together: bool) -> None:
    """A second renewal takes the place of the first, whose answer was lost; so nobody keeps a branch of the line."""

    async def work(store: Store) -> None:
        row = certificate_row()
        await store.ledger.commit(certificate_write(row))
        new = [certificate_row(WEB, predecessor=row) for _ in range(3)]
        if together:
            assert (await outcomes(store, [certificate_write(one) for one in new]))[1] == []
        else:
            for one in new:
                await store.ledger.commit(certificate_write(one))
        assert await newest_of(store) == [new[-1].sha256]
        found = await store.row(select(tables.certificate).where(tables.certificate.c.sha256 == row.sha256))
        assert found is not None
        assert bytes(found.superseded_by) == new[-1].sha256
        assert found.superseded_at is not None

    on_store(migrated_url, work, window=0.01)


def test_what_was_renewed_is_not_renewed_again_once_its_successor_was(migrated_url: str) -> None:
    async def work(store: Store) -> None:
        first = certificate_row()
        second = certificate_row(WEB, predecessor=first)
        third = certificate_row(WEB, predecessor=second)
        for one in (first, second, third):
            await store.ledger.commit(certificate_write(one))
        late = certificate_write(certificate_row(WEB, predecessor=first))
        assert (await outcomes(store, [late]))[1] == [(late, Kind.SUPERSEDED)]
        assert await newest_of(store) == [third.sha256]

    on_store(migrated_url, work)


def test_a_caller_that_went_away_is_recorded_and_stops_nobody(migrated_url: str) -> None:
    async def work(store: Store) -> None:
        task = asyncio.create_task(store.ledger.commit(certificate_write(certificate_row())))
        await asyncio.sleep(0)
        task.cancel()
        assert await store.ledger.commit(Write([log_entry()])) == 1
        assert await count(store, tables.certificate) == 1

    on_store(migrated_url, work)


def test_closing_commits_what_waits_and_refuses_what_comes_later(migrated_url: str) -> None:
    async def run() -> None:
        store = await Store.open(migrated_url, migrate=False, window=0.05)
        waiting = [asyncio.create_task(store.ledger.commit(Write([log_entry()]))) for _ in range(600)]
        await asyncio.sleep(0)
        await store.close()
        assert sorted(await asyncio.gather(*waiting)) == list(range(600))
        with refused(Kind.UNAVAILABLE):
            await store.ledger.commit(Write([log_entry()]))

    asyncio.run(run())
