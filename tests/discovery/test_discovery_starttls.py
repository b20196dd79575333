"""Servers that begin in plain text, the real ones: what is seen of them is what they were given, and what they do not offer is said."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from handclasp.discovery.source import Scope
from support.network import counted, covered, der, listening, make, only, read
from support.starttls import PROGRAMS, Given, running

HERE = Scope(allow=["127.0.0.1"])
NAMES_AUTHORITIES = sorted(set(PROGRAMS) - {"mysql"})  # MariaDB asks everybody for a certificate, and never says whose


def pair(directory: Path, name: str) -> tuple[bytes, bytes]:
    return (directory / f"{name}.pem").read_bytes(), (directory / f"{name}.key").read_bytes()


@pytest.mark.parametrize("protocol", sorted(PROGRAMS))
def test_a_real_server_its_chain_and_its_wish_for_a_client_certificate(tmp_path: Path, protocol: str) -> None:
    authority = make(tmp_path, "CA")
    make(tmp_path, "Clients")
    issuer = (authority, load_pem_private_key((tmp_path / "CA.key").read_bytes(), None))
    leaf = make(tmp_path, "localhost", "rsa" if protocol == "ldap" else "ecdsa", issuer=issuer)
    certificate, key = pair(tmp_path, "localhost")
    given = Given([(certificate + (tmp_path / "CA.pem").read_bytes(), key)], (tmp_path / "Clients.pem").read_bytes())
    with running(protocol, given) as port:
        items = read(HERE, ports=[f"{port}/{protocol}"])
    one = only(items)
    assert one.problem is None
    (seen,) = one.certificates
    assert (seen.der, seen.chain) == (der(leaf), [der(authority)])
    assert (one.details["protocol"], one.details["client_certificate"]) == (protocol, "requested")
    assert one.details.get("acceptable_authorities") == (["CN=Clients"] if protocol in NAMES_AUTHORITIES else None)
    assert counted(items) == (1, 1, 0)
    assert covered(items) == ["127.0.0.1/32"]


@pytest.mark.parametrize("protocol", sorted(PROGRAMS))
def test_a_real_server_that_does_not_offer_tls_says_so(protocol: str) -> None:
    with running(protocol, Given()) as port:
        one = only(read(HERE, ports=[f"{port}/{protocol}"]))
    assert one.problem is not None
    assert "does not offer" in one.problem


@pytest.mark.parametrize("protocol", ["smtp", "imap"])
def test_both_leaves_of_a_mail_server(tmp_path: Path, protocol: str) -> None:
    leaves = [make(tmp_path, kind, kind) for kind in ("rsa", "ecdsa")]
    with running(protocol, Given([pair(tmp_path, kind) for kind in ("rsa", "ecdsa")])) as port:
        one = only(read(HERE, ports=[f"{port}/{protocol}"]))
    assert {seen.der for seen in one.certificates} == {der(leaf) for leaf in leaves}
    assert one.details["client_certificate"] == "not requested"


MYSQL = bytes.fromhex("270000000a") + b"8.0.36\0" + bytes(4) + b"12345678" + b"\0" + b"\xff\xff" + b"\x21" + bytes(15)


def test_a_mysql_is_asked_once_because_it_counts(tmp_path: Path) -> None:
    """It shuts out who broke off too many connections, and it has one certificate and no more."""
    leaf = make(tmp_path, "db")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "db.pem", tmp_path / "db.key")
    asked: list[int] = []

    def handle(connection: socket.socket) -> None:
        asked.append(1)
        connection.sendall(MYSQL)
        assert len(connection.recv(36, socket.MSG_WAITALL)) == 36
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(1)

    with listening(handle) as port:
        one = only(read(HERE, ports=[f"{port}/mysql"]))
    assert [seen.der for seen in one.certificates] == [der(leaf)]
    assert len(asked) == 1


def stalling(said: bytes) -> Callable[[socket.socket], object]:
    return lambda connection: (connection.sendall(said), threading.Event().wait(1.2))


@pytest.mark.parametrize(
    ("protocol", "said"),
    [("smtp", b"220-wait\r\n"), ("smtp", b"220 mail\r\n"), ("imap", b"* OK ready\r\n"), ("mysql", MYSQL[:20]), ("mysql", MYSQL),
     ("postgresql", b""), ("postgresql", b"S"), ("ldap", b"\x30")],
)  # fmt: skip
def test_a_server_that_begins_and_then_stalls_is_a_problem_and_no_absence(protocol: str, said: bytes) -> None:
    with listening(stalling(said)) as port:
        one = only(read(HERE, ports=[f"{port}/{protocol}"], timeout="200ms"))
    assert one.problem == f"no handshake within {0.6 if protocol == 'smtp' else 0.2} s"


def test_a_mail_server_may_let_its_guests_wait(tmp_path: Path) -> None:
    leaf = make(tmp_path, "mail")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "mail.pem", tmp_path / "mail.key")

    def handle(connection: socket.socket) -> None:
        connection.sendall(b"220-wait\r\n")
        threading.Event().wait(0.6)
        for said in (b"220 mail\r\n", b"250-mail\r\n250 STARTTLS\r\n", b"220 go\r\n"):
            connection.sendall(said)
            if said != b"220 go\r\n":
                connection.recv(100)
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(1)

    with listening(handle) as port:
        one = only(read(HERE, ports=[f"{port}/smtp"], timeout="500ms", both=False))
    assert [seen.der for seen in one.certificates] == [der(leaf)]
