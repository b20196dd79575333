"""A disk that is full, read-only, or holds what a power loss left: each ends in a condition that is stated, and passes by itself."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from handclasp.agent import status
from handclasp.agent.keeper import Keeper
from handclasp.agent.loop import Agent
from handclasp.agent.state import StateDirectory
from handclasp.client import TLSContext
from handclasp.errors import HandclaspError, Kind
from support.agents import WEB, prepare, running, settled
from support.disks import filled, read_only, small_disk
from support.errors import refused
from support.fake_server import DOMAIN, FakeServer
from support.waiting import eventually

AGENT = f"spiffe://{DOMAIN}/agent/host1"


def delivered(root: Path) -> str:
    with contextlib.suppress(HandclaspError):
        return TLSContext.from_directory(root / "tls").sha256
    return ""


def keeper_of(agent: Agent) -> Keeper:
    keeper = agent.roster.find(WEB)
    assert keeper is not None
    return keeper


def test_a_full_disk_under_a_target(tmp_path: Path) -> None:
    with FakeServer(ttl=12, window=(0.3, 0.35)) as server, small_disk(tmp_path / "tls"):
        config = prepare(server, tmp_path, "[{directory: tls}]")
        with running(config) as agent:
            keeper = keeper_of(agent)
            eventually(lambda: settled(keeper))
            first = delivered(tmp_path)
            with filled(tmp_path / "tls"):
                eventually(lambda: "No space left" in (keeper.told.last_failure or ""))
                assert delivered(tmp_path) == first, "the last good one is whole"
                assert keeper.told.state == "failed"
                eventually(lambda: "No space left" in " ".join(status(tmp_path / "state").todo))
            eventually(lambda: settled(keeper) and delivered(tmp_path) == server.newest(WEB))
        server.assert_content()


@pytest.mark.parametrize("what", ["full", "read-only"])
def test_a_state_directory_that_cannot_be_written(tmp_path: Path, what: str) -> None:
    """What is delivered stays; renewals fail and say why, without a flood of requests; when there is room again they go on."""
    with FakeServer(ttl=12, window=(0.3, 0.35)) as server:
        state = tmp_path / "state"
        with small_disk(state, "1m") if what == "full" else small_disk(tmp_path / "other"):
            config = prepare(server, tmp_path, "[{directory: tls}]")
            with running(config) as agent:
                keeper = keeper_of(agent)
                eventually(lambda: settled(keeper))
                first, asked = delivered(tmp_path), len(server.records)
                with filled(state) if what == "full" else read_only(state):
                    words = "No space left" if what == "full" else "Read-only"
                    eventually(lambda: words in (keeper.told.last_failure or ""), what="the disk is said to be the reason")
                    eventually(lambda: any(words in (one.last_failure or "") for _, report in server.reports for one in report.identities))
                    assert delivered(tmp_path) == first
                    assert len(server.records) - asked <= 2 + 2 * keeper.state.failures, "one answer for each try, and few tries"
                eventually(lambda: settled(keeper) and delivered(tmp_path) not in ("", first))
        server.assert_content()


def test_a_read_only_disk_under_a_target(tmp_path: Path) -> None:
    with FakeServer() as server:
        config = prepare(server, tmp_path, "[{directory: tls, crl: true}]")
        with running(config) as agent:
            keeper = keeper_of(agent)
            eventually(lambda: settled(keeper))
            first = delivered(tmp_path)
            with read_only(tmp_path / "tls"):
                server.crl = server.crl.replace("AAAA", "BBBB")
                eventually(lambda: "Read-only" in (keeper.told.last_failure or ""))
                assert delivered(tmp_path) == first
            eventually(lambda: settled(keeper))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"\0\xff{]" * 100)


def gone(path: Path) -> None:
    path.unlink()


DAMAGES = [cut, empty, garbage, gone]


@pytest.mark.parametrize("name", ["facts.json", "key.pem", "leaf.pem", "chain.pem", "cert.pem"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_generation_that_a_power_loss_left(tmp_path: Path, damage: Callable[[Path], None], name: str) -> None:
    """Found when it is needed: what the service has stays, and another certificate takes its place."""
    with FakeServer() as server:
        config = prepare(server, tmp_path, "[{directory: tls}]")
        with running(config) as agent:
            keeper = keeper_of(agent)
            eventually(lambda: settled(keeper))
        first = delivered(tmp_path)
        state = StateDirectory(tmp_path / "state")
        damage(state.identity(WEB).home / "current" / name)
        # The renewal comes at once: it needs all of it.
        kept = state.identity(WEB).load()
        kept.renew_at, kept.renew_at_of, kept.next_attempt = 1, first, 0
        state.identity(WEB).save(kept)
        with running(config) as agent:
            keeper = keeper_of(agent)
            eventually(lambda: settled(keeper) and server.newest(WEB) != first and delivered(tmp_path) == server.newest(WEB))
        server.assert_content()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["state.json", "managed.json", "problems.json"])
def test_a_note_that_is_damaged_costs_one_more_delivery_at_most(tmp_path: Path, damage: Callable[[Path], None], name: str) -> None:
    with FakeServer() as server:
        config = prepare(server, tmp_path, "[{directory: tls}]")
        with running(config) as agent:
            keeper = keeper_of(agent)
            eventually(lambda: settled(keeper) and (tmp_path / "state" / "problems.json").exists())
        home = tmp_path / "state" if name != "state.json" else StateDirectory(tmp_path / "state").identity(WEB).home
        damage(home / name)
        with running(config) as agent:
            keeper = keeper_of(agent)
            eventually(lambda: settled(keeper) and keeper.told.targets[0].state == "ok")
        assert server.count("/v1/certificates", "POST") == 2, "nothing is issued again"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_agent_json_is_said(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    with FakeServer() as server:
        prepare(server, tmp_path)
        damage(tmp_path / "state" / "agent.json")
        with refused(Kind.BAD_SETTING, "no agent is enrolled"):
            status(tmp_path / "state")


def test_a_missing_link_is_put_back(tmp_path: Path) -> None:
    with FakeServer() as server:
        config = prepare(server, tmp_path, "[{directory: tls}]")
        with running(config) as agent:
            keeper = keeper_of(agent)
            eventually(lambda: settled(keeper))
        state = StateDirectory(tmp_path / "state")
        for home in (state.identity(WEB).home, state.own.home):
            (home / "current").unlink()
        with running(config) as agent:
            eventually(lambda: settled(keeper_of(agent)))
        assert server.count("/v1/certificates", "POST") == 2, "the newest whole generation counts again"


def test_the_agents_own_certificate_damaged_beyond_repair_is_said(tmp_path: Path) -> None:
    with FakeServer() as server:
        config = prepare(server, tmp_path, "[{directory: tls}]")
        with running(config) as agent:
            eventually(lambda: settled(keeper_of(agent)))
        shutil.rmtree(StateDirectory(tmp_path / "state").own.home / "generations")
        first = delivered(tmp_path)
        with running(config):
            eventually(lambda: any("enrol this host again" in words and AGENT in words for words in status(tmp_path / "state").todo))
            assert delivered(tmp_path) == first


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_fetched_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    with FakeServer() as server:
        config = prepare(server, tmp_path, "[{directory: tls}]")
        config.write_text(config.read_text() + f"server: {{ca: {server.ca_file(tmp_path)}}}\n")
        with running(config) as agent:
            eventually(lambda: settled(keeper_of(agent)))
        anchors = tmp_path / "state" / "anchors" / f"{DOMAIN}.pem"
        whole = anchors.read_bytes()
        damage(anchors)
        with running(config) as agent:
            eventually(lambda: anchors.exists() and anchors.read_bytes() == whole)
            eventually(lambda: settled(keeper_of(agent)))
        assert (tmp_path / "tls" / "current" / "bundle.pem").read_bytes() == whole
