"""Who is looked after, while it changes: keepers that come and go from any thread."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from handclasp.agent.config import Managed
from handclasp.agent.keeper import Keeper
from handclasp.agent.state import StateDirectory
from handclasp.errors import Kind
from support.agents import WEB, prepare, running
from support.errors import refused
from support.fake_server import DOMAIN, FakeAuthority, FakeServer
from support.waiting import eventually


def managed(number: int, slot: str = "socket") -> Managed:
    identity = f"spiffe://{DOMAIN}/pod/{number}"
    return Managed(identity, identity, (), (), "workload", None, "p256", (), slot=slot)


def test_keepers_come_and_go_while_the_agent_runs(tmp_path: Path) -> None:
    heard: list[tuple[str, str]] = []

    def changed(keeper: Keeper) -> None:
        content = keeper.content()
        assert content is not None
        heard.append((keeper.managed.name, content.sha256))

    with FakeServer() as server:
        config = prepare(server, tmp_path, "[{directory: tls}]")
        with running(config) as agent:
            roster = agent.roster
            threads = [threading.Thread(target=roster.add, args=(managed(n),), kwargs={"on_change": changed}) for n in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            eventually(lambda: len(heard) == 12)
            assert sorted(heard) == sorted((managed(n).name, server.newest(managed(n).name)) for n in range(12))
            assert len(roster.keepers()) == 13
            again = roster.add(managed(3))
            assert again is roster.find(managed(3).name, "socket")
            assert roster.find(managed(3).name) is None, "a slot of its own"
            with refused(Kind.CONFLICT):
                roster.add(replace(managed(3), dns=("other.example.org",)))

            heard.clear()
            server.extra_roots.append(FakeAuthority("Next").root)
            eventually(lambda: len(heard) == 12, what="changed anchors are a change of content")

            roster.remove(managed(3).name, "socket")
            roster.remove("spiffe://unknown", "socket")
            assert roster.find(managed(3).name, "socket") is None
            back = roster.add(managed(3), on_change=changed)
            eventually(lambda: len(heard) == 13)
            assert back.content() is not None
            assert sum(record.identity == managed(3).name for record in server.records.values()) == 1, "what is on disk counts"
            eventually(lambda: ("socket", managed(0).name) in StateDirectory(tmp_path / "state").managed())
        server.assert_content()


def test_the_same_identity_in_two_slots_has_two_certificates(tmp_path: Path) -> None:
    with FakeServer() as server:
        config = prepare(server, tmp_path, "[{directory: tls}]")
        with running(config) as agent:
            one = agent.roster.find(WEB)
            assert one is not None
            other = agent.roster.add(replace(one.managed, targets=(), slot="socket"))
            eventually(lambda: one.obtained and other.obtained)
            assert one.obtained is not None
            assert other.obtained is not None
            assert one.obtained.sha256 != other.obtained.sha256


def test_one_that_is_removed_at_work_and_added_again_does_not_work_beside_itself(tmp_path: Path) -> None:
    with FakeServer() as server:
        config = prepare(server, tmp_path)
        with running(config) as agent:
            for _ in range(20):
                agent.roster.add(managed(1))
                agent.roster.remove(managed(1).name, "socket")
            keeper = agent.roster.add(managed(1))
            eventually(lambda: keeper.told.state == "ok")
        assert sum(record.identity == managed(1).name for record in server.records.values()) == 1


def test_a_listener_that_fails_stops_nothing(tmp_path: Path) -> None:
    def fails(_keeper: Keeper) -> None:
        raise RuntimeError("a fault of the listener")

    with FakeServer() as server:
        config = prepare(server, tmp_path)
        with running(config) as agent:
            keeper = agent.roster.add(managed(1), on_change=fails)
            eventually(lambda: keeper.told.state == "ok")


def test_one_question_for_all_certificates(tmp_path: Path) -> None:
    more = "".join(f"  - identity: spiffe://{DOMAIN}/n/{number}\n" for number in range(30))
    with FakeServer() as server:
        config = prepare(server, tmp_path, more=more)
        with running(config) as agent:
            eventually(lambda: all(keeper.told.state == "ok" for keeper in agent.roster.everyone()))
            asked, bundles = server.questions(), server.count("/v1/bundles/")
            eventually(lambda: server.questions() >= asked + 3)
            assert server.questions() - asked <= server.count("/v1/bundles/") - bundles + 3, "one in each poll, as for the bundle"


def test_an_earlier_window_is_taken_once_and_kept(tmp_path: Path) -> None:
    with FakeServer() as server:
        config = prepare(server, tmp_path)
        with running(config) as agent:
            keeper = agent.roster.find(WEB)
            assert keeper is not None
            eventually(lambda: keeper.obtained)
            assert keeper.obtained is not None
            record = server.records[keeper.obtained.sha256]
            drawn, record.renew_after, record.renew_before = keeper.renew_at(), record.renew_after - 600_000, record.renew_after - 60_000
            eventually(lambda: keeper.state.renew_at)
            point = keeper.renew_at()
            assert record.renew_after <= point <= record.renew_before < drawn
            record.renew_before += 1  # another answer, with nothing in it that is earlier
            asked = server.questions()
            eventually(lambda: server.questions() >= asked + 3)
            assert keeper.renew_at() == point
        with running(config) as agent:
            keeper = agent.roster.find(WEB)
            assert keeper is not None
            assert keeper.renew_at() == point, "and kept over a restart"
