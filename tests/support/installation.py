"""A small installation on a real database: authorities, certificates, revocations; and OpenSSL's opinion of them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from handclasp.authority.authorities import Authorities
from handclasp.authority.crls import CrlPublisher, mark_dirty
from handclasp.authority.keystore import KeyStore
from handclasp.log.entries import make_entry
from handclasp.pki import chains, crl
from handclasp.pki.names import Names
from handclasp.pki.plan import Plan, make_plan, new_serial
from handclasp.pki.profiles import BUILT_IN
from handclasp.server.instance import open_instance
from handclasp.server.settings import Settings
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import CertificateRow, Change, Write
from support.authorities import NOW, csr_of

BY = {"kind": "test"}
PASSPHRASE = b"correct horse battery staple"
BASE = "http://ca.example.org:8080"


@dataclass
class Ticker:
    """A clock that stands still until it is moved."""

    now: int = NOW

    def __call__(self) -> int:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += round(seconds * 1000)


@dataclass(frozen=True)
class Leaf:
    der: bytes
    plan: Plan
    authority_id: int

    @property
    def sha256(self) -> bytes:
        return chains.fingerprint(self.der)


@dataclass
class Installation:
    store: Store
    keystore: KeyStore
    authorities: Authorities
    publisher: CrlPublisher
    clock: Ticker

    def plan(self, names: Names, *, profile: str = "workload", authority: str = "", ttl: float | None = None) -> Plan:
        signer = self.authorities.get(authority)
        return make_plan(
            profile=BUILT_IN[profile],
            names=names,
            csr=csr_of(),
            issuer=signer.issuer,
            now=self.clock(),
            ttl=ttl,
            serial=new_serial(1, os.urandom),
        )

    async def issue(self, names: Names, *, profile: str = "workload", authority: str = "", ttl: float | None = None) -> Leaf:
        signer = self.authorities.get(authority)
        plan = self.plan(names, profile=profile, authority=authority, ttl=ttl)
        leaf = Leaf(signer.sign(plan), plan, signer.authority.id)
        entry = make_entry("certificate.issued", at=self.clock(), who=BY, what={"sha256": leaf.sha256.hex()})
        row = CertificateRow(
            sha256=leaf.sha256,
            serial=plan.serial.to_bytes(18),
            der=leaf.der,
            authority_id=leaf.authority_id,
            identity="spiffe://example.org/test",
            owner=None,
            profile=profile,
            names="{}",
            spki_sha256=plan.spki_sha256,
            key_type=plan.key_type,
            not_before=plan.not_before,
            not_after=plan.not_after,
            renew_after=plan.not_after,
            renew_before=plan.not_after,
            line=leaf.sha256,
            generation=0,
            predecessor=None,
            granted_by="token:test",
            obtained_by="token:test",
            crl_shard=plan.crl_shard,
        )
        await self.store.ledger.commit(Write([entry], certificate=row))
        return leaf

    async def revoke(self, leaf: Leaf, reason: str = "key_compromise") -> None:
        now, column = self.clock(), tables.certificate.c
        values = {"revoked_at": now, "revocation_reason": crl.REASONS[reason]}
        change = Change(update(tables.certificate).where(column.sha256 == leaf.sha256).values(**values), expect=1)
        entry = make_entry("certificate.revoked", at=now, who=BY, what={"sha256": leaf.sha256.hex()})
        await self.store.ledger.commit(Write([entry], [change, *mark_dirty(leaf.authority_id, leaf.plan.crl_shard, now)]))


_EMPTY: list[bytes] = []


async def _empty_database() -> bytes:
    """Return an SQLite database at the newest schema; migrating takes longer than most tests do."""
    if not _EMPTY:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "empty.db"
            await (await Store.open(f"sqlite:///{path}")).close()
            _EMPTY.append(path.read_bytes())
    return _EMPTY[0]


@asynccontextmanager
async def installation(
    directory: Path, url: str = "", *, clock: Ticker | None = None, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Installation]:
    """Open an installation in ``directory``: its database (or the one at ``url``), its keys."""
    clock = clock or Ticker()
    database = directory / "handclasp.db"
    if not url and not database.exists():
        database.write_bytes(await _empty_database())
    store = await Store.open(url or f"sqlite:///{database}", clock, migrate=bool(url))
    try:
        keystore = KeyStore(directory / "keys", PASSPHRASE, environ=environ or {})
        authorities = Authorities(store, keystore, clock)
        await authorities.load()
        yield Installation(store, keystore, authorities, CrlPublisher(store, authorities, clock), clock)
    finally:
        await store.close()


def in_installation(directory: Path, work: Callable[[Installation], Awaitable[None]], url: str = "", **options: Any) -> None:
    """Do something in an installation; ``options`` as of :func:`installation`."""

    async def main() -> None:
        async with installation(directory, url, **options) as here:
            await work(here)

    asyncio.run(main())


async def make_standard(here: Installation, **options: Any) -> None:
    """Make a root and an issuing authority; ``options`` as of ``create_issuing``."""
    await here.authorities.create_root("root", "example.org", by=BY, base_url=BASE)
    await here.authorities.create_issuing("issuing-1", "root", by=BY, base_url=BASE, **options)


async def log_types(here: Installation) -> list[str]:
    """Return the types of the log's entries, in their order."""
    rows = await here.store.rows(select(tables.log_entry).order_by(tables.log_entry.c.index))
    return [json.loads(row.entry)["type"] for row in rows]


def openssl_verify(
    directory: Path, leaf: bytes, between: Sequence[bytes], roots: Sequence[bytes], *options: str, at: int, crls: str | None = None
) -> str:
    """Return "ok", or what `openssl verify` has against a certificate (DER) at ``at`` (ms); ``crls`` turns on -crl_check_all."""
    files = {"leaf": [leaf], "between": between, "roots": roots}
    for name, ders in files.items():
        (directory / f"{name}.pem").write_text("".join(map(chains.to_pem, ders)))
    command = ["openssl", "verify", "-x509_strict", "-attime", str(at // 1000), "-CAfile", str(directory / "roots.pem")]
    if between:
        command += ["-untrusted", str(directory / "between.pem")]
    if crls is not None:
        (directory / "crls.pem").write_text(crls)
        command += ["-crl_check_all", "-CRLfile", str(directory / "crls.pem")]
    done = subprocess.run([*command, *options, str(directory / "leaf.pem")], capture_output=True, text=True, check=False)
    return "ok" if done.returncode == 0 else done.stderr


def add_root(data: Path, trust_domain: str) -> None:
    """Make another root, root-2, in a data directory whose server is stopped."""

    async def work() -> None:
        instance = await open_instance(Settings.load({"data": str(data)}, env={}))
        try:
            await instance.authorities.create_root("root-2", trust_domain, by={"kind": "test"})
        finally:
            await instance.close()

    asyncio.run(work())
