"""Certificate revocation lists (RFC 5280 section 5), one per shard of an authority.

Entries are encoded directly: building an object for each costs three times as much, and 100,000 of them must be published within two
seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtensionOID

from handclasp.clock import from_datetime
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import chains, der, keys

# RFC 5280 5.3.1. Number 7 is unused; removeFromCRL (8) and certificateHold (6) would make a revocation something that can end, which ours
# never do.
REASONS: dict[str, int] = {
    "unspecified": 0,
    "key_compromise": 1,
    "ca_compromise": 2,
    "affiliation_changed": 3,
    "superseded": 4,
    "cessation_of_operation": 5,
    "privilege_withdrawn": 9,
    "aa_compromise": 10,
}
"""Reasons that a revocation may give, and their CRLReason number."""

_VERSION_2 = der.integer(1)
# RFC 5280 5.3.1: unspecified is said by leaving the extension out.
_REASON_DER = {code: der.sequence(der.extension("2.5.29.21", der.tlv(0x0A, bytes((code,))))) if code else b"" for code in REASONS.values()}


@dataclass(frozen=True, slots=True)
class Revoked:
    """One revoked certificate: ``at`` in ms since the epoch, ``reason`` a number of :data:`REASONS`."""

    serial: int
    at: int
    reason: int = 0


@dataclass(frozen=True, slots=True)
class Crl:
    """What a CRL says of itself; times are ms since the epoch."""

    issuer_der: bytes
    number: int | None
    this_update: int
    next_update: int | None
    url: str | None
    """The URL in its issuingDistributionPoint."""
    count: int


def build_crl(
    issuer_cert: bytes,
    key: keys.PrivateKey,
    entries: Iterable[Revoked],
    number: int,
    this_update: int,
    next_update: int,
    idp_url: str | None = None,
) -> bytes:
    """Return a signed DER CRL of the authority whose certificate is ``issuer_cert`` (DER); times in ms since the epoch.

    ``number`` must rise with each CRL of the same scope. ``idp_url`` is exactly the string in the certificates' distribution point: the
    critical extension that carries it keeps one shard's CRL from being passed off as another's. It sets none of the onlyContains flags: a
    list that claims one wrongly revokes nothing. Raises ``bad_key`` when the key is not the certificate's, ``internal`` for impossible
    numbers.
    """
    certificate = chains.load(issuer_cert)
    subject, spki = chains.subject_and_key(certificate)
    if keys.spki_der(key.public_key()) != spki:
        raise HandclaspError(Kind.BAD_KEY, "the key is not the one of the authority's certificate")
    if number < 0 or number.bit_length() > 159 or this_update >= next_update:
        raise HandclaspError(Kind.INTERNAL, "a CRL needs a number of 20 octets at most and a next update after this one")
    url_extension = b""
    if idp_url is not None:
        name = der.explicit(0, der.explicit(0, der.implicit(6, idp_url.encode("ascii"))))
        url_extension = der.extension("2.5.29.28", der.sequence(name), critical=True)
    algorithm = keys.signature_algorithm(key)
    listed = _encode_entries(entries)
    tbs = der.sequence(
        _VERSION_2,
        algorithm,
        subject,
        der.time_(this_update),
        der.time_(next_update),
        der.tlv(0x30, listed) if listed else b"",
        der.explicit(
            0,
            der.sequence(
                der.extension("2.5.29.35", der.sequence(der.implicit(0, chains.key_id(certificate)))),
                der.extension("2.5.29.20", der.integer(number)),
                url_extension,
            ),
        ),
    )
    return der.sequence(tbs, algorithm, der.bit_string(keys.sign(key, tbs)))


def _encode_entries(entries: Iterable[Revoked]) -> bytes:
    """Encode entries in the order of serials, each serial once (the earliest revocation)."""
    first: dict[int, Revoked] = {}
    for entry in entries:
        if entry.serial not in first or entry.at < first[entry.serial].at:
            first[entry.serial] = entry
    try:
        return b"".join(
            [
                der.tlv(0x30, der.integer(entry.serial) + der.time_(entry.at) + _REASON_DER[entry.reason])
                for _, entry in sorted(first.items())
            ]
        )
    except KeyError as error:
        raise HandclaspError(Kind.INTERNAL, f"{error} is not a revocation reason") from error


def read_crl(data: bytes) -> Crl:
    """Read a DER CRL's head; raise ``bad_certificate`` when it is not one. The signature is not checked."""
    try:
        crl = x509.load_der_x509_crl(data)
        signature = der.children(data)[2]
        if signature[der.read(signature)[1]] != 0:  # not covered by the signature, and so a second encoding of the same list
            raise ValueError("the signature is not of whole bytes")
        number = url = None
        for item in crl.extensions:
            if isinstance(item.value, x509.CRLNumber):
                number = item.value.crl_number
            elif item.oid == ExtensionOID.ISSUING_DISTRIBUTION_POINT and isinstance(item.value, x509.IssuingDistributionPoint):
                names = item.value.full_name or []
                url = str(names[0].value) if names else None
        end = crl.next_update_utc
        return Crl(
            crl.issuer.public_bytes(),
            number,
            from_datetime(crl.last_update_utc),
            from_datetime(end) if end is not None else None,
            url,
            len(crl),
        )
    except chains.UNREADABLE as error:
        raise HandclaspError(Kind.BAD_CERTIFICATE, "this is not a revocation list that can be read") from error


def verify_crl(data: bytes, issuer_cert: bytes) -> None:
    """Raise ``verify_failed`` unless a DER CRL is signed by the authority whose DER certificate is given; ``bad_certificate`` for what is
    neither."""
    read_crl(data)
    issuer = chains.load(issuer_cert)
    crl = x509.load_der_x509_crl(data)
    public_key = issuer.public_key()
    keys.key_type_of(public_key)
    try:
        fine = crl.issuer == issuer.subject and crl.is_signature_valid(public_key)  # type: ignore[arg-type]
    except (ValueError, TypeError, UnsupportedAlgorithm):
        fine = False
    if not fine:
        raise HandclaspError(Kind.VERIFY_FAILED, "the revocation list is not signed by this authority")
