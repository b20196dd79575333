"""Retention: whatever the rows, what must stay stays; what may go goes; and a kill in the middle loses nothing."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from bench.inventory_data import COLUMNS, World, fill
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select

from handclasp import faults
from handclasp.inventory.retention import AT_ONCE, Retention
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.partitions import Month, Partitions
from handclasp.store.writes import Change, Write
from support.writes import log_entry

DAY = 86_400_000
NOW = 1_800_000_000_000  # 15 January 2027
KEEP = 30 * DAY
LIMIT = NOW - KEEP


@dataclass(frozen=True)
class Case:
    """One certificate, as the strategy draws it."""

    identity: int
    line: int
    end: int  # days from now
    revoked: bool
    shown: bool  # by a CRL made after its end
    seen: str
    found: bool


CASES = st.builds(
    Case,
    identity=st.integers(0, 3),
    line=st.integers(0, 1),
    end=st.sampled_from([-400, -200, -90, -70, -62, -61, -45, -40, -31, -29, -10, -1, 0, 1, 20, 60, 300]),
    revoked=st.booleans(),
    shown=st.booleans(),
    seen=st.sampled_from(["never", "open", "lately", "once"]),
    found=st.sampled_from([False, False, True]),
)


def fingerprint(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def certificate_values(number: int, case: Case, first: bytes) -> dict[str, Any]:
    sha256, end = fingerprint(number), NOW + case.end * DAY
    return {
        "sha256": sha256, "serial": sha256[:19], "der": b"der", "authority_id": 1, "identity_id": 1 + case.identity, "profile": "workload",
        "names": "{}", "spki_sha256": sha256, "key_type": "p256", "not_before": end - DAY, "not_after": end, "renew_after": end,
        "renew_before": end, "line": first, "generation": 0 if first == sha256 else 1, "predecessor": None if first == sha256 else first,
        "granted_by": "token:a", "obtained_by": "token:a", "revoked_at": end - 1000 if case.revoked else None,
        "crl_shard": int(case.shown), "log_index": number,
    }  # fmt: skip


def found_values(number: int, case: Case) -> dict[str, Any]:
    sha256, end = fingerprint(number), NOW + case.end * DAY
    return {
        "sha256": sha256, "serial": sha256[:19], "identity_id": 1 + case.identity, "subject": "", "names": "{}", "not_before": end - DAY,
        "not_after": end, "first_seen_at": min(end, NOW) - DAY, "triage": "investigate" if case.revoked else "unmanaged",
    }  # fmt: skip


def sighting_values(number: int, case: Case) -> dict[str, Any]:
    ended = {"open": None, "lately": LIMIT + DAY, "once": LIMIT - DAY}[case.seen]
    return {
        "location_id": 1, "sha256": fingerprint(number), "role": "served", "first_seen_at": 1, "last_seen_at": 1, "ended_at": ended,
    }  # fmt: skip


async def put(store: Store, cases: list[Case]) -> None:
    """Replace everything by these certificates, with the summaries that go with them."""
    for table in (tables.certificate, tables.found, tables.sighting, tables.standing, tables.summary, tables.crl, tables.identity):
        await store.ledger.commit(Write([], [Change(delete(table))]))
    changes = [insert(tables.identity).values(id=1 + number, name=f"dns:{number}.example.org", created_at=1) for number in range(4)]
    changes.append(insert(tables.crl).values(authority_id=1, shard=1, number=1, der=b"", this_update=NOW, next_update=NOW + DAY))
    firsts: dict[tuple[int, int], bytes] = {}
    newest: dict[int, tuple[int, bytes, str]] = {}
    for number, case in enumerate(cases):
        sha256, end = fingerprint(number), NOW + case.end * DAY
        origin = "found" if case.found else "issued"
        if case.found:
            changes.append(insert(tables.found).values(found_values(number, case)))
        else:
            first = firsts.setdefault((case.identity, case.line), sha256)
            changes.append(insert(tables.certificate).values(certificate_values(number, case, first)))
        if case.seen != "never":
            changes.append(insert(tables.sighting).values(sighting_values(number, case)))
            changes.append(
                insert(tables.standing).values(
                    sha256=sha256, origin=origin, state="past", since_at=1, identity_id=1 + case.identity, not_after=end,
                    open=int(case.seen == "open"), first_seen_at=1, last_seen_at=1,
                )
            )  # fmt: skip
        newest[case.identity] = max(newest.get(case.identity, (0, b"", "")), (end, sha256, origin))
    for identity, (end, sha256, origin) in newest.items():
        changes.append(
            insert(tables.summary).values(
                identity_id=1 + identity, newest=sha256, newest_not_after=end, newest_not_before=1, newest_origin=origin
            )
        )
    await store.ledger.commit(Write([log_entry()], [Change(change) for change in changes]))


async def fingerprints(store: Store, table: Any) -> set[bytes]:
    return {bytes(row.sha256) for row in await store.rows(select(table.c.sha256))}


def must_stay(cases: list[Case]) -> set[bytes]:
    """What no retention may remove, said a second time in plain words."""
    stay: set[bytes] = set()
    for number, case in enumerate(cases):
        sha256, end = fingerprint(number), NOW + case.end * DAY
        of_identity = [(NOW + one.end * DAY, fingerprint(other)) for other, one in enumerate(cases) if one.identity == case.identity]
        line = [(other, one) for other, one in enumerate(cases) if not one.found and (one.identity, one.line) == (case.identity, case.line)]
        if end >= LIMIT or case.seen in ("open", "lately") or sha256 == max(of_identity)[1]:
            stay.add(sha256)
        if case.found and case.revoked:
            stay.add(sha256)  # under investigation
        if not case.found:
            if case.revoked and not case.shown:
                stay.add(sha256)
            if line[0][0] == number and any(one.end > 0 for _, one in line):
                stay.add(sha256)
    return stay


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(lists=st.lists(st.lists(CASES, min_size=1, max_size=14), min_size=1, max_size=2))
@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_what_must_stay_stays_and_the_rest_goes(migrated_url: str, lists: list[list[Case]]) -> None:
    async def run() -> None:
        store = await Store.open(migrated_url, migrate=False, window=0)
        for cases in lists:
            await put(store, cases)
            entries = await store.entries(0, 1000)
            await Retention(store, lambda: NOW, KEEP / 1000, pause=0).run()
            left = await fingerprints(store, tables.certificate) | await fingerprints(store, tables.found)
            assert left == must_stay(cases)
            assert await store.entries(0, 1000) == entries
            standings = await fingerprints(store, tables.standing)
            seen = {fingerprint(number) for number, case in enumerate(cases) if case.seen != "never"}
            assert left & seen <= standings  # what is known stands for something; of what is gone, nothing is said after a while
            assert not {one for one in standings - left if one in seen and cases_of(cases, one).end * DAY < -KEEP}
        await store.close()

    asyncio.run(run())


async def forget_months(url: str) -> None:
    """Go back to a table that has no month yet."""
    connection = await asyncpg.connect(url)
    of_table = "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'certificate'::regclass"
    for row in await connection.fetch(f"{of_table} AND c.relname <> 'certificate_default'"):
        await connection.execute(f"DROP TABLE {row[0]}")
    await connection.close()


def cases_of(cases: list[Case], sha256: bytes) -> Case:
    return next(case for number, case in enumerate(cases) if fingerprint(number) == sha256)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(cases=st.lists(CASES, min_size=1, max_size=20))
@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_dropped_months_take_nothing_along_that_must_stay(migrated_url: str, cases: list[Case]) -> None:
    """Months go that ended before the limit; whatever must stay is there afterwards, and can be found by fingerprint as before."""

    async def run() -> None:
        await forget_months(migrated_url)
        store = await Store.open(migrated_url, migrate=False, window=0)
        await put(store, cases)
        before = await fingerprints(store, tables.certificate)
        retention = Retention(store, lambda: NOW, KEEP / 1000, pause=0)
        await retention.make_months()
        assert await fingerprints(store, tables.certificate) == before
        await retention.run()
        left = await fingerprints(store, tables.certificate)
        old = {fingerprint(number) for number, case in enumerate(cases) if not case.found and Month.of(NOW + case.end * DAY).end <= LIMIT}
        assert left == before - (old - must_stay(cases))
        for sha256 in left:
            assert await store.row(select(tables.certificate.c.der).where(tables.certificate.c.sha256 == sha256)) is not None
        assert all(month.end > LIMIT for month in await Partitions(migrated_url).existing())
        await retention.run()
        assert await fingerprints(store, tables.certificate) == left
        await store.close()

    asyncio.run(run())


def test_nothing_goes_where_everything_is_to_be_kept(migrated_url: str) -> None:
    async def run() -> None:
        store = await Store.open(migrated_url, migrate=False)
        cases = [Case(0, 0, -300, False, True, "once", False), Case(0, 0, -200, False, True, "once", False)]
        await put(store, cases)
        assert not await Retention(store, lambda: NOW, 0).run()
        assert len(await fingerprints(store, tables.certificate)) == 2
        await store.close()

    asyncio.run(run())


def test_what_was_said_of_old_certificates_goes_too(migrated_url: str) -> None:
    """Sightings that ended, places that are gone, scans but the newest of a source, names nobody has, links that ended, hours long ago."""
    old, new = LIMIT - DAY, LIMIT + DAY

    def location(number: int, gone: int | None) -> Any:
        fixed = {"source_id": 1, "kind": "endpoint", "shown": "", "first_seen_at": 1, "tried_at": 1}
        return insert(tables.location).values(id=number, key=str(number), gone_at=gone, **fixed)

    def sighting(number: int, place: int, ended: int | None) -> Any:
        return insert(tables.sighting).values(
            id=number, location_id=place, sha256=fingerprint(number), role="served", first_seen_at=1, last_seen_at=1, ended_at=ended
        )

    def scan(name: str, source: int, at: int, ended: int | None) -> list[Any]:
        made = insert(tables.scan).values(id=name, source_id=source, state="done", asked_by="x", created_at=at, ended_at=ended)
        return [made, *(insert(tables.scan_part).values(scan_id=name, number=part, spec="{}", state="done") for part in range(3))]

    rows = [
        location(1, old), location(2, new), location(3, None), location(4, old),
        sighting(1, 1, old), sighting(2, 2, new), sighting(3, 3, None), sighting(4, 4, None),
        *scan("a", 1, 1, old), *scan("b", 1, 2, old), *scan("c", 1, 3, new), *scan("d", 2, 1, old), *scan("e", 2, 0, None),
        insert(tables.name).values(id=1, text="alone", reversed="enola"), insert(tables.name).values(id=2, text="had", reversed="dah"),
        insert(tables.identity_name).values(name_id=2, identity_id=1),
    ]  # fmt: skip
    link = {"owner": "", "identities": "[]", "created_at": 1}
    rows += [insert(tables.confirmation).values(secret_sha256=fingerprint(at), expires_at=at, **link) for at in (old, new)]
    hours = ("2024-01-01T00", "2027-01-01T00")
    rows += [insert(tables.tally).values(kind=kind, bucket=hour, number=1) for kind in ("issued", "expiry") for hour in hours]

    async def run() -> None:
        store = await Store.open(migrated_url, migrate=False)
        await store.ledger.commit(Write([], [Change(row) for row in rows]))
        gone = await Retention(store, lambda: NOW, KEEP / 1000, pause=0).run()
        assert gone == {"sighting": 1, "location": 1, "scan": 2, "name": 1, "confirmation": 1, "tally": 1}
        assert {row.id for row in await store.rows(select(tables.location.c.id))} == {2, 3, 4}
        assert {row.id for row in await store.rows(select(tables.sighting.c.id))} == {2, 3, 4}
        assert {row.id for row in await store.rows(select(tables.scan.c.id))} == {"c", "d", "e"}
        assert {row.scan_id for row in await store.rows(select(tables.scan_part.c.scan_id))} == {"c", "d", "e"}
        assert {row.text for row in await store.rows(select(tables.name.c.text))} == {"had"}
        counted = {(row.kind, row.bucket) for row in await store.rows(select(tables.tally)) if row.kind in ("issued", "expiry")}
        assert counted == {("issued", "2027-01-01T00"), ("expiry", "2024-01-01T00"), ("expiry", "2027-01-01T00")}
        await store.close()

    asyncio.run(run())


def test_a_certificate_that_is_seen_again_in_the_middle_stays(migrated_url: str) -> None:
    """Between the look and the write: the write looks again. On PostgreSQL: between the copy and the lock."""
    cases = [Case(0, 0, -300 + number, False, True, "never", False) for number in range(3)]
    again = fingerprint(1)

    async def run() -> None:
        store = await Store.open(migrated_url, migrate=False)
        await put(store, cases)
        retention = Retention(store, lambda: NOW, KEEP / 1000, pause=0)
        await retention.make_months()
        seen = Change(insert(tables.sighting).values(sighting_values(1, Case(0, 0, 0, False, True, "open", False))))
        if store.is_sqlite:
            commit = store.ledger.commit

            async def late(write: Write) -> int:
                await commit(Write([], [seen]))
                store.ledger.commit = commit  # type: ignore[method-assign]
                return await commit(write)

            store.ledger.commit = late  # type: ignore[method-assign]
        else:
            partitions = retention._partitions
            assert partitions is not None
            copy = partitions._copy

            async def late_copy(*arguments: Any) -> None:
                await copy(*arguments)
                await store.ledger.commit(Write([], [seen]))

            partitions._copy = late_copy  # type: ignore[method-assign]
        await retention.run()
        left = await fingerprints(store, tables.certificate)
        assert left == {again, fingerprint(2)}
        await store.close()

    asyncio.run(run())


# --- killed in the middle -----------------------------------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, sys
from handclasp.inventory.retention import Retention
from handclasp.store.database import Store

async def main(url, now):
    store = await Store.open(url, migrate=False)
    retention = Retention(store, lambda: now, 30 * 86400, pause=0)
    await retention.make_months()
    await retention.run()
    await store.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""
KILLS = {
    "sqlite": ("retention.found:1", "retention.found:4", "retention.removed:1", "retention.removed:9"),
    "postgresql": ("partition.made:2", "partition.copied:1", "partition.dropped:1", "retention.removed:2"),
}
LATER = 45 * DAY


def retain(url: str, now: int, fault: str = "") -> subprocess.CompletedProcess[str]:
    source = Path(faults.__file__).parents[1]
    environment = {**os.environ, "HANDCLASP_FAULT": f"{fault}:kill" if fault else "", "PYTHONPATH": str(source)}
    return subprocess.run([sys.executable, "-c", PROGRAM, url, str(now)], env=environment, capture_output=True, text=True, timeout=120)


def test_every_point_is_killed_at() -> None:
    ours = {point for point in faults.POINTS if point.startswith(("retention.", "partition."))}
    assert ours == {kill.rpartition(":")[0] for kills in KILLS.values() for kill in kills}


def test_killed_anywhere_it_goes_on_and_ends_as_if_it_had_not_been(migrated_url: str) -> None:
    """One database that is killed at one point after the other; in between, what must stay is there each time."""
    kind = "sqlite" if migrated_url.startswith("sqlite") else "postgresql"
    now = NOW + LATER

    async def state() -> dict[str, set[Any]]:
        store = await Store.open(migrated_url, migrate=False)
        found = {name: set(await fingerprints(store, tables.metadata.tables[name])) for name in ("certificate", "found", "standing")}
        await store.close()
        return found

    asyncio.run(fill(migrated_url, 2500, now=NOW))
    before, stay = asyncio.run(state()), _staying(2500, now)
    assert len(before["certificate"] - stay) > 3 * AT_ONCE  # there is work to be killed in
    for kill in KILLS[kind]:
        done = retain(migrated_url, now, kill)
        assert done.returncode == -signal.SIGKILL, (kill, done.stderr)
        between = asyncio.run(state())
        assert stay <= between["certificate"] | between["found"]
    done = retain(migrated_url, now)
    assert done.returncode == 0, done.stderr
    after = asyncio.run(state())
    limit = now - KEEP
    old = {sha256 for sha256, end in _ends(2500).items() if (end if kind == "sqlite" else Month.of(end).end) < limit}
    assert after["certificate"] == before["certificate"] - (old - stay)


def _world(certificates: int) -> dict[str, list[tuple[Any, ...]]]:
    found: dict[str, list[tuple[Any, ...]]] = {table: [] for table in COLUMNS}
    for table, rows in World(certificates, NOW).batches():
        found[table] += rows
    return found


def _ends(certificates: int) -> dict[bytes, int]:
    end = COLUMNS["certificate"].index("not_after")
    return {row[0]: row[end] for row in _world(certificates)["certificate"]}


def _staying(certificates: int, now: int) -> set[bytes]:
    """What must stay of the generator's certificates; of those revoked all, for no CRL was made."""
    world = _world(certificates)
    stay = {row[2] for row in world["summary"]}
    stay |= {row[2] for row in world["sighting"] if row[8] is None or row[8] >= now - KEEP}
    rows = [dict(zip(COLUMNS["certificate"], row, strict=True)) for row in world["certificate"]]
    living = {row["line"] for row in rows if row["not_after"] > now}
    stay |= {row["sha256"] for row in rows if row["not_after"] >= now - KEEP or row["revoked_at"] is not None or row["sha256"] in living}
    return stay
