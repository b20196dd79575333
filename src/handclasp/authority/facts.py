"""One authority as it is known: its row, and what its certificate says. Nothing here signs or does I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from cryptography import x509

from handclasp.clock import from_datetime, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import chains, keys
from handclasp.pki import der as asn1

E = TypeVar("E", bound=x509.ExtensionType)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # it becomes part of URLs, of file names and of common names (64 characters)


@dataclass(frozen=True, slots=True)
class Authority:
    """A root or issuing authority. Times are ms since the epoch; ``chain`` is DER, nearest first, root last, without itself."""

    id: int
    name: str
    kind: str
    trust_domain: str
    sha256: bytes
    der: bytes
    chain: tuple[bytes, ...]
    key_uri: str | None
    dns_zones: tuple[str, ...]
    crl_shards: int
    crl_base: str
    state: str
    not_before: int
    not_after: int
    key_type: str
    certificate: x509.Certificate

    @property
    def is_root(self) -> bool:
        """Whether this is a trust anchor."""
        return self.kind == "root"

    @property
    def root(self) -> bytes:
        """The DER of the root above it, or its own."""
        return self.chain[-1] if self.chain else self.der

    @property
    def aia_url(self) -> str:
        """The URL of its certificate, which lies beside its CRLs (see :func:`crl_base_of`); empty when it publishes nothing."""
        return certificate_url(self.crl_base)

    def crl_url(self, shard: int) -> str:
        """The URL of one of its CRLs, exactly as it stands in certificates; empty when certificates name none."""
        return f"{self.crl_base}/{shard}.crl" if self.crl_base else ""


def crl_base_of(base_url: str, name: str) -> str:
    """Return the prefix of an authority's CRL URLs under the HTTP listener's public address; empty stays empty. Raises ``bad_setting``."""
    if not base_url:
        return ""
    # Plain HTTP on purpose (RFC 5280 section 8): whoever fetches a CRL over TLS may need that CRL to check the connection.
    if not re.fullmatch(r"http://[A-Za-z0-9.\-\[\]:]+(/[A-Za-z0-9._~/-]*)?", base_url) or len(base_url) > 200:
        raise HandclaspError(Kind.BAD_SETTING, f"{base_url!r} cannot be in certificates", hint="write it like http://ca.example.org:8080")
    return f"{base_url.rstrip('/')}/crl/{name}"


def certificate_url(crl_base: str) -> str:
    """Return the URL of an authority's certificate, given the prefix of its CRL URLs: the HTTP listener serves both."""
    prefix, found, name = crl_base.rpartition("/crl/")
    return f"{prefix}/ca/{name}.cer" if found else ""


def from_row(row: Any) -> Authority:
    """Return a row of ``store.tables.authority`` with what its certificate says. Raises ``bad_certificate`` when that is damaged."""
    certificate = chains.load(bytes(row.der))
    return Authority(
        id=row.id,
        name=row.name,
        kind=row.kind,
        trust_domain=row.trust_domain,
        sha256=bytes(row.sha256),
        der=bytes(row.der),
        chain=tuple(asn1.elements(bytes(row.chain))),
        key_uri=row.key_uri,
        dns_zones=tuple(msgspec.json.decode(row.dns_zones, type=list[str])),
        crl_shards=row.crl_shards,
        crl_base=row.crl_base,
        state=row.state,
        not_before=from_datetime(certificate.not_valid_before_utc),
        not_after=from_datetime(certificate.not_valid_after_utc),
        key_type=keys.key_type_of(public_key(certificate)),
        certificate=certificate,
    )


def row_of(
    *, name: str, trust_domain: str, der: bytes, chain: Sequence[bytes], key_uri: str | None, crl_base: str, crl_shards: int, now: int
) -> dict[str, Any]:
    """Return the values of a new row of ``store.tables.authority``; zones are read from the certificate, so that they are what it says."""
    return {
        "name": name,
        "kind": "issuing" if chain else "root",
        "trust_domain": trust_domain,
        "sha256": hashlib.sha256(der).digest(),
        "der": der,
        "chain": b"".join(chain),
        "key_uri": key_uri,
        "dns_zones": msgspec.json.encode(list(dns_zones(chains.load(der)))).decode(),
        "crl_shards": crl_shards,
        "crl_base": crl_base,
        "state": "active",
        "created_at": now,
    }


def load_certificate(data: bytes) -> bytes:
    """Return the DER of the one certificate in a file's bytes (PEM or DER), known to be readable; raise ``bad_certificate``."""
    if b"-----BEGIN" not in data:
        chains.load(data)
        return data
    found = chains.split_pem(data.decode("latin-1"))
    if len(found) != 1:
        raise HandclaspError(
            Kind.BAD_CERTIFICATE, f"{len(found)} certificates where one was expected", hint="give each in a file of its own"
        )
    return found[0]


def dns_zones(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the DNS names that an authority's name constraints permit; empty when it has none."""
    constraints = extension(certificate, x509.NameConstraints)
    permitted = (constraints.permitted_subtrees or []) if constraints else []
    return tuple(name.value.removeprefix(".") for name in permitted if isinstance(name, x509.DNSName))


def check_root(root: bytes, now: int) -> None:
    """Raise ``bad_certificate`` unless this is a self-signed certificate that may sign certificates, with a sound key, and valid now."""
    certificate = chains.load(root)
    _check_authority(certificate, "root", now)
    try:
        keys.verify(public_key(certificate), certificate.signature, certificate.tbs_certificate_bytes)
    except HandclaspError as error:
        raise HandclaspError(
            Kind.BAD_CERTIFICATE, f"{certificate.subject.rfc4514_string()} is not self-signed", hint="give the root"
        ) from error


def check_issuing(issuing: bytes, above: Sequence[bytes], now: int) -> None:
    """Raise ``bad_certificate`` or ``verify_failed`` unless this is an issuing authority (path length 0) under ``above``: nearest first, a
    known root last.
    """
    certificate = chains.load(issuing)
    _check_authority(certificate, "issuing authority", now)
    basic = extension(certificate, x509.BasicConstraints)
    if basic is None or basic.path_length != 0:
        raise HandclaspError(Kind.BAD_CERTIFICATE, "an issuing authority must have path length 0", hint="it could make further authorities")
    if extension(certificate, x509.SubjectKeyIdentifier) is None:
        raise HandclaspError(Kind.BAD_CERTIFICATE, "the issuing authority has no subject key identifier (RFC 5280 4.2.1.2)")
    chains.verify_chain(issuing, above[:-1], above[-1:], now)
    for below, one in enumerate(above, 1):  # verify_chain took the issuing authority for a leaf: one level more must fit
        limit = extension(chains.load(one), x509.BasicConstraints)
        if limit is None or (limit.path_length is not None and limit.path_length < below):
            raise HandclaspError(Kind.BAD_CERTIFICATE, "the path length of a certificate above allows no issuing authority here")


def public_key(certificate: x509.Certificate) -> keys.PublicKey:
    """Return the key of a certificate; raise ``bad_key`` when it is of a kind that we do not sign with."""
    return keys.public_from_spki(chains.subject_and_key(certificate)[1])


def extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    """Return the value of an extension, or None where the certificate has none."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _check_authority(certificate: x509.Certificate, what: str, now: int) -> None:
    keys.check_quality(public_key(certificate))
    basic, usage = extension(certificate, x509.BasicConstraints), extension(certificate, x509.KeyUsage)
    if basic is None or not basic.ca:
        raise HandclaspError(Kind.BAD_CERTIFICATE, f"the {what} is not a CA certificate (RFC 5280 4.2.1.9)")
    if usage is None or not (usage.key_cert_sign and usage.crl_sign):
        raise HandclaspError(Kind.BAD_CERTIFICATE, f"the {what} may not sign certificates and CRLs (RFC 5280 4.2.1.3)")
    begin, end = from_datetime(certificate.not_valid_before_utc), from_datetime(certificate.not_valid_after_utc)
    if not begin <= now < end:
        raise HandclaspError(Kind.BAD_CERTIFICATE, f"the {what} is valid from {rfc3339(begin)} to {rfc3339(end)}, which is not now")
