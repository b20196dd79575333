"""One agent, as the program it is, looks after real services: certificates of seconds, constant traffic, and no failed request.

nginx, HAProxy and PostgreSQL run under their presets, and begin like on a new host: the agent is there first, they start with its files.
Then everything that can go wrong with a delivery goes wrong, and nginx goes on serving what it has.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from handclasp import wire
from handclasp.agent import enroll, status
from handclasp.agent.state import StateDirectory, TargetState
from handclasp.agent.status import IdentityStatus
from handclasp.client.settings import ClientSettings
from support.agents import start_process
from support.fake_server import DOMAIN, FakeServer
from support.services import HAProxy, Nginx, PostgreSQL, Service, Traffic, Visitor
from support.waiting import eventually

TIMES = 20


@dataclass
class Host:
    """A host with services, an enrolled agent and its configuration."""

    home: Path
    server: FakeServer
    services: list[Service]
    ttl: str
    seen: dict[str, list[str]] = field(default_factory=dict)

    @staticmethod
    def identity(service: Service) -> str:
        return f"spiffe://{DOMAIN}/prod/{service.preset}"

    def configure(self) -> None:
        settings = ClientSettings(self.server.url, self.server.root_fingerprint)
        enroll(settings, self.server.token(), self.home / "state", "host1", {})
        self.write()

    def write(self) -> None:
        common = {"dns": ["localhost"], "ttl": self.ttl}
        identities = [{"identity": self.identity(one), **common, "targets": [one.target()]} for one in self.services]
        (self.home / "agent.yaml").write_text(json.dumps({"poll": "1s", "identities": identities}))

    @contextmanager
    def agent(self) -> Iterator[Any]:
        with start_process(self.home / "agent.yaml") as process:
            try:
                yield process
            finally:
                process.send_signal(signal.SIGTERM)
                code = process.wait(30)
            assert code == 0, process.stderr and process.stderr.read()

    def issued(self, service: Service) -> list[str]:
        return [sha256 for sha256, record in self.server.records.items() if record.identity == self.identity(service)]

    def status(self, service: Service) -> IdentityStatus:
        return next(one for one in status(self.home / "state").identities if one.identity == self.identity(service))

    def is_ok(self, service: Service) -> bool:
        with contextlib.suppress(StopIteration):
            one = self.status(service)
            return (one.state, one.sha256) == ("ok", service.serves())
        return False

    def look(self) -> int:
        """Look at what every service serves, and return how often the slowest of them has changed its certificate."""
        for service in self.services:
            served, seen = service.serves(), self.seen.setdefault(service.preset, [])
            if served and served not in seen:
                seen.append(served)
        return min(map(len, self.seen.values())) - 1


@contextmanager
def host(home: Path, *kinds: type[Service], ttl: str, window: tuple[float, float] = (0.2, 0.25)) -> Iterator[tuple[Host, Visitor]]:
    with FakeServer(window=window) as server:  # the agent's own certificate lives as long as usual
        made = Host(home, server, [kind(home / kind.preset) for kind in kinds], ttl)
        made.configure()
        yield made, Visitor.of(server.authority, home / "visitor")
        server.assert_content()


def test_three_services_rotate_twenty_times_each_under_traffic_and_no_request_fails(tmp_path: Path) -> None:
    kinds, window = (Nginx, HAProxy, PostgreSQL), (0.1, 0.12)  # renewed after two seconds, and good for eighteen more
    with host(tmp_path, *kinds, ttl="20s", window=window) as (here, visitor), here.agent(), ExitStack() as stack:
        for service in here.services:
            eventually(lambda service=service: (service.tls / "current").exists(), what="the files are there")
            stack.enter_context(service.running(visitor))
        for service in here.services:
            eventually(lambda service=service: here.is_ok(service), what=f"{service.preset} is taken over")
        callers = [stack.enter_context(Traffic(service, visitor)) for service in here.services]
        enough = 10 * TIMES
        eventually(
            lambda: (here.look() >= TIMES and all(one.requests > enough for one in callers)) or any(one.failures for one in callers),
            180,
            "twenty rotations under traffic",
        )
        for service, caller in zip(here.services, callers, strict=True):
            assert caller.failures == [], service.preset
            assert caller.requests > enough
            issued, seen = here.issued(service), here.seen[service.preset]
            assert [sha256 for sha256 in issued if sha256 in seen] == seen, "one after the other, and nothing but what was issued"
            assert len(seen) > TIMES
            assert len(set(server_keys(here, issued))) == len(issued), "each with a key of its own"
            place = here.status(service).targets[0]
            assert (place.state in ("ok", "pending"), place.last_failure) == (True, None)


def server_keys(here: Host, issued: list[str]) -> list[bytes]:
    return [here.server.records[sha256].spki for sha256 in issued]


class Troubled(Nginx):
    """An nginx whose reload fails while there is a file ``refuse``, and does nothing while there is a file ``deaf``."""

    def overrides(self) -> dict[str, Any]:
        usual = super().overrides()
        script = "if [ -e refuse ]; then echo not today; exit 3; fi; if [ -e deaf ]; then exit 0; fi; "
        command = ["sh", "-c", f"cd {self.home}; {script} exec {shlex.join(usual['reload']['command'])}"]
        return usual | {"reload": {"command": command}, "timeout": "2s"}


def test_whatever_fails_the_old_certificate_is_served_and_it_is_tried_again(tmp_path: Path) -> None:
    with host(tmp_path, Troubled, ttl="16s") as (here, visitor), here.agent(), ExitStack() as stack:
        nginx = here.services[0]
        assert isinstance(nginx, Troubled)
        eventually(lambda: (nginx.tls / "current").exists(), what="the files are there")
        stack.enter_context(nginx.running(visitor))
        eventually(lambda: here.is_ok(nginx), what="it is taken over")
        with Traffic(nginx, visitor) as traffic:
            with trouble(here, "validate: ", "unknown directive"):
                nginx.conf.write_text(nginx.text + "nonsense;\n")
            nginx.conf.write_text(nginx.text)
            mended(here)
            for name, words in (
                ("refuse", ("reload: sh ended with status 3", "not today")),
                ("deaf", ("serves the certificate", "and not")),
            ):
                with trouble(here, *words):
                    (nginx.home / name).touch()
                (nginx.home / name).unlink()
                mended(here)
            damaged_answers(here)
        assert traffic.failures == []


@contextmanager
def trouble(here: Host, *words: str) -> Iterator[None]:
    """Cause trouble in the body. Then the certificate from before is served, and there is one finding with the next attempt set."""
    nginx = here.services[0]
    before = nginx.serves()
    yield
    eventually(lambda: target(here).failures > 0 or nginx.serves() != before, what="a delivery fails")
    if nginx.serves() != before:  # the delivery before it was still under way
        before = nginx.serves()
        eventually(lambda: target(here).failures > 0, what="a delivery fails")
    state = target(here)
    for word in (*words, "the previous certificate is back in place"):
        assert word in state.last_failure
    assert nginx.serves() == before
    assert state.next_attempt > state.last_success
    told = here.status(nginx)
    assert (told.state, [one.state for one in told.targets]) == ("failed", ["failed"])
    eventually(lambda: reported(here).state == "failed", what="the server hears of it")
    assert [one.last_failure is not None and words[0] in one.last_failure for one in reported(here).targets] == [True]


def target(here: Host) -> TargetState:
    store = StateDirectory(here.home / "state").identity(here.identity(here.services[0]))
    return next(iter(store.load().targets.values()))


def reported(here: Host) -> wire.AgentIdentity:
    return next(one for one in here.server.reports[-1][1].identities if one.identity == here.identity(here.services[0]))


def mended(here: Host) -> None:
    eventually(lambda: here.is_ok(here.services[0]), what="it recovers by itself")
    eventually(lambda: reported(here).state == "ok", what="the server hears of it")


def damaged_answers(here: Host) -> None:
    """What the server answers is a certificate for another key: it never gets as far as a file that nginx reads."""
    nginx, issue = here.services[0], here.server.authority.issue
    before, count = nginx.serves(), len(here.issued(nginx))
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    here.server.authority.issue = lambda _key, **names: issue(other, **names)  # type: ignore[method-assign]
    eventually(lambda: len(here.issued(nginx)) > count and here.status(nginx).last_failure, what="the answer is refused")
    assert "does not belong" in (here.status(nginx).last_failure or "")
    assert (nginx.serves(), here.status(nginx).sha256) == (before, before)
    here.server.authority.issue = issue  # type: ignore[method-assign]
    eventually(lambda: here.is_ok(nginx) and nginx.serves() != before, what="it recovers by itself")
