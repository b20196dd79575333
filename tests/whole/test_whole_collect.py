"""A collector beside a large cluster, and a real server far away: memory, being killed, and what must not seem gone."""

from __future__ import annotations

import hashlib
import json
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from handclasp.clock import system_clock
from support.fake_server import FakeAuthority
from support.istio_dumps import b64, ztunnel
from support.kube_api import TOKEN, KubeApi, fill, kube_api
from support.live import Live
from support.programs import Child, Shell
from support.servers import Server, environment
from support.waiting import eventually

SECRETS = 10_000
WORKLOADS = 2000
LIMIT = 150 * 1024  # KiB


@dataclass
class Collector:
    """A collector process, and the most memory that was seen of it."""

    process: subprocess.Popen[bytes]
    log: Path
    most: int = 0

    def look(self) -> None:
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                self.most = max(self.most, int(line.split()[1]))

    def wait(self, seconds: float = 300) -> int:
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            self.look()
            time.sleep(0.05)
        return self.process.returncode


@contextmanager
def collector(live: Live, home: Path, token: str, *options: str) -> Iterator[Collector]:
    (home / "collector.token").write_text(token)
    log = home / "collector.log"
    argv = [sys.executable, "-m", "handclasp", "collect", "--token-file", str(home / "collector.token"), "--files", str(home), *options]
    env = environment() | {"HANDCLASP_URL": live.facts["https"], "HANDCLASP_CA": live.facts["ca_file"]}
    with log.open("ab") as output:
        process = subprocess.Popen(argv, env=env, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        yield Collector(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@contextmanager
def big_cluster(home: Path, number: int) -> Iterator[str]:
    """A cluster in a process of its own: its memory is not the collector's."""
    argv = [sys.executable, "-m", "support.kube_api", str(home), str(number)]
    with Child(argv, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def test_a_cluster_of_10000_secrets_and_a_node_of_2000_workloads(tmp_path: Path) -> None:
    home = tmp_path / "collector"
    home.mkdir()
    with big_cluster(home, SECRETS) as url, Server(tmp_path / "data").ready() as server:
        live = Live(tmp_path, server)
        token = server.token(name="collector", allow=[], profiles=[], scopes=["sources:collect"], expires="1d")
        with live.client(live.admin_token) as admin:
            access = {"cluster": "c1", "api": url, "ca_file": "ca.crt", "token_file": "token", "rate": 1000.0}
            settings = access | {"tls_secrets": ["*"], "namespaces": [], "cluster_objects": False}
            add(admin, "cluster", "kubernetes", settings)
            identities = [f"spiffe://cluster.local/ns/team-{n % 50:02d}/sa/app-{n}" for n in range(WORKLOADS)]
            dump, _ = ztunnel(FakeAuthority("Mesh"), identities, padding=5000)
            (home / "node-1.json").write_bytes(dump)
            add(admin, "mesh", "istio", access | {"namespaces": [], "dumps": ["node-1.json"]})
            scan = admin("POST", "/v1/sources/cluster:run", {}).ok(201)["id"]
            # Killed half-way.
            with collector(live, home, token) as first:
                eventually(lambda: first.look() or admin.get(f"/v1/scans/{scan}")["read"] > SECRETS // 2, 180, "half of it is read")
                first.process.send_signal(signal.SIGKILL)
                first.process.wait()
            half = admin.get(f"/v1/scans/{scan}")
            assert half["state"] == "running"
            assert half["gone"] == 0
            mesh = admin("POST", "/v1/sources/mesh:run", {}).ok(201)["id"]
            most = first.most
            for _ in range(10):  # the server may still have been recording the dead one's last words, and have lengthened its lease by that
                expire_leases(live.data)
                with collector(live, home, token, "--once", "--patience", "3s") as second:
                    assert second.wait() == 0, second.log.read_text()[-3000:]
                most = max(most, second.most)
                done, meshed = admin.get(f"/v1/scans/{scan}"), admin.get(f"/v1/scans/{mesh}")
                if done["state"] != "running":
                    break
            assert (done["state"], done["failed"], done["gone"], done["problem"]) == ("done", 0, 0, None)
            assert done["fresh"] >= SECRETS
            assert done["certificates"] < 2 * SECRETS + 2 * 2500, "it went on, and did not begin again"
            assert (meshed["state"], meshed["failed"], meshed["gone"], meshed["fresh"]) == ("done", 0, 0, WORKLOADS + 1)
            assert admin.get("/v1/sources/cluster")["locations"] == 2 * SECRETS
            assert admin.get("/v1/sources/mesh")["locations"] == WORKLOADS + 1
        print(f"a collector took {most} KiB at most")
        assert most < LIMIT


def add(admin: Any, name: str, kind: str, settings: dict[str, Any]) -> None:
    source = {"name": name, "kind": kind, "settings": settings, "scope": {"loopback": True}, "runs": "collector"}
    admin("POST", "/v1/sources", source).ok(201)


def expire_leases(data: Path) -> None:
    """What a minute does."""
    (database,) = data.glob("*.db")
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        connection.execute("UPDATE scan_part SET leased_until = ? WHERE state = 'leased'", (system_clock() - 1,))


def test_a_collector_that_watches_is_ended_and_another_goes_on(tmp_path: Path) -> None:
    """Also: the token's file is another one meanwhile, and the same cluster is read by the server itself, with a kubeconfig."""
    home = tmp_path / "collector"
    with kube_api(home) as api, Server(tmp_path / "data").ready() as server:
        live = Live(tmp_path, server)
        leaves = fill(api, 3, "prod")
        wanted = {"allow": [], "profiles": [], "scopes": ["sources:collect"], "expires": "1d"}
        token, other = (server.token(name=name, **wanted) for name in ("first", "second"))
        with live.client(live.admin_token) as admin:
            settings = api.access(rate=1000.0, tls_secrets=["prod"], namespaces=[], cluster_objects=False)
            add(admin, "cluster", "kubernetes", settings | {"ca_file": "ca.crt", "token_file": "token", "watch": "1h"})
            scan = admin("POST", "/v1/sources/cluster:run", {}).ok(201)["id"]

            def served(der: bytes) -> bool:
                return admin("GET", f"/v1/certificates/{hashlib.sha256(der).hexdigest()}").status == 200

            with collector(live, home, token, "--name", "one") as first:
                eventually(lambda: all(map(served, leaves)), 120, "what was listed is recorded")
                chain, key = FakeAuthority().credential(dns=["new.prod"])
                api.secret("new", "prod", {"tls.crt": chain, "tls.key": key})
                new = ssl.PEM_cert_to_DER_cert(chain.decode().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n")
                eventually(lambda: served(new), 120, "what happened is recorded")
                first.process.send_signal(signal.SIGTERM)
                assert first.wait() == 0
            found = admin.get(f"/v1/scans/{scan}")
            assert (found["state"], found["gone"]) == ("running", 0)
            assert (found["parts"].get("leased", 0), found["parts"].get("waiting")) == (0, 1), "it was given back"
            api.remove("secrets", "new", "prod")
            lists = sum("limit=100" in path and "/secrets" in path for path in api.requests)
            with collector(live, home, other, "--name", "two") as second:
                eventually(lambda: admin.get(f"/v1/scans/{scan}")["gone"], 120, "what ended meanwhile is recorded as ended")
                second.process.send_signal(signal.SIGTERM)
                assert second.wait() == 0
            assert sum("limit=100" in path and "/secrets" in path for path in api.requests) == lists, "it went on watching"
            admin("POST", f"/v1/scans/{scan}:stop", {}).ok()
            by_server(admin, live.data, api)


def by_server(admin: Any, data: Path, api: KubeApi) -> None:
    (data / "sources").mkdir(exist_ok=True)
    config = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "clusters": [{"name": "x", "cluster": {"server": api.url, "certificate-authority-data": b64(api.ca.read_bytes())}}],
        "users": [{"name": "x", "user": {"token": TOKEN}}],
    }
    (data / "sources/kubeconfig").write_text(json.dumps(config))
    settings = {"cluster": "c1", "kubeconfig": "kubeconfig", "tls_secrets": ["prod"], "namespaces": [], "cluster_objects": False}
    source = {"name": "outside", "kind": "kubernetes", "settings": settings, "scope": {"loopback": True}, "runs": "server"}
    admin("POST", "/v1/sources", source).ok(201)
    scan = admin("POST", "/v1/sources/outside:run", {}).ok(201)["id"]
    eventually(lambda: admin.get(f"/v1/scans/{scan}")["state"] in ("done", "failed"), 120, "the server has read it")
    found = admin.get(f"/v1/scans/{scan}")
    assert (found["state"], found["problem"], found["read"]) == ("done", None, 6)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 1, "a collector needs a token"),
        (["--token-file", "missing"], 1, "cannot read the token file"),
        (["--once", "--patience", "soon"], 2, "not a duration"),
        (["--workers", "0"], 2, "--workers"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_collector_is_told_wrongly(tmp_path: Path, options: list[str], code: int, words: str) -> None:
    done = Shell(tmp_path, {"HANDCLASP_URL": "https://127.0.0.1:1"}).run("collect", *options)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
