"""An enrolled agent with a configuration, run in a thread or as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from handclasp.agent import enroll
from handclasp.agent.config import load_config
from handclasp.agent.hours import Hours
from handclasp.agent.keeper import Keeper
from handclasp.agent.loop import Agent
from handclasp.agent.state import StateDirectory
from handclasp.client.settings import ClientSettings
from support.fake_server import DOMAIN, FakeServer
from support.programs import Child

WEB = f"spiffe://{DOMAIN}/prod/web"
PROGRAM = "import sys; from handclasp.agent import run; run(sys.argv[1], sys.argv[2])"


def prepare(server: FakeServer, root: Path, targets: str = "", *, more: str = "", identity: str = WEB, poll: str = "1s") -> Path:
    """Enrol an agent in ``root/state`` and write ``root/agent.yaml``; return the configuration's path."""
    enroll(ClientSettings(server.url, server.root_fingerprint), server.token(), root / "state", "host1", {"zone": "a"})
    return configure(root, targets, more=more, identity=identity, poll=poll)


def configure(root: Path, targets: str = "", *, more: str = "", identity: str = WEB, poll: str = "1s") -> Path:
    """Write ``root/agent.yaml`` for one identity; ``targets`` is the YAML list of its targets."""
    config = root / "agent.yaml"
    text = f"version: 1\npoll: {poll}\nidentities:\n  - identity: {identity}\n    dns: [localhost]\n"
    config.write_text(text + (f"    targets: {targets}\n" if targets else "") + more)
    return config


@contextmanager
def running(config: Path, hours: Hours | None = None) -> Iterator[Agent]:
    """Run an agent in a thread."""
    stop = threading.Event()
    state = StateDirectory(config.parent / "state")
    with state.lease():
        agent = Agent(load_config(config), state, stop=stop, hours=hours)
        thread = threading.Thread(target=agent.run)
        thread.start()
        try:
            yield agent
        finally:
            stop.set()
            thread.join()


def start_process(config: Path, fault: str = "") -> subprocess.Popen[bytes]:
    """Run an agent as a process, with a fault point armed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HANDCLASP_FAULT": fault}
    return Child(
        [sys.executable, "-c", PROGRAM, str(config), str(config.parent / "state")],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )


class Nursery:
    """Starts agents in milliseconds: each is forked from a process that has imported everything. They are real processes all the same."""

    PROGRAM = """
import os, sys
from handclasp.agent.loop import run
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            run(sys.argv[1], sys.argv[2])
        finally:
            os._exit(0)
    print(child, flush=True)
    if sys.stdin.readline().strip() == "reap":
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

    def __init__(self, config: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, str(config), str(config.parent / "state")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(self) -> int:
        """Start an agent and return its process id; one at a time."""
        return int(self._ask("run"))

    def reap(self) -> int:
        """Return the status of the agent that has ended, negative for a signal."""
        return int(self._ask("reap"))

    def _ask(self, word: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


def settled(keeper: Keeper) -> bool:
    """Tell whether an identity is well and every target of it has its newest certificate."""
    told = keeper.told
    return told.state == "ok" and all(target.state == "ok" for target in told.targets)
