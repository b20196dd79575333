"""The process that looks at files: started when something is due, ended with the agent, and restarted when a file ends it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from handclasp.agent.config.discover import DiscoverSettings
from handclasp.agent.discover import work
from handclasp.agent.discover.part import FileScans
from handclasp.agent.discovering import Discovering
from handclasp.errors import HandclaspError, Kind
from handclasp.wire.filescans import FileRecorded, FileScan, FileScanList, FileSightings
from handclasp.wire.observations import Recorded
from support.certfiles import Maker, der, key_pem, p12, pem, put
from support.waiting import eventually

ME = "spiffe://example.org/agent/host1"
MAKER = Maker()
LEAF, KEY = MAKER.leaf()
NOTHING = Recorded(locations=0, changed=0, failed=0, certificates=0, fresh=0, gone=0)


class Server:
    """What an agent's client talks to."""

    def __init__(self, *scans: FileScan) -> None:
        self.scans = list(scans)
        self.told: list[FileSightings] = []
        self.away = 0
        self.hold = threading.Event()
        self.hold.set()

    def file_scans(self, *, etag: str = "") -> tuple[FileScanList, str] | None:
        return FileScanList(items=self.scans), "tag"

    def file_sightings(self, found: FileSightings) -> FileRecorded:
        if self.away:
            self.away -= 1
            raise HandclaspError(Kind.UNAVAILABLE, "away", retry_after=0.01)
        self.told.append(found)
        self.hold.wait(30)
        if found.done:
            self.scans = [one for one in self.scans if one.scan != found.scan]
        return FileRecorded(recorded=NOTHING)

    @property
    def paths(self) -> list[str]:
        return [Path(one.shown).name for chunk in self.told for one in chunk.observed]


def scans(server: Any, root: Path, state: Path, **settings: Any) -> FileScans:
    allowed = DiscoverSettings(allow=(os.path.realpath(root),), **settings)
    return FileScans(server, ME, state, allowed, stop=lambda seconds: bool(seconds and time.sleep(seconds)), busy=1)


def order(root: Path, scan: str = "one") -> FileScan:
    return FileScan(scan=scan, source="hosts", paths=[os.path.realpath(root)])


def test_a_scan_from_end_to_end(tmp_path: Path) -> None:
    root = tmp_path / "etc"
    put(root / "tls.pem", pem(LEAF))
    put(root / "store.p12", p12("web", KEY, LEAF, [], "of-our-own"))
    put(root / "state/agent/key.pem", key_pem(KEY))
    passwords = put(tmp_path / "passwords", b"wrong\nof-our-own\n", 0o600)
    server = Server(order(root))
    server.away = 2
    scans(server, root, root / "state", passwords_file=passwords).run()
    assert server.paths == ["store.p12", "tls.pem"]
    assert [one.problem for chunk in server.told for one in chunk.observed] == [None, None]
    assert server.told[-1].done
    assert server.told[-1].covered
    server.scans, server.told = [order(root, "two")], []
    scans(server, root, root / "state", passwords_file=passwords).run()
    assert server.paths == []
    assert sum(len(chunk.unchanged) for chunk in server.told) == 2


def test_an_agent_that_may_not_says_so(tmp_path: Path) -> None:
    server = Server(order(tmp_path))
    scans(server, tmp_path, tmp_path / "state", off=True).run()
    assert [(one.done, bool(one.problem), one.covered) for one in server.told] == [(True, True, [])]


@pytest.mark.skipif(not hasattr(work.signal, "ITIMER_PROF"), reason="this system has no CPU timer (setitimer, ITIMER_PROF)")
def test_a_file_that_ends_the_process_is_left_out_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "etc"
    for name in ("a.pem", "z.pem"):
        put(root / name, pem(LEAF))
    put(root / "m.p12", p12("web", KEY, LEAF, [], ""))
    # The process is told that no time at all is left for such a file, by a program that sets it so.
    program = "import handclasp.agent.discover.work as w; w.SECONDS = 0.000001; import handclasp.pki.contents.read as r\n"
    program += "def slow(*_):\n    while True: pass\nr.read_pkcs12 = slow\nw.main()"
    monkeypatch.setattr("handclasp.agent.discover.part._PROGRAM", program)
    server = Server(order(root))
    scans(server, root, tmp_path / "state").run()
    problems = {Path(one.shown).name: one.problem for chunk in server.told for one in chunk.observed}
    assert problems == {"a.pem": None, "m.p12": "reading it takes longer than it may", "z.pem": None}
    assert server.told[-1].covered


def test_a_process_that_cannot_begin_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handclasp.agent.discover.part._PROGRAM", "raise SystemExit(3)")
    server = Server(order(tmp_path))
    scans(server, tmp_path, tmp_path / "state").run()
    assert [one.problem for one in server.told] == ["the process that looks at files ended before it was done"]


def test_the_end_of_the_agent_ends_it_and_the_next_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "etc"
    for number in range(450):
        put(root / f"{number:03}.crt", der(LEAF))
    server = Server(order(root))
    server.hold.clear()
    settings = DiscoverSettings(allow=(os.path.realpath(root),))
    discovering = Discovering(server, ME, tmp_path / "state", settings)  # type: ignore[arg-type]
    discovering.begin()
    discovering.begin()
    eventually(lambda: len(server.told) == 1)
    server.hold.set()
    eventually(lambda: len(server.told) >= 2)
    discovering.stop()
    discovering.begin()
    assert server.scans or server.told[-1].done
    before = len(server.paths)
    if server.scans:
        scans(server, root, tmp_path / "state").run()
        assert server.told[-1].done
        assert set(server.paths) == {f"{number:03}.crt" for number in range(450)}
        assert len(server.paths) <= 450 + before


def test_passwords_are_few_and_a_bad_file_of_them_is_none(tmp_path: Path) -> None:
    assert work.read_passwords("") == ["changeit"]
    assert work.read_passwords(str(tmp_path / "none")) == ["changeit"]
    assert len(work.read_passwords(str(put(tmp_path / "many", b"x\n" * 1000)))) == work.MAX_PASSWORDS + 1
    assert work.read_passwords(str(put(tmp_path / "noise", b"\xff\xfe\n"))) == ["changeit"]
