"""Issuance: single requests, batches, renewals on fresh connections, and two workers on PostgreSQL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench.limits import handshake_server_us, p256_key, verify_and_sign_us
from bench.results import Result
from bench.server import Server

SINGLE, BATCHES, RENEWALS = 12_000, 80, 600
BATCH = 100
CONNECTIONS = 32
IDENTITY = "spiffe://example.org/bench/web"


def run() -> Iterator[Result]:
    """Measure what one process on one core does, on SQLite."""
    limit = verify_and_sign_us()
    with Server(core=0) as server:
        token = server.token(name="bench", allow=[IDENTITY], profiles=["workload"], uses=0, expires="1h")
        issue_many(server, token, 500)  # warm: imports, caches, the first pages of the database
        cpu, load = issue_many(server, token, SINGLE)
        yield Result("issue.single.cpu_us", cpu, "us", limit, budget=5.0, note=latency(load))
        rate = load["requests"] / load["seconds"]
        yield Result("issue.single.per_second", rate, "1/s", 3000, budget=1.0, at_least=True, note="limit: the budget")
        cpu, _ = issue_many(server, token, BATCHES * BATCH, batch=BATCH)
        yield Result("issue.batch100.cpu_us", cpu, "us", limit, budget=2.6)
        yield from _renew(server, token)


def run_postgresql() -> Iterator[Result]:
    """Measure two workers on PostgreSQL, the load generator on the same two cores."""
    from support.postgres import start_cluster  # tests/ is on the path, see __main__

    with tempfile.TemporaryDirectory(prefix="handclasp-bench-pg-") as directory:
        Path(directory).chmod(0o755)
        (Path(directory) / "pg").mkdir()
        cluster = start_cluster(Path(directory) / "pg", durable=True)
        try:
            with Server(workers=2, database=cluster.url(cluster.create_database())) as server:
                token = server.token(name="bench", allow=[IDENTITY], profiles=["workload"], uses=0, expires="1h")
                issue_many(server, token, 1000, connections=128, core=None)
                cpu, load = issue_many(server, token, 20_000, connections=128, core=None)
                rate = load["requests"] / load["seconds"]
                yield Result("issue.postgresql2.per_second", rate, "1/s", 5000, budget=1.0, at_least=True, note="limit: the budget")
                yield Result("issue.postgresql2.cpu_us", cpu, "us", verify_and_sign_us(), note="both workers, without PostgreSQL itself")
        finally:
            cluster.stop()


def issue_many(
    server: Server, token: str, count: int, *, batch: int = 1, connections: int = CONNECTIONS, core: int | None = 1
) -> tuple[float, dict[str, Any]]:
    """Issue ``count`` certificates, each over a key of its own; return server CPU in microseconds for each, and the generator's summary."""
    requests = [{"csr": csr_pem()} for _ in range(count)]
    if batch == 1:
        path, bodies = "/v1/certificates", [json.dumps(request) for request in requests]
    else:
        path = "/v1/certificates:batch"
        bodies = [json.dumps({"requests": requests[start : start + batch]}) for start in range(0, count, batch)]
    plan = {"kind": "keep_alive", "path": path, "bodies": bodies, "token": token, "connections": connections if batch == 1 else 2}
    before = server.cpu_seconds()
    load = generate(server, plan, core)
    return (server.cpu_seconds() - before) / count * 1e6, load


def _renew(server: Server, token: str) -> Iterator[Result]:
    from handclasp.client.api import ApiClient
    from handclasp.wire import IssueRequest

    connection = ApiClient(server.url, ca=server.ca_file, token=token)
    with tempfile.TemporaryDirectory(prefix="handclasp-bench-") as directory, connection as client:
        items = []
        for number in range(RENEWALS + 1):
            key = p256_key()
            issued = client.issue(IssueRequest(csr=csr_pem(key)))
            file = Path(directory) / f"{number}.pem"
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
            file.write_text(pem + issued.certificate + issued.chain)
            path = f"/v1/certificates/{issued.sha256}:renew"
            items.append({"credential_file": str(file), "path": path, "body": json.dumps({"csr": csr_pem()})})
        limit = handshake_server_us(server.ca_file, items.pop()["credential_file"])
        before = server.cpu_seconds()
        load = generate(server, {"kind": "fresh_mtls", "items": items, "connections": 8}, 1)
        cpu = (server.cpu_seconds() - before) / RENEWALS * 1e6
        yield Result("renew.fresh_mtls.cpu_us", cpu, "us", limit, budget=2.0, note=latency(load))


def generate(server: Server, plan: dict[str, Any], core: int | None) -> dict[str, Any]:
    """Run the load generator as another process and return what it saw; refuse a run with failures."""
    plan |= {"host": server.host, "port": server.port, "ca_file": server.ca_file}
    pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None and (os.cpu_count() or 1) > 1 else None
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"], input=json.dumps(plan), capture_output=True, text=True, check=False, preexec_fn=pin
    )
    if done.returncode:
        raise RuntimeError(f"the load generator failed:\n{done.stderr}")
    load: dict[str, Any] = json.loads(done.stdout)
    if load["failed"]:
        raise RuntimeError(f"{load['failed']} of {load['requests']} requests failed: {load['first_failure']}")
    return load


def csr_pem(key: Any = None) -> str:
    """Return a CSR without names, over a new key unless one is given."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key or p256_key(), hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def latency(load: dict[str, Any]) -> str:
    return f"p50 {load['p50_ms']:.1f} ms, p99 {load['p99_ms']:.1f} ms"
