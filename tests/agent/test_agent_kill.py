"""kill -9 at every step of a delivery: the service never sees a key that does not match, and the agent recovers by itself."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import handclasp.agent.loop  # noqa: F401  (declares the fault points)
from handclasp.agent import status
from handclasp.agent.state import StateDirectory
from handclasp.client import TLSContext
from handclasp.faults import POINTS
from support.agents import WEB, prepare, start_process
from support.fake_server import FakeServer
from support.waiting import eventually

OURS = sorted(point for point in POINTS if point.partition(".")[0] in ("agent", "generation", "deliver", "state"))
TARGETS = "[{directory: tls, validate: ['true'], reload: {command: ['true']}}]"


def test_every_point_is_known() -> None:
    assert len(OURS) == 16


def check_whole(root: Path) -> None:
    """Whatever counts, of the agent's own and of the target, is complete: loading it proves that key and certificate match."""
    for home in (root / "tls", StateDirectory(root / "state").identity(WEB).home, root / "state" / "agent"):
        if (home / "current").exists():
            TLSContext.from_directory(home)


@pytest.mark.parametrize(
    "point",
    [*(f"{point}:1" for point in OURS if point != "deliver.rolled_back"), "generation.file:4", "generation.linked:2", "state.saved:3"],
)
def test_killed_at(tmp_path: Path, point: str) -> None:
    with FakeServer(ttl=20, window=(0.08, 0.12)) as server:
        config = prepare(server, tmp_path, TARGETS)
        with start_process(config, f"{point}:kill") as killed:
            assert killed.wait(30) == -signal.SIGKILL
        check_whole(tmp_path)
        reports = len(server.reports)
        with start_process(config) as process:
            eventually(lambda: len(server.reports) > reports)
            eventually(lambda: (tmp_path / "tls" / "current" / "key.pem").exists())
            eventually(
                lambda: (
                    len([one for one in status(tmp_path / "state").identities if one.identity == WEB and one.state in ("ok", "renewing")])
                    == 1
                )
            )
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, process.stderr and process.stderr.read()
        check_whole(tmp_path)
        held = StateDirectory(tmp_path / "state").identity(WEB).obtained()
        assert held is not None
        assert TLSContext.from_directory(tmp_path / "tls").sha256 == held.sha256
        left = [path for path in tmp_path.rglob(".*") if path.name.startswith((".new-", ".current-"))]
        assert left == []
        server.assert_content()


@pytest.mark.parametrize("point", ["generation.complete", "generation.linked", "state.before_save", "agent.answered"])
def test_a_disk_that_fails_there_is_a_finding_and_not_the_end(tmp_path: Path, point: str) -> None:
    with FakeServer(ttl=60) as server:
        config = prepare(server, tmp_path, TARGETS)
        with start_process(config, f"{point}:fail") as process:
            eventually(lambda: (tmp_path / "tls" / "current" / "key.pem").exists())
            eventually(lambda: server.reports and server.reports[-1][1].identities[0].state == "ok")
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        check_whole(tmp_path)
