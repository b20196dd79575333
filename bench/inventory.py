"""The inventory at size: lists, overview and start with ten thousand to ten million certificates.

``make bench ONLY=inventory`` measures up to a million on SQLite; ``ONLY=inventory-long`` ten million on PostgreSQL, which takes a quarter
of an hour and 30 GB. ``HANDCLASP_BENCH_KEEP=DIRECTORY`` keeps the databases of a run for the next one. The figures go into
``docs/figures/inventory.json`` too, from which ``python -m bench.plot`` draws the picture in the documentation.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import ssl
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from bench.inventory_data import fill
from bench.results import Result
from bench.server import Server

FIGURES = Path(__file__).parent.parent / "docs" / "figures" / "inventory.json"
SIZES, LARGEST = (10_000, 100_000, 1_000_000), 10_000_000
BUDGETS = {"sqlite": 50.0, "postgresql": 100.0}
"""Milliseconds in which 95 of 100 lists are there."""
OVERVIEW_BUDGET, START_BUDGET = 200.0, 5.0
PAGE, PATIENCE = 50, 1500.0
"""Items of a page, and milliseconds after which nobody waits for it to be full."""
ROUNDS = 6
"""Times that each query of the mix is asked, each with other words."""

_WORDS = ("checkout", "ledger", "search", "billing", "stream", "ingest", "quote", "media", "notify", "session")
_SPACES = ("payments-03", "platform-01", "storefront-07", "identity-02", "data-09", "risk-05", "mobile-00", "logistics-04", "support-06")


def mix(choose: random.Random) -> list[tuple[str, Mapping[str, str]]]:
    """Return one round of queries, each with three filters and a text: what people ask, from the narrow to the wide."""
    word, space = choose.choice(_WORDS), choose.choice(_SPACES)
    team = f"team-{space.partition('-')[0]}-{choose.randrange(20):02}"
    number = f"{word}-{choose.randrange(90):05}"
    return [
        ("one service", {"q": number, "environment": "prod", "state": "valid", "origin": "issued"}),
        ("a word, what is valid of a team", {"q": word, "owner": team, "state": "valid", "key_type": "p256"}),
        ("a word, what ends soon", {"q": word, "environment": "prod", "expires_after": "0s", "expires_before": "7d"}),
        ("a word, superseded", {"q": word, "state": "superseded", "environment": "dev", "key_type": "ed25519"}),
        ("a namespace, expired", {"q": space, "state": "expired", "origin": "issued", "key_type": "rsa2048"}),
        ("a namespace, revoked", {"q": space, "state": "revoked", "origin": "issued", "profile": "workload"}),
        ("a path, valid, soonest first", {"q": word, "spiffe": f"example.org/prod/ns/{space}", "state": "valid", "sort": "expires"}),
        ("foreign, by issuer", {"q": "legacy", "issuer": f"foreign ca {choose.randrange(18):02}", "origin": "found", "state": "valid"}),
        ("foreign, not decided", {"q": "corp.example", "standing": "foreign", "triage": "unmanaged", "key_type": "rsa2048"}),
        ("expired, but served", {"q": "example", "standing": "expired_served", "origin": "issued", "state": "expired"}),
        ("seen by a source", {"q": word, "source": f"network-{choose.randrange(3)}", "state": "valid", "origin": "issued"}),
        ("never seen", {"q": word, "standing": "unseen", "owner": team, "state": "valid"}),
        ("names that end so", {"q": word, "name": f"*.{space}.prod.example.org", "state": "valid", "key_type": "p256"}),
        ("nobody owns it", {"q": word, "owner": "none", "state": "valid", "environment": "staging"}),
        ("nothing fits", {"q": f"{word}-nowhere", "state": "valid", "key_type": "p384", "environment": "prod"}),
        ("the wide one", {"q": "example", "state": "valid", "origin": "issued", "key_type": "p256"}),
    ]


@dataclass(frozen=True)
class Measured:
    """What one database of one size took."""

    database: str
    certificates: int
    list_ms: Sequence[float]
    """Each answer of a list."""
    page_ms: Sequence[float]
    """Until fifty were there, or all that fit: a list that walks far gives what it has, and is asked again."""
    by_query: Mapping[str, float]
    overview_ms: float
    identities_ms: float
    start_seconds: float
    fill_seconds: float

    @property
    def p95(self) -> float:
        """Milliseconds in which 95 of 100 lists were there."""
        return percentile(self.list_ms, 0.95)

    def point(self) -> dict[str, Any]:
        """Return it for the picture."""
        return {
            "database": self.database, "certificates": self.certificates, "p50_ms": round(percentile(self.list_ms, 0.5), 2),
            "p95_ms": round(self.p95, 2), "page_p95_ms": round(percentile(self.page_ms, 0.95), 2),
            "overview_ms": round(self.overview_ms, 2), "identities_ms": round(self.identities_ms, 2),
            "start_seconds": round(self.start_seconds, 2),
        }  # fmt: skip


def percentile(values: Sequence[float], part: float) -> float:
    """Return the smallest value that ``part`` of all do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def run() -> Iterator[Result]:
    """Measure SQLite at each size."""
    for size in SIZES:
        with _home(f"sqlite-{size}") as home:
            yield from _results(_measure(home, size, f"sqlite:///{home / 'data' / 'handclasp.db'}"))


def run_long() -> Iterator[Result]:
    """Measure PostgreSQL with ten million certificates."""
    from support.postgres import start_cluster  # tests/ is on the path, see __main__

    with _home(f"postgresql-{LARGEST}") as home:
        home.chmod(0o755)
        cluster = _kept_cluster(home, start_cluster)
        try:
            yield from _results(_measure(home, LARGEST, cluster.url("inventory")))
        finally:
            cluster.stop()


def _kept_cluster(home: Path, start: Any) -> Any:
    """Start PostgreSQL in ``home``, or the one that an earlier run left there. It has the memory that such a database would be given."""
    from support.postgres import Cluster

    described = home / "cluster.json"
    if described.exists():
        cluster = Cluster(**json.loads(described.read_text()))
        cluster.start()
        return cluster
    (home / "pg").mkdir()
    cluster = start(home / "pg", durable=True)
    memory = (
        "shared_buffers = '2GB'",
        "effective_cache_size = '8GB'",
        "max_wal_size = '8GB'",
        "work_mem = '32MB'",
        "random_page_cost = 1.1",
    )
    for setting in (*memory, "autovacuum = off"):  # whoever fills it vacuums it
        cluster.execute(f"ALTER SYSTEM SET {setting}")
    cluster.stop()
    cluster.start()
    cluster.execute("CREATE DATABASE inventory")
    described.write_text(
        json.dumps({"directory": cluster.directory, "binaries": cluster.binaries, "port": cluster.port, "password": cluster.password})
    )
    return cluster


@contextlib.contextmanager
def _home(name: str) -> Iterator[Path]:
    keep = os.environ.get("HANDCLASP_BENCH_KEEP", "")
    if keep:
        home = Path(keep) / name
        home.mkdir(parents=True, exist_ok=True)
        yield home
        return
    with tempfile.TemporaryDirectory(prefix="handclasp-bench-") as directory:
        yield Path(directory)


def _measure(home: Path, size: int, url: str) -> Measured:
    kind = url.partition(":")[0]
    database = "" if kind == "sqlite" else url
    done, took = home / "filled", 0.0
    if not done.exists():
        with Server(home=home, database=database):
            pass  # the installation, with its authorities
        began = time.monotonic()
        asyncio.run(fill(url, size))
        took = time.monotonic() - began
        done.write_text(str(size))
    # --retention 0s: nothing is to be removed while it is measured. The better of two starts: others use this machine too.
    with Server("--retention", "0s", home=home, database=database, patience=600) as server:
        started = server.start_seconds
    with Server("--retention", "0s", home=home, database=database, patience=600) as server:
        client = _Client(server)
        answers, pages = _lists(client)
        overview = percentile([client.get("/v1/overview") for _ in range(10)], 0.95)
        identities = percentile([client.get(f"/v1/identities?q={word}&state=ok&environment=prod&sort=expires") for word in _WORDS], 0.95)
        started = min(started, server.start_seconds)
        client.close()
    worst = {name: max(times) for name, times in pages.items()}
    measured = Measured(kind, size, answers, [one for times in pages.values() for one in times], worst, overview, identities, started, took)
    _keep(measured)
    return measured


def _lists(client: _Client) -> tuple[list[float], dict[str, list[float]]]:
    """Ask every query of the mix, a few rounds, each time with other words; return the time of each answer, and of each full page."""
    choose = random.Random(7)
    answers: list[float] = []
    pages: dict[str, list[float]] = {}
    client.get("/v1/certificates?" + urlencode(mix(choose)[0][1]))  # the first one compiles and connects
    for _ in range(ROUNDS):
        for name, query in mix(choose):
            path, cursor, found, took = "/v1/certificates?" + urlencode({**query, "limit": str(PAGE)}), "", 0, 0.0
            while cursor is not None and found < PAGE and took < PATIENCE:
                answers.append(client.get(path + (f"&cursor={quote(cursor)}" if cursor else "")))
                took += answers[-1]
                found, cursor = found + len(client.answer["items"]), client.answer.get("next_cursor")
            pages.setdefault(name, []).append(took)
    return answers, pages


def _results(measured: Measured) -> Iterator[Result]:
    size = f"{measured.certificates // 1000}k" if measured.certificates < 1_000_000 else f"{measured.certificates // 1_000_000}m"
    name, largest = f"inventory.{measured.database}_{size}", measured.certificates >= 1_000_000
    budget = 1.0 if largest else None
    slow = sorted(measured.by_query.items(), key=lambda item: -item[1])[:3]
    note = f"p50 {percentile(measured.list_ms, 0.5):.1f} ms of {len(measured.list_ms)} answers"
    yield Result(f"{name}.list.p95_ms", measured.p95, "ms", BUDGETS[measured.database], budget=budget, note=note)
    note = "until a page is full; longest: " + ", ".join(f"{query} {ms:.0f}" for query, ms in slow)
    yield Result(f"{name}.page.p95_ms", percentile(measured.page_ms, 0.95), "ms", BUDGETS[measured.database], note=note)
    yield Result(f"{name}.overview_ms", measured.overview_ms, "ms", OVERVIEW_BUDGET, budget=budget)
    yield Result(f"{name}.identities.p95_ms", measured.identities_ms, "ms", BUDGETS[measured.database], budget=budget)
    yield Result(f"{name}.start_seconds", measured.start_seconds, "s", START_BUDGET, budget=budget)
    if measured.fill_seconds:
        yield Result(f"{name}.fill_seconds", measured.fill_seconds, "s", note="making the test data")


def _keep(measured: Measured) -> None:
    """Put it beside what was measured before at other sizes."""
    points = json.loads(FIGURES.read_text()) if FIGURES.exists() else []
    same = {(measured.database, measured.certificates)}
    points = [one for one in points if (one["database"], one["certificates"]) not in same] + [measured.point()]
    points.sort(key=lambda one: (one["database"], one["certificates"]))
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    FIGURES.write_text(json.dumps(points, indent=1) + "\n")


class _Client:
    """One kept connection; each request is timed from its first byte to the last of the answer."""

    def __init__(self, server: Server) -> None:
        context = ssl.create_default_context(cafile=server.ca_file)
        self._connection = http.client.HTTPSConnection(server.host, server.port, context=context, timeout=120)
        self._headers = {"Authorization": f"Bearer {server.admin_token}"}
        self.answer: dict[str, Any] = {}

    def get(self, path: str) -> float:
        """Return how many milliseconds it took; the answer is kept."""
        began = time.perf_counter()
        self._connection.request("GET", path, headers=self._headers)
        reply = self._connection.getresponse()
        body = reply.read()
        took = (time.perf_counter() - began) * 1000
        if reply.status != 200:
            raise RuntimeError(f"{path}: {reply.status} {body[:300]!r}")
        self.answer = json.loads(body)
        return took

    def close(self) -> None:
        self._connection.close()
