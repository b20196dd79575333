"""Where the cost of one issuance goes: each of its steps alone, in one process, in microseconds of CPU."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.issue import IDENTITY, csr_pem
from bench.limits import verify_and_sign_us
from bench.results import Result
from handclasp.clock import system_clock

ROUNDS = 3000


def run() -> Iterator[Result]:
    """Measure each step, beside the limit of one verification and one signature."""
    with tempfile.TemporaryDirectory(prefix="handclasp-bench-") as directory:
        figures = asyncio.run(_measure(Path(directory)))
    limit = verify_and_sign_us()
    for name, figure in figures.items():
        yield Result(f"issue.part.{name}_us", figure, "us", limit)


async def _measure(directory: Path) -> dict[str, float]:
    from handclasp.access.authorize import Circumstances, authorize
    from handclasp.log.entries import make_entry
    from handclasp.pki.csr import parse_csr
    from handclasp.pki.lint import lint
    from handclasp.pki.names import make_names
    from handclasp.pki.plan import make_plan, new_serial
    from handclasp.server.instance import open_instance
    from handclasp.server.settings import Settings
    from handclasp.server.setup import initialise
    from handclasp.wire import TokenRequest

    settings = Settings.load({"data": str(directory / "data"), "trust_domain": "example.org"}, {})
    await initialise(settings)
    instance = await open_instance(settings)
    services = instance.services
    created = await services.tokens.create(TokenRequest(name="bench", allow=[IDENTITY], profiles=["workload"], uses=0), "local:bench")
    principal = await services.tokens.authenticate(created.token)
    rules = await services.rulebook.current()
    csrs = iter([csr_pem() for _ in range(ROUNDS + 1)])
    csr = parse_csr(csr_pem())
    signer = services.authorities.get()
    names, profile, now = make_names(IDENTITY), rules.profiles["workload"], system_clock()

    def plan() -> Any:
        return make_plan(profile=profile, names=names, csr=csr, issuer=signer.issuer, now=now, ttl=None, serial=new_serial(0, os.urandom))

    planned, unsigned = plan(), iter([plan() for _ in range(ROUNDS + 1)])
    circumstances = Circumstances(action="issue", source="127.0.0.1", csr_sha256=csr.sha256, origin=None, now=now)
    what = {"sha256": "0" * 64, "serial": "0" * 36, "identity": IDENTITY, "profile": "workload", "authority": "issuing", "key": "0" * 64}
    figures = {
        "token": await _each_async(lambda: services.tokens.authenticate(created.token)),
        "csr": _each(lambda: parse_csr(next(csrs))),
        "plan": _each(plan),
        "policy": _each(lambda: authorize(principal, planned, circumstances, rules.policy)),
        "lint": _each(lambda: lint(planned.tbs, planned)),
        "sign_and_check": _each(lambda: signer.sign(next(unsigned))),
        "log_entry": _each(lambda: make_entry("certificate.issued", at=now, who=principal.to_log(), what=what, why={"grant": "token:x"})),
    }
    figures["ledger"] = await _ledger(instance)
    figures["log_tree"] = await _sequence(instance)
    await instance.close()
    return figures


def _each(work: Callable[[], Any]) -> float:
    """Return the CPU time of one call in microseconds, the best of three rounds of calls (others use this machine too)."""
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        for _ in range(ROUNDS // 3):
            work()
        best = min(best, (time.process_time() - started) / (ROUNDS // 3))
    return best * 1e6


async def _each_async(work: Callable[[], Any]) -> float:
    started = time.process_time()
    for _ in range(ROUNDS):
        await work()
    return (time.process_time() - started) / ROUNDS * 1e6


async def _ledger(instance: Any) -> float:
    """Return the cost of making one certificate and its entry durable, 32 callers at a time."""
    from handclasp.log.entries import make_entry
    from handclasp.store.writes import CertificateRow, Write

    def write() -> Write:
        sha256, now = hashlib.sha256(os.urandom(16)).digest(), instance.clock()
        row = CertificateRow(
            sha256=sha256, serial=sha256[:18], der=os.urandom(700), authority_id=2, identity=IDENTITY, owner=None, profile="workload",
            names="{}", spki_sha256=os.urandom(32), key_type="p256", not_before=now, not_after=now + 3600000, renew_after=now,
            renew_before=now, line=sha256, generation=0, predecessor=None, granted_by="token:x", obtained_by="bench", crl_shard=0,
        )  # fmt: skip
        return Write([make_entry("certificate.issued", at=now, who={"kind": "bench"}, what={"sha256": sha256.hex()})], certificate=row)

    writes = [write() for _ in range(ROUNDS)]

    async def caller(mine: list[Write]) -> None:
        for one in mine:
            await instance.store.ledger.commit(one)

    started = time.process_time()
    await asyncio.gather(*(caller(writes[start::32]) for start in range(32)))
    return (time.process_time() - started) / ROUNDS * 1e6


async def _sequence(instance: Any) -> float:
    """Return the cost of bringing one committed entry into the tree."""
    from handclasp.log.sequencer import Sequencer

    sequencer = await Sequencer.open(instance.store.entries, instance.services.tiles, instance.log_signer)
    started = time.process_time()
    count = await sequencer.step()
    spent = (time.process_time() - started) / count * 1e6
    sequencer.close()
    return spent
