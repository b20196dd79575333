"""Istio's CA door beside the native API: what a certificate through ``CreateCertificate`` costs, on one core, on SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.issue import CONNECTIONS, csr_pem, generate, issue_many, latency
from bench.limits import verify_and_sign_us
from bench.results import Result
from bench.server import Server

COUNT = 8_000
IDENTITY = "spiffe://example.org/bench/web"


def run() -> Iterator[Result]:
    """Measure both on one server, each certificate over a key of its own.

    First as sidecars ask, each with a token of its own, then as a node's proxy does, which has one token for all its pods.
    """
    from support.kube import WEB, Cluster, cluster_entry, mesh_policy  # tests/ is on the path, see __main__

    cluster = Cluster()
    limit = verify_and_sign_us()
    with Server("--grpc", "127.0.0.1:0", core=0) as server:
        server.apply_policy(mesh_policy(cluster_entry(cluster)))
        token = server.token(name="bench", allow=[IDENTITY], profiles=["workload"], uses=0, expires="1h")
        issue_many(server, token, 500)
        _create(server, [cluster.token(WEB)] * 500)  # warm: imports, caches, the first pages of the database
        native, load = issue_many(server, token, COUNT)
        rate = load["requests"] / load["seconds"]
        yield Result("istio.native.cpu_us", native, "us", limit, note=f"the API in this run: {rate:.0f}/s, {latency(load)}")
        cpu, load = _create(server, [cluster.token(WEB) for _ in range(COUNT)])
        yield Result("istio.create.cpu_us", cpu, "us", limit, note=latency(load))
        yield Result("istio.create.beside_native", cpu, "us", native, note="limit: the API in this run")
        yield Result(
            "istio.create.per_second", load["requests"] / load["seconds"], "1/s", rate, at_least=True, note="limit: the API in this run"
        )
        cpu, load = _create(server, [cluster.token(WEB)] * COUNT)
        yield Result("istio.one_token.cpu_us", cpu, "us", limit, note=latency(load))
        yield Result("istio.one_token.beside_native", cpu, "us", native, note="limit: the API in this run")


def _create(server: Server, tokens: list[str]) -> tuple[float, dict[str, Any]]:
    """Obtain a certificate with each of the tokens; return server CPU in microseconds for each, and the generator's summary."""
    plan = {"kind": "istio", "address": server.grpc, "csrs": [csr_pem() for _ in tokens], "tokens": tokens, "connections": CONNECTIONS}
    before = server.cpu_seconds()
    load = generate(server, plan, 1)
    return (server.cpu_seconds() - before) / len(tokens) * 1e6, load
