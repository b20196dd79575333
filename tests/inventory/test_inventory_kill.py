"""kill -9 while something is recorded, judged or followed: doing it again ends where it would have ended without."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import handclasp.server.run  # noqa: F401  (declares every point)
from handclasp.faults import POINTS
from handclasp.inventory import tallies
from handclasp.store import tables
from handclasp.wire.observations import Covered
from support import migrated
from support.inventory import SOURCE, Watch, foreign, rogue, sha, watch

CHILD = """
import asyncio, base64, json, sys
from pathlib import Path
from handclasp.authority.authorities import Authorities
from handclasp.authority.keystore import KeyStore
from handclasp.inventory.follow import Follower
from handclasp.inventory.reconcile import Reconciler
from handclasp.inventory.record import Recorder
from handclasp.inventory.states import Graces
from handclasp.store.database import Store
from handclasp.wire.observations import Covered, Observed, Seen, Sightings

async def run(told):
    clock = lambda: told["now"]
    store = await Store.open(told["url"], clock, migrate=False)
    authorities = Authorities(store, KeyStore(Path(told["keys"]), told["passphrase"].encode()), clock)
    await authorities.load()
    reconciler = Reconciler(store, clock, Graces(unseen=0, old=600_000))
    follower = Follower(store, clock, reconciler)
    while await follower.step():
        pass
    observed = [
        Observed(key=key, kind="endpoint", shown=key, unit="u", at=told["now"],
                 certificates=[Seen(der=base64.b64decode(one), role="served") for one in what])
        for key, what in told["places"].items()
    ]
    covered = [Covered(unit="u", began_at=told["now"])]
    await Recorder(store, authorities, clock, reconciler).record(told["source"], Sightings(observed=observed, covered=covered))
    await reconciler.step()
    await store.close()

asyncio.run(run(json.load(sys.stdin)))
"""

STRIKES = {
    "record.read": 1, "record.touched": 1, "record.newcomers": 1, "record.written": 1, "record.covered": 1,
    "reconcile.read": 1, "reconcile.written": 1, "follow.read": 1, "follow.written": 1, "ledger.written": 3, "ledger.committed": 3,
}  # fmt: skip


def test_every_point_of_the_inventory_is_struck() -> None:
    ours = {point for point in POINTS if point.startswith(("record.", "reconcile.", "follow."))}
    assert ours <= set(STRIKES)


def test_what_is_killed_and_done_again_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """One installation, in which each round replaces all certificates, loses one location and issues something."""
    path = tmp_path / "handclasp.db"
    path.write_bytes(migrated.sqlite())

    async def run() -> None:
        async with watch(tmp_path, f"sqlite:///{path}") as here:
            token = await here.house.token(allow=["spiffe://example.org/prod/*"], expires="24h")
            for number, (point, passing) in enumerate(STRIKES.items()):
                here.pass_(5)
                issued = [await here.house.issue(token, identity=f"spiffe://example.org/prod/{number}-{n}") for n in range(2)]
                ders = [await here.der(issued[0]), foreign(f"s{number}.example.net", now=here.now), await rogue(here)]
                places = {f"p{n}": [ders[n]] for n in range(3)} | {f"lost-{number}": [ders[0]], "same": [ders[0]] if not number else []}
                here.pass_(1)
                done = await asyncio.to_thread(_child, here, tmp_path, path, places, f"{point}:{passing}:kill")
                assert done.returncode == -signal.SIGKILL, (point, done.stderr)
                await here.see(
                    *(here.at(key, *what, unit="u") for key, what in places.items()), covered=[Covered(unit="u", began_at=here.now)]
                )
                await here.settle()
                await _is_as_wanted(here, ders, sha(await here.der(issued[1])), number)

    asyncio.run(run())


def _child(here: Watch, directory: Path, path: Path, places: dict[str, list[bytes]], fault: str) -> subprocess.CompletedProcess[str]:
    told: dict[str, Any] = {
        "now": here.now, "url": f"sqlite:///{path}", "keys": str(directory / "keys"), "passphrase": "correct horse battery staple",
        "source": SOURCE, "places": {key: [base64.b64encode(one).decode() for one in what] for key, what in places.items()},
    }  # fmt: skip
    environment = {**os.environ, "HANDCLASP_FAULT": fault}
    command = [sys.executable, "-c", CHILD]
    return subprocess.run(command, input=json.dumps(told), capture_output=True, text=True, env=environment, timeout=60, check=False)


async def _is_as_wanted(here: Watch, ders: list[bytes], unseen: bytes, number: int) -> None:
    states = await here.states()
    assert [states[sha(one)] for one in ders] == ["seen", "foreign", "unissued"]
    assert states[unseen] == "unseen"
    counts = await here.counts()
    assert counts["unissued"] == counts["unseen"] == number + 1
    assert len([one for one in await here.house.entries() if one["type"] == "certificate.unissued"]) == number + 1
    assert counts["foreign"] == 1
    open_now = [row for row in await here.rows(tables.sighting) if row.ended_at is None]
    assert len(open_now) == 4 + (number == 0)
    assert all(row.due_at != 0 for row in await here.rows(tables.standing))
    right = await tallies.truth(here.store)
    kept = {(row.kind, row.bucket): row.number for row in await here.rows(tables.tally) if row.number}
    assert {key: n for key, n in kept.items() if key[0] not in ("issued", "renewed", "refused")} == right
    assert sum(n for (kind, _), n in kept.items() if kind == "issued") == 2 * (number + 1)
    assert sum(row.issued for row in await here.rows(tables.summary)) == 2 * (number + 1)
