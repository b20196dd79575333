"""What is seen again and again: sightings a second on one core, the cost of reading one certificate, and of following the log.

A company's places are read every day and hold what they held; one in twenty has another certificate. ``inventory.ingest.per_second`` is
that mix, ``inventory.ingest.first.per_second`` a first scan, where everything is new. Both are
places over CPU time: what one core would do.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from bench.results import Result
from handclasp.clock import system_clock, to_datetime
from handclasp.store.writes import CertificateRow, Write
from handclasp.wire.observations import Observed, Seen, Sightings

PLACES = 6000
TOGETHER = 500
"""Places in one call, as the engine and collectors hand them in."""
CHANGED = 20
"""One place in so many has another certificate."""
ROUNDS = 4
ISSUED = 6000


def run() -> Iterator[Result]:
    """Measure on SQLite, in this process."""
    with tempfile.TemporaryDirectory(prefix="handclasp-bench-") as directory:
        figures = asyncio.run(_measure(Path(directory)))
    yield Result("inventory.record.cpu_us", figures["record"], "us", 60.0, 1.0)
    yield Result("inventory.ingest.per_second", figures["again"], "/s", 5000.0, 1.0, at_least=True, note="95 % as before")
    yield Result("inventory.ingest.first.per_second", figures["first"], "/s", note="everything new")
    yield Result("inventory.follow.cpu_us", figures["follow"], "us", note="each certificate issued")


async def _measure(directory: Path) -> dict[str, float]:
    from handclasp.inventory.rows import found_row
    from handclasp.server.instance import open_instance
    from handclasp.server.settings import Settings
    from handclasp.server.setup import initialise

    settings = Settings.load({"data": str(directory / "data"), "trust_domain": "example.org"}, {})
    await initialise(settings)
    instance = await open_instance(settings)
    made = Certificates()
    leaves = [made.leaf(number) for number in range(PLACES)]
    figures = {"record": _each(lambda der: found_row(der, 0), leaves)}
    recorder = instance.services.inventory.recorder
    figures["first"] = await _rate(recorder, made, leaves)
    rates = []
    for number in range(ROUNDS):
        for place in range(number, PLACES, CHANGED):
            leaves[place] = made.leaf(PLACES * (number + 1) + place)
        rates.append(await _rate(recorder, made, leaves))
    figures["again"] = max(rates)
    figures["follow"] = await _follow(instance)
    await instance.close()
    return figures


class Certificates:
    """Leaves of a foreign authority with its certificate, quickly made: one key, and names like those of services."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Bench Issuing")])
        self._now = system_clock()
        self.authority = self._sign("", self._name, x509.BasicConstraints(ca=True, path_length=None))

    def leaf(self, number: int) -> bytes:
        """Return one certificate, another for each number."""
        return self._sign(f"service-{number % PLACES}.{number % 97}.example.net", x509.Name([]), None)

    def _sign(self, name: str, subject: x509.Name, basic: x509.BasicConstraints | None) -> bytes:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(self._key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(to_datetime(self._now - 60_000))
        builder = builder.not_valid_after(to_datetime(self._now + 86_400_000 * 90))
        builder = builder.add_extension(basic or x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        if name:
            uri = x509.UniformResourceIdentifier(f"spiffe://example.net/ns/{name.split('.')[1]}/sa/{name.split('.')[0]}")
            builder = builder.add_extension(x509.SubjectAlternativeName([uri, x509.DNSName(name)]), critical=True)
            usages = [x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.DER)


async def _rate(recorder: Any, made: Certificates, leaves: list[bytes]) -> float:
    """Record every place once, and return how many a second of CPU time does."""
    now = system_clock()
    batches = []
    for start in range(0, len(leaves), TOGETHER):
        observed = [
            Observed(
                key=f"tls:10.0.{number // 256}.{number % 256}:443/", kind="endpoint", shown=f"10.0.{number // 256}.{number % 256}:443",
                unit=f"10.0.{number // 256}.0/24", host=f"10.0.{number // 256}.{number % 256}", at=now,
                certificates=[Seen(der=leaf, role="served", chain=[made.authority], how={"tls": "1.3", "sni": ""})],
                details={"protocol": "tls", "client_certificate": "requested"},
            )
            for number, leaf in enumerate(leaves[start : start + TOGETHER], start)
        ]  # fmt: skip
        batches.append(Sightings(observed=observed))
    began = time.process_time()
    for batch in batches:
        await recorder.record(1, batch)
    return len(leaves) / (time.process_time() - began)


async def _follow(instance: Any) -> float:
    """Return the CPU time that following costs for each certificate, one in three of a new identity."""
    from handclasp.log.entries import make_entry

    follower = instance.services.inventory.follower
    while await follower.step():
        pass

    def write(number: int) -> Write:
        sha256, now = os.urandom(32), instance.clock()
        identity = f"spiffe://example.org/bench/{number // 3}"
        row = CertificateRow(
            sha256=sha256, serial=sha256[:18], der=os.urandom(700), authority_id=2, identity=identity, owner=None, profile="workload",
            names="{}", spki_sha256=os.urandom(32), key_type="p256", not_before=now, not_after=now + 3600000, renew_after=now,
            renew_before=now, line=sha256, generation=0, predecessor=None, granted_by="token:x", obtained_by="bench", crl_shard=0,
        )  # fmt: skip
        what = {"sha256": sha256.hex(), "identity": identity}
        return Write([make_entry("certificate.issued", at=now, who={"kind": "bench"}, what=what)], certificate=row)

    await asyncio.gather(*(instance.store.ledger.commit(write(number)) for number in range(ISSUED)))
    began = time.process_time()
    while await follower.step():
        pass
    return (time.process_time() - began) / ISSUED * 1e6


def _each(work: Any, items: list[bytes]) -> float:
    """Return the CPU time of one call in microseconds, the best of three rounds (others use this machine too)."""
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        for item in items:
            work(item)
        best = min(best, (time.process_time() - began) / len(items))
    return best * 1e6
