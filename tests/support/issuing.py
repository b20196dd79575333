"""A small installation that issues: authorities, tokens, policy, revocations, on a real database, under a clock that the test moves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from sqlalchemy import select

from handclasp import wire
from handclasp.access.principals import CertificatePrincipal, Principal, TokenPrincipal
from handclasp.access.tokens import Tokens
from handclasp.errors import HandclaspError
from handclasp.issuance.issue import Issuance
from handclasp.issuance.request import IssuanceRequest, IssuedCertificate, Source
from handclasp.issuance.revoke import Revoker
from handclasp.issuance.rulebook import Rulebook
from handclasp.log.entries import parse_entry
from handclasp.pki import keys
from handclasp.pki.names import make_names
from handclasp.store import tables
from support.authorities import make_csr
from support.installation import BASE, BY, Installation, installation

WEB = "spiffe://example.org/prod/web"
HERE = Source("rest", "10.1.2.3")


@dataclass
class House:
    """Everything below the API, opened."""

    here: Installation
    rulebook: Rulebook
    tokens: Tokens
    issuance: Issuance
    revoker: Revoker
    secrets: list[str] = field(default_factory=list)
    """Every token that was ever made: none of them may be found anywhere."""

    async def token(self, **wanted: Any) -> TokenPrincipal:
        """Make a token and present it."""
        known: dict[str, Any] = {"name": "web-bootstrap", "allow": [WEB], "profiles": ["workload"], "uses": 0, "expires": "1h"}
        created = await self.tokens.create(wire.TokenRequest(**(known | wanted)), "local:test")
        self.secrets += [created.token, created.token.split("_", 2)[2]]
        return await self.tokens.authenticate(created.token)

    async def issue(self, principal: Principal, csr: str | bytes | None = None, **wanted: Any) -> IssuedCertificate:
        """Ask for a certificate, by default over a fresh key and without a word about names."""
        data = fresh_csr() if csr is None else csr
        return await self.issuance.issue(IssuanceRequest(principal, data, wanted.pop("source", HERE), **wanted))

    async def holder(self, issued: IssuedCertificate) -> CertificatePrincipal:
        """Return who holds a certificate, as a door would after the handshake."""
        row = await self.row(issued)
        others = json.loads(row.names)
        spiffe = issued.identity if issued.identity.startswith("spiffe://") else None
        return CertificatePrincipal(
            issued.sha256, issued.identity, make_names(spiffe, *(others.get(kind, ()) for kind in ("dns", "ip", "email"))), row.profile,
            bytes(row.line), row.generation, row.granted_by, is_agent=row.profile == "agent", superseded_at=row.superseded_at,
            grace_is_over=row.superseded_at is not None
            and self.issuance.grace_is_over(row.superseded_at, row.not_before, row.not_after),
        )  # fmt: skip

    async def renew(self, issued: IssuedCertificate, csr: bytes | None = None, **wanted: Any) -> IssuedCertificate:
        """Renew a certificate with itself."""
        return await self.issue(await self.holder(issued), csr, predecessor=issued.sha256, **wanted)

    async def row(self, issued: IssuedCertificate) -> Any:
        row = await self.here.store.row(select(tables.certificate).where(tables.certificate.c.sha256 == issued.sha256))
        assert row is not None
        return row

    async def entries(self) -> list[dict[str, Any]]:
        """Every log entry, oldest first."""
        return [parse_entry(data) for data in await self.here.store.entries(0, 100_000)]

    async def everything_stored(self) -> bytes:
        """Return all rows of all tables as one text, to look for what must not be there."""
        parts = []
        for table in tables.metadata.sorted_tables:
            for row in await self.here.store.rows(select(table)):
                parts += [value if isinstance(value, bytes) else str(value).encode() for value in row]
        return b"\n".join(parts)


@asynccontextmanager
async def house(directory: Path, url: str = "", **issuing: Any) -> AsyncIterator[House]:
    """Open a house with a root and one issuing authority for ``example.org``; ``issuing`` are that one's options."""
    async with installation(directory, url) as here:
        await here.authorities.create_root("root", "example.org", by=BY, base_url=BASE)
        await here.authorities.create_issuing("issuing", "root", by=BY, **{"base_url": BASE, "crl_shards": 4, **issuing})
        rulebook, tokens = Rulebook(here.store, here.clock), Tokens(here.store, here.clock)
        issuance = Issuance(here.store, here.authorities, rulebook, tokens, here.clock, instance=42, renewal_grace=600)
        yield House(here, rulebook, tokens, issuance, Revoker(here.store, rulebook, here.clock))


def fresh_csr(*names: str, key: keys.PrivateKey | None = None) -> bytes:
    """Return a CSR over a new key: for a SPIFFE ID, DNS names, e-mail addresses; none for one without a SAN."""
    kinds = [
        x509.UniformResourceIdentifier(name) if "://" in name else x509.RFC822Name(name) if "@" in name else x509.DNSName(name)
        for name in names
    ]
    return make_csr(key or keys.generate("p256"), san=list(kinds) or None)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


async def outcome(work: Any) -> IssuedCertificate | HandclaspError:
    """Await something that either works or is refused, and return which."""
    try:
        issued: IssuedCertificate = await work
        return issued
    except HandclaspError as error:
        return error


def types(entries: Sequence[dict[str, Any]]) -> list[str]:
    return [entry["type"] for entry in entries]
