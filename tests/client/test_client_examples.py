"""The examples, run for real with rotation while requests go on: nothing may fail."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import httpx2
import pytest

from handclasp.client import TLSContext
from support.fake_server import DOMAIN, FakeAuthority
from support.tls import API, WEB, echo, write
from support.waiting import eventually

ROTATIONS = 20


def example(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def ask(port: int, tls: TLSContext, *, times: int) -> list[bytes]:
    """Ask the asyncio example several times over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls.client_context(peers=[API]), server_hostname="localhost")
    answers = []
    for _ in range(times):
        writer.write(b"hello\n")
        answers.append(await reader.readline())
        await asyncio.sleep(0)
    writer.close()
    await writer.wait_closed()
    return answers


def test_the_asyncio_server_greets_by_identity_through_every_rotation(tmp_path: Path) -> None:
    authority = FakeAuthority()
    write(tmp_path / "s", authority, API)
    write(tmp_path / "c", authority, WEB)

    async def main() -> list[bytes]:
        server = await example("asyncio_server").start(str(tmp_path / "s"), 0, [f"spiffe://{DOMAIN}/prod/*"])
        port, tls = server.sockets[0].getsockname()[1], TLSContext.from_directory(tmp_path / "c")
        answers: list[bytes] = []
        async with server:
            for _ in range(ROTATIONS):
                write(tmp_path / "s", authority, API)
                write(tmp_path / "c", authority, WEB)
                for got in await asyncio.gather(*(ask(port, tls, times=3) for _ in range(3))):
                    answers += got
        return answers

    assert asyncio.run(main()) == [f"{WEB}: hello\n".encode()] * (ROTATIONS * 9)


@pytest.fixture
def uvicorn_example(tmp_path: Path) -> object:
    authority = FakeAuthority()
    write(tmp_path / "s", authority, API)
    write(tmp_path / "c", authority, WEB)
    server = example("uvicorn_server").make_server(str(tmp_path / "s"), 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started, what="uvicorn starts")

    def rotate() -> None:
        write(tmp_path / "s", authority, API)
        write(tmp_path / "c", authority, WEB)

    yield server.servers[0].sockets[0].getsockname()[1], str(tmp_path / "c"), rotate
    server.should_exit = True
    thread.join()


def test_uvicorn_and_httpx2_through_every_rotation(uvicorn_example: tuple[int, str, Callable[[], None]]) -> None:
    port, directory, rotate = uvicorn_example
    url, answers, over = f"https://127.0.0.1:{port}/", [], threading.Event()
    make_client = example("httpx2_client").make_client

    def keep_asking() -> None:
        # One client with its kept-alive connections, and fresh ones that handshake each time.
        client = make_client(directory, [API])
        with client:
            while not over.is_set():
                answers.append(client.get(url).text)
                answers.append(client.get(url, headers={"Connection": "close"}).text)

    asker = threading.Thread(target=keep_asking)
    asker.start()
    for _ in range(ROTATIONS):
        asked = len(answers)
        rotate()
        eventually(lambda asked=asked: len(answers) > asked + 2 or not asker.is_alive())
    over.set()
    asker.join()
    assert len(answers) >= ROTATIONS * 2
    assert set(answers) == {"hello\n"}


def test_httpx2_follows_what_it_shows(tmp_path: Path) -> None:
    """The certificate that the server sees is the newest at each new connection."""
    authority = FakeAuthority()
    write(tmp_path / "s", authority, API)
    write(tmp_path / "c", authority, WEB)
    server = TLSContext.from_directory(tmp_path / "s")
    with echo(server.server_context()) as (port, peers), example("httpx2_client").make_client(str(tmp_path / "c"), [API]) as client:
        for name in (WEB, f"{WEB}-2", f"{WEB}-3"):
            write(tmp_path / "c", authority, name)
            with pytest.raises(httpx2.HTTPError):  # an echo is no HTTP server; only its handshake matters here
                client.get(f"https://127.0.0.1:{port}/", timeout=5)
            eventually(lambda name=name: peers and peers[-1] == name)
