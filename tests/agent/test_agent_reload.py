"""How a service is told: systemd's command line, HTTP calls, and everything that an administrative interface may answer."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclasp.agent.config import Reload
from handclasp.agent.reload import call, tell
from handclasp.agent.targets.base import Call
from handclasp.errors import Kind
from support.errors import allowing, refused


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name that notes its arguments: only their form is looked at here, there is no systemd in a test."""
    script = tmp_path / "bin/systemctl"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncase "$*" in *broken*) echo "Job for it failed."; exit 1;; esac\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return tmp_path / "asked"


def test_a_unit_is_reloaded_by_systemctl(systemctl: Path) -> None:
    tell(Reload(unit="nginx.service"), timeout=10, environment={})
    tell(Reload(unit="billing@1.service", action="try-restart"), timeout=10, environment={})
    assert systemctl.read_text().splitlines() == [
        "--no-ask-password reload -- nginx.service",
        "--no-ask-password try-restart -- billing@1.service",
    ]
    with refused(Kind.DELIVERY_FAILED, "systemctl", "status 1", "Job for it failed"):
        tell(Reload(unit="broken.service"), timeout=10, environment={})


class Admin:
    """Answers what it was told to, and keeps what it was asked."""

    def __init__(self, answer: bytes, *, path: Path | None = None, pause: float = 0) -> None:
        self.answer, self.path, self.pause = answer, path, pause
        self.asked: list[bytes] = []
        self.listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self.listener.bind(str(path) if path else ("127.0.0.1", 0))
        self.listener.listen()
        self.thread = threading.Thread(target=self._serve)

    @property
    def place(self) -> Call:
        port = 80 if self.path else self.listener.getsockname()[1]
        return Call("127.0.0.1", port, "/load?now=1", self.path)

    def _serve(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return
        with connection:
            try:
                self.asked.append(_request(connection))
                for byte in self.answer if self.pause else [self.answer]:
                    connection.sendall(bytes([byte]) if isinstance(byte, int) else byte)
                    time.sleep(self.pause)
            except OSError:
                pass


def _request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(4096)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")), 0)
    while len(body) < length:
        body += connection.recv(4096)
    return head + b"\r\n\r\n" + body


@contextmanager
def admin(answer: bytes, *, path: Path | None = None, pause: float = 0) -> Iterator[Admin]:
    server = Admin(answer, path=path, pause=pause)
    server.thread.start()
    try:
        yield server
    finally:
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
        server.thread.join()


def test_a_call_is_made_and_says_what_it_was_told_to(tmp_path: Path) -> None:
    (tmp_path / "body.json").write_text('{"a": 1}')
    with admin(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") as server:
        place = server.place
        headers = (("Cache-Control", "must-revalidate"), ("Content-Type", "application/json"))
        call(Call(place.host, place.port, place.target, headers=headers, body_file=tmp_path / "body.json"), timeout=20)
    head, _, body = server.asked[0].decode().partition("\r\n\r\n")
    assert body == '{"a": 1}'
    assert head.split("\r\n") == [
        "POST /load?now=1 HTTP/1.0",
        f"Host: 127.0.0.1:{place.port}",
        "Connection: close",
        "Cache-Control: must-revalidate",
        "Content-Type: application/json",
        "Content-Length: 8",
    ]


def test_a_call_over_a_unix_socket(tmp_path: Path) -> None:
    with admin(b"HTTP/1.0 204 No Content\r\n\r\n", path=tmp_path / "s") as server:
        tell(Reload(http=server.place), timeout=20, environment={})
    assert server.asked


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 500 Oops\r\n\r\nthe file is not there", ["answered 500", "the file is not there"]),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/other\r\n\r\n", ["answered 302"]),
        (b"", ["does not answer in HTTP"]),
        (b"SSH-2.0-x\r\n", ["does not answer in HTTP"]),
        (b"HTTP/1.1 2\xc2\xb20 x\r\n\r\n", ["does not answer in HTTP"]),
    ],
)
def test_any_other_answer_is_a_failure(answer: bytes, words: list[str]) -> None:
    with admin(answer) as server, refused(Kind.DELIVERY_FAILED, *words):
        call(server.place, timeout=20)
    assert len(server.asked) == 1, "no redirect is followed"


def test_a_call_that_nobody_takes_or_that_drips_ends() -> None:
    with refused(Kind.DELIVERY_FAILED, "cannot be called"):
        call(Call("127.0.0.1", 1, "/"), timeout=20)
    with admin(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000, pause=0.02) as server:
        started = time.monotonic()
        with refused(Kind.DELIVERY_FAILED, "cannot be called"):
            call(server.place, timeout=0.3)
        assert time.monotonic() - started < 10
    with admin(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_000_000) as server:
        call(server.place, timeout=20)  # the answer's end is of no interest
    with refused(Kind.DELIVERY_FAILED, "cannot be called"):
        call(Call("127.0.0.1", 1, "/", body_file=Path("/nonexistent")), timeout=20)


@settings(max_examples=40)
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda data: b"HTTP/1.1 " + data))
def test_nothing_that_it_answers_escapes_as_anything_else(answer: bytes) -> None:
    with admin(answer) as server, allowing(Kind.DELIVERY_FAILED):
        call(server.place, timeout=20)
