"""Workers that never get ready or die later, and an end that always comes. In processes of their own: it forks and takes signals."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.servers import environment

HEAD = """
import os, sys, time
from handclasp.errors import HandclaspError, Kind
from handclasp.server import supervisor
supervisor.RESTART_PAUSE = 0.01
supervisor.PATIENCE = 0.3
def say(text):
    os.write(1, (text + "\\n").encode())  # one write: several processes share the pipe
"""


@contextmanager
def start(work: str, directory: Path) -> Iterator[subprocess.Popen[str]]:
    file = directory / "program.py"
    file.write_text(HEAD + work + "\nsys.exit(supervisor.Supervisor(2, work, lambda: say('ready')).run())\n")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, str(file)], env=environment(), stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def test_a_worker_that_can_never_start_ends_the_whole_with_the_reason(tmp_path: Path) -> None:
    work = """
def work(worker, ready):
    if worker == 1:
        raise HandclaspError(Kind.BAD_SETTING, "the witness has no address")
    ready()
    time.sleep(60)
"""
    with start(work, tmp_path) as process:
        out, errors = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "the witness has no address" in errors
        assert "giving up" in errors
        assert "ready" not in out


def test_sigterm_ends_it_while_a_worker_is_still_starting(tmp_path: Path) -> None:
    with start("def work(worker, ready):\n    say('started')\n    time.sleep(60)\n", tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 0


def test_a_worker_that_does_not_listen_is_killed_in_the_end(tmp_path: Path) -> None:
    work = """
import signal
def work(worker, ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready()
    time.sleep(60)
"""
    with start(work, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 0


def test_a_worker_that_was_ready_is_started_again_however_often(tmp_path: Path) -> None:
    work = """
def work(worker, ready):
    ready()
    if worker == 0:
        file = os.path.join(os.path.dirname(__file__), "starts")
        with open(file, "a") as starts:
            starts.write("x")
        if os.path.getsize(file) < 8:
            os._exit(3)
        say("enough")
    time.sleep(60)
"""
    with start(work, tmp_path) as process:
        assert process.stdout is not None
        lines = {process.stdout.readline(), process.stdout.readline()}
        assert lines == {"ready\n", "enough\n"}
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert errors.count("starting it again") == 7
