"""The benchmark's test data is what the inventory itself would have written, and its measurement and picture work at a small size."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bench import inventory, plot
from bench.inventory_data import fill
from sqlalchemy import select

from handclasp.inventory import tallies
from handclasp.inventory.names import own_name
from handclasp.inventory.reconcile import Reconciler
from handclasp.inventory.states import Graces
from handclasp.store import tables
from handclasp.store.database import Store
from support.inventory import foreign, watch

NOW = 1_800_000_000_000
WRITTEN = ("found", "location", "sighting", "standing", "summary", "identity", "name", "identity_name")


def test_a_second_judgement_of_the_data_changes_nothing(migrated_url: str) -> None:
    async def run() -> None:
        await fill(migrated_url, 2000, now=NOW)
        store = await Store.open(migrated_url, migrate=False)
        before = {bytes(row.sha256): tuple(row) for row in await store.rows(select(tables.standing))}
        assert {row[2] for row in before.values()} >= {"seen", "unseen", "past", "foreign", "gone", "expired_served"}
        await Reconciler(store, lambda: NOW, Graces()).judge(before)
        assert {bytes(row.sha256): tuple(row) for row in await store.rows(select(tables.standing))} == before
        assert await tallies.recount(store) == {}

        names = {row.id: row.text for row in await store.rows(select(tables.name))}
        links = {(names[row.name_id], row.identity_id) for row in await store.rows(select(tables.identity_name))}
        assert {(own_name(row.name), row.id) for row in await store.rows(select(tables.identity))} <= links
        newest: dict[int, int] = {}
        for table in (tables.found, tables.certificate):  # what was issued counts more
            rows = await store.rows(select(table.c.identity_id, table.c.not_after).order_by(table.c.not_after))
            newest |= {row.identity_id: row.not_after for row in rows}
        summaries = await store.rows(select(tables.summary.c.identity_id, tables.summary.c.newest_not_after))
        assert {row.identity_id: row.newest_not_after for row in summaries} == newest
        await store.close()

    asyncio.run(run())


def test_rows_have_the_shape_of_those_that_are_recorded(tmp_path: Path) -> None:
    """Column by column: what recording fills is filled, with values of the same kind."""

    async def kinds(store: Any) -> dict[tuple[str, str], set[str]]:
        found: dict[tuple[str, str], set[str]] = {}
        for table in (tables.metadata.tables[name] for name in WRITTEN):
            for row in await store.rows(select(table)):
                for column in table.columns:
                    value = getattr(row, column.name)
                    kind = type(value).__name__ if not isinstance(value, str) or value[:1] not in ("{", "[") else "JSON"
                    found.setdefault((table.name, column.name), set()).add(kind)
        return found

    async def run() -> None:
        async with watch(tmp_path) as here:
            token = await here.house.token(allow=["spiffe://example.org/prod/*"])
            issued = [await here.house.issue(token, identity=f"spiffe://example.org/prod/{name}") for name in ("a", "b")]
            await here.see(here.at("tls:a:443", await here.der(issued[0]), host="a"), here.at("tls:b:443", foreign(now=here.now), host="b"))
            await here.settle()
            recorded = await kinds(here.store)
        url = f"sqlite:///{tmp_path / 'generated.db'}"
        await fill(url, 1000, now=NOW)
        store = await Store.open(url)
        generated = await kinds(store)
        await store.close()
        # What a list does not show, and what nobody says of test data.
        left_out = {("identity", "owner"), ("identity", "tier"), ("identity", "environment")}
        missing = {key: kinds - generated.get(key, set()) for key, kinds in recorded.items() if key not in left_out}
        assert not {key: kinds for key, kinds in missing.items() if kinds}

    asyncio.run(run())


def test_the_measurement_and_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "FIGURES", tmp_path / "figures" / "inventory.json")
    monkeypatch.setattr(inventory, "ROUNDS", 1)
    home = tmp_path / "home"
    home.mkdir()
    results = list(inventory._results(inventory._measure(home, 1000, f"sqlite:///{home / 'data' / 'handclasp.db'}")))
    assert {one.name.rpartition(".")[2] for one in results} >= {"p95_ms", "overview_ms", "start_seconds"}
    points = json.loads((tmp_path / "figures" / "inventory.json").read_text())
    assert [(one["database"], one["certificates"]) for one in points] == [("sqlite", 1000)]
    assert points[0]["p95_ms"] > 0
    more = [{**points[0], "certificates": 1000 * 10**power} for power in range(1, 5)]
    picture = ElementTree.fromstring(plot.draw(more))
    assert len(picture.findall("{http://www.w3.org/2000/svg}polyline")) == 2
    assert len(picture.findall("{http://www.w3.org/2000/svg}circle")) == 8
