"""The plan of a certificate: everything that will be signed, complete, before anyone decides whether it may be.

The to-be-signed bytes are written with :mod:`handclasp.pki.der` (four times as fast as building objects for them); a test holds them equal
to what ``x509.CertificateBuilder`` makes of the same content. Rules: RFC 5280, SPIFFE X.509-SVID, RFC 7093.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from handclasp.clock import format_duration, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import der, keys
from handclasp.pki.csr import Csr
from handclasp.pki.names import Names, in_dns_zone, trust_domain_of
from handclasp.pki.profiles import Profile

_VERSION_3 = der.explicit(0, der.integer(2))
SUBJECT_KEY_HEAD = bytes.fromhex("301d0603551d0e04160414")  # Extension, subjectKeyIdentifier, not critical, 20 bytes
_COMMON_NAME = der.oid("2.5.4.3")
MAX_COMMON_NAME = 64  # RFC 5280 appendix A, ub-common-name


@dataclass(frozen=True, slots=True)
class Issuer:
    """An issuing authority as a plan needs it: no key. Times are ms since the epoch."""

    name: str
    trust_domain: str
    subject_der: bytes
    key_id: bytes
    """Its subject key identifier."""
    signature_algorithm: bytes
    """DER AlgorithmIdentifier of its signatures."""
    not_after: int
    not_before: int = 0
    dns_zones: tuple[str, ...] = ()
    """Zones that DNS names must lie in; none given: no limit."""
    crl_base: str = ""
    """URL prefix of its CRLs; empty: certificates name none."""
    crl_shards: int = 1
    aia_url: str = ""
    """URL of its certificate; empty: certificates name none."""
    authority_key_der: bytes = field(init=False, repr=False, compare=False)
    """The authorityKeyIdentifier extension, encoded once."""
    access_der: bytes = field(init=False, repr=False, compare=False)
    """The authorityInfoAccess extension, encoded once; empty without ``aia_url``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "authority_key_der", der.extension("2.5.29.35", der.sequence(der.implicit(0, self.key_id))))
        access = b""
        if self.aia_url:
            location = der.implicit(6, self.aia_url.encode("ascii"))
            access = der.extension("1.3.6.1.5.5.7.1.1", der.sequence(der.sequence(der.oid("1.3.6.1.5.5.7.48.2"), location)))
        object.__setattr__(self, "access_der", access)

    def crl_url(self, shard: int) -> str:
        """Return the URL of one CRL, exactly as it stands in certificates and in that CRL; empty when there is none."""
        return f"{self.crl_base}/{shard}.crl" if self.crl_base else ""


@dataclass(slots=True)
class Plan:
    """One certificate to be: what :func:`make_plan` decided and the bytes that say so. Times are ms since the epoch, ``lifetime`` is
    seconds after now."""

    serial: int
    names: Names
    profile: Profile
    issuer: Issuer
    not_before: int
    not_after: int
    lifetime: float
    clamped: bool
    """Whether the authority's end cut the lifetime short."""
    spki_sha256: bytes
    key_type: str
    crl_shard: int
    tbs: bytes
    redeemed: bool = False

    def redeem(self) -> bytes:
        """Return the bytes to sign, once: a plan makes one certificate. A second call raises ``internal``."""
        if self.redeemed:
            raise HandclaspError(Kind.INTERNAL, "this plan was used before")
        self.redeemed = True
        return self.tbs


def new_serial(instance: int, random: Callable[[int], bytes]) -> int:
    """Return a new serial number: one byte for the instance (0 to 127), then 136 random bits.

    The byte keeps two instances that share an authority apart even if their random sources fail alike; below 128 it keeps the number
    positive in 18 bytes (RFC 5280 allows 20), and 136 bits are far above the 64 that make a certificate unpredictable.
    """
    if not 0 <= instance <= 127:
        raise HandclaspError(Kind.INTERNAL, f"instance {instance} is not in 0 to 127")
    return int.from_bytes(bytes((instance,)) + random(17), "big")


def make_plan(*, profile: Profile, names: Names, csr: Csr, issuer: Issuer, now: int, ttl: float | None, serial: int) -> Plan:
    """Return the complete plan of a certificate for ``csr``'s key with ``names``; ``now`` in ms since the epoch, ``ttl`` in seconds.

    Raises ``bad_key`` (type not in the profile), ``bad_name`` (kinds of name the profile forbids or misses), ``name_not_allowed`` (another
    trust domain, or outside the authority's DNS zones), ``lifetime_not_allowed`` (outside the profile's, or the authority ends too soon).
    """
    if csr.key_type not in profile.key_types:
        words = f"profile {profile.name!r} does not take {csr.key_type} keys"
        raise HandclaspError(Kind.BAD_KEY, words, hint="one of " + ", ".join(sorted(profile.key_types)))
    _check_names(profile, names, issuer)
    not_before, not_after, lifetime, clamped = _dates(profile, issuer, now, ttl)
    shard = serial % issuer.crl_shards
    tbs = encode_tbs(
        serial=serial,
        names=names,
        profile=profile,
        issuer=issuer,
        not_before=not_before,
        not_after=not_after,
        spki=csr.spki,
        crl_shard=shard,
    )
    return Plan(serial, names, profile, issuer, not_before, not_after, lifetime, clamped, csr.spki_sha256, csr.key_type, shard, tbs)


def _check_names(profile: Profile, names: Names, issuer: Issuer) -> None:
    kinds = names.kinds
    if not kinds:
        raise HandclaspError(
            Kind.BAD_NAME, "the certificate would have no name", hint="ask for an identity or a DNS name, or put it in the CSR"
        )
    if not kinds <= profile.names:
        raise HandclaspError(Kind.BAD_NAME, f"profile {profile.name!r} does not allow {', '.join(sorted(kinds - profile.names))} names")
    if not profile.require <= kinds:
        raise HandclaspError(Kind.BAD_NAME, f"profile {profile.name!r} needs a {', '.join(sorted(profile.require - kinds))} name")
    if names.spiffe is not None and trust_domain_of(names.spiffe) != issuer.trust_domain:
        words = f"{names.spiffe} is not in trust domain {issuer.trust_domain}, which authority {issuer.name!r} serves"
        raise HandclaspError(Kind.NAME_NOT_ALLOWED, words)
    if issuer.dns_zones:
        # An e-mail address lives in a DNS name too; an address in no zone at all is left to policy.
        for name in (*names.dns, *(address.rpartition("@")[2] for address in names.email)):
            if not in_dns_zone(name, issuer.dns_zones):
                words = f"{name} is outside the zones of authority {issuer.name!r}"
                raise HandclaspError(Kind.NAME_NOT_ALLOWED, words, hint="its zones: " + ", ".join(issuer.dns_zones))


def _dates(profile: Profile, issuer: Issuer, now: int, ttl: float | None) -> tuple[int, int, float, bool]:
    """Return (not before, not after, lifetime from now, clamped); certificates count whole seconds, and never more than was granted."""
    lifetime = profile.lifetime if ttl is None else ttl
    if not profile.min_lifetime <= lifetime <= profile.max_lifetime:  # also refuses NaN
        words = f"a lifetime of {lifetime:g} s is not allowed by profile {profile.name!r}"
        limits = f"{format_duration(profile.min_lifetime)} to {format_duration(profile.max_lifetime)}"
        raise HandclaspError(Kind.LIFETIME_NOT_ALLOWED, words, hint=f"ask for {limits}")
    not_before = max(now - int(profile.backdate * 1000), issuer.not_before) // 1000 * 1000
    not_after = (now + int(lifetime * 1000)) // 1000 * 1000
    clamped = not_after > issuer.not_after
    if clamped:
        not_after = issuer.not_after // 1000 * 1000
        lifetime = (not_after - now) / 1000
        if lifetime < profile.min_lifetime:
            words = f"authority {issuer.name!r} ends at {rfc3339(issuer.not_after)}, too soon for profile {profile.name!r}"
            raise HandclaspError(Kind.LIFETIME_NOT_ALLOWED, words, hint="make a new issuing authority")
    if now < issuer.not_before:
        raise HandclaspError(Kind.LIFETIME_NOT_ALLOWED, f"authority {issuer.name!r} is not valid before {rfc3339(issuer.not_before)}")
    return not_before, not_after, lifetime, clamped


def encode_tbs(
    *, serial: int, names: Names, profile: Profile, issuer: Issuer, not_before: int, not_after: int, spki: bytes, crl_shard: int
) -> bytes:
    """Return the DER TBSCertificate, version 3 (RFC 5280 4.1), of values that were checked before."""
    subject = encode_subject(names)
    extensions = (
        profile.extensions_der
        + SUBJECT_KEY_HEAD
        + keys.key_id(spki)
        + issuer.authority_key_der
        # RFC 5280 4.2.1.6: critical when there is no subject, because then nothing else says who this is.
        + der.extension("2.5.29.17", encode_general_names(names), critical=subject == der.EMPTY_SEQUENCE)
        + (_crl_extension(issuer.crl_url(crl_shard)) if issuer.crl_base else b"")
        + issuer.access_der
    )
    return der.tlv(
        0x30,
        _VERSION_3
        + der.integer(serial)
        + issuer.signature_algorithm
        + issuer.subject_der
        + der.tlv(0x30, der.time_(not_before) + der.time_(not_after))
        + subject
        + spki
        + der.tlv(0xA3, der.tlv(0x30, extensions)),
    )


def encode_subject(names: Names) -> bytes:
    """Return the subject: empty with a SPIFFE ID; else the first DNS name as common name, for readers that know nothing newer, when it
    fits."""
    if names.spiffe is None and names.dns and len(names.dns[0]) <= MAX_COMMON_NAME:
        return der.sequence(der.set_(der.sequence(_COMMON_NAME, der.utf8_string(names.dns[0]))))
    return der.EMPTY_SEQUENCE


def encode_general_names(names: Names) -> bytes:
    """Return GeneralNames (RFC 5280 4.2.1.6) in the order URI, DNS, IP, e-mail."""
    parts = [] if names.spiffe is None else [der.tlv(0x86, names.spiffe.encode())]
    parts += [der.tlv(0x82, name.encode()) for name in names.dns]
    parts += [der.tlv(0x87, ipaddress.ip_address(address).packed) for address in names.ip]
    parts += [der.tlv(0x81, address.encode()) for address in names.email]
    return der.tlv(0x30, b"".join(parts))


@lru_cache(maxsize=4096)
def _crl_extension(url: str) -> bytes:
    point = der.sequence(der.explicit(0, der.explicit(0, der.implicit(6, url.encode("ascii")))))
    return der.extension("2.5.29.31", der.sequence(point))


def assemble(tbs: bytes, signature_algorithm: bytes, signature: bytes) -> bytes:
    """Return the DER certificate made of its signed part, the AlgorithmIdentifier and the signature."""
    return der.tlv(0x30, tbs + signature_algorithm + der.bit_string(signature))
