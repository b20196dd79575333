"""The privileged helper: an agent of another uid delivers where only root may write, and can have nothing else done."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handclasp.agent.helper.server import Helper
from handclasp.agent.helper.trust import require_roots
from handclasp.agent.signals import on_signals
from handclasp.errors import Kind
from support.errors import refused
from support.helping import NOBODY, as_nobody, configure, content, deliver_to, helping, served, target
from support.servers import environment
from support.waiting import eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_another_uid_delivers_to_a_directory_of_roots(home: Path) -> None:
    configure(home, {"validate": ["sh", "-c", f"id -u > {home}/validated"], "reload": {"command": ["touch", str(home / "reloaded")]}})
    one, name = target(home), ""
    with helping(home):
        for _ in range(4):
            what = content()
            said = as_nobody(lambda what=what, name=name: deliver_to(one, what, name))
            name = said["ok"]
            assert served(home) == what.sha256
    tls = home / "etc" / "tls"
    assert (tls / "current" / "key.pem").stat().st_uid == 0
    assert (tls / "current" / "key.pem").stat().st_mode & 0o777 == 0o600
    assert len(list((tls / "generations").iterdir())) == 3
    assert (home / "validated").read_text() == "0\n"
    assert (home / "reloaded").exists()
    without = as_nobody(lambda: deliver_to(replace(one, helper=None), content(), name))
    assert without["kind"] in ("os_error", "delivery_failed"), "without the helper it may not"


@pytest.mark.parametrize(
    ("case", "bad", "words"),
    [
        ("validate", {"validate": ["sh", "-c", "test ! -e {home}/bad || (echo line 7; exit 3)"]}, ["validate", "status 3", "line 7"]),
        ("reload", {"reload": {"command": ["sh", "-c", "test ! -e {home}/bad"]}}, ["reload", "status 1"]),
        ("look", {"look": {"connect": "127.0.0.1:1"}, "timeout": "500ms"}, ["no handshake"]),
    ],
)
def test_what_fails_is_rolled_back_as_without_the_helper(home: Path, case: str, bad: dict[str, Any], words: list[str]) -> None:
    configure(home, json.loads(json.dumps(bad).replace("{home}", str(home))))
    one, old = target(home), content()
    with helping(home):
        name = as_nobody(lambda: deliver_to(replace(one, look=None), old))["ok"]
        (home / "bad").touch()
        said = as_nobody(lambda: deliver_to(one, content(), name))
        assert said["kind"] == "delivery_failed", case
        for word in (*words, "the previous certificate is back in place"):
            assert word in said["words"]
        assert served(home) == old.sha256


def test_the_first_one_has_nothing_to_go_back_to(home: Path) -> None:
    configure(home, {"validate": ["false"]})
    with helping(home):
        assert "no previous certificate" in as_nobody(lambda: deliver_to(target(home), content()))["words"]


def test_the_configuration_must_be_roots(home: Path) -> None:
    path = configure(home)
    Helper(path)
    for spoil, words in (
        (lambda: path.chmod(0o666), "can be written by others"),
        (lambda: os.chown(path, NOBODY, -1), "belongs to uid 65534"),
        (lambda: home.chmod(0o777), "can be written by others"),
    ):
        spoil()
        with refused(Kind.BAD_SETTING, words):
            Helper(path)
        path.chmod(0o644)
        os.chown(path, 0, -1)
        home.chmod(0o711)
    link = home / "link.yaml"
    (home / "theirs").mkdir()
    os.chown(home / "theirs", NOBODY, -1)
    (home / "theirs" / "agent.yaml").write_text(path.read_text())
    link.symlink_to(home / "theirs" / "agent.yaml")
    with refused(Kind.BAD_SETTING, "theirs belongs to uid"):
        Helper(link)


@pytest.mark.parametrize("what", ["directory", "link", "password"])
def test_places_that_others_can_write_to_are_refused(home: Path, what: str) -> None:
    theirs = home / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, -1)
    one: dict[str, Any] = {
        "directory": {"directory": str(theirs / "tls")},
        "link": {"paths": {"key": str(theirs / "key.pem")}},
        "password": {"type": "pkcs12", "password_file": str(theirs / "password")},
    }[what]
    path = configure(home, one)
    with refused(Kind.BAD_SETTING, "theirs belongs to uid"):
        Helper(path)


def test_a_place_that_becomes_somebody_elses_is_refused_at_the_next_delivery(home: Path) -> None:
    configure(home)
    one = target(home)
    with helping(home):
        deliver_to(one, content())
        os.chown(home / "etc", NOBODY, -1)
        with refused(Kind.DELIVERY_FAILED, "belongs to uid"):
            deliver_to(one, content())


def test_sticky_directories_are_for_what_is_there() -> None:
    require_roots(Path("/tmp"), "x") if not Path("/tmp").stat().st_mode & 0o022 else None
    with refused(Kind.BAD_SETTING, "can be written by others"):
        require_roots(Path("/tmp/handclasp-that-nobody-made/x"), "x")


def test_it_reads_the_configuration_again_and_keeps_the_old_one_when_that_is_bad(home: Path) -> None:
    configure(home)
    first = target(home)
    with helping(home) as process:
        path = configure(home, {}, {"directory": str(home / "etc" / "other")})
        second = target(home, 1)
        with refused(Kind.DELIVERY_FAILED, "has no target"):
            deliver_to(second, content())
        process.send_signal(signal.SIGHUP)
        eventually(lambda: "other" in (home / "helper.log").read_text())
        deliver_to(second, content())
        path.write_text("identities: [")
        process.send_signal(signal.SIGHUP)
        eventually(lambda: "is not taken" in (home / "helper.log").read_text())
        deliver_to(first, content())


def test_systemd_passes_the_socket(home: Path) -> None:
    configure(home)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        (home / "run").mkdir()
        listener.bind(str(home / "run" / "socket"))
        listener.listen()
        argv = [sys.executable, "-m", "handclasp", "agent", "helper", "-c", str(home / "agent.yaml")]
        shell = f'exec 3<&{listener.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        with subprocess.Popen(
            ["bash", "-c", shell, "x", *argv], env=environment(), pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL
        ) as process:
            try:
                deliver_to(target(home), content())
                process.terminate()
                assert process.wait(30) == 0
            finally:
                process.kill()
        assert (home / "run" / "socket").is_socket(), "it is systemd's, and stays"


def test_a_signal_that_comes_at_any_moment_ends_a_wait() -> None:
    """As when it comes just before the wait begins: here another thread gets it, which interrupts no wait of the main thread either."""
    came: list[str] = []
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    release = threading.Event()
    other = threading.Thread(target=release.wait)
    other.start()
    try:
        with on_signals(lambda: came.append("stop"), lambda: came.append("again"), writing):
            assert other.ident is not None
            signal.pthread_kill(other.ident, signal.SIGHUP)
            poll = select.poll()
            poll.register(reading, select.POLLIN)
            assert poll.poll(30_000), "the wait goes on"
        assert came == ["again"]
    finally:
        release.set()
        other.join()
        os.close(reading)
        os.close(writing)


def test_two_helpers_are_one_too_many(home: Path) -> None:
    configure(home)
    with helping(home):
        argv = [sys.executable, "-m", "handclasp", "agent", "helper", "-c", str(home / "agent.yaml")]
        done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert "another helper listens" in done.stderr
        deliver_to(target(home), content())


def test_one_question_at_a_time_about_one_target(home: Path) -> None:
    script = f"mkdir {home}/busy || touch {home}/twice; sleep 0.1; rmdir {home}/busy"
    configure(home, {"validate": ["sh", "-c", script]})
    one = target(home)
    with helping(home):
        threads = [threading.Thread(target=deliver_to, args=(one, content())) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not (home / "twice").exists()
