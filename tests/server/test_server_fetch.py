"""Fetching what others name: which addresses, over which connections, how much of an answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from handclasp.errors import HandclaspError, Kind
from handclasp.server.fetch import MAX_ANSWER, Fetcher


def certificate(directory: Path, name: str) -> Path:
    """Return a PEM file with a key and a self-signed certificate for one name."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = directory / f"{name}.pem"
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    return file


@contextlib.asynccontextmanager
async def serving(body: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, list[int]]]:
    """Answer every request on 127.0.0.1 with ``body``, and keep connections open; yields the port, and a list with an item a connection."""
    connections: list[int] = []
    open_: set[asyncio.StreamWriter] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(0)
        open_.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                await reader.readexactly(length[0] if length else 0)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1], connections
    finally:
        server.close()
        for writer in open_:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every name resolve to 127.0.0.1."""

    async def here(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", here)


@pytest.mark.usefixtures("names")
def test_a_connection_verified_for_one_name_does_not_serve_another_on_the_same_address(tmp_path: Path) -> None:
    file = certificate(tmp_path, "a.example.org")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file)

    async def run() -> None:
        async with serving(b"keys", tls) as (port, connections):
            fetcher = Fetcher(insecure=True, trust=ssl.create_default_context(cafile=file))
            assert await fetcher.get(f"https://a.example.org:{port}/") == b"keys"
            with pytest.raises(HandclaspError) as refused:
                await fetcher.get(f"https://b.example.org:{port}/")
            assert refused.value.kind is Kind.UNAVAILABLE
            assert await fetcher.get(f"https://a.example.org:{port}/") == b"keys"
            assert len(connections) == 2  # of b's, the handshake failed
            await fetcher.close()

    asyncio.run(run())


def test_an_answer_above_the_limit_is_refused() -> None:
    async def run(size: int) -> bytes:
        async with serving(b"x" * size) as (port, _):
            fetcher = Fetcher(insecure=True)
            try:
                return await fetcher.get(f"http://127.0.0.1:{port}/")
            finally:
                await fetcher.close()

    assert len(asyncio.run(run(MAX_ANSWER))) == 256 * 1024
    with pytest.raises(HandclaspError) as refused:
        asyncio.run(run(MAX_ANSWER + 1))
    assert refused.value.kind is Kind.UNAVAILABLE


def test_a_witness_may_be_on_plain_http_and_here_and_what_others_name_may_not() -> None:
    async def run() -> None:
        async with serving(b"signed") as (port, _):
            fetcher = Fetcher()
            assert await fetcher.post(f"http://127.0.0.1:{port}/add-checkpoint", b"x") == (200, b"signed")
            for url in (f"http://127.0.0.1:{port}/", f"https://127.0.0.1:{port}/", f"http://issuer.example.org:{port}/"):
                with pytest.raises(HandclaspError) as refused:
                    await fetcher.get(url)
                assert refused.value.kind is Kind.NOT_ALLOWED, url
            await fetcher.close()

    asyncio.run(run())


@pytest.mark.parametrize("host", ["169.254.169.254", "metadata.google.internal", "[fe80::1]", "100.100.100.200", "0.0.0.0", "224.0.0.1"])
def test_a_witness_is_not_a_metadata_service_or_link_local(host: str) -> None:
    with pytest.raises(HandclaspError) as refused:
        asyncio.run(Fetcher().post(f"http://{host}/add-checkpoint", b""))
    assert refused.value.kind is Kind.NOT_ALLOWED
