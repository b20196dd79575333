"""The last look before a signature: the bytes are read back and held against the plan and the rules.

The reader is ``cryptography``'s parser and not our encoder, so a mistake in :mod:`handclasp.pki.plan` cannot vouch for itself. Rules: RFC
5280 section 4, SPIFFE X.509-SVID sections 2 to 4, and 64 bits of serial as the CA/Browser Forum asks.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from handclasp.clock import from_datetime
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import der, keys
from handclasp.pki.chains import UNREADABLE
from handclasp.pki.names import Names, names_from_san
from handclasp.pki.plan import SUBJECT_KEY_HEAD, Issuer, Plan, assemble, encode_subject
from handclasp.pki.profiles import Profile

_NO_SIGNATURE = b"\x00"
_KEY_USAGE, _EXTENDED = x509.KeyUsage.oid, x509.ExtendedKeyUsage.oid
_BASIC, _SKI, _AKI = x509.BasicConstraints.oid, x509.SubjectKeyIdentifier.oid, x509.AuthorityKeyIdentifier.oid
_SAN, _CRL, _ACCESS = x509.SubjectAlternativeName.oid, x509.CRLDistributionPoints.oid, x509.AuthorityInformationAccess.oid
_NOT_CA = x509.BasicConstraints(ca=False, path_length=None)
_USAGES = {"client_auth": ExtendedKeyUsageOID.CLIENT_AUTH, "server_auth": ExtendedKeyUsageOID.SERVER_AUTH}


def lint(tbs: bytes, plan: Plan) -> None:
    """Check a TBSCertificate against the plan it was made for; raise ``lint_failed`` listing every problem, or return."""
    problems: list[str] = []
    try:
        parts = der.children(tbs)
        certificate = x509.load_der_x509_certificate(assemble(tbs, plan.issuer.signature_algorithm, _NO_SIGNATURE))
        _check_fields(certificate, parts, plan, problems)
        known = _extensions_key(parts, plan)
        if known is None or known not in _GOOD:
            _check_extensions({item.oid: item for item in certificate.extensions}, parts, plan, problems)
            if known is not None and not problems:
                _remember(known, plan)
    except UNREADABLE as error:
        problems.append(f"cannot be read back: {error}")
    if problems:
        raise HandclaspError(Kind.LINT_FAILED, "the certificate would be wrong: " + "; ".join(problems))


def _check_fields(certificate: x509.Certificate, parts: list[bytes], plan: Plan, problems: list[str]) -> None:
    if len(parts) != 8 or certificate.version is not x509.Version.v3:
        problems.append("not a version 3 certificate of eight parts")
        return
    serial = certificate.serial_number
    if serial != plan.serial:
        problems.append("serial number is not the planned one")
    if serial <= 0 or serial.bit_length() > 159 or serial.bit_length() < 64:  # RFC 5280 4.1.2.2: 20 octets with the sign bit
        problems.append("serial number must be positive, of 64 to 159 bits")
    if parts[2] != plan.issuer.signature_algorithm:
        problems.append("signature algorithm is not the authority's")
    if parts[3] != plan.issuer.subject_der:
        problems.append("issuer is not the authority's name")
    if parts[5] != encode_subject(plan.names):
        problems.append("subject is not the planned one")
    if hashlib.sha256(parts[6]).digest() != plan.spki_sha256:
        problems.append("public key is not the one of the request")
    _check_dates(from_datetime(certificate.not_valid_before_utc), from_datetime(certificate.not_valid_after_utc), plan, problems)


_Key = tuple[bytes, bytes, int, int, int, Names]
_GOOD: dict[_Key, tuple[Profile, Issuer]] = {}
"""Extensions that were found good, and for what. The values keep profile and issuer alive, whose ``id`` is in the key."""
_MOST = 8192


def _extensions_key(parts: list[bytes], plan: Plan) -> _Key | None:
    """Return the extensions without their key identifier, and everything they are judged by; None when that identifier is not the key's.

    From one certificate of an identity to its next only serial, dates and key change. What the extensions must be depends on nothing that
    is not in this key, so the very bytes that were judged good before are good again: most of the cost of a look is saved, and no look.
    """
    block = parts[-1]
    start = block.find(SUBJECT_KEY_HEAD) + len(SUBJECT_KEY_HEAD)
    if start < len(SUBJECT_KEY_HEAD) or len(parts) != 8 or block[start : start + 20] != keys.key_id(parts[6]):
        return None
    shard = plan.serial % plan.issuer.crl_shards
    return block[:start], block[start + 20 :], id(plan.profile), id(plan.issuer), shard, plan.names


def _remember(key: _Key, plan: Plan) -> None:
    if len(_GOOD) >= _MOST:
        _GOOD.clear()
    _GOOD[key] = (plan.profile, plan.issuer)


def _check_dates(not_before: int, not_after: int, plan: Plan, problems: list[str]) -> None:
    profile, issuer = plan.profile, plan.issuer
    if not_before != plan.not_before or not_after != plan.not_after:
        problems.append("dates are not the planned ones")
    if not_before >= not_after:
        problems.append("ends before it begins")
    # One second more: both ends are cut to whole seconds, each by less than one.
    if not_after - not_before > (profile.max_lifetime + profile.backdate + 1) * 1000:
        problems.append("lives longer than its profile allows")
    if not_after - not_before > (plan.lifetime + profile.backdate + 1) * 1000:
        problems.append("lives longer than was granted, or is backdated further than its profile says")
    if not_after > issuer.not_after:
        problems.append("outlives its authority")
    if not_before < issuer.not_before - 999:
        problems.append("begins before its authority")


def _check_extensions(
    found: dict[x509.ObjectIdentifier, x509.Extension[x509.ExtensionType]], parts: list[bytes], plan: Plan, problems: list[str]
) -> None:
    issuer, profile = plan.issuer, plan.profile
    san_critical = parts[5] == der.EMPTY_SEQUENCE
    if {oid: item.critical for oid, item in found.items()} != _expected(bool(issuer.crl_base), bool(issuer.aia_url), san_critical):
        problems.append("extensions, or which of them are critical, are not those of a leaf of this authority")
        return
    if found[_BASIC].value != _NOT_CA:
        problems.append("basicConstraints must say that it is no authority")
    if found[_KEY_USAGE].value != _key_usage(profile.key_usage):
        problems.append("keyUsage is not the profile's")
    if found[_EXTENDED].value != _extended_key_usage(profile.extended_key_usage):
        problems.append("extendedKeyUsage is not the profile's")
    subject_key, authority_key = found[_SKI].value, found[_AKI].value
    assert isinstance(subject_key, x509.SubjectKeyIdentifier)
    assert isinstance(authority_key, x509.AuthorityKeyIdentifier)
    if subject_key.digest != keys.key_id(parts[6]):
        problems.append("subjectKeyIdentifier is not that of its key")
    if authority_key.key_identifier != issuer.key_id or authority_key.authority_cert_issuer is not None:
        problems.append("authorityKeyIdentifier is not the authority's")
    san = found[_SAN].value
    assert isinstance(san, x509.SubjectAlternativeName)
    _check_names(san, plan.names, profile, issuer, problems)
    if issuer.crl_base and found[_CRL].value != _crl_points(issuer.crl_url(plan.serial % issuer.crl_shards)):
        problems.append("cRLDistributionPoints does not name the CRL of its shard")
    if issuer.aia_url and found[_ACCESS].value != _access(issuer.aia_url):
        problems.append("authorityInfoAccess does not name the authority's certificate")


def _check_names(san: x509.SubjectAlternativeName, names: Names, profile: Profile, issuer: Issuer, problems: list[str]) -> None:
    try:
        there = names_from_san(san)
    except HandclaspError as error:
        problems.append(f"subjectAltName: {error.detail}")
        return
    if there != names or len(san) != (there.spiffe is not None) + len(there.dns) + len(there.ip) + len(there.email):
        problems.append("subjectAltName is not exactly the planned names")
    if not profile.require <= there.kinds <= profile.names:
        problems.append("subjectAltName lacks a kind of name that the profile requires, or has one it does not allow")
    if there.spiffe is not None and not there.spiffe.startswith(f"spiffe://{issuer.trust_domain}/"):
        problems.append("the SPIFFE ID is of another trust domain")


@lru_cache(maxsize=16)
def _expected(crl: bool, access: bool, san_critical: bool) -> dict[x509.ObjectIdentifier, bool]:
    """Return the extensions of a leaf and whether each is critical; no other may be there."""
    expected = {_KEY_USAGE: True, _EXTENDED: False, _BASIC: True, _SKI: False, _AKI: False, _SAN: san_critical}
    return expected | ({_CRL: False} if crl else {}) | ({_ACCESS: False} if access else {})


@lru_cache(maxsize=64)
def _key_usage(usages: frozenset[str]) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature="digital_signature" in usages,
        content_commitment="content_commitment" in usages,
        key_encipherment="key_encipherment" in usages,
        data_encipherment="data_encipherment" in usages,
        key_agreement="key_agreement" in usages,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


@lru_cache(maxsize=64)
def _extended_key_usage(usages: tuple[str, ...]) -> x509.ExtendedKeyUsage:
    return x509.ExtendedKeyUsage([_USAGES[usage] for usage in usages])


@lru_cache(maxsize=4096)
def _crl_points(url: str) -> x509.CRLDistributionPoints:
    return x509.CRLDistributionPoints([x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)])


@lru_cache(maxsize=64)
def _access(url: str) -> x509.AuthorityInformationAccess:
    return x509.AuthorityInformationAccess(
        [x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(url))]
    )
