"""The client of sources against servers that mean no good: files it must not read, addresses it must not reach, answers without an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from handclasp.discovery import http
from handclasp.discovery.source import Scope
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind
from support.sources import tools

Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(talk: Conversation) -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await talk(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def answering(data: bytes) -> Conversation:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return talk


def body(content: bytes, *headers: str) -> Conversation:
    head = "".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", f"content-length: {len(content)}", *headers))
    return answering(head.encode() + b"\r\n" + content)


async def dripping(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def ask(server: http.Http, pieces: bool) -> None:
    if not pieces:
        await server.json("/", type_=Any)
        return
    async for _ in server.chunks("/"):
        pass


def kind_of(talk: Conversation, *, pieces: bool = False) -> tuple[Kind, str]:
    """Return how asking such a server ends."""

    async def run() -> tuple[Kind, str]:
        async with listening(talk) as url, tools().http(url, max_answer=100_000, timeout=5) as server:
            with pytest.raises(HandclaspError) as caught:
                await ask(server, pieces)
            return caught.value.kind, caught.value.detail

    return asyncio.run(run())


@pytest.mark.parametrize("pieces", [False, True])
def test_an_answer_that_never_ends_does_not_keep_a_worker(monkeypatch: pytest.MonkeyPatch, pieces: bool) -> None:
    monkeypatch.setattr(http, "WHOLE", 0.3)
    kind, detail = kind_of(dripping, pieces=pieces)
    assert kind is Kind.TIMEOUT
    assert "the end of its answer" in detail


@pytest.mark.parametrize(
    ("talk", "kind"),
    [
        (body(b"[" * 90_000), Kind.UNAVAILABLE),
        (body(b"x" * 100_001), Kind.TOO_LARGE),
        (body(b"\x1f\x8b" + b"\0" * 100, "content-encoding: gzip"), Kind.UNAVAILABLE),
        (answering(b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n"), Kind.UNAVAILABLE),
        (answering(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000), Kind.UNAVAILABLE),
    ],
)
def test_answers_that_are_up_to_something(talk: Conversation, kind: Kind) -> None:
    assert kind_of(talk)[0] is kind


@pytest.mark.parametrize("name", ["/etc/shadow", "../../etc/shadow", "link", "a\0b", "sub/../../x"])
def test_files_outside_the_directory_for_them_are_not_read(tmp_path: Path, name: str) -> None:
    home = tmp_path / "sources"
    home.mkdir()
    (home / "link").symlink_to("/etc/passwd")
    (tmp_path / "x").write_text("not this")
    for what in ("token_file", "ca_file", "certificate_file"):
        with pytest.raises(HandclaspError) as caught:
            asyncio.run(get(tools(secrets=home), {what: name}))
        assert caught.value.kind is Kind.BAD_SETTING


async def get(with_: Tools, files: dict[str, Any]) -> None:
    async with with_.http("https://192.0.2.1", **files) as server:
        await server.get("/")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "169.254.169.254", "fe80::1", "64:ff9b::a9fe:a9fe", "::ffff:10.1.2.3", "10.1.2.3"],
)
def test_where_no_source_goes_unless_its_scope_says_so(address: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        tools(scope=Scope(deny=["10.0.0.0/8"])).check_address(address)
    assert caught.value.kind is Kind.NOT_ALLOWED
