"""Simulated agents: a process of its own that behaves towards a server as many agents would, and prints what it saw as JSON.

Each agent has a certificate of its own, keeps one mutual TLS connection, and in each poll interval asks for renewal windows and for its
bundle and reports. It renews the certificate that it looks after over a connection of its own, with a new key, at a point that it drew
from the server's window. Time runs faster than in life: the poll interval and the lifetimes are short. Bounded by the plan's duration.

The plan is the first line of standard input; a line with a word in it on standard output tells that a phase begins; an end of standard
input ends the run early.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from handclasp.api.fleet import SLACK, SLACK_PART
from handclasp.clock import parse_rfc3339

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where files that live for a moment cost no disk."""


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes, bytes]] | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or self._answer is None:
            return
        lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if len(body) >= (lengths[0] if lengths else 0):
            answer, self._answer, self._buffer = self._answer, None, b""
            answer.set_result((int(head[9:12]), head, body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the server closed the connection"))

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await asyncio.wait_for(self._answer, 60)


@dataclass
class Fleet:
    """What all agents share, and what came of it."""

    plan: dict[str, Any]
    directory: Path
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    requests: Counter[int] = field(default_factory=Counter)
    renewals: Counter[int] = field(default_factory=Counter)
    renewed: int = 0
    missed: int = 0
    failures: list[str] = field(default_factory=list)
    started: int = 0

    def context(self, credential: str) -> ssl.SSLContext:
        """Return a client's context; ``credential`` is key and certificates in one PEM.

        The server is verified when the fleet enrols. Thousands of hosts would each do it again; one process would only be slower.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        file = self.directory / f"{random.getrandbits(64):x}.pem"
        file.write_text(credential)
        context.load_cert_chain(file)
        file.unlink()
        return context

    async def connect(self, context: ssl.SSLContext) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, self.plan["host"], self.plan["port"], ssl=context, server_hostname=self.plan["host"]
        )
        return connection

    def request(self, method: str, path: str, body: Any = None, headers: str = "") -> bytes:
        data = json.dumps(body).encode() if body is not None else b""
        kind = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n" if body is not None else ""
        return f"{method} {path} HTTP/1.1\r\nHost: {self.plan['host']}\r\n{kind}{headers}\r\n".encode() + data

    def count(self) -> None:
        self.requests[int(time.time())] += 1


class Held:
    """A certificate with its key, and when it is to be renewed."""

    def __init__(self, issued: dict[str, Any], key: str) -> None:
        self.sha256, self.not_after = issued["sha256"], issued["not_after"]
        self.credential = key + issued["certificate"] + issued["chain"]
        self.draw(issued["renew_after"], issued["renew_before"])

    @property
    def is_missed(self) -> bool:
        """Whether the server counts its renewal as missed (``handclasp.api.fleet``): past its window, and a moment more."""
        left = parse_rfc3339(self.not_after) / 1000 - self.renew_before
        return time.time() > self.renew_before + min(SLACK / 1000, left / SLACK_PART)

    def draw(self, after: str, before: str) -> None:
        """Draw the moment of its renewal from a window."""
        begin, self.renew_before = parse_rfc3339(after) / 1000, parse_rfc3339(before) / 1000
        self.renew_at = begin + (self.renew_before - begin) * random.random()


class Agent:
    """One agent with one identity to look after beside its own."""

    def __init__(self, fleet: Fleet, number: int, own: Held) -> None:
        self.fleet, self.number = fleet, number
        self.identity = f"{fleet.plan['identity']}/n{number}"
        self.own, self.web = own, own
        self.context = fleet.context(own.credential)
        self.connection: Connection | None = None
        self.tag = self.etag = ""

    async def run(self) -> None:
        poll = self.fleet.plan["poll"]
        try:
            await self._sleep(time.time() + poll * random.random())
            await self._obtain()
            self.fleet.started += 1
            asks, reports = time.time() + poll * random.random(), time.time() + poll * random.random()
            while not self.fleet.stop.is_set():
                await self._sleep(min(asks, reports, self.own.renew_at, self.web.renew_at))
                now = time.time()
                if now >= self.web.renew_at:
                    self.web = await self._renew(self.web, self.fleet.plan["ttl"])
                    reports = min(reports, now + 0.5)
                if now >= self.own.renew_at:
                    self.own = await self._renew(self.own, None)
                    self.context = self.fleet.context(self.own.credential)
                    self._hang_up()
                if now >= asks:
                    asks = now + poll * random.uniform(0.75, 1.25)
                    await self._poll()
                if now >= reports:
                    reports = now + poll * random.uniform(0.75, 1.25)
                    await self._report()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # counted, and shown
            self.fleet.failures.append(f"{type(error).__name__}: {error}"[:300])
        finally:
            self._hang_up()

    @property
    def missed(self) -> int:
        """How many of the certificates that it holds should have been renewed."""
        return sum(one.is_missed for one in {self.own, self.web})

    def _hang_up(self) -> None:
        if self.connection is not None:
            self.connection.transport.abort()
            self.connection = None

    async def _sleep(self, until: float) -> None:
        if (seconds := until - time.time()) > 0:
            try:
                await asyncio.wait_for(self.fleet.stop.wait(), seconds)
            except TimeoutError:
                return

    async def _ask(self, method: str, path: str, body: Any = None, headers: str = "") -> tuple[int, bytes, bytes]:
        if self.connection is None or self.connection.closed:
            self.connection = await self.fleet.connect(self.context)
        self.fleet.count()
        status, head, answer = await self.connection.ask(self.fleet.request(method, path, body, headers))
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {answer[:200]!r}")
        return status, head, answer

    async def _obtain(self) -> None:
        key, csr = new_request()
        body = {"csr": csr, "identity": self.identity, "profile": "workload", "ttl": self.fleet.plan["ttl"]}
        _, _, answer = await self._ask("POST", "/v1/certificates", body)
        self.web = Held(json.loads(answer), key)

    async def _renew(self, held: Held, ttl: str | None) -> Held:
        """Renew as the holder, over a connection of its own."""
        key, csr = new_request()
        connection = await self.fleet.connect(self.fleet.context(held.credential))
        try:
            self.fleet.count()
            self.fleet.renewals[int(time.time())] += 1
            body = {"csr": csr} | ({"ttl": ttl} if ttl else {})
            status, _, answer = await connection.ask(self.fleet.request("POST", f"/v1/certificates/{held.sha256}:renew", body))
        finally:
            connection.transport.abort()
        if status != 201:
            raise RuntimeError(f"renewal: {status} {answer[:200]!r}")
        self.fleet.renewed += 1
        self.fleet.missed += held.is_missed
        self.tag = ""
        return Held(json.loads(answer), key)

    async def _poll(self) -> None:
        held = {one.sha256: one for one in (self.own, self.web)}
        _, _, answer = await self._ask("POST", "/v1/certificates:renewal-info", {"certificates": list(held), "tag": self.tag})
        told = json.loads(answer)
        self.tag = told["tag"]
        for item in told["items"]:
            if parse_rfc3339(item["renew_before"]) / 1000 < held[item["sha256"]].renew_at:
                held[item["sha256"]].draw(item["renew_after"], item["renew_before"])
        headers = f"If-None-Match: {self.etag}\r\n" if self.etag else ""
        status, head, _ = await self._ask("GET", f"/v1/bundles/{self.fleet.plan['trust_domain']}.pem", headers=headers)
        if status == 200:
            self.etag = next(line[6:] for line in head.decode().split("\r\n") if line.lower().startswith("etag: "))

    async def _report(self) -> None:
        held = {"sha256": self.web.sha256, "state": "ok"}
        told = {"identity": self.identity, "not_after": self.web.not_after, **held, "targets": [{"name": "/etc/web/tls", **held}]}
        await self._ask("PUT", "/v1/agents/self", {"hostname": f"host-{self.number}", "version": "bench", "identities": [told]})


def new_request() -> tuple[str, str]:
    """Return a new key and a CSR over it, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return pem, csr.public_bytes(Encoding.PEM).decode()


async def enrol(fleet: Fleet) -> list[Held]:
    """Obtain every agent's own certificate with the token, many in a request."""
    made = [new_request() for _ in range(fleet.plan["agents"])]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=fleet.plan["ca"])
    connection = await fleet.connect(context)
    held: list[Held] = []
    for start in range(0, len(made), 250):
        some = made[start : start + 250]
        requests = [
            {"csr": csr, "identity": f"{fleet.plan['agent']}-{number}", "profile": "agent"} for number, (_, csr) in enumerate(some, start)
        ]
        authorization = f"Authorization: Bearer {fleet.plan['token']}\r\n"
        status, _, answer = await connection.ask(fleet.request("POST", "/v1/certificates:batch", {"requests": requests}, authorization))
        if status != 200:
            raise RuntimeError(f"enrolment: {status} {answer[:300]!r}")
        for (key, _), result in zip(some, json.loads(answer)["results"], strict=True):
            if result["issued"] is None:
                raise RuntimeError(f"enrolment: {result['problem']}")
            held.append(Held(result["issued"], key))
    connection.transport.abort()
    return held


async def main() -> None:
    plan = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory(prefix="handclasp-agents-", dir=MEMORY) as directory:
        fleet = Fleet(plan, Path(directory))
        agents = [Agent(fleet, number, own) for number, own in enumerate(await enrol(fleet))]
        tasks = [asyncio.create_task(agent.run()) for agent in agents]
        print("enrolled", flush=True)
        deadline = time.time() + plan["seconds"]
        reader = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        while fleet.started + len(fleet.failures) < len(agents) and time.time() < deadline:  # noqa: ASYNC110  (a count, and no event)
            await asyncio.sleep(0.1)
        print("steady", flush=True)
        await asyncio.wait([reader], timeout=max(0.0, deadline - time.time()))
        fleet.stop.set()
        await asyncio.wait(tasks, timeout=30)
        overdue = sum(agent.missed for agent in agents)
    print(
        json.dumps(
            {
                "started": fleet.started, "renewed": fleet.renewed, "missed": fleet.missed + overdue, "failed": len(fleet.failures),
                "first_failure": fleet.failures[0] if fleet.failures else "", "requests": dict(fleet.requests),
                "renewals": dict(fleet.renewals),
            }
        ),
        flush=True,
    )  # fmt: skip


if __name__ == "__main__":
    uvloop.run(main())
