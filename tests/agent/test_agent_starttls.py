"""STARTTLS: what each protocol says before the handshake, and that no server can make the look hang, grow or fail in another way."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclasp.agent.look import served_leaf
from handclasp.agent.targets.base import Look
from handclasp.client.starttls import STARTTLS, begin
from handclasp.pki.chains import split_pem
from support.fake_server import FakeAuthority

AUTHORITY = FakeAuthority()
MYSQL = b"\x0a8.0.36\0" + bytes(4) + b"12345678" + b"\0" + b"\xff\xff" + b"\x21" + bytes(15)
LDAP_OK = bytes.fromhex("300c02010178070a010004000400")
LDAP_LONG = bytes.fromhex("3084000000100201017884000000070a010004000400")


def packet(body: bytes, number: int = 0) -> bytes:
    return len(body).to_bytes(3, "little") + bytes([number]) + body


def script(*steps: bytes | int) -> Callable[[socket.socket], None]:
    """A server that says bytes, and reads so many bytes where a number stands (0: until the line ends)."""

    def serve(connection: socket.socket) -> None:
        for step in steps:
            if isinstance(step, bytes):
                connection.sendall(step)
                continue
            got = b""
            while (len(got) < step) if step else not got.endswith(b"\n"):
                part = connection.recv(1)
                if not part:
                    return
                got += part

    return serve


WILLING: dict[str, list[tuple[bytes | int, ...]]] = {
    "postgresql": [(8, b"S")],
    "mysql": [(packet(MYSQL), 36), (packet(MYSQL, 255), 36)],
    "smtp": [
        (b"220 mail ESMTP\r\n", 0, b"250-mail\r\n250-SIZE 1\r\n250 STARTTLS\r\n", 0, b"220 go\r\n"),
        (b"220-mail\r\n220 ESMTP\r\n", 0, b"250-mail\r\n250-starttls\r\n250 HELP\r\n", 0, b"220 2.0.0 go\r\n"),
    ],
    "imap": [(b"* OK ready\r\n", 0, b"a OK begin\r\n"), (b"* OK [CAPABILITY IMAP4rev1] ready\r\n", 0, b"* BYE no\r\na ok\r\n")],
    "ldap": [(31, LDAP_OK), (31, LDAP_LONG)],
}
UNWILLING: dict[str, list[tuple[str, tuple[bytes | int, ...]]]] = {
    "postgresql": [("does not offer", (8, b"N")), ("no PostgreSQL", (8, b"E")), ("closed", (8,))],
    "mysql": [
        ("does not offer", (packet(MYSQL.replace(b"\xff\xff", b"\xff\xf7")),)),
        (r"refuses the connection \(1129: Host is blocked\)", (packet(b"\xff\x69\x04Host is blocked"),)),
        ("no MySQL", (packet(b"\x09" + MYSQL[1:]),)),
        ("no MySQL", (packet(MYSQL[:20]),)),
        ("more before TLS", (b"\xff\xff\xff\x00",)),
        ("closed", (b"\x05\x00",)),
    ],
    "smtp": [
        ("does not offer", (b"220 mail\r\n", 0, b"250-mail\r\n250 SIZE 1\r\n")),
        ("answers '554", (b"554 no\r\n",)),
        ("answers '454", (b"220 mail\r\n", 0, b"250 STARTTLS\r\n", 0, b"454 not now\r\n")),
        ("too long", (b"2" * 5000,)),
        ("does not end", (b"220-x\r\n" * 70,)),
    ],
    "imap": [
        ("no IMAP", (b"* BYE\r\n",)),
        ("does not offer", (b"* OK\r\n", 0, b"a NO\r\n")),
        ("does not", (b"* OK\r\n", 0, b"* x\r\n" * 70)),
    ],
    "ldap": [
        ("result 52", (31, LDAP_OK.replace(bytes.fromhex("0a0100"), bytes.fromhex("0a0134")))),
        ("no LDAP", (31, b"HTTP/1.1 400\r\n" + bytes(80))),
        ("no LDAP", (31, bytes.fromhex("3080"))),
        ("more before TLS", (31, bytes.fromhex("30847fffffff"))),
    ],
}


@contextmanager
def pair(serve: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()

    def run() -> None:
        try:
            serve(theirs)
        except OSError:
            pass
        finally:
            theirs.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join()


def test_every_protocol_has_its_cases() -> None:
    assert set(WILLING) == set(UNWILLING) == set(STARTTLS)


@pytest.mark.parametrize(("protocol", "steps"), [(name, steps) for name, cases in WILLING.items() for steps in cases])
def test_a_willing_server_is_brought_to_its_handshake(tmp_path: Path, protocol: str, steps: tuple[bytes | int, ...]) -> None:
    """What follows is a TLS handshake with nothing before it: the leaf is seen."""
    chain, key = AUTHORITY.credential(dns=["localhost"])
    (tmp_path / "pem").write_bytes(chain + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            script(*steps)(connection)
            with context.wrap_socket(connection, server_side=True):
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        served = served_leaf(Look("", 0, "localhost", protocol, tmp_path / "s"), None, timeout=20)
    finally:
        thread.join()
        listener.close()
    assert served == hashlib.sha256(split_pem(chain.decode())[0]).hexdigest()


@pytest.mark.parametrize(
    ("protocol", "words", "steps"), [(name, words, steps) for name, cases in UNWILLING.items() for words, steps in cases]
)
def test_an_unwilling_server_is_told_from_others(protocol: str, words: str, steps: tuple[bytes | int, ...]) -> None:
    with pair(script(*steps)) as connection, pytest.raises(OSError, match=words):
        begin(protocol, connection, timeout=20)


@pytest.mark.parametrize("protocol", sorted(STARTTLS))
def test_a_server_that_drips_has_no_more_time_than_others(protocol: str) -> None:
    """A byte now and then keeps each single read alive, but not the whole of it."""
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        for byte in (WILLING[protocol][0][0] if isinstance(WILLING[protocol][0][0], bytes) else b"0\x82\x7f" + b"\xff" * 50) * 50:
            connection.sendall(b"-" if protocol in ("smtp", "imap") else bytes([byte]))
            if stop.wait(0.05):
                return

    with pair(drip) as connection:
        started = time.monotonic()
        with pytest.raises(OSError):
            begin(protocol, connection, timeout=0.3)
        stop.set()
        assert time.monotonic() - started < 10


SAID = [b"220 a\r\n", b"250 STARTTLS\r\n", b"* OK\r\n", b"a OK\r\n", b"S", packet(MYSQL), LDAP_OK, LDAP_LONG, b"\n" * 100]


@settings(max_examples=60)
@given(st.sampled_from(sorted(STARTTLS)), st.lists(st.binary(max_size=60) | st.sampled_from(SAID), max_size=6))
def test_nothing_that_a_server_says_escapes_as_anything_but_an_oserror(protocol: str, parts: list[bytes]) -> None:
    def serve(connection: socket.socket) -> None:
        for part in parts:
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass

    with pair(serve) as connection:
        try:
            begin(protocol, connection, timeout=20)
        except OSError:
            pass
        finally:
            connection.close()
