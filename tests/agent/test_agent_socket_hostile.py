"""What the other end of the socket may do, and what it does not get by that: bytes, floods, hung readers, a process that is another one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handclasp.agent.socket.limits import BURST, CONNECTIONS, STREAMS, Limits, Turns
from handclasp.agent.socket.listen import Listener
from handclasp.agent.socket.proc import Process
from handclasp.client.workload import fetch_x509
from handclasp.errors import HandclaspError, Kind
from handclasp.proto import workload_pb2
from support.waiting import eventually
from support.workload import DOMAIN, WEB, World, socket_of, workload

UID = f"unix:uid:{os.getuid()}"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@contextmanager
def connected(world: World) -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(10)
        connection.connect(str(world.path))
        yield connection


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def ends_stream(data: bytes) -> bool:
    """Tell whether there are trailers among the frames."""
    position = 0
    while position + 9 <= len(data):
        if data[position + 3] == 1 and data[position + 4] & 1:
            return True
        position += 9 + int.from_bytes(data[position : position + 3], "big")
    return False


def headers(stream: int, path: str, *more: tuple[str, str], end: bool = False) -> bytes:
    from hpack import Encoder

    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"), ("te", "trailers")]
    fields += [("content-type", "application/grpc"), *more]
    return frame(1, 4 | (1 if end else 0), stream, Encoder().encode(fields, huffman=False))


def serves(world: World) -> bool:
    return [svid.spiffe_id for svid in fetch_x509(world.path).svids] == [WEB]


# --- bytes ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with socket_of(tmp_path_factory.mktemp("served"), workload("web", WEB, UID)) as world:
        yield world


def throw(world: World, data: bytes) -> None:
    with connected(world) as connection, suppress(OSError):
        connection.sendall(data)
        connection.settimeout(0.02)
        while connection.recv(65536):
            pass


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.binary(max_size=2000), st.binary(max_size=2000).map(lambda data: PREFACE + SETTINGS + data)))
def test_random_bytes_end_one_connection_and_nothing_else(served: World, data: bytes) -> None:
    throw(served, data)
    assert served.server.problems() == []


FRAMES = st.builds(frame, st.integers(0, 12), st.integers(0, 255), st.sampled_from([0, 1, 2, 3, 2**31 - 1]), st.binary(max_size=60))
METHOD = "/SpiffeWorkloadAPI/FetchJWTSVID"


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(FRAMES, max_size=8), st.binary(max_size=100), st.sampled_from([METHOD, "/SpiffeWorkloadAPI/FetchX509SVID", "", "/x"]))
def test_random_frames_do_not_either(served: World, frames: list[bytes], body: bytes, path: str) -> None:
    throw(served, PREFACE + SETTINGS + headers(1, path, ("workload.spiffe.io", "true")) + frame(0, 1, 1, body) + b"".join(frames))
    assert served.server.problems() == []


def test_after_all_that_it_still_serves(served: World) -> None:
    assert serves(served)


def test_a_message_that_says_it_is_huge_is_refused_before_it_comes(served: World) -> None:
    async def ask() -> None:
        channel = Channel(path=str(served.path))
        method = UnaryUnaryMethod(channel, METHOD, workload_pb2.JWTSVIDRequest, workload_pb2.JWTSVIDResponse)
        try:
            async with method.open(metadata={"workload.spiffe.io": "true"}) as stream:
                await stream.send_request()
                await stream._stream.send_data(b"\0" + struct.pack(">I", 2**31))
                await stream.recv_message()
        finally:
            channel.close()

    with pytest.raises(GRPCError) as caught:
        asyncio.run(ask())
    assert caught.value.status is Status.RESOURCE_EXHAUSTED
    assert serves(served)


# --- floods -----------------------------------------------------------------------------------------------------------------------------


def test_one_user_cannot_have_every_connection(tmp_path: Path) -> None:
    with socket_of(tmp_path, workload("web", WEB, UID), connections=5) as world:
        held = []
        for _ in range(5):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(world.path))
            connection.sendall(PREFACE + SETTINGS)
            connection.settimeout(5)
            assert connection.recv(10)
            held.append(connection)
        with connected(world) as connection, suppress(ConnectionResetError):
            while connection.recv(1000):
                pass  # it ends at once
        for connection in held:
            connection.close()
        eventually(lambda: not world.server._connections)
        assert serves(world)


def test_a_connection_that_is_not_used_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handclasp.agent.socket.server._LOOK", 0.1)
    monkeypatch.setattr("handclasp.agent.socket.connection.FIRST_CALL", 0.3)
    with socket_of(tmp_path, workload("web", WEB, UID)) as world, connected(world) as silent, connected(world) as idle:
        idle.sendall(PREFACE + SETTINGS)
        for connection in (silent, idle):
            with suppress(ConnectionResetError):
                while connection.recv(1000):
                    pass
        assert serves(world)


def test_who_asks_and_does_not_read_fills_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket_of(tmp_path, workload("web", WEB, UID)) as world, connected(world) as connection:
        connection.sendall(PREFACE + SETTINGS)
        ping = frame(6, 0, 0, b"12345678")
        with pytest.raises(OSError):
            connection.sendall(ping * 500_000)
        assert serves(world)


def test_a_stream_that_takes_nothing_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handclasp.agent.socket.calls.SEND", 0.3)
    with socket_of(tmp_path, workload("web", WEB, UID)) as world, connected(world) as connection:
        window = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00" + struct.pack(">HI", 4, 0)  # SETTINGS_INITIAL_WINDOW_SIZE 0
        head = headers(1, "/SpiffeWorkloadAPI/FetchX509SVID", ("workload.spiffe.io", "true"))
        connection.sendall(PREFACE + window + head + frame(0, 1, 1, b"\0\0\0\0\0"))
        with suppress(ConnectionResetError):
            while connection.recv(65536):
                pass
        assert serves(world)


def test_limits_count_by_user_and_give_back() -> None:
    now = 0.0
    limits = Limits(3, lambda: now)
    assert [limits.connect(1) for _ in range(4)] == [True, True, True, False]
    assert limits.connect(2)
    limits.disconnect(1)
    assert limits.connect(1)
    everybody = Limits(10**6)
    assert sum(everybody.connect(uid) for uid in range(CONNECTIONS + 10)) == CONNECTIONS
    calls = Limits(1, lambda: now)
    assert sum(calls.begin(7) for _ in range(STREAMS + 10)) == min(STREAMS, BURST)
    assert calls.begin(8)
    for _ in range(STREAMS):
        calls.end(7)
    assert not calls.begin(7)
    now = 1.0
    assert sum(calls.begin(7) for _ in range(1000)) == 100


# --- the socket's file ------------------------------------------------------------------------------------------------------------------


def test_a_stale_file_is_replaced_and_a_served_one_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "w.sock"
    with closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(str(path))
    listener = Listener(path, 0o660)
    assert (path.stat().st_mode & 0o777) == 0o660
    with pytest.raises(HandclaspError) as caught:
        Listener(path, 0o666)
    assert caught.value.kind is Kind.CONFLICT
    assert listener.there()
    listener.close()
    assert not path.exists()
    with closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(HandclaspError) as caught:  # somebody who knows nothing of our lock
            Listener(path, 0o666)
        assert caught.value.kind is Kind.CONFLICT
    path.unlink()
    path.write_text("mine")
    with pytest.raises(HandclaspError) as caught:
        Listener(path, 0o666)
    assert (caught.value.kind, path.read_text()) == (Kind.BAD_SETTING, "mine")
    with pytest.raises(HandclaspError, match="more than 107 bytes"):
        Listener(tmp_path / ("x" * 120), 0o666)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([".w.sock.lock", "w.sock", f".{'x' * 120}.lock"])


def test_a_socket_that_cannot_be_made_is_a_problem_until_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handclasp.agent.socket.server._AGAIN", 0.1)
    monkeypatch.setattr("handclasp.agent.socket.server._LOOK", 0.1)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with socket_of(first, workload("web", WEB, UID)) as one:
        two = World(second, [workload("web", WEB, UID)])
        two.server._settings = one.settings
        with two.running():
            assert "somebody serves the socket" in two.server.problems()[0]
            one.server.stop()
            eventually(lambda: not two.server.problems())
            assert serves(one)
            one.path.unlink()
            eventually(one.path.exists, what="it is made again")
            eventually(lambda: not two.server.problems())
            assert serves(one)


def test_stopping_ends_streams_and_removes_the_file(tmp_path: Path) -> None:
    before = threading.active_count()
    with socket_of(tmp_path, workload("web", WEB, UID)) as world, connected(world) as connection:
        head = headers(1, "/SpiffeWorkloadAPI/FetchX509SVID", ("workload.spiffe.io", "true"))
        connection.sendall(PREFACE + SETTINGS + head + frame(0, 1, 1, b"\0\0\0\0\0"))
        assert connection.recv(100)
        world.server.stop()
        assert not world.path.exists()
        with suppress(ConnectionResetError):
            while connection.recv(65536):
                pass
    eventually(lambda: threading.active_count() <= before, what="every thread has ended")


# --- the process ------------------------------------------------------------------------------------------------------------------------

CHILD = """
import os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
connection.set_inheritable(True)
pid = os.fork()
if pid == 0:
    os.write(1, b"x")
    os.read(0, 1)  # the child has the connection, and its parent, who made it, is gone
os._exit(0)
"""


def accepted(tmp_path: Path, program: str, *args: str) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        argv = [sys.executable, "-c", program, str(tmp_path / "s"), *args]
        child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        connection, _ = listening.accept()
    return connection, child


def refused(do: Any) -> str:
    with pytest.raises(HandclaspError) as caught:
        do()
    assert caught.value.kind is Kind.NOT_ALLOWED
    return caught.value.detail


def test_a_connection_outlives_its_process_and_is_nobodys_then(tmp_path: Path) -> None:
    connection, child = accepted(tmp_path, CHILD)
    assert child.stdout is not None
    assert child.stdout.read(1) == b"x"
    child.wait()
    assert "gone" in refused(lambda: Process.of_peer(connection))
    connection.close()
    child.communicate()


def test_a_process_that_ends_while_it_is_known_is_noticed(tmp_path: Path) -> None:
    connection, child = accepted(
        tmp_path, "import os, socket, sys; c = socket.socket(socket.AF_UNIX); c.connect(sys.argv[1]); os.read(0, 1)"
    )
    process = Process.of_peer(connection)
    process.check()
    child.send_signal(signal.SIGKILL)
    # Not waited for: it is a zombie, whose number cannot be reused yet, and which runs nothing any more.
    eventually(lambda: _ended(process))
    child.communicate()
    refused(process.check)
    process.close()
    connection.close()


def _ended(process: Process) -> bool:
    try:
        process.check()
    except HandclaspError:
        return True
    return False


def proc(root: Path, pid: int, *, started: int = 100, uid: int = 0, gid: int = 0) -> Path:
    home = root / str(pid)
    home.mkdir(exist_ok=True)
    (home / "stat").write_text(f"{pid} (a) b) (x) S " + " ".join(["1"] * 18) + f" {started} 0 0\n")
    (home / "status").write_text(f"Name:\tx\nUid:\t0\t{uid}\t0\t0\nGid:\t0\t{gid}\t0\t0\nGroups:\t4 27 \n")
    (home / "cgroup").write_text("0::/\n")
    return home


def test_a_number_that_is_reused_is_noticed_without_a_descriptor_too(tmp_path: Path) -> None:
    home = proc(tmp_path, 42)
    process = Process(42, 0, 0, root=tmp_path)
    process.check()
    proc(tmp_path, 42, started=101)
    assert "gone" in refused(process.check)
    proc(tmp_path, 42)
    process.check()
    proc(tmp_path, 42, uid=5)
    assert "user" in refused(process.check)
    proc(tmp_path, 42, gid=5)
    assert "user" in refused(process.check)
    proc(tmp_path, 42)
    home.rename(tmp_path / "old")
    proc(tmp_path, 42, uid=5)  # another process has the number: what was opened is still the old one
    process.check()
    for name in ("stat", "status"):
        for content in ("", "x", "42 (", "Uid:\nGid:\n", "Uid: a b\nGid: c d\n"):
            kept = (tmp_path / "old" / name).read_text()
            (tmp_path / "old" / name).write_text(content)
            refused(process.check)
            (tmp_path / "old" / name).write_text(kept)
    process.close()
    refused(process.check)
    refused(lambda: Process(0, 0, 0, root=tmp_path))
    refused(lambda: Process(41, 0, 0, root=tmp_path))


def test_a_process_stays_open_while_somebody_looks_at_it(tmp_path: Path) -> None:
    proc(tmp_path, 42)
    process = Process(42, 0, 0, root=tmp_path)
    with process.in_use():
        process.close()
        assert process.read("cgroup") == b"0::/\n"
    refused(process.check)
    with pytest.raises(HandclaspError), process.in_use():
        pass


def test_what_a_peer_is_is_looked_at_again_before_each_message(tmp_path: Path) -> None:
    """A process that gets its certificate and becomes another program gets nothing more on the same connection."""
    path = str(Path("/proc/self/exe").readlink())
    program = """
import os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
connection.sendall(bytes.fromhex(sys.argv[2]))
data = b""
while b"example.org" not in data:
    data += connection.recv(65536)
os.write(1, data)
os.dup2(connection.fileno(), 0)
os.execv("/bin/cat", ["cat"])
"""
    with socket_of(tmp_path, workload("web", WEB, UID, f"unix:path:{path}")) as world:
        head = headers(1, "/SpiffeWorkloadAPI/FetchX509SVID", ("workload.spiffe.io", "true"))
        data = PREFACE + SETTINGS + head + frame(0, 1, 1, b"\0\0\0\0\0")
        child = subprocess.Popen([sys.executable, "-c", program, str(world.path), data.hex()], stdout=subprocess.PIPE)
        assert child.stdout is not None
        received = b""
        while DOMAIN.encode() not in received:
            received += os.read(child.stdout.fileno(), 65536)
        eventually(lambda: Path(f"/proc/{child.pid}/exe").readlink().name == "cat")
        time.sleep(0.05)
        world.roster.rotate(WEB)
        while not ends_stream(received):
            chunk = os.read(child.stdout.fileno(), 65536)
            assert chunk
            received += chunk
        assert received.count(b"prod/web") <= 2  # in the field and in the certificate, of the one message
        child.kill()
        child.communicate()


def test_one_users_processes_do_not_take_every_turn() -> None:
    """Executables that are long to hash, shown on as many connections as he may have."""

    async def work() -> None:
        turns, at_work, done = Turns(3), 0, asyncio.Event()

        async def slow() -> None:
            nonlocal at_work
            async with turns.of(1000):
                at_work += 1
                await done.wait()

        tasks = [asyncio.create_task(slow()) for _ in range(50)]
        await asyncio.sleep(0)
        for _ in range(5):
            async with turns.of(33):  # at once
                assert at_work == 3
        for task in tasks[10:]:
            task.cancel()
        done.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert at_work == 10
        assert turns._slots == {}
        assert not turns._waiting

    asyncio.run(asyncio.wait_for(work(), 10))
