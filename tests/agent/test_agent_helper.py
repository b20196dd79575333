"""The privileged helper: an agent of another uid delivers where only root may write, and can have nothing else done."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import handclasp.agent.loop  # noqa: F401  (declares the fault points)
from handclasp.agent.config import load_config
from handclasp.agent.content import Content
from handclasp.agent.deliver import deliver
from handclasp.agent.helper.client import Helped
from handclasp.agent.helper.messages import (
    MAX_ANSWER,
    MAX_QUESTION,
    Answer,
    Material,
    Question,
    read_answer,
    read_question,
    receive,
    send,
)
from handclasp.agent.helper.server import Helper
from handclasp.agent.helper.trust import require_roots
from handclasp.agent.signals import on_signals
from handclasp.agent.targets.base import Target
from handclasp.client import TLSContext
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import POINTS
from support import contents
from support.errors import allowing, refused
from support.fake_server import DOMAIN, FakeAuthority
from support.servers import environment
from support.waiting import eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
WEB = f"spiffe://{DOMAIN}/prod/web"
NOBODY = 65534
AUTHORITY = FakeAuthority()


def content() -> Content:
    return contents.content(AUTHORITY)


def open_up(path: Path) -> None:
    """Let everybody through to a test's directory; pytest lets nobody."""
    for part in (path, *path.parents):
        if "pytest" in str(part):
            part.chmod(0o711)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory that root alone can write to, below one that everybody can get through."""
    open_up(tmp_path)
    return tmp_path


def configure(home: Path, *targets: dict[str, Any]) -> Path:
    """Write an ``agent.yaml`` with these targets of the helper's."""
    listed = [{"helper": True, "directory": str(home / "etc" / "tls")} | one for one in targets or ({},)]
    config = {
        "identities": [{"identity": WEB, "targets": listed}],
        "helper": {"socket": str(home / "run" / "socket"), "user": "nobody"},
    }
    path = home / "agent.yaml"
    path.write_text(json.dumps(config))
    path.chmod(0o644)
    return path


def target(home: Path, index: int = 0) -> Target:
    return load_config(home / "agent.yaml").identities[0].targets[index]


@contextlib.contextmanager
def helping(home: Path, fault: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Run the helper as a process while the block does."""
    argv = [sys.executable, "-m", "handclasp", "agent", "helper", "-c", str(home / "agent.yaml")]
    with (home / "helper.log").open("ab") as log, subprocess.Popen(argv, env=environment(fault), stderr=log, stdout=log) as process:
        try:
            eventually(lambda: (home / "run" / "socket").is_socket() or process.poll() is not None)
            assert process.poll() is None, (home / "helper.log").read_text()
            yield process
        finally:
            process.terminate()
            process.wait(30)


def as_nobody(do: Any) -> Any:
    """Do something in a process of another uid and return what it returns (text), or the words of its error."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(out)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            try:
                said = {"ok": do()}
            except HandclaspError as error:
                said = {"kind": error.kind.value, "words": error.detail}
            except OSError as error:
                said = {"kind": "os_error", "words": str(error), "errno": error.errno}
            os.write(into, json.dumps(said).encode())
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as stream:
        data = stream.read()
    os.waitpid(pid, 0)
    return json.loads(data)


def run(one: Target, what: Content, confirmed: str = "") -> str:
    return deliver(one, what, confirmed, identity=WEB, wait=threading.Event().wait)


def served(home: Path) -> str:
    return TLSContext.from_directory(home / "etc" / "tls").sha256


def test_another_uid_delivers_to_a_directory_of_roots(home: Path) -> None:
    configure(home, {"validate": ["sh", "-c", f"id -u > {home}/validated"], "reload": {"command": ["touch", str(home / "reloaded")]}})
    one, name = target(home), ""
    with helping(home):
        for _ in range(4):
            what = content()
            said = as_nobody(lambda what=what, name=name: run(one, what, name))
            name = said["ok"]
            assert served(home) == what.sha256
    tls = home / "etc" / "tls"
    assert (tls / "current" / "key.pem").stat().st_uid == 0
    assert (tls / "current" / "key.pem").stat().st_mode & 0o777 == 0o600
    assert len(list((tls / "generations").iterdir())) == 3
    assert (home / "validated").read_text() == "0\n"
    assert (home / "reloaded").exists()
    without = as_nobody(lambda: run(replace(one, helper=None), content(), name))
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
        name = as_nobody(lambda: run(replace(one, look=None), old))["ok"]
        (home / "bad").touch()
        said = as_nobody(lambda: run(one, content(), name))
        assert said["kind"] == "delivery_failed", case
        for word in (*words, "the previous certificate is back in place"):
            assert word in said["words"]
        assert served(home) == old.sha256


def test_the_first_one_has_nothing_to_go_back_to(home: Path) -> None:
    configure(home, {"validate": ["false"]})
    with helping(home):
        assert "no previous certificate" in as_nobody(lambda: run(target(home), content()))["words"]


def test_only_the_agents_user_is_listened_to(home: Path) -> None:
    configure(home)
    with helping(home):
        path = home / "run" / "socket"
        assert (path.stat().st_mode & 0o777, path.stat().st_uid) == (0o600, NOBODY)
        path.chmod(0o666)

        def daemon() -> dict[str, Any]:
            out, into = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.setuid(1)
                try:
                    run(target(home), content())
                except HandclaspError as error:
                    os.write(into, error.detail.encode())
                os._exit(0)
            os.waitpid(pid, 0)
            return {"words": os.read(out, 4096).decode()}

        assert "does not answer" in daemon()["words"]
        eventually(lambda: "uid 1 asked" in (home / "helper.log").read_text())
        assert not (home / "etc").exists()


def exchange(home: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(20)
        connection.connect(str(home / "run" / "socket"))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                received += part
    return received


def framed(value: Any) -> bytes:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack(">I", len(data)) + data


def test_garbage_is_answered_and_harms_nothing(home: Path) -> None:
    configure(home)
    one, what = target(home), content()
    material = msgspec.to_builtins(Material.of(what))
    good = {"do": "bring", "target": one.name, "material": material}
    questions: list[Any] = [
        b"",
        b"\0",
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", MAX_QUESTION + 1),
        struct.pack(">I", 1000) + b"short",
        framed(b"\xff" * 100),
        framed(b"[" * 100_000),
        framed([]),
        framed({"do": "run", "target": one.name}),
        framed(good | {"command": ["id"]}),
        framed(good | {"directory": "/etc"}),
        framed(good | {"generation": "../../etc"}),
        framed(good | {"target": "files:/etc"}),
        framed(good | {"material": material | {"path": "/etc/passwd"}}),
        framed(good | {"material": material | {"mode": 0o4755}}),
        framed(good | {"material": material | {"key": "eA=="}}),
        framed(good | {"material": material | {"certificate": "gIA="}}),
        framed(good | {"material": material | {"sha256": "0" * 64}}),
        framed(good | {"material": None}),
        framed({"do": "back", "target": one.name, "generation": "00000009", "previous": "00000001"}),
        framed({"do": "settle", "target": one.name, "generation": ""}),
    ]
    with helping(home) as process:
        for question in questions:
            answer = exchange(home, question)
            assert not answer or read_answer(answer[4:]).failed, question[:100]
        assert not (home / "etc" / "tls" / "current").exists()
        assert run(one, what), "it still works"
        assert process.poll() is None


words = st.sampled_from(["bring", "back", "x", "", "00000001", None, 1, {}])
questions = st.dictionaries(st.sampled_from(["do", "target", "material", "generation", "previous"]), words)


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode) | questions.map(msgspec.json.encode))
@settings(max_examples=200)
def test_no_message_crashes(data: bytes) -> None:
    with allowing(Kind.BAD_REQUEST):
        read_question(data)
    with allowing(Kind.DELIVERY_FAILED):
        read_answer(data)
    here, there = socket.socketpair()
    with here, there:
        here.sendall(data)
        here.shutdown(socket.SHUT_WR)
        with contextlib.suppress(EOFError, ValueError):
            receive(there, MAX_ANSWER)


@given(st.sampled_from(["bring", "back", "settle"]), st.text(max_size=20), st.sampled_from(["", "00000001", "00000002"]))
@settings(max_examples=30)
def test_no_question_crashes_the_helper(do: Any, name: str, generation: str) -> None:
    helper = Helper.__new__(Helper)
    helper._served = {}
    with allowing(Kind.NOT_FOUND):
        helper.answer(Question(do=do, target=name, generation=generation))


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
        run(one, content())
        os.chown(home / "etc", NOBODY, -1)
        with refused(Kind.DELIVERY_FAILED, "belongs to uid"):
            run(one, content())


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
            run(second, content())
        process.send_signal(signal.SIGHUP)
        eventually(lambda: "other" in (home / "helper.log").read_text())
        run(second, content())
        path.write_text("identities: [")
        process.send_signal(signal.SIGHUP)
        eventually(lambda: "is not taken" in (home / "helper.log").read_text())
        run(first, content())


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
                run(target(home), content())
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
        run(target(home), content())


def test_one_question_at_a_time_about_one_target(home: Path) -> None:
    script = f"mkdir {home}/busy || touch {home}/twice; sleep 0.1; rmdir {home}/busy"
    configure(home, {"validate": ["sh", "-c", script]})
    one = target(home)
    with helping(home):
        threads = [threading.Thread(target=run, args=(one, content())) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not (home / "twice").exists()


KILLED = sorted(
    point for point in POINTS if point.startswith(("generation.", "deliver.")) and point not in ("deliver.looked", "deliver.rolled_back")
)


@pytest.mark.parametrize("point", KILLED)
def test_the_helper_is_killed_in_the_middle(home: Path, point: str) -> None:
    configure(home, {"validate": ["true"], "reload": {"command": ["true"]}})
    one, old, new = target(home), content(), content()
    with helping(home):
        name = run(one, old)
    with helping(home, f"{point}:kill") as process:
        with refused(Kind.DELIVERY_FAILED, "does not answer"):
            run(one, new, name)
        assert process.wait(30) == -signal.SIGKILL
        assert served(home) in (old.sha256, new.sha256), "key and certificate belong together"
    (home / "run" / "socket").unlink()
    with helping(home):
        run(one, new, name)
    assert served(home) == new.sha256
    assert [path.name for path in (home / "etc" / "tls").rglob(".*") if path.name.startswith((".new-", ".current-"))] == []


def test_the_helper_is_killed_on_the_way_back(home: Path) -> None:
    configure(home, {"validate": ["sh", "-c", f"test ! -e {home}/bad"]})
    one, old, new = target(home), content(), content()
    with helping(home):
        name = run(one, old)
    (home / "bad").touch()
    with helping(home, "deliver.rolled_back:kill") as process:
        with refused(Kind.DELIVERY_FAILED, "does not answer"):
            run(one, new, name)
        assert process.wait(30) == -signal.SIGKILL
        assert served(home) == old.sha256
    (home / "bad").unlink()
    (home / "run" / "socket").unlink()
    with helping(home):
        run(one, new, name)
    assert served(home) == new.sha256


def test_the_agent_is_killed_before_it_looks(home: Path) -> None:
    configure(home, {"reload": {"command": ["sh", "-c", f"echo x >> {home}/told"]}})
    one, old, new = target(home), content(), content()
    with helping(home):
        name = run(one, old)
        Helped(one, new).bring(name)  # and then it is gone, without a word
        assert served(home) == new.sha256
        assert run(one, new, name) != name
        assert (home / "told").read_text() == "x\nx\nx\n", "what was not confirmed is told again"


def test_back_and_settle_take_only_what_is_there(home: Path) -> None:
    configure(home)
    one = target(home)
    with helping(home):
        first = run(one, content())
        second = run(one, content(), first)

        def ask(do: Any, generation: str, previous: str) -> Answer:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(str(home / "run" / "socket"))
                send(connection, Question(do=do, target=one.name, generation=generation, previous=previous))
                return read_answer(receive(connection, MAX_ANSWER))

        assert ask("back", first, second).failed == "conflict"
        assert ask("back", second, "00000099").failed == "not_found"
        assert ask("settle", second, first) == Answer()
        assert ask("back", second, first) == Answer(words="the previous certificate is back in place")
