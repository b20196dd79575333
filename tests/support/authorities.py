"""Authorities, requests and plans made on the spot, for tests of anything that issues."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from handclasp.pki import ca, chains, keys
from handclasp.pki.csr import Csr, parse_csr
from handclasp.pki.names import Names
from handclasp.pki.plan import Issuer, Plan, assemble, make_plan, new_serial
from handclasp.pki.profiles import BUILT_IN, Profile

NOW = 1_790_000_000_123
"""A fixed now, in ms since the epoch (September 2026)."""
YEAR = 365 * 86400.0


@cache
def key_of(key_type: str, number: int = 0) -> keys.PrivateKey:
    """Return the same key each time for the same arguments: RSA keys are slow to make."""
    return keys.generate(key_type)


def serial() -> int:
    return new_serial(1, os.urandom)


@dataclass(frozen=True)
class MadeAuthority:
    """A root, an issuing authority below it, and both keys."""

    root_key: keys.PrivateKey
    root: bytes
    key: keys.PrivateKey
    certificate: bytes
    issuer: Issuer

    def sign(self, plan: Plan) -> bytes:
        return assemble(plan.tbs, self.issuer.signature_algorithm, keys.sign(self.key, plan.tbs))


def make_authority(
    key_type: str = "p256",
    *,
    trust_domain: str = "example.org",
    dns_zones: tuple[str, ...] = (),
    uri_constraint: str | None = None,
    now: int = NOW,
    lifetime: float = YEAR,
    crl_base: str = "http://ca.example.org/crl/issuing-1",
    aia_url: str = "http://ca.example.org/ca/issuing-1.cer",
) -> MadeAuthority:
    root_key, key = key_of(key_type, 1), key_of(key_type, 2)
    root = ca.self_signed_root(
        root_key, common_name="Test Root", trust_domain=trust_domain, now=now, lifetime=10 * YEAR, serial=serial(), backdate=3600
    )
    certificate = ca.sign_issuing(
        root_key,
        root,
        key.public_key(),
        subject="Test Issuing",
        trust_domain=trust_domain,
        dns_zones=dns_zones,
        uri_constraint=uri_constraint,
        now=now,
        lifetime=lifetime,
        serial=serial(),
        backdate=3600,
        crl_url="http://ca.example.org/crl/root/0.crl",
        aia="http://ca.example.org/ca/root.cer",
    )
    issuer = ca.issuer_of(
        certificate, name="issuing-1", trust_domain=trust_domain, dns_zones=dns_zones, crl_base=crl_base, crl_shards=8, aia_url=aia_url
    )
    return MadeAuthority(root_key, root, key, certificate, issuer)


@cache
def authority(key_type: str = "p256") -> MadeAuthority:
    return make_authority(key_type)


def reissued(above: x509.Certificate, like: x509.Certificate, key: Any) -> bytes:
    """Return ``like`` once more, but issued by ``above`` with its key."""
    builder = x509.CertificateBuilder(
        above.subject, like.subject, like.public_key(), 6, like.not_valid_before_utc, like.not_valid_after_utc
    )  # fmt: skip
    for one in like.extensions:
        if not isinstance(one.value, x509.AuthorityKeyIdentifier):
            builder = builder.add_extension(one.value, one.critical)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier(chains.key_id(above), None, None), False)
    return builder.sign(key, keys.signing_hash(key)).public_bytes(Encoding.DER)


def make_csr(
    key: keys.PrivateKey,
    *,
    san: list[x509.GeneralName] | None = None,
    common_name: str | None = None,
    encoding: Encoding = Encoding.DER,
) -> bytes:
    subject = [x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    if san is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    return builder.sign(key, keys.signing_hash(key)).public_bytes(encoding)


@cache
def csr_of(key_type: str = "p256") -> Csr:
    return parse_csr(make_csr(key_of(key_type)))


def plan_of(
    names: Names | None = None,
    *,
    made: MadeAuthority | None = None,
    profile: Profile | None = None,
    csr: Csr | None = None,
    now: int = NOW,
    ttl: float | None = None,
) -> Plan:
    return make_plan(
        profile=profile or BUILT_IN["workload"],
        names=names or Names(spiffe="spiffe://example.org/prod/web"),
        csr=csr or csr_of(),
        issuer=(made or authority()).issuer,
        now=now,
        ttl=ttl,
        serial=serial(),
    )
