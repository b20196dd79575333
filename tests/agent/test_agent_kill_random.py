"""kill -9 of the agent at two hundred random moments: no service ever sees a key that does not match its certificate."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import ssl
import threading
import time
from pathlib import Path

from handclasp.agent import status
from handclasp.client import TLSContext
from support.agents import Nursery, prepare
from support.fake_server import DOMAIN, FakeServer
from support.waiting import eventually

KILLS = 200
NAMES = [f"spiffe://{DOMAIN}/n/{number}" for number in range(8)]


class Reader(threading.Thread):
    """Opens certificate and key through the link, again and again, as a service does that starts or reloads."""

    def __init__(self, places: list[Path]) -> None:
        super().__init__(daemon=True)
        self.places, self.stop = places, threading.Event()
        self.reads, self.seen, self.wrong = 0, set(), []

    def run(self) -> None:
        while not self.stop.wait(0.001):
            for place in self.places:
                self.read(place)

    def read(self, place: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            before = (place / "current").readlink()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            try:
                context.load_cert_chain(place / "current" / "cert.pem", place / "current" / "key.pem")
                context.load_verify_locations(place / "current" / "bundle.pem")
            except ssl.SSLError as error:
                # Files that are opened one after the other may be of two generations, however they are changed: those do not count.
                if (place / "current").readlink() == before:
                    self.wrong.append(f"{place}: {error}")
            self.reads += 1
            self.seen.add((place, before))


def test_killed_at_random_moments(tmp_path: Path) -> None:
    chance = random.Random(7)
    with FakeServer() as server:
        more = "".join(f"  - identity: {name}\n    targets: [{{directory: t{number}}}]\n" for number, name in enumerate(NAMES))
        config = prepare(server, tmp_path, more=more)
        server.ttl, server.window = 3, (0.05, 0.1)  # the agent's own lives an hour; the others are always about to be renewed
        reader = Reader([tmp_path / f"t{number}" for number in range(len(NAMES))])
        with Nursery(config) as nursery:
            reader.start()
            for _ in range(KILLS):
                process = nursery.start()
                time.sleep(chance.uniform(0.005, 0.25))
                os.kill(process, signal.SIGKILL)
                assert nursery.reap() == -signal.SIGKILL
                assert not reader.wrong
            server.ttl, server.window = 3600, (0.5, 0.6)
            process = nursery.start()
            eventually(lambda: catches(process, signal.SIGTERM), what="it can be told to stop")
            eventually(lambda: all(one.state == "ok" for one in status(tmp_path / "state").identities), what="it recovers by itself")
            eventually(lambda: all(delivered(tmp_path, number) == server.newest(name) for number, name in enumerate(NAMES)))
            os.kill(process, signal.SIGTERM)
            assert nursery.reap() == 0
        reader.stop.set()
        reader.join()
        assert not reader.wrong
        assert reader.reads > 1000
        assert len(reader.seen) > 2 * len(NAMES), "generations came and went meanwhile (how many depends on the machine)"
        assert [path for path in tmp_path.rglob(".*") if path.name.startswith((".new-", ".current-"))] == []
        server.assert_content()


def catches(process: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for a signal (proc_pid_status(5))."""
    text = Path(f"/proc/{process}/status").read_text()
    caught = int(next(line for line in text.splitlines() if line.startswith("SigCgt:")).split()[1], 16)
    return bool(caught >> (number - 1) & 1)


def delivered(root: Path, number: int) -> str:
    return TLSContext.from_directory(root / f"t{number}").sha256
