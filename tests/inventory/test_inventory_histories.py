"""Long histories of everything that may happen, and then every figure is worked out again from the rows."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from handclasp.access.principals import ServerPrincipal
from handclasp.errors import HandclaspError
from handclasp.inventory import tallies
from handclasp.inventory.retention import Retention
from handclasp.inventory.states import Graces
from handclasp.inventory.triage import DECISIONS, Triage
from handclasp.store import tables
from handclasp.wire.observations import Covered, Seen
from support.inventory import Watch, foreign, rogue, sha, watch
from support.issuing import HERE

DAY = 86_400
KEEP = 3 * DAY
USES = ("served", "stored")
WHO = ServerPrincipal("example.org")


async def check(here: Watch) -> None:
    """Fail unless all that is kept is what the rows come to."""
    assert await here.reconciler.recount() == {}
    await counters_of_the_log(here)
    certificates = {bytes(row.sha256): row for row in await here.rows(tables.certificate)}
    found = {bytes(row.sha256): row for row in await here.rows(tables.found)}
    assert not certificates.keys() & found.keys()
    locations = {row.id: row for row in await here.rows(tables.location)}
    sightings = await here.rows(tables.sighting)
    standings = {bytes(row.sha256): row for row in await here.rows(tables.standing)}
    open_at: Counter[bytes] = Counter()
    for row in sightings:
        assert row.location_id in locations
        if row.ended_at is None:
            assert locations[row.location_id].gone_at is None
            if row.role in USES:
                open_at[bytes(row.sha256)] += 1
        sha256 = bytes(row.sha256)
        assert sha256 in certificates or sha256 in found, "what is seen has a row"
    for sha256, number in open_at.items():
        if sha256 in certificates or not found[sha256].is_ca:
            assert standings[sha256].open == number
    for sha256, row in standings.items():
        assert row.due_at is None or row.due_at > here.now
        known = certificates.get(sha256) or found.get(sha256)
        if known is not None:
            assert (row.origin, row.not_after) == ("issued" if sha256 in certificates else "found", known.not_after)
            assert row.identity_id == known.identity_id
    before = {sha256: (row.state, row.due_at, row.open) for sha256, row in standings.items()}
    await here.reconciler.judge(standings)
    after = {bytes(row.sha256): (row.state, row.due_at, row.open) for row in await here.rows(tables.standing)}
    # Where retention took the sightings, nobody knows any more that something came in its place: what is still listed exists, and no more.
    listed = {bytes(row.sha256) for row in sightings} - {bytes(row.sha256) for row in sightings if row.role in USES}
    changed = [
        (key.hex()[:8], before[key], after.get(key))
        for key in before
        if before[key][0] != (after.get(key) or ("",))[0] and not (key in listed and (before[key][0], after[key][0]) == ("past", "foreign"))
    ]
    assert not changed, "a judgement of the same facts is the same"
    await summaries(here, certificates, found)


async def counters_of_the_log(here: Watch) -> None:
    wanted: Counter[tuple[str, str]] = Counter()
    for entry in await here.house.entries():
        kind = {"certificate.issued": "issued", "certificate.renewed": "renewed"}.get(entry["type"])
        kind = "refused" if entry["type"] in ("issuance.refused", "renewal.refused") else kind
        if kind is not None:
            wanted[kind, entry["at"][:13]] += 1
    for kind in ("issued", "renewed", "refused"):
        assert await tallies.of_kind(here.store, kind) == {hour: number for (what, hour), number in wanted.items() if what == kind}


async def summaries(here: Watch, certificates: dict[bytes, Any], found: dict[bytes, Any]) -> None:
    last: dict[int, Any] = {}
    for row in sorted(certificates.values(), key=lambda row: row.log_index):
        last[row.identity_id] = row
    kept = {row.identity_id: row for row in await here.rows(tables.summary)}
    for identity_id, row in last.items():
        assert (bytes(kept[identity_id].newest), kept[identity_id].newest_not_after) == (bytes(row.sha256), row.not_after)
        due = row.renew_before if row.revoked_at is None else min(row.renew_before, row.revoked_at)
        assert (kept[identity_id].newest_renew_before, kept[identity_id].newest_origin) == (due, "issued")
    issued = Counter(
        entry["what"]["identity"] for entry in await here.house.entries() if entry["type"] in ("certificate.issued", "certificate.renewed")
    )
    names = {row.id: row.name for row in await here.rows(tables.identity)}
    assert {names[one]: row.issued for one, row in kept.items() if row.issued} == {
        name: number for name, number in issued.items() if number
    }
    newest: dict[int, int] = {}
    for row in found.values():
        if row.identity_id is not None and row.not_after:
            newest[row.identity_id] = max(newest.get(row.identity_id, -(1 << 62)), row.not_before)
    for identity_id, begins in newest.items():
        if identity_id not in last:
            assert kept[identity_id].newest_origin == "found"
            assert (bytes(kept[identity_id].newest) in found, kept[identity_id].newest_not_before) == (True, begins)


class History:
    """Does one thing after the other, by the dice."""

    WHAT = (
        "issue", "renew", "renew", "revoke", "refuse", "look", "look", "look", "look", "list_", "cover", "fail", "strange", "rogue", "tell",
        "pass_", "pass_", "long", "behind", "forget", "triage", "retain",
    )  # fmt: skip

    def __init__(self, here: Watch, dice: random.Random) -> None:
        self.here, self.dice = here, dice
        self.issued: list[Any] = []
        self.pool: list[bytes] = []
        self.told: list[bytes] = []
        self.decided = Triage(here.store, here.house.here.clock)
        self.retention = Retention(here.store, here.house.here.clock, KEEP, pause=0)
        self.token: Any = None

    async def step(self) -> None:
        await getattr(self, self.dice.choice(self.WHAT))()

    async def issue(self) -> None:
        if self.token is None or not self.dice.randrange(5):
            self.token = await self.here.house.token(allow=["spiffe://example.org/prod/*"], expires="30d")
        try:
            one = await self.here.house.issue(
                self.token, identity=f"spiffe://example.org/prod/{self.dice.randrange(4)}", ttl=self.dice.choice([600.0, 3600.0])
            )
        except HandclaspError:  # the token ended, or the clock was put back
            self.token = None
            return
        self.issued.append(one)
        self.pool.append(await self.here.der(one))

    async def renew(self) -> None:
        if self.issued:
            place = self.dice.randrange(len(self.issued))
            try:
                self.issued[place] = await self.here.house.renew(self.issued[place])
            except (HandclaspError, AssertionError):
                return  # it ended, was revoked, or retention took it
            self.pool.append(await self.here.der(self.issued[place]))

    async def refuse(self) -> None:
        if self.token is not None:
            with pytest.raises(HandclaspError):
                await self.here.house.issue(self.token, identity="spiffe://example.org/other")

    async def revoke(self) -> None:
        if self.issued:
            one = self.dice.choice(self.issued)
            try:
                await self.here.house.revoker.revoke(one.sha256, "superseded", "", WHO, HERE, any_certificate=True)
            except HandclaspError:
                return

    def place(self) -> tuple[int, str]:
        return self.dice.choice([1, 2]), f"tls:h{self.dice.randrange(6)}:443"

    async def look(self, role: str = "") -> None:
        source, key = self.place()
        held = self.dice.sample(self.pool, min(len(self.pool), self.dice.randrange(3)))
        seen = [Seen(der=one, role=role or self.dice.choice(["served", "stored"])) for one in held]
        if seen and self.pool and self.dice.randrange(2):
            seen[0].chain = [self.dice.choice(self.pool)]
        behind = self.dice.choice([0, 0, 0, 30_000])
        await self.here.see(self.here.at(key, *seen, unit=f"u{key[5:6]}", at=self.here.now - behind), source=source)

    async def list_(self) -> None:
        await self.look("listed")

    async def cover(self) -> None:
        source, key = self.place()
        began = self.here.now - self.dice.choice([0, 0, 700_000])
        await self.here.see(covered=[Covered(unit=f"u{key[5:6]}", began_at=began)], source=source)

    async def fail(self) -> None:
        source, key = self.place()
        await self.here.see(self.here.at(key, unit=f"u{key[5:6]}", problem="timed out"), source=source)

    async def strange(self) -> None:
        name = f"s{self.dice.randrange(4)}.example.net"
        self.pool.append(foreign(name, now=self.here.now, lifetime=self.dice.choice([60, 3600, 9 * DAY]), ca=not self.dice.randrange(6)))

    async def rogue(self) -> None:
        self.pool.append(
            await rogue(self.here, "spiffe://example.org/prod/0", lifetime=self.dice.choice([3600, 9 * DAY]), ca=not self.dice.randrange(4))
        )

    async def tell(self) -> None:
        """Tell a fingerprint first; the bytes come later, perhaps, with the others of the pool."""
        await self.strange()
        one = self.pool[-1]
        source, key = self.place()
        told = Seen(sha256=sha(one), role="listed", identity=f"dns:s{self.dice.randrange(4)}.example.net", not_after=self.here.now + 10_000)
        await self.here.see(self.here.at(f"told:{key}", told), source=source)

    async def pass_(self) -> None:
        self.here.pass_(self.dice.choice([0.001, 1, 60, 700]))

    async def long(self) -> None:
        self.here.pass_(self.dice.choice([3600, DAY, 4 * DAY]))

    async def behind(self) -> None:
        self.here.pass_(-self.dice.choice([1, 60]))  # the clock is put right

    async def forget(self) -> None:
        if not self.dice.randrange(3):
            await self.here.recorder.forget_source(self.dice.choice([1, 2]))

    async def triage(self) -> None:
        rows = await self.here.store.rows(select(tables.found.c.sha256).limit(20))
        if rows:
            await self.decided.decide(bytes(self.dice.choice(rows).sha256), self.dice.choice(DECISIONS), "why not", WHO)

    async def retain(self) -> None:
        await self.here.settle()
        revoked = {
            bytes(row.sha256)
            for row in await self.here.rows(tables.certificate)
            if row.revoked_at is not None and row.not_after > self.here.now
        }
        size = len(await self.here.house.entries())
        await self.retention.run()
        assert revoked <= {bytes(row.sha256) for row in await self.here.rows(tables.certificate)}, "what is revoked stays until its end"
        assert len(await self.here.house.entries()) == size


@pytest.mark.parametrize("seed", range(4))
def test_every_figure_is_what_the_rows_come_to(migrated_url: str, tmp_path: Path, seed: int) -> None:
    async def run() -> None:
        dice = random.Random(seed)
        async with watch(tmp_path, migrated_url, Graces(unseen=60_000, old=1_000, horizon=KEEP * 1000)) as here:
            history = History(here, dice)
            for turn in range(120):
                await history.step()
                if turn % 30 == 29:
                    here.pass_(61)
                    await here.settle()
                    await check(here)

    asyncio.run(run())
