"""The privileged helper among strangers: only the agent's user is listened to, and no message makes it crash."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclasp.agent.helper.messages import (
    MAX_ANSWER,
    MAX_QUESTION,
    Material,
    Question,
    read_answer,
    read_question,
    receive,
)
from handclasp.agent.helper.server import Helper
from handclasp.errors import HandclaspError, Kind
from support.errors import allowing
from support.helping import NOBODY, configure, content, deliver_to, helping, target
from support.waiting import eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


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
                    deliver_to(target(home), content())
                except HandclaspError as error:
                    os.write(into, error.detail.encode())
                except BaseException as error:  # never back into the tests, as another user
                    os.write(into, repr(error).encode())
                finally:
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
        assert deliver_to(one, what), "it still works"
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
