"""The privileged helper, or the agent that asked it, is killed in the middle: nothing is left half done."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

import handclasp.agent.loop  # noqa: F401  (declares the fault points)
from handclasp.agent.helper.client import Helped
from handclasp.agent.helper.messages import (
    MAX_ANSWER,
    Answer,
    Question,
    read_answer,
    receive,
    send,
)
from handclasp.errors import Kind
from handclasp.faults import POINTS
from support.errors import refused
from support.helping import configure, content, deliver_to, helping, served, target

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


KILLED = sorted(
    point for point in POINTS if point.startswith(("generation.", "deliver.")) and point not in ("deliver.looked", "deliver.rolled_back")
)


@pytest.mark.parametrize("point", KILLED)
def test_the_helper_is_killed_in_the_middle(home: Path, point: str) -> None:
    configure(home, {"validate": ["true"], "reload": {"command": ["true"]}})
    one, old, new = target(home), content(), content()
    with helping(home):
        name = deliver_to(one, old)
    with helping(home, f"{point}:kill") as process:
        with refused(Kind.DELIVERY_FAILED, "does not answer"):
            deliver_to(one, new, name)
        assert process.wait(30) == -signal.SIGKILL
        assert served(home) in (old.sha256, new.sha256), "key and certificate belong together"
    (home / "run" / "socket").unlink()
    with helping(home):
        deliver_to(one, new, name)
    assert served(home) == new.sha256
    assert [path.name for path in (home / "etc" / "tls").rglob(".*") if path.name.startswith((".new-", ".current-"))] == []


def test_the_helper_is_killed_on_the_way_back(home: Path) -> None:
    configure(home, {"validate": ["sh", "-c", f"test ! -e {home}/bad"]})
    one, old, new = target(home), content(), content()
    with helping(home):
        name = deliver_to(one, old)
    (home / "bad").touch()
    with helping(home, "deliver.rolled_back:kill") as process:
        with refused(Kind.DELIVERY_FAILED, "does not answer"):
            deliver_to(one, new, name)
        assert process.wait(30) == -signal.SIGKILL
        assert served(home) == old.sha256
    (home / "bad").unlink()
    (home / "run" / "socket").unlink()
    with helping(home):
        deliver_to(one, new, name)
    assert served(home) == new.sha256


def test_the_agent_is_killed_before_it_looks(home: Path) -> None:
    configure(home, {"reload": {"command": ["sh", "-c", f"echo x >> {home}/told"]}})
    one, old, new = target(home), content(), content()
    with helping(home):
        name = deliver_to(one, old)
        Helped(one, new).bring(name)  # and then it is gone, without a word
        assert served(home) == new.sha256
        assert deliver_to(one, new, name) != name
        assert (home / "told").read_text() == "x\nx\nx\n", "what was not confirmed is told again"


def test_back_and_settle_take_only_what_is_there(home: Path) -> None:
    configure(home)
    one = target(home)
    with helping(home):
        first = deliver_to(one, content())
        second = deliver_to(one, content(), first)

        def ask(do: Any, generation: str, previous: str) -> Answer:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(str(home / "run" / "socket"))
                send(connection, Question(do=do, target=one.name, generation=generation, previous=previous))
                return read_answer(receive(connection, MAX_ANSWER))

        assert ask("back", first, second).failed == "conflict"
        assert ask("back", second, "00000099").failed == "not_found"
        assert ask("settle", second, first) == Answer()
        assert ask("back", second, first) == Answer(words="the previous certificate is back in place")
