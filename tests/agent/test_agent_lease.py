"""One agent for each place of delivery: the second says whose it is, and takes over when the first is gone."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from handclasp.agent import enroll, status
from handclasp.agent.leases import Leases
from handclasp.agent.targets.files import Files
from handclasp.client import TLSContext
from handclasp.client.settings import ClientSettings
from handclasp.errors import Kind
from support.agents import WEB, configure, running, settled, start_process
from support.errors import refused
from support.fake_server import DOMAIN, FakeServer
from support.waiting import eventually


def agent_in(server: FakeServer, root: Path, name: str, targets: str) -> Path:
    root.mkdir()
    enroll(ClientSettings(server.url, server.root_fingerprint), server.token(), root / "state", name)
    return configure(root, targets)


@contextmanager
def process_of(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run an agent as a process, which ends with the block whatever happens in it."""
    with start_process(config) as process:
        try:
            yield process
        finally:
            process.kill()


def test_two_agents_do_not_deliver_over_each_other(tmp_path: Path) -> None:
    place = tmp_path / "tls"
    with FakeServer() as server:
        one = agent_in(server, tmp_path / "one", "host-one", f"[{{directory: {place}}}]")
        two = agent_in(server, tmp_path / "two", "host-two", f"[{{directory: {place}}}]")
        with process_of(one) as first:
            eventually(lambda: (place / "current" / "key.pem").exists())
            eventually(lambda: status(tmp_path / "one" / "state").healthy)
            served = TLSContext.from_directory(place).sha256
            with running(two) as agent:
                keeper = agent.roster.find(WEB)
                assert keeper is not None
                eventually(lambda: keeper.told.state == "failed" and "another agent" in (keeper.told.last_failure or ""))
                assert f"spiffe://{DOMAIN}/agent/host-one" in (keeper.told.last_failure or "")
                assert TLSContext.from_directory(place).sha256 == served
                assert any("another agent delivers there" in words for words in status(tmp_path / "two" / "state").todo)
                first.send_signal(signal.SIGKILL)
                first.wait()
                eventually(lambda: settled(keeper), 100, what="it takes over when the other is gone")
                assert keeper.obtained is not None
                assert TLSContext.from_directory(place).sha256 == keeper.obtained.sha256 != served
                # The first one comes back, and finds that its place is another's now, though it once delivered there.
                with process_of(one) as again:
                    eventually(lambda: any("host-two" in words for words in status(tmp_path / "one" / "state").todo))
                    again.send_signal(signal.SIGTERM)
                    assert again.wait(30) == 0
                assert TLSContext.from_directory(place).sha256 == keeper.obtained.sha256


def test_links_that_lead_to_anothers_place(tmp_path: Path) -> None:
    """Two directories, but one path that a service reads: that is one place too."""
    link = tmp_path / "server.key"
    mine, theirs = Leases("spiffe://td/agent/mine", tmp_path / "mine"), Leases("spiffe://td/agent/theirs", tmp_path / "theirs")
    place, other = Files(tmp_path / "a", (("key.pem", link),)), Files(tmp_path / "b", (("key.pem", link),))
    assert theirs.take(other)
    link.symlink_to(other.directory / "current" / "key.pem")
    with refused(Kind.DELIVERY_FAILED, "spiffe://td/agent/theirs"):
        mine.require(place)
    theirs.close()
    mine.require(place)
    mine.close()


def test_a_place_that_is_not_there_yet_is_not_made_by_looking(tmp_path: Path) -> None:
    leases = Leases("spiffe://td/agent/x", tmp_path)
    assert leases.take(Files(tmp_path / "none"), make=False)
    assert not (tmp_path / "none").exists()
    assert leases.take(Files(tmp_path / "none"))
    assert leases.take(Files(tmp_path / "none")), "once held, it is held"
    leases.close()
