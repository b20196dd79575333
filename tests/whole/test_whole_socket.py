"""Server, agent and its socket as the programs they are: a SPIFFE library and an Envoy rotate on them under traffic, and nobody notices."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe import WorkloadApiClient, X509Source

from support.envoy import Envoy
from support.live import DOMAIN, Live
from support.programs import Shell, free_port, handclasp, program
from support.servers import Server
from support.traffic import Caller
from support.waiting import eventually

WEB = f"spiffe://{DOMAIN}/prod/web"
ROTATIONS = 20
POLICY = f"""
version: 1
grants: []
workloads:
  - name: web
    agents: {{role: web}}
    selectors: ["unix:uid:{os.getuid()}"]
    identity: {WEB}
    profile: quick
    ttl: TTL
    jwt: true
"""
PROFILES = "version: 1\nprofiles:\n  quick: {extend: workload, min_lifetime: 2s, lifetime: 8s}\n"


@dataclass
class Host:
    """A host with an enrolled agent that has a socket, and the server that it belongs to."""

    directory: Path
    shell: Shell
    https: int

    @property
    def path(self) -> Path:
        return self.directory / "w.sock"

    @contextmanager
    def serving(self) -> Iterator[Server]:
        """Run the server, always at the same address."""
        listen = ("--https", f"127.0.0.1:{self.https}")
        with Server(self.directory / "data", "--trust-domain", DOMAIN, *listen) as server:
            yield server.ready()
            assert server.stop() == 0

    def enrol(self, server: Server, ttl: str) -> None:
        """Apply the policy, enrol the agent and write its configuration."""
        (self.directory / "profiles.yaml").write_text(PROFILES)
        self.shell("profile", "apply", "-f", self.directory / "profiles.yaml")
        self.apply(POLICY.replace("TTL", ttl))
        labels = ("--agent", "--label", "role=web", "--allow", f"spiffe://{DOMAIN}/agent/h1", "--profile", "agent")
        self.shell("token", "create", "h1", *labels, "--owner", "team", "--out", self.directory / "enrol.token")
        self.shell(
            "agent", "enroll", "--name", "h1", "--state-dir", self.directory / "state", "--token-file", self.directory / "enrol.token"
        )
        config = {"server": {"url": server.url}, "state_dir": "state", "poll": "1s", "socket": {"path": str(self.path), "wait": "20s"}}
        (self.directory / "agent.yaml").write_text(json.dumps(config))

    def apply(self, policy: str) -> None:
        (self.directory / "policy.yaml").write_text(policy)
        self.shell("policy", "apply", "-f", self.directory / "policy.yaml")

    @contextmanager
    def agent(self) -> Iterator[int]:
        """Run the agent; return its process id."""
        with program(handclasp("agent", "run", "-c", self.directory / "agent.yaml"), self.directory / "agent.log") as process:
            eventually(lambda: self.path.exists() or process.poll() is not None, what="the socket is there")
            assert process.poll() is None, (self.directory / "agent.log").read_text()
            yield process.pid


@pytest.fixture
def host(tmp_path: Path) -> Host:
    port = free_port()
    urls = {"HANDCLASP_URL": f"https://127.0.0.1:{port}", "HANDCLASP_CA": str(tmp_path / "data/ca.pem")}
    return Host(tmp_path, Shell(tmp_path, urls | {"HANDCLASP_TOKEN_FILE": str(tmp_path / "data/admin.token")}), port)


def context_of(source: X509Source, home: Path, *, server: bool) -> ssl.SSLContext:
    """Return a TLS context with what the SPIFFE library holds at this moment."""
    held = source.get_x509_context()
    svid, bundle = held.default_svid, held.x509_bundle_set.get_bundle_for_trust_domain(held.default_svid.spiffe_id.trust_domain)
    assert bundle is not None
    file = home / f"{threading.get_ident()}.pem"
    key = svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in svid.cert_chain) + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    if not server:
        context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata="".join(one.public_bytes(Encoding.PEM).decode() for one in bundle.x509_authorities))
    context.load_cert_chain(file)
    return context


class Pair:
    """A server and a client that make mutual TLS with what the SPIFFE library holds, one handshake after the other."""

    def __init__(self, source: X509Source, home: Path) -> None:
        self.handshakes, self.failures, self.served = 0, [], []  # type: tuple[int, list[str], list[str]]
        self._source, self._home, self._stop = source, home, threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._serve, self._call)]

    def __enter__(self) -> Pair:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._threads[1].join()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listening.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                bare, _ = self._listening.accept()
            except OSError:
                return
            try:
                with bare, context_of(self._source, self._home, server=True).wrap_socket(bare, server_side=True) as connection:
                    connection.sendall(connection.recv(1))
            except OSError as error:
                self.failures.append(f"server: {error}")

    def _call(self) -> None:
        while not self._stop.wait(0.02):
            self.handshakes += 1
            try:
                with (
                    socket.create_connection(self._listening.getsockname(), 20) as bare,
                    context_of(self._source, self._home, server=False).wrap_socket(bare) as connection,
                ):
                    connection.sendall(b"x")
                    assert connection.recv(1) == b"x"
                    served = hashlib.sha256(connection.getpeercert(binary_form=True) or b"").hexdigest()
                    if served not in self.served:
                        self.served.append(served)
            except OSError as error:
                self.failures.append(f"client: {error}")


def test_a_spiffe_library_and_an_envoy_rotate_twenty_times_and_no_request_fails(host: Host) -> None:
    with host.serving() as server:
        host.enrol(server, "8s")  # a quarter of it is left when a renewal is late: less is what a busy machine takes
        live = Live(host.directory, server)
        caller = live.holder(f"spiffe://{DOMAIN}/prod/caller")
        with host.agent() as pid, X509Source(socket_path=f"unix://{host.path}", timeout_in_seconds=30) as source:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.load_verify_locations(host.directory / "data/ca.pem")
            context.load_cert_chain(caller.cert_file, caller.key_file)
            with Envoy(host.directory, host.path).running() as envoy:
                with Caller(envoy.port, context) as traffic, Pair(source, host.directory) as pair:
                    eventually(lambda: min(len(traffic.served), len(pair.served)) > ROTATIONS, 240, "each rotates")
                assert traffic.failures == []
                assert pair.failures == []
                assert traffic.requests > 100
                assert pair.handshakes > 100
            resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            assert resident <= 64 * 1024 * 1024, resident  # nothing grows with rotations; the budget is for `make bench` to measure
            told = source.get_x509_context().default_svid
            assert str(told.spiffe_id) == WEB
            assert told.leaf.fingerprint(hashes.SHA256()).hex() in {one["sha256"] for one in issued(host)}


def issued(host: Host) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = host.shell.json("cert", "list", "--identity", WEB, "--limit", "1000")["items"]
    return items


def test_while_the_server_is_away_an_agent_that_starts_again_still_serves_and_the_policy_takes_away(host: Host) -> None:
    with host.serving() as server:
        host.enrol(server, "10m")
        with host.agent():
            first = json.loads(host.shell("workload", "fetch", "--socket", host.path, "--json"))
            assert [one["identity"] for one in first["svids"]] == [WEB]
            token = host.shell.json("workload", "fetch", "--socket", host.path, "--jwt", "aud1")["svids"][0]["token"]
            with WorkloadApiClient(f"unix://{host.path}") as client:
                assert str(client.validate_jwt_svid(token, "aud1").spiffe_id) == WEB
    with host.agent():
        again = json.loads(host.shell("workload", "fetch", "--socket", host.path, "--json"))
        assert again["svids"][0]["sha256"] == first["svids"][0]["sha256"]
        with host.serving():
            host.apply("version: 1\ngrants: []\n")

            def refused() -> bool:
                return host.shell.run("workload", "fetch", "--socket", host.path).returncode == 1

            eventually(refused, what="what the policy takes away is gone")
            assert host.shell.refused("workload", "fetch", "--socket", host.path)["kind"] == "not_allowed"
            host.apply(POLICY.replace("TTL", "10m"))
            eventually(lambda: not refused(), what="and is back")
    assert len({one["sha256"] for one in first["svids"]}) == 1
