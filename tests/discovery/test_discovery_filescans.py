"""Scans of files as the server sees them: who is to do what, what may be said, and what silence means."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert, select, update

from handclasp.discovery.files import FILES, FilesSettings
from handclasp.discovery.filescans import AWAY, FileScans
from handclasp.discovery.reported import AGAIN, ReportedTargets
from handclasp.discovery.scans import problems_of
from handclasp.discovery.source import Scope
from handclasp.errors import HandclaspError, Kind
from handclasp.inventory.confirm import Confirmer
from handclasp.inventory.quota import Quota, Quotas
from handclasp.inventory.record import Recorder
from handclasp.store import tables
from handclasp.store.writes import Change, Write
from handclasp.wire import AgentIdentity, AgentTarget
from handclasp.wire.filescans import FileSightings, Unchanged, Unread, key_of, unit_of
from handclasp.wire.observations import Observed, Recorded, Seen, SeenKey, Sightings
from support.certfiles import Maker, der
from support.installation import Installation, installation

WEB, DB = "spiffe://example.org/agent/web", "spiffe://example.org/agent/db"
LEAF = der(Maker().leaf()[0])


@dataclass
class Room:
    """File scans over a real inventory."""

    house: Installation
    scans: FileScans
    reported: ReportedTargets

    async def change(self, statement: Any) -> None:
        await self.house.store.ledger.commit(Write([], [Change(statement)]))

    async def agent(self, identity: str, labels: dict[str, str] | None = None) -> None:
        now = self.house.clock()
        await self.change(insert(tables.identity).values(name=identity, created_at=now))
        row = await self.house.store.row(select(tables.identity.c.id).where(tables.identity.c.name == identity))
        assert row is not None
        values = {"identity_id": row.id, "hostname": "h", "version": "1", "enrolled_at": now, "last_contact_at": now}
        await self.change(insert(tables.agent).values(**values, labels=json.dumps(labels or {})))

    async def source(self, settings: FilesSettings | None = None, scope: Scope | None = None) -> None:
        await self.change(
            insert(tables.source).values(
                name="hosts",
                kind="files",
                runs="agents",
                every=0,
                created_at=0,
                created_by="test",
                facts='{"zone": "a"}',
                settings=msgspec.json.encode(settings or FilesSettings()).decode(),
                scope=msgspec.json.encode(scope or Scope()).decode(),
            )
        )

    async def scan(self, name: str, *, dry: int = 0) -> None:
        row = await self.row(tables.source, tables.source.c.name == "hosts")
        now = self.house.clock()
        await self.change(insert(tables.scan).values(id=name, source_id=row.id, state="planning", dry=dry, asked_by="test", created_at=now))
        await self.change(insert(tables.scan_part).values(scan_id=name, number=0, spec="{}", state="waiting"))
        await self.scans.step()

    async def row(self, table: Any, where: Any) -> Any:
        return await self.house.store.row(select(table).where(where))

    async def state(self, scan: str) -> Any:
        return await self.row(tables.scan, tables.scan.c.id == scan)

    async def due(self, identity: str) -> list[str]:
        return [one.scan for one in (await self.scans.due(identity)).items]

    async def open_at(self, key: str) -> list[bytes]:
        query = select(tables.sighting.c.sha256).join_from(
            tables.sighting, tables.location, tables.location.c.id == tables.sighting.c.location_id
        )
        rows = await self.house.store.rows(query.where(tables.location.c.key == key, tables.sighting.c.ended_at.is_(None)))
        return [bytes(row.sha256) for row in rows]

    async def location(self, key: str) -> Any:
        return await self.row(tables.location, tables.location.c.key == key)


@asynccontextmanager
async def room(url: str, tmp_path: Any, *, quota: Quota | None = None) -> AsyncIterator[Room]:
    async with installation(tmp_path, url) as house:
        quotas = Quotas(house.store, house.clock, quota or Quota(), Quota())
        recorder = Recorder(house.store, house.authorities, house.clock, quotas=quotas)

        async def record(source_id: int, sightings: Sightings, scan_id: str) -> Recorded:
            return await recorder.record(source_id, sightings, scan_id=scan_id or None, by_agents=True)

        yield Room(
            house,
            FileScans(house.store, house.clock, record, Confirmer(house.store), ticks=lambda: house.clock() / 1000),
            ReportedTargets(house.store, house.clock, record),
        )


def seen(identity: str, path: str, root: str = "/etc", **changes: Any) -> Observed:
    fields: dict[str, Any] = {
        "key": key_of(identity, path),
        "kind": "file",
        "shown": path,
        "unit": unit_of(identity, root),
        "host": identity.rpartition("/")[2],
        "at": 0,
        "certificates": [Seen(der=LEAF)],
        "details": {"digest": "d1"},
    }
    return Observed(**{**fields, **changes})


def test_one_part_for_each_agent_that_is_meant(migrated_url: str, tmp_path: Any) -> None:
    async def run() -> None:
        async with room(migrated_url, tmp_path) as here:
            await here.agent(WEB, {"role": "web-1"})
            await here.agent(DB, {"role": "db"})
            await here.source(FilesSettings(paths=["/etc"], agents=["role=web*"]))
            await here.scan("one")
            assert await here.due(WEB) == ["one"]
            assert await here.due(DB) == []
            here.house.clock.pass_(5)
            assert await here.scans.concerns(WEB)
            assert not await here.scans.concerns(DB)
            assert (await here.scans.take(DB, FileSightings(scan="one"))).over
            claimed = {"owner": "web", "zone": "b", "workload_labels": {"team": "web"}}
            found = [
                seen(WEB, "/etc/tls.pem", facts=claimed),
                seen(WEB, "/etc/tls.key", certificates=[], private_key=SeenKey(spki_sha256=bytes(32))),
            ]
            answer = await here.scans.take(WEB, FileSightings(scan="one", observed=found, read=7))
            assert (answer.recorded.locations, answer.recorded.fresh, answer.over) == (2, 1, False)
            done = FileSightings(scan="one", covered=[unit_of(WEB, "/etc")], done=True)
            assert not (await here.scans.take(WEB, done)).over
            state = await here.state("one")
            assert (state.state, state.read, state.failed, state.certificates, state.fresh) == ("done", 9, 0, 1, 1)
            source = await here.row(tables.source, tables.source.c.name == "hosts")
            assert (source.success_at, source.problem) == (state.created_at, None)
            location = await here.location(key_of(WEB, "/etc/tls.key"))
            assert bytes(location.key_sha256) == bytes(32)
            assert json.loads(location.facts) == {"zone": "a"}
            # Whose things are on a host is not for the host to say: it may be anybody's by now.
            assert json.loads((await here.location(key_of(WEB, "/etc/tls.pem"))).facts) == {"zone": "a"}
            assert not await here.scans.concerns(WEB)

    asyncio.run(run())


def test_what_an_agent_no_longer_looks_at_is_not_gone(migrated_url: str, tmp_path: Any) -> None:
    async def run() -> None:
        async with room(migrated_url, tmp_path) as here:
            await here.agent(WEB)
            await here.source(FilesSettings(paths=["/etc"]))
            await here.scan("one")
            found = [seen(WEB, path) for path in ("/etc/a.pem", "/etc/b.pem", "/etc/left/out.pem")]
            await here.scans.take(WEB, FileSightings(scan="one", observed=found, covered=[unit_of(WEB, "/etc")], done=True))
            less = unit_of(WEB, "/etc", "left")
            for name, paths in (("two", ["/etc/a.pem", "/etc/b.pem"]), ("three", ["/etc/a.pem"])):
                here.house.clock.pass_(60)
                await here.scan(name)
                told = [seen(WEB, path, unit=less) for path in paths]
                await here.scans.take(WEB, FileSightings(scan=name, observed=told, covered=[less], done=True))
            left = [path for path in ("/etc/a.pem", "/etc/b.pem", "/etc/left/out.pem") if await here.open_at(key_of(WEB, path))]
            assert left == ["/etc/a.pem", "/etc/left/out.pem"]

    asyncio.run(run())


@pytest.mark.parametrize(
    "wrong",
    [
        FileSightings(scan="one", observed=[seen(DB, "/etc/x.pem")]),
        FileSightings(scan="one", observed=[seen(WEB, "/etc/x.pem", host="db")]),
        FileSightings(scan="one", observed=[seen(WEB, "/etc/x.pem", unit=unit_of(DB, "/etc"))]),
        FileSightings(scan="one", observed=[seen(WEB, "/etc/x.pem", unit=unit_of(WEB, "/opt"))]),
        FileSightings(scan="one", observed=[seen(WEB, "/etc/x.pem", kind="endpoint")]),
        FileSightings(scan="one", observed=[seen(WEB, "/etc/x.pem", key=f"file:{WEB}-2:/etc/x")]),
        FileSightings(scan="one", observed=[seen(WEB, "/etc/x.pem", certificates=[Seen(der=LEAF, role="served")])]),
        FileSightings(scan="one", observed=[seen(WEB, "/etc/x.pem", certificates=[Seen(sha256=bytes(32), identity="dns:db.test")])]),
        FileSightings(scan="one", unchanged=[Unchanged(key=key_of(DB, "/etc/x.pem"), digest="d1")]),
        FileSightings(scan="one", covered=[unit_of(DB, "/etc")]),
        FileSightings(scan="one", covered=["files:"]),
        FileSightings(scan="one", covered=[unit_of(DB, "/etc", "x")]),
        FileSightings(scan="one", covered=[unit_of(WEB, "/opt", "x")]),
        FileSightings(scan="one", covered=[unit_of(WEB, "/etc") + "~nothing"]),
        FileSightings(scan="one", unread=[Unread(path="etc", problem="closed")]),
    ],
)
def test_an_agent_tells_of_itself_alone(wrong: FileSightings, tmp_path: Any) -> None:
    async def run() -> None:
        async with room("", tmp_path) as here:
            await here.agent(WEB)
            await here.source(FilesSettings(paths=["/etc"]))
            await here.scan("one")
            with pytest.raises(HandclaspError) as caught:
                await here.scans.take(WEB, wrong)
            assert caught.value.kind is Kind.BAD_REQUEST
            assert await here.row(tables.location, tables.location.c.id > 0) is None

    asyncio.run(run())


def test_what_is_told_shortly_stays_and_what_is_not_told_goes(migrated_url: str, tmp_path: Any) -> None:
    async def run() -> None:
        async with room(migrated_url, tmp_path) as here:
            await here.agent(WEB)
            await here.source(FilesSettings(paths=["/etc"]))
            await here.scan("one")
            paths = ["/etc/a.pem", "/etc/b.pem", "/etc/closed/c.pem", "/etc/closed.pem"]
            await here.scans.take(WEB, FileSightings(scan="one", observed=[seen(WEB, path) for path in paths]))
            await here.scans.take(WEB, FileSightings(scan="one", covered=[unit_of(WEB, "/etc")], done=True))
            here.house.clock.pass_(60)
            await here.scan("two")
            here.house.clock.pass_(60)
            still = [
                Unchanged(key=key_of(WEB, "/etc/a.pem"), digest="d1"),
                Unchanged(key=key_of(WEB, "/etc/b.pem"), digest="other"),
                Unchanged(key=key_of(WEB, "/etc/new.pem"), digest="d1"),
            ]
            unread = [Unread(path="/etc/closed", problem="permission denied")]
            answer = await here.scans.take(WEB, FileSightings(scan="two", unchanged=still, unread=unread))
            assert answer.unknown == [key_of(WEB, "/etc/b.pem"), key_of(WEB, "/etc/new.pem")]
            await here.scans.take(WEB, FileSightings(scan="two", covered=[unit_of(WEB, "/etc")], done=True))
            left = [path for path in paths if await here.open_at(key_of(WEB, path))]
            assert left == ["/etc/a.pem", "/etc/closed/c.pem"]
            closed = await here.location(key_of(WEB, "/etc/closed/c.pem"))
            assert (closed.problem, closed.gone_at) == ("permission denied", None)
            known = await here.location(key_of(WEB, "/etc/a.pem"))
            assert known.seen_at == here.house.clock()

    asyncio.run(run())


def test_a_silent_agent_makes_a_scan_incomplete_and_nothing_gone(migrated_url: str, tmp_path: Any) -> None:
    async def run() -> None:
        async with room(migrated_url, tmp_path) as here:
            await here.agent(WEB)
            await here.agent(DB)
            await here.source(FilesSettings(paths=["/etc"], wait="1h"))
            for name in ("one", "two"):
                await here.scan(name)
                await here.scans.take(WEB, FileSightings(scan=name, observed=[seen(WEB, "/etc/a.pem")]))
                await here.scans.take(WEB, FileSightings(scan=name, covered=[unit_of(WEB, "/etc")], done=True))
                if name == "one":
                    await here.scans.take(DB, FileSightings(scan=name, observed=[seen(DB, "/etc/a.pem")], done=True))
                here.house.clock.pass_(60)
            assert (await here.state("two")).state == "running"
            here.house.clock.pass_(3600)
            await here.scans.step()
            two = await here.state("two")
            assert (two.state, two.failed, two.problem) == ("done", 1, "db was not heard of in time")
            source = await here.row(tables.source, tables.source.c.name == "hosts")
            assert source.success_at == (await here.state("one")).created_at
            assert "db was not heard of" in source.problem
            assert await here.open_at(key_of(DB, "/etc/a.pem"))
            assert (await here.scans.take(DB, FileSightings(scan="two"))).over
            here.house.clock.pass_(AWAY / 1000)
            await here.change(update(tables.agent).values(last_contact_at=here.house.clock() - AWAY - 1))
            await here.scan("three")
            three = await here.state("three")
            assert (three.state, three.problem) == ("done", "no agent is one of those that are to look")

    asyncio.run(run())


def test_an_agent_that_refuses_and_a_dry_run(migrated_url: str, tmp_path: Any) -> None:
    async def run() -> None:
        async with room(migrated_url, tmp_path) as here:
            await here.agent(WEB)
            await here.source(FilesSettings(paths=["/etc"]))
            await here.scan("one")
            await here.scans.take(WEB, FileSightings(scan="one", done=True, problem="discover: off"))
            one = await here.state("one")
            assert (one.state, one.failed, one.problem) == ("failed", 1, "web: discover: off")
            await here.scan("skips")
            await here.scans.take(WEB, FileSightings(scan="skips", done=True, skipped="/var/lib/x: it is the agent's own state"))
            skips = await here.state("skips")
            assert (skips.state, skips.failed, skips.problem) == ("done", 0, None)
            assert await problems_of(here.house.store, "skips") == ["web: /var/lib/x: it is the agent's own state"]
            await here.scan("dry", dry=1)
            answer = await here.scans.take(WEB, FileSightings(scan="dry", observed=[seen(WEB, "/etc/a.pem")], done=True))
            assert (answer.recorded.locations, answer.recorded.certificates) == (1, 1)
            assert await here.location(key_of(WEB, "/etc/a.pem")) is None

    asyncio.run(run())


def test_settings_are_checked() -> None:
    FILES.check(FilesSettings(), Scope())
    bad = [
        FilesSettings(paths=[]), FilesSettings(paths=["etc"]), FilesSettings(paths=["/proc/1"]), FilesSettings(paths=["/etc/../proc"]),
        FilesSettings(agents=["web"]), FilesSettings(agents=["=x"]), FilesSettings(wait="1s"),
    ]  # fmt: skip
    for settings in bad:
        with pytest.raises(HandclaspError):
            FILES.check(settings, Scope())


def report(*targets: AgentTarget) -> list[AgentIdentity]:
    return [AgentIdentity(identity="spiffe://example.org/web", state="ok", targets=list(targets))]


def test_reported_targets_are_sightings(migrated_url: str, tmp_path: Any) -> None:
    first, second = "aa" * 32, "bb" * 32

    async def run() -> None:
        async with room(migrated_url, tmp_path) as here:
            key = f"agent:{WEB}:/etc/tls"

            async def told(*targets: AgentTarget, changed: bool = True) -> None:
                here.house.clock.pass_(60)
                here.reported.note(WEB, report(*targets), changed=changed)
                await here.reported.flush()

            await told(AgentTarget(name="/etc/tls", state="ok", sha256=first), AgentTarget(name="new", state="pending"))
            assert await here.open_at(key) == [bytes.fromhex(first)]
            assert await here.location(f"agent:{WEB}:new") is None
            await told(AgentTarget(name="/etc/tls", state="failed", sha256=first, last_failure="the disk is full"))
            location = await here.location(key)
            assert (location.problem, location.kind, location.host) == ("the disk is full", "file", "web")
            assert await here.open_at(key) == [bytes.fromhex(first)]
            await told(AgentTarget(name="/etc/tls", state="ok", sha256=second), AgentTarget(name="api", state="ok", sha256=first))
            assert await here.open_at(key) == [bytes.fromhex(second)]
            assert (await here.location(key)).problem is None
            before = (await here.location(key)).seen_at
            await told(AgentTarget(name="/etc/tls", state="ok", sha256=second), changed=False)
            assert (await here.location(key)).seen_at == before
            here.house.clock.pass_(AGAIN / 1000)
            await told(AgentTarget(name="/etc/tls", state="ok", sha256=second), changed=False)
            assert (await here.location(key)).seen_at == here.house.clock()
            assert (await here.location(f"agent:{WEB}:api")).gone_at is not None
            row = await here.row(tables.source, tables.source.c.kind == "agent")
            assert (row.name, row.every) == ("agents", 0)

    asyncio.run(run())


def test_what_could_not_be_recorded_is_recorded_at_the_end(migrated_url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with room(migrated_url, tmp_path) as here:

            async def away(_: Write) -> int:
                raise HandclaspError(Kind.UNAVAILABLE, "the database is away")

            here.reported.note(WEB, report(AgentTarget(name="/etc/tls", state="ok", sha256="aa" * 32)), changed=True)
            with monkeypatch.context() as outage:
                outage.setattr(here.house.store.ledger, "commit", away)
                with pytest.raises(HandclaspError):
                    await here.reported.flush()
            await here.reported.close()
            assert await here.open_at(f"agent:{WEB}:/etc/tls") == [bytes.fromhex("aa" * 32)]

    asyncio.run(run())


def test_an_agent_that_finds_too_much_is_stopped_and_that_is_said(migrated_url: str, tmp_path: Any) -> None:
    async def run() -> None:
        async with room(migrated_url, tmp_path, quota=Quota(locations=2)) as here:
            await here.agent(WEB, {})
            await here.source(FilesSettings(paths=["/etc"]))
            await here.scan("one")
            found = [seen(WEB, f"/etc/{number}.pem") for number in range(5)]
            answer = await here.scans.take(WEB, FileSightings(scan="one", observed=found, read=0, done=True))
            assert (answer.recorded.locations, answer.recorded.refused) == (2, 3)
            scan = await here.state("one")
            assert (scan.read, scan.failed, scan.state) == (2, 3, "done")
            assert "3 places were not recorded. over quota: one agent may have 2 places" in scan.problem

    asyncio.run(run())
