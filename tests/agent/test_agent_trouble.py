"""Servers that answer nonsense, services that hang, a host that was copied: each ends in a condition that is stated and reported."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from handclasp.agent import enroll, status
from handclasp.agent.state import StateDirectory
from handclasp.client import TLSContext
from handclasp.client.settings import ClientSettings
from handclasp.errors import HandclaspError
from support.agents import WEB, configure, prepare, running, settled, start_process
from support.fake_server import DOMAIN, FakeAuthority, FakeServer, pem
from support.programs import free_port
from support.waiting import eventually

AGENT = f"spiffe://{DOMAIN}/agent/host1"


def delivered(root: Path) -> str:
    with contextlib.suppress(HandclaspError):
        return TLSContext.from_directory(root / "tls").sha256
    return ""


def another_certificate(server: FakeServer, answer: dict[str, object]) -> None:
    key = FakeAuthority().key.public_key()
    answer["certificate"] = pem(server.authority.issue(key, spiffe=WEB))


def another_name(_server: FakeServer, answer: dict[str, object]) -> None:
    answer["sha256"] = "00" * 32


def other_times(_server: FakeServer, answer: dict[str, object]) -> None:
    answer["not_after"] = "2099-01-01T00:00:00Z"


def no_time(_server: FakeServer, answer: dict[str, object]) -> None:
    answer["renew_after"] = "soon"


def no_chain(_server: FakeServer, answer: dict[str, object]) -> None:
    answer["bundle"] = "nothing"


def no_json(_server: FakeServer, answer: dict[str, object]) -> None:
    answer.clear()


@pytest.mark.parametrize("spoil", [another_certificate, another_name, other_times, no_time, no_chain, no_json])
def test_an_answer_that_cannot_be_right(tmp_path: Path, spoil: Callable[[FakeServer, dict[str, object]], None]) -> None:
    with FakeServer() as server:
        config = prepare(server, tmp_path, "[{directory: tls}]")
        honest, spoilt = server._certify, 2

        def certify(*words: object) -> tuple[int, bytes, dict[str, str]]:
            nonlocal spoilt
            status_, body, headers = honest(*words)  # type: ignore[arg-type]
            if spoilt:
                spoilt -= 1
                answer = json.loads(body)
                spoil(server, answer)
                body = json.dumps(answer).encode()
            return status_, body, headers

        server._certify = certify  # type: ignore[method-assign]
        with running(config) as agent:
            keeper = agent.roster.keepers()[0]
            eventually(lambda: keeper.state.failures or keeper.state.last_success)
            assert not (tmp_path / "tls" / "current").exists() or keeper.state.last_success
            eventually(lambda: settled(keeper) and delivered(tmp_path) == server.newest(WEB))
            assert spoilt == 0


def test_a_reload_that_hangs_and_a_service_that_is_down(tmp_path: Path) -> None:
    """The other identities go on, and what is wrong is said of the one target."""
    down = free_port()
    slow = "[{directory: slow, reload: {command: [sleep, '600']}, timeout: 500ms}]"
    gone = f"[{{directory: gone, look: {{connect: '127.0.0.1:{down}', server_name: localhost}}, timeout: 500ms}}]"
    more = "".join(f"  - identity: {WEB}/{name}\n    targets: {targets}\n" for name, targets in (("slow", slow), ("gone", gone)))
    with FakeServer() as server:
        config = prepare(server, tmp_path, "[{directory: tls}]", more=more)
        with running(config) as agent:
            good, hung, away = agent.roster.keepers()
            eventually(lambda: settled(good))
            eventually(lambda: "did not end in 0.5 s" in (hung.told.last_failure or ""))
            eventually(lambda: "no handshake" in (away.told.last_failure or ""))
            assert [hung.told.state, away.told.state] == ["failed", "failed"]
            eventually(lambda: {one.state for one in server.reports[-1][1].identities} == {"ok", "failed"})
            todo = status(tmp_path / "state").todo
            slow, gone = (next(words for words in todo if f"files:{tmp_path / name}" in words) for name in ("slow", "gone"))
            assert "no certificate has been taken there yet" in slow
            assert "did not end in 0.5 s" in slow
            assert "no handshake" in gone
            assert "did not end" not in gone, "each says what it is about"
            assert hung.state.targets[f"files:{tmp_path / 'slow'}"].next_attempt > 0


def test_a_host_that_was_copied(tmp_path: Path) -> None:
    """Whoever renews second learns that another holds its identity: it says so, and stops."""
    with FakeServer(ttl=20, window=(0.06, 0.09)) as server:
        config = prepare(server, tmp_path)
        copy = tmp_path / "copy"
        copy.mkdir()
        shutil.copytree(tmp_path / "state", copy / "state", symlinks=True)
        shutil.copy(config, copy)
        with running(config) as original:
            eventually(lambda: original.roster.everyone()[0].state.rotations)
        with running(copy / "agent.yaml") as clone:
            own = clone.roster.everyone()[0]
            eventually(lambda: "another holder of this identity renewed it" in (own.told.last_failure or ""))
            asked = renewals_of_the_agent(server)
            eventually(lambda: any("is this host a copy" in words for words in status(copy / "state").todo))
            polls = server.questions()
            eventually(lambda: server.questions() >= polls + 2)
            assert renewals_of_the_agent(server) == asked, "it does not try again and again"
            assert own.told.state == "failed"


def renewals_of_the_agent(server: FakeServer) -> int:
    return sum(seen.path.endswith(":renew") and server.records[seen.peer].identity == AGENT for seen in server.seen)


def test_killed_on_the_way_back(tmp_path: Path) -> None:
    """At the one point that only a failed delivery passes: the previous certificate is in place, and stays until a delivery succeeds."""
    good = tmp_path / "good"
    good.touch()
    with FakeServer() as server:
        config = prepare(server, tmp_path, f"[{{directory: tls, crl: true, validate: [test, -e, {good}]}}]")
        with running(config) as agent:
            eventually(lambda: settled(agent.roster.keepers()[0]))
        first = (tmp_path / "tls" / "current").readlink()
        good.unlink()
        server.crl = server.crl.replace("AAAA", "BBBB")
        with start_process(config, "deliver.rolled_back:kill") as killed:
            assert killed.wait(30) == -signal.SIGKILL
        assert (tmp_path / "tls" / "current").readlink() == first
        assert delivered(tmp_path) == server.newest(WEB)
        good.touch()
        with running(config) as agent:
            eventually(lambda: "BBBB" in (tmp_path / "tls" / "current" / "crl.pem").read_text())
            eventually(lambda: settled(agent.roster.keepers()[0]))
        assert server.count("/v1/certificates", "POST") == 2


def test_status_says_what_to_do(tmp_path: Path) -> None:
    with FakeServer() as server:
        config = prepare(server, tmp_path)
        assert status(tmp_path / "state").todo[0].startswith("the agent does not run: start it")
        with running(config) as agent:
            keeper = agent.roster.keepers()[0]
            eventually(lambda: settled(keeper))
            eventually(lambda: status(tmp_path / "state").todo == [])
            server.records[server.newest(WEB)].revoked = True
            eventually(lambda: any("agent forget" in words for words in status(tmp_path / "state").todo))
        state = StateDirectory(tmp_path / "state")
        facts = state.own.obtained()
        assert facts is not None
        after = status(tmp_path / "state", clock=lambda: facts.not_after + 1)
        assert any(words.startswith(AGENT) and "enrol this host again" in words for words in after.todo)
        enroll(ClientSettings(server.url, server.root_fingerprint), server.token(), tmp_path / "state", "host1")
        configure(tmp_path)
