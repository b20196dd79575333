"""Certificate Transparency logs: where reading begins, what is kept, and where it goes on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.discovery.ct import CT, CtSettings
from handclasp.discovery.ctentries import LogEntry, read_checkpoint, read_leaf, read_tile, tile_path
from handclasp.discovery.source import Failed, Reading, Scope
from handclasp.errors import HandclaspError
from support.certfiles import Maker, der
from support.ctlog import FakeLog, Logged
from support.sources import covered, last_place, observed, read, tools

MAKER = Maker()
OURS = [der(MAKER.leaf(name)[0]) for name in ("shop.test", "www.shop.test")]
OTHERS = [der(MAKER.leaf(name)[0]) for name in ("notshop.test", "shop.test.elsewhere.test")]


def fill(log: FakeLog, others: int = 300) -> None:
    log.entries = [Logged(OTHERS[number % 2]) for number in range(others)]
    log.entries += [Logged(OURS[0], precertificate=True, chain=[der(MAKER.root)]), Logged(OURS[0]), Logged(OURS[1])]


def settings(log: FakeLog, static: bool, **changes: int) -> CtSettings:
    where = {"static_logs": [log.url]} if static else {"logs": [log.url]}
    return CtSettings(domains=["shop.test"], **where, **changes)


def entries(items: list[Reading]) -> dict[int, bytes | None]:
    return {one.details["entry"]: one.certificates[0].der for one in observed(items).values() if "entry" in one.details}


@pytest.mark.parametrize("static", [False, True], ids=["rfc6962", "static"])
def test_entries_for_the_domains_are_kept(static: bool) -> None:
    with FakeLog() as log:
        fill(log)
        items = read(CT, settings(log, static, start=0), tools(known=[]))
        assert entries(items) == {300: OURS[0], 301: OURS[0], 302: OURS[1]}
        found = observed(items)[f"ct:{log.url[7:]}/300"]
        assert (found.details["precertificate"], found.problem, found.certificates[0].how) == (True, None, {"precertificate": True})
        assert (found.certificates[0].role, found.certificates[0].chain) == ("listed", [] if static else [der(MAKER.root)])
        assert covered(items) == [f"ct:{log.url[7:]} read up to"]


@pytest.mark.parametrize("static", [False, True], ids=["rfc6962", "static"])
def test_reading_begins_at_the_end_and_goes_on_there(static: bool) -> None:
    with FakeLog() as log:
        fill(log)
        items = read(CT, settings(log, static), tools(known=[]))
        assert entries(items) == {}
        (mark,) = observed(items)
        assert mark == f"ct:{log.url[7:]}@303"
        log.entries += [Logged(OTHERS[0]), Logged(OURS[1])]
        items = read(CT, settings(log, static), tools(known=[mark, f"ct:{log.url[7:]}@7"]))
        assert entries(items) == {304: OURS[1]}
        assert f"ct:{log.url[7:]}@305" in observed(items)


@pytest.mark.parametrize("static", [False, True], ids=["rfc6962", "static"])
def test_a_successor_goes_on_at_the_place_and_a_scan_has_an_end(static: bool) -> None:
    with FakeLog(page=50) as log:
        fill(log)
        log.entries += [Logged(OTHERS[0])] * 300
        items = read(CT, settings(log, static, start=0, most=512), tools(known=[]), most=6)
        place = last_place(items)
        rest = read(CT, settings(log, static, start=0, most=512), tools(known=[]), place)
        assert entries(items + rest) == {300: OURS[0], 301: OURS[0], 302: OURS[1]}
        assert f"ct:{log.url[7:]}@512" in observed(rest)


def test_what_cannot_be_read_is_said() -> None:
    with FakeLog() as log:
        fill(log)
        log.broken = {2}
        items = read(CT, settings(log, False, start=0), tools(known=[]))
        assert [one.what for one in items if isinstance(one, Failed)] == [f"entry 2 of {log.url[7:]}"]
        assert len(entries(items)) == 3
        log.entries[10].as_tile = lambda: b"\xff" * 30  # type: ignore[method-assign]
        items = read(CT, settings(log, True, start=0), tools(known=[]))
        assert sum(isinstance(one, Failed) for one in items) == 246
        assert len(entries(items)) == 3
        with pytest.raises(HandclaspError, match="collector"):
            read(CT, settings(log, True), tools())


def test_settings() -> None:
    CT.check(CtSettings(domains=["a.test"], logs=["https://l"]), Scope())
    for bad in (
        CtSettings(domains=["a.test"]), CtSettings(logs=["https://l"]), CtSettings(domains=["a b"], logs=["https://l"]),
    ):  # fmt: skip
        with pytest.raises(HandclaspError):
            CT.check(bad, Scope())
    with pytest.raises(HandclaspError):
        CT.check(CtSettings(domains=["a.test"], logs=["https://l"]), Scope(allow=["b.test"]))


def test_paths_and_checkpoints() -> None:
    assert tile_path(0) == "/tile/data/000"
    assert tile_path(1234067, 8) == "/tile/data/x001/x234/067.p/8"
    assert read_checkpoint("o\n12\nAAAA\n\n— o x\n") == 12
    for bad in ("", "o\n-1\nAAAA\n\n", "o\n1e9\nAAAA\n\n", "\n1\nA\n\n"):
        with pytest.raises(ValueError):
            read_checkpoint(bad)


@given(st.binary(max_size=200), st.binary(max_size=50), st.integers(0, 60))
def test_nothing_else_escapes_from_entries(noise: bytes, extra: bytes, cut: int) -> None:
    good = Logged(b"certificate", precertificate=True).as_tile()
    for attempt in (lambda: list(read_tile(good[:cut] + noise)), lambda: read_leaf(b"\0\0" + noise, extra)):
        try:
            found = attempt()
        except ValueError:
            continue
        assert isinstance(found, list | LogEntry)
