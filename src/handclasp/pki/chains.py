"""Certificates as files and as paths: PEM in and out, fingerprints, and a path check for every key type that we issue.

``cryptography``'s verifier is the stricter one for WebPKI algorithms, but it refuses Ed25519; this one is small, knows our types, and fails
closed on what it does not know (critical extensions, kinds of name constraint).
"""

from __future__ import annotations

import binascii
import hashlib
import ipaddress
import re
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID

from handclasp.clock import from_datetime, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import der, keys
from handclasp.pki.names import common_name

MAX_PATH = 8  # certificates between leaf and anchor; real ones have one to three
MAX_CANDIDATES = 64  # issuers tried in one check: a pile of look-alike CAs must not become a denial of service

_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    Warning,  # what the parser only complains about is an exception where warnings are errors
)
"""What ``cryptography`` raises for a certificate, request or list that it cannot read."""
_HASHES = ("sha256", "sha384", "sha512")
_KNOWN = frozenset(
    cls.oid
    for cls in (
        x509.BasicConstraints,
        x509.KeyUsage,
        x509.ExtendedKeyUsage,
        x509.SubjectAlternativeName,
        x509.NameConstraints,
        x509.SubjectKeyIdentifier,
        x509.AuthorityKeyIdentifier,
    )
)
_PURPOSES = {"client_auth": ExtendedKeyUsageOID.CLIENT_AUTH, "server_auth": ExtendedKeyUsageOID.SERVER_AUTH}


def _failed(words: str) -> HandclaspError:
    return HandclaspError(Kind.VERIFY_FAILED, words)


def fingerprint(certificate: bytes) -> bytes:
    """Return the 32-byte SHA-256 of a DER certificate, its name everywhere."""
    return hashlib.sha256(certificate).digest()


def load(data: bytes) -> x509.Certificate:
    """Return a DER certificate parsed, its extensions known to be readable; raise ``bad_certificate`` for anything else."""
    try:
        certificate = x509.load_der_x509_certificate(data)
        _ = certificate.extensions
    except UNREADABLE as error:
        raise HandclaspError(Kind.BAD_CERTIFICATE, "this is not a certificate that can be read") from error
    if certificate.version is not x509.Version.v3:  # version 1 has no extensions, so nothing says what it may be used for
        raise HandclaspError(Kind.BAD_CERTIFICATE, "this is not a version 3 certificate")
    if certificate.serial_number <= 0:  # RFC 5280 4.1.2.2
        raise HandclaspError(Kind.BAD_CERTIFICATE, "the certificate's serial number is not positive")
    return certificate


def subject_and_key(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    """Return the subject and the SubjectPublicKeyInfo of a certificate, byte for byte as they stand in it."""
    parts = der.children(certificate.tbs_certificate_bytes)
    return parts[5], parts[6]


def key_id(certificate: x509.Certificate) -> bytes:
    """Return the subject key identifier of a certificate: what it says, else what ours would be."""
    value = _value(certificate, x509.SubjectKeyIdentifier)
    return value.digest if isinstance(value, x509.SubjectKeyIdentifier) else keys.key_id(subject_and_key(certificate)[1])


def split_pem(text: str) -> list[bytes]:
    """Return the DER of every CERTIFICATE block in order, ignoring text and other blocks around them.

    Raises ``bad_certificate`` when there is none, or one of them is broken: a bundle is read whole or not at all.
    """
    found: list[bytes] = []
    for match in _BLOCK.finditer(text):
        try:
            data = binascii.a2b_base64("".join(match[1].split()), strict_mode=True)
        except (binascii.Error, ValueError) as error:
            raise HandclaspError(Kind.BAD_CERTIFICATE, f"the base64 of certificate {len(found) + 1} is broken") from error
        load(data)
        found.append(data)
    if not found or len(found) != text.count("-----BEGIN CERTIFICATE-----"):
        raise HandclaspError(Kind.BAD_CERTIFICATE, "there is no PEM certificate here" if not found else "a PEM certificate is cut short")
    return found


def to_pem(certificate: bytes) -> str:
    """Return one DER certificate as a PEM block."""
    text = binascii.b2a_base64(certificate, newline=False).decode()
    body = "\n".join([text[at : at + 64] for at in range(0, len(text), 64)])
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"


def verify_chain(leaf: bytes, intermediates: Sequence[bytes], anchors: Sequence[bytes], now: int, *, purpose: str | None = None) -> None:
    """Raise ``verify_failed`` unless a path leads from ``leaf`` (DER) over ``intermediates`` to one of ``anchors``, all valid at ``now``
    (ms).

    Checked at each step (RFC 5280 section 6): signature with SHA-256 or better, dates, no unknown critical extension, and above the leaf
    basicConstraints, path length, keyCertSign and name constraints (DNS, IP, URI; other kinds are refused). ``purpose`` is ``client_auth``
    or ``server_auth`` and must be in the leaf's extendedKeyUsage. Anchors need not be self-signed. Revocation is not looked at. Raises
    ``bad_certificate`` for what cannot be read.
    """
    certificate = load(leaf)
    _check_one(certificate, now)
    if purpose is not None:
        usages = _value(certificate, x509.ExtendedKeyUsage)
        if not isinstance(usages, x509.ExtendedKeyUsage) or _PURPOSES[purpose] not in usages:
            raise _failed(f"the certificate is not for {purpose}")
    walk = _Walk([load(data) for data in intermediates], [load(data) for data in anchors], now)
    walk.climb([certificate])


class _Walk:
    """A depth-first search upwards with a budget."""

    def __init__(self, intermediates: list[x509.Certificate], anchors: list[x509.Certificate], now: int) -> None:
        self.candidates = [(anchor, True) for anchor in anchors] + [(certificate, False) for certificate in intermediates]
        self.now = now
        self.left = MAX_CANDIDATES

    def climb(self, path: list[x509.Certificate]) -> None:
        """Return when some issuer of the last certificate in ``path`` leads to an anchor; else raise with the reason nearest to success."""
        child = path[-1]
        reason = _failed(f"no issuer of {_describe(child)} is known")
        if len(path) > MAX_PATH:
            raise _failed("the chain is too long")
        for issuer, is_anchor in self.candidates:
            if _subject(issuer) != _issuer(child) or issuer in path:
                continue
            self.left -= 1
            if self.left < 0:
                raise _failed("too many certificates look like the issuer")
            try:
                _check_issued(path, issuer, self.now)
                if not is_anchor:
                    self.climb([*path, issuer])
            except HandclaspError as error:
                reason = error
            else:
                return
        raise reason


def _subject(certificate: x509.Certificate) -> bytes:
    return der.children(certificate.tbs_certificate_bytes)[5]


def _issuer(certificate: x509.Certificate) -> bytes:
    return der.children(certificate.tbs_certificate_bytes)[3]


def _describe(certificate: x509.Certificate) -> str:
    return common_name(_subject(certificate)) or f"certificate {certificate.serial_number:x}"


def _value(certificate: x509.Certificate, cls: type[x509.ExtensionType]) -> x509.ExtensionType | None:
    return next((item.value for item in certificate.extensions if item.oid == cls.oid), None)


def _check_one(certificate: x509.Certificate, now: int) -> None:
    """Check what holds for every certificate of a path by itself."""
    begin, end = from_datetime(certificate.not_valid_before_utc), from_datetime(certificate.not_valid_after_utc)
    if not begin <= now < end + 1000:  # RFC 5280 4.1.2.5: the last second belongs to it
        words = f"valid from {rfc3339(begin)} to {rfc3339(end)}, now is {rfc3339(now)}"
        raise _failed(f"{_describe(certificate)} is not valid: {words}")
    for item in certificate.extensions:
        if item.critical and item.oid not in _KNOWN:
            raise _failed(f"{_describe(certificate)} has an unknown critical extension {item.oid.dotted_string}")


def _check_issued(path: list[x509.Certificate], issuer: x509.Certificate, now: int) -> None:
    """Check that ``issuer`` may have issued, and did issue, the last certificate of ``path`` (leaf first)."""
    child, who = path[-1], _describe(issuer)
    _check_one(issuer, now)
    basic, usage = _value(issuer, x509.BasicConstraints), _value(issuer, x509.KeyUsage)
    if not isinstance(basic, x509.BasicConstraints) or not basic.ca:
        raise _failed(f"{who} is not a certificate authority")
    if isinstance(usage, x509.KeyUsage) and not usage.key_cert_sign:
        raise _failed(f"{who} may not sign certificates")
    below = sum(1 for certificate in path[1:] if _subject(certificate) != _issuer(certificate))
    if basic.path_length is not None and below > basic.path_length:
        raise _failed(f"{who} allows {basic.path_length} authorities below it, the chain has {below}")
    constraints = _value(issuer, x509.NameConstraints)
    if isinstance(constraints, x509.NameConstraints):
        for certificate in path:
            _check_constraints(certificate, constraints, who)
    try:
        digest = child.signature_hash_algorithm
        if digest is not None and digest.name not in _HASHES:
            raise _failed(f"its signature of {_describe(child)} uses the broken hash {digest.name}")
        keys.check_quality(issuer.public_key())
        child.verify_directly_issued_by(issuer)
    except HandclaspError as error:
        raise _failed(f"{who}: {error.detail}") from error
    except (InvalidSignature, *UNREADABLE) as error:
        raise _failed(f"the signature of {_describe(child)} is not by {who}") from error


def _check_constraints(certificate: x509.Certificate, constraints: x509.NameConstraints, who: str) -> None:
    san = _value(certificate, x509.SubjectAlternativeName)
    names = list(san) if isinstance(san, x509.SubjectAlternativeName) else []
    for rule in (*(constraints.permitted_subtrees or ()), *(constraints.excluded_subtrees or ())):
        if not isinstance(rule, x509.DNSName | x509.IPAddress | x509.UniformResourceIdentifier):
            raise _failed(f"{who} has a name constraint of a kind that is not supported")
    for name in names:
        permitted = [rule for rule in constraints.permitted_subtrees or () if type(rule) is type(name)]
        excluded = [rule for rule in constraints.excluded_subtrees or () if type(rule) is type(name)]
        if permitted and not any(_within(name, rule) for rule in permitted):
            raise _failed(f"{name.value} is outside the names that {who} may certify")
        if any(_within(name, rule) or _wildcard_over(name, rule) for rule in excluded):
            raise _failed(f"{name.value} is among the names that {who} may not certify")


def _within(name: x509.GeneralName, rule: x509.GeneralName) -> bool:
    """Say whether a name lies in a subtree (RFC 5280 4.2.1.10)."""
    if isinstance(name, x509.DNSName) and isinstance(rule, x509.DNSName):
        host, zone = name.value.lower(), rule.value.lower()
        return not zone or host == zone or host.endswith("." + zone.lstrip("."))
    if isinstance(name, x509.UniformResourceIdentifier) and isinstance(rule, x509.UniformResourceIdentifier):
        host, zone = name.value.partition("://")[2].partition("/")[0].lower(), rule.value.lower()
        return host.endswith(zone) if zone.startswith(".") else host == zone
    if isinstance(name, x509.IPAddress) and isinstance(rule, x509.IPAddress):
        address, network = name.value, rule.value
        if isinstance(network, ipaddress.IPv4Network | ipaddress.IPv6Network):
            return isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address) and address in network
    return False


def _wildcard_over(name: x509.GeneralName, rule: x509.GeneralName) -> bool:
    """Say whether a wildcard name covers hosts of a subtree that lies below it."""
    if not (isinstance(name, x509.DNSName) and isinstance(rule, x509.DNSName) and name.value.startswith("*.")):
        return False
    return rule.value.lower().lstrip(".").endswith(name.value[1:].lower())
