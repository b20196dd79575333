"""Simulated agents: a process of its own that behaves towards a server as many agents would, and prints what it saw as JSON.

Each agent has a certificate of its own, keeps one mutual TLS connection, and in each poll interval asks for renewal windows, asks for its
bundle, and reports, each at a point of its own that moves a little, as the real agent does. It renews the certificate that it looks after
over a connection of its own, with a new key, at a point that it drew from the server's window. Time may run faster than in life: then the
poll interval and the lifetimes are short. Bounded by the plan's duration.

What a host of its own would do in each case (make keys, verify the server) is done once or beforehand, so that one process can be thousands
of agents. How late it did what was due is part of what it prints: beyond that, nothing here says anything about the server.

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
from collections import Counter, deque
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
PATIENCE = 60.0
"""Seconds that an answer may take."""


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time. TLS is done here, over a context that all agents share."""

    def __init__(self, context: ssl.SSLContext, host: str, credential: Path | None = None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        if credential is not None:
            context.load_cert_chain(credential)  # of the connections that begin from here on
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer: asyncio.Future[tuple[int, bytes, bytes]] | None = None
        self._buffer = b""
        self.closed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._shake()

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        try:
            if not self._ready.done():
                self._shake()
            if self._ready.done():
                self._read()
        except ssl.SSLError as error:
            self._fail(error)
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionResetError("the server closed the connection"))

    async def ready(self) -> None:
        await self._ready

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        self._tls.write(request)
        self._flush()
        limit = loop.call_later(PATIENCE, self._fail, TimeoutError("no answer"))
        try:
            return await self._answer
        finally:
            limit.cancel()

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
            self._ready.set_result(None)
        except ssl.SSLWantReadError:
            pass
        self._flush()

    def _read(self) -> None:
        try:
            while piece := self._tls.read(65536):
                self._buffer += piece
        except ssl.SSLWantReadError:
            pass
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or self._answer is None:
            return
        lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if len(body) >= (lengths[0] if lengths else 0):
            answer, self._answer, self._buffer = self._answer, None, b""
            if not answer.done():
                answer.set_result((int(head[9:12]), head, body))

    def _flush(self) -> None:
        if data := self._outgoing.read():
            self.transport.write(data)

    def _fail(self, error: Exception) -> None:
        self.closed = True
        for waiting in (self._ready, self._answer):
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)


@dataclass
class Fleet:
    """What all agents share, and what came of it."""

    plan: dict[str, Any]
    directory: Path
    began: float = field(default_factory=time.time)
    stopped: bool = False
    requests: Counter[int] = field(default_factory=Counter)
    renewals: Counter[int] = field(default_factory=Counter)
    late: dict[int, float] = field(default_factory=dict)
    """By second: by how much an agent that slept until then woke late, at most; in seconds."""
    waits: dict[int, float] = field(default_factory=dict)
    """By second: how long an answer to what was asked then took, at most; in seconds, with the handshake of a renewal."""
    renewed: int = 0
    missed: int = 0
    failures: list[str] = field(default_factory=list)
    started: int = 0
    spare: deque[tuple[str, str]] = field(default_factory=deque)
    """Keys with their CSRs, made beforehand."""

    def __post_init__(self) -> None:
        # The server is verified when the fleet enrols. Thousands of hosts would each do it again; one process would only be slower.
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE

    async def connect(self, credential: Path | None, context: ssl.SSLContext | None = None) -> Connection:
        """Connect as the holder of a credential: a file with key and certificates in one PEM."""
        host = self.plan["host"]
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(context or self.context, host, credential), host, self.plan["port"]
        )
        await connection.ready()
        return connection

    def request(self, method: str, path: str, body: Any = None, headers: str = "") -> bytes:
        data = json.dumps(body).encode() if body is not None else b""
        kind = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n" if body is not None else ""
        return f"{method} {path} HTTP/1.1\r\nHost: {self.plan['host']}\r\n{kind}{headers}\r\n".encode() + data

    def count(self) -> None:
        self.requests[int(time.time())] += 1

    def new_request(self) -> tuple[str, str]:
        return self.spare.popleft() if self.spare else new_request()


class Held:
    """A certificate with its key in a file, and when it is to be renewed."""

    def __init__(self, issued: dict[str, Any], key: str, file: Path) -> None:
        self.sha256, self.not_after = issued["sha256"], issued["not_after"]
        self.file = file
        file.write_text(key + issued["certificate"] + issued["chain"])
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
        plan = fleet.plan
        self.fleet, self.number = fleet, number
        self.identity = f"{plan['identity']}/n{number}"
        self.ttl = plan["short_ttl"] if plan["short_every"] and number % plan["short_every"] == 0 else plan["ttl"]
        self.own, self.web = own, own
        self.connection: Connection | None = None
        self.tag = ""
        self.question = self.statement = b""
        self.bundle = fleet.request("GET", f"/v1/bundles/{plan['trust_domain']}.pem")
        self.sleeping = False

    async def run(self) -> None:
        poll = self.fleet.plan["poll"]
        try:
            await self._sleep(time.time() + self.fleet.plan["start"] * random.random())
            await self._obtain()
            self.fleet.started += 1
            # Where in its interval each errand is, is chance, as in a fleet that has been running for a while.
            errands = {errand: time.time() + poll * random.random() for errand in (self._ask_windows, self._refresh, self._report)}
            while not self.fleet.stopped:
                await self._sleep(min(self.own.renew_at, self.web.renew_at, *errands.values()))
                now = time.time()
                if now >= self.web.renew_at:
                    self.web = await self._renew(self.web, self.ttl)
                    errands[self._report] = min(errands[self._report], now + 0.5)
                if now >= self.own.renew_at:
                    self.own = await self._renew(self.own, None)
                    self._hang_up()
                for errand, at in errands.items():
                    if now >= at:
                        errands[errand] = now + poll * random.uniform(0.75, 1.25)
                        await errand()
        except Exception as error:  # counted, and shown
            after = time.time() - self.fleet.began
            self.fleet.failures.append(f"{type(error).__name__} after {after:.0f} s: {error}"[:300])
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
            self.sleeping = True
            await asyncio.sleep(seconds)
            self.sleeping = False
            _raise(self.fleet.late, until, time.time() - until)

    async def _ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        if self.connection is None or self.connection.closed:
            self.connection = await self.fleet.connect(self.own.file)
        self.fleet.count()
        began = time.time()
        status, head, answer = await self.connection.ask(request)
        _raise(self.fleet.waits, began, time.time() - began)
        if status >= 400:
            raise RuntimeError(f"{request[:60]!r}: {status} {answer[:200]!r}")
        return status, head, answer

    async def _obtain(self) -> None:
        key, csr = self.fleet.new_request()
        body = {"csr": csr, "identity": self.identity, "profile": "workload", "ttl": self.ttl}
        _, _, answer = await self._ask(self.fleet.request("POST", "/v1/certificates", body))
        self.web = Held(json.loads(answer), key, self.own.file.with_suffix(".web"))
        self._holds_another()

    async def _renew(self, held: Held, ttl: str | None) -> Held:
        """Renew as the holder, over a connection of its own."""
        key, csr = self.fleet.new_request()
        self.fleet.count()
        began = time.time()
        self.fleet.renewals[int(began)] += 1
        connection = await self.fleet.connect(held.file)
        try:
            body = {"csr": csr} | ({"ttl": ttl} if ttl else {})
            status, _, answer = await connection.ask(self.fleet.request("POST", f"/v1/certificates/{held.sha256}:renew", body))
        finally:
            connection.transport.abort()
        if status != 201:
            raise RuntimeError(f"renewal: {status} {answer[:200]!r}")
        _raise(self.fleet.waits, began, time.time() - began)
        self.fleet.renewed += 1
        self.fleet.missed += held.is_missed
        renewed = Held(json.loads(answer), key, held.file)
        self._holds_another()
        return renewed

    def _holds_another(self) -> None:
        """Everything that it says names its certificates; the question has no tag again, as another one is asked about."""
        self.tag, self.question, self.statement = "", b"", b""

    async def _ask_windows(self) -> None:
        held = {one.sha256: one for one in (self.own, self.web)}
        self.question = self.question or self.fleet.request(
            "POST", "/v1/certificates:renewal-info", {"certificates": list(held), "tag": self.tag}
        )
        _, _, answer = await self._ask(self.question)
        told = json.loads(answer)
        if told["tag"] != self.tag:
            self.tag, self.question = told["tag"], b""
        for item in told["items"]:
            if parse_rfc3339(item["renew_before"]) / 1000 < held[item["sha256"]].renew_at:
                held[item["sha256"]].draw(item["renew_after"], item["renew_before"])

    async def _refresh(self) -> None:
        status, head, _ = await self._ask(self.bundle)
        if status == 200:
            etag = next(line[6:] for line in head.decode().split("\r\n") if line.lower().startswith("etag: "))
            path = f"/v1/bundles/{self.fleet.plan['trust_domain']}.pem"
            self.bundle = self.fleet.request("GET", path, headers=f"If-None-Match: {etag}\r\n")

    async def _report(self) -> None:
        if not self.statement:
            held = {"sha256": self.web.sha256, "state": "ok"}
            told = {"identity": self.identity, "not_after": self.web.not_after, **held, "targets": [{"name": "/etc/web/tls", **held}]}
            body = {"hostname": f"host-{self.number}", "version": "bench", "identities": [told]}
            self.statement = self.fleet.request("PUT", "/v1/agents/self", body)
        await self._ask(self.statement)


def _raise(most: dict[int, float], at: float, seconds: float) -> None:
    most[int(at)] = max(most.get(int(at), 0.0), seconds)


def new_request() -> tuple[str, str]:
    """Return a new key and a CSR over it, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return pem, csr.public_bytes(Encoding.PEM).decode()


async def enrol(fleet: Fleet) -> list[Agent]:
    """Obtain every agent's own certificate with the token, many in a request."""
    first, number = fleet.plan["first"], fleet.plan["agents"]
    made = [new_request() for _ in range(number)]
    fleet.spare.extend(new_request() for _ in range(number * 9 // 4))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=fleet.plan["ca"])
    connection = await fleet.connect(None, context)
    found: list[Agent] = []
    for start in range(0, number, 250):
        some = list(enumerate(made[start : start + 250], first + start))
        requests = [{"csr": csr, "identity": f"{fleet.plan['agent']}-{one}", "profile": "agent"} for one, (_, csr) in some]
        authorization = f"Authorization: Bearer {fleet.plan['token']}\r\n"
        status, _, answer = await connection.ask(fleet.request("POST", "/v1/certificates:batch", {"requests": requests}, authorization))
        if status != 200:
            raise RuntimeError(f"enrolment: {status} {answer[:300]!r}")
        for (one, (key, _)), result in zip(some, json.loads(answer)["results"], strict=True):
            if result["issued"] is None:
                raise RuntimeError(f"enrolment: {result['problem']}")
            found.append(Agent(fleet, one, Held(result["issued"], key, fleet.directory / f"{one}.own")))
    connection.transport.abort()
    return found


async def main() -> None:
    plan = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory(prefix="handclasp-agents-", dir=MEMORY) as directory:
        fleet = Fleet(plan, Path(directory))
        agents = await enrol(fleet)
        tasks = {asyncio.create_task(agent.run()): agent for agent in agents}
        print("enrolled", flush=True)
        deadline = time.time() + plan["seconds"]
        reader = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        while fleet.started + len(fleet.failures) < len(agents) and time.time() < deadline:  # noqa: ASYNC110  (a count, and no event)
            await asyncio.sleep(0.1)
        print("steady", flush=True)
        cpu, since = time.process_time(), time.time()
        await asyncio.wait([reader], timeout=max(0.0, deadline - time.time()))
        core = (time.process_time() - cpu) / (time.time() - since)
        fleet.stopped = True
        for task, agent in tasks.items():
            if agent.sleeping:
                task.cancel()
        await asyncio.wait(tasks, timeout=30)
        overdue = sum(agent.missed for agent in agents)
    print(
        json.dumps(
            {
                "started": fleet.started, "renewed": fleet.renewed, "missed": fleet.missed + overdue, "failed": len(fleet.failures),
                "first_failure": fleet.failures[0] if fleet.failures else "", "requests": dict(fleet.requests),
                "renewals": dict(fleet.renewals), "late": fleet.late, "waits": fleet.waits, "core": core,
            }
        ),
        flush=True,
    )  # fmt: skip


if __name__ == "__main__":
    uvloop.run(main())
