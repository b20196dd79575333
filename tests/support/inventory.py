"""Recording what was seen, in an installation that issues: certificates from outside, observations, and where everything stands."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from sqlalchemy import func, select

from handclasp.clock import to_datetime
from handclasp.inventory import tallies
from handclasp.inventory.follow import Follower
from handclasp.inventory.reconcile import Reconciler
from handclasp.inventory.record import Recorder
from handclasp.inventory.states import Graces
from handclasp.issuance.request import IssuedCertificate
from handclasp.pki import keys
from handclasp.store import tables
from handclasp.wire.observations import Covered, Observed, Recorded, Seen, Sightings
from support.authorities import NOW, key_of
from support.issuing import House, house

SOURCE = 1


@dataclass
class Watch:
    """A house, and those who keep its inventory."""

    house: House
    recorder: Recorder
    reconciler: Reconciler
    follower: Follower

    @property
    def now(self) -> int:
        return self.house.here.clock.now

    @property
    def store(self) -> Any:
        return self.house.here.store

    def pass_(self, seconds: float) -> None:
        self.house.here.clock.pass_(seconds)

    async def see(self, *observed: Observed, covered: Sequence[Covered] = (), source: int = SOURCE) -> Recorded:
        return await self.recorder.record(source, Sightings(observed=list(observed), covered=list(covered)))

    def at(self, key: str, *certificates: bytes | Seen, **more: Any) -> Observed:
        """What one location holds now: certificates served there, as DER."""
        seen = [one if isinstance(one, Seen) else Seen(der=one, role="served") for one in certificates]
        return Observed(**{"key": key, "kind": "endpoint", "shown": key, "at": self.now, "certificates": seen, **more})

    async def settle(self) -> None:
        """Let everything catch up that the leader does."""
        while await self.follower.step():
            pass
        await self.reconciler.step()

    async def states(self) -> dict[bytes, str]:
        rows = await self.store.rows(select(tables.standing.c.sha256, tables.standing.c.state))
        return {bytes(row.sha256): row.state for row in rows}

    async def counts(self) -> dict[str, int]:
        return await tallies.of_kind(self.store, "state")

    async def rows(self, table: Any) -> Sequence[Any]:
        return await self.store.rows(select(table))

    async def number(self, table: Any, *conditions: Any) -> int:
        row = await self.store.row(select(func.count().label("n")).select_from(table).where(*conditions))
        return int(row.n)

    async def der(self, issued: IssuedCertificate) -> bytes:
        return bytes((await self.house.row(issued)).der)


@asynccontextmanager
async def watch(directory: Path, url: str = "", graces: Graces | None = None) -> AsyncIterator[Watch]:
    """Open a house with its inventory."""
    async with house(directory, url) as opened:
        here = opened.here
        reconciler = Reconciler(here.store, here.clock, graces or Graces(unseen=0, old=600_000))
        recorder = Recorder(here.store, here.authorities, here.clock, reconciler)
        yield Watch(opened, recorder, reconciler, Follower(here.store, here.clock, reconciler))


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def foreign(
    name: str = "db.example.net",
    *,
    uri: str = "",
    now: int = NOW,
    lifetime: float = 86400,
    issuer: str = "Somebody Else",
    signer: Any = None,
    ca: bool = False,
    subject: Mapping[Any, str] | None = None,
    key_type: str = "p256",
    key: Any = None,
) -> bytes:
    """A certificate that was not issued here, in DER. ``signer`` is (certificate, key) of an authority to sign with; ``key`` is its own."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)] if uri else [x509.DNSName(name)] if name else []
    parts = ({NameOID.COMMON_NAME: name} if name else {}) if subject is None else subject
    issuer_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]) if signer is None else signer[0].subject
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(kind, value) for kind, value in parts.items()]))
        .issuer_name(issuer_name)
        .public_key((key or keys.generate(key_type)).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(to_datetime(now - 60_000))
        .not_valid_after(to_datetime(now + round(lifetime * 1000)))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key_of("p256", 9) if signer is None else signer[1], hashes.SHA256()).public_bytes(Encoding.DER)


async def rogue(watch: Watch, uri: str = "spiffe://example.org/prod/rogue", **more: Any) -> bytes:
    """A certificate that our authority's key signs, and that is never issued here."""
    authority = watch.house.here.authorities.find("issuing")
    key = watch.house.here.authorities.crl_key(authority)
    return foreign("", uri=uri, subject={}, signer=(authority.certificate, key), now=watch.now, **more)
