"""Certification requests (RFC 2986): read once, proven, and reduced to what an issuance may look at."""

from __future__ import annotations

import binascii
import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID

from handclasp.errors import HandclaspError, Kind
from handclasp.pki import der, keys
from handclasp.pki.chains import UNREADABLE
from handclasp.pki.names import Names, common_name, names_from_san

MAX_CSR_BYTES = 16 * 1024  # an RSA-8192 request with 100 names has 6 KiB; ML-DSA-87 has 8 KiB, as PEM 11 KiB

_FRAMES = tuple((b"-----BEGIN %bCERTIFICATE REQUEST-----" % new, b"-----END %bCERTIFICATE REQUEST-----" % new) for new in (b"", b"NEW "))
# A P-256 SPKI is this and 64 bytes: with it the bytes of a request are canonical as they are, and need no second encoding.
_P256_SPKI = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
_ECDSA_SHA256 = SignatureAlgorithmOID.ECDSA_WITH_SHA256
_ECDSA = ec.ECDSA(hashes.SHA256())
_HASHES = ("sha256", "sha384", "sha512")
_WITHOUT_HASH = frozenset(
    {SignatureAlgorithmOID.ED25519, SignatureAlgorithmOID.ML_DSA_44, SignatureAlgorithmOID.ML_DSA_65, SignatureAlgorithmOID.ML_DSA_87}
)


@dataclass(frozen=True, slots=True)
class Csr:
    """A request whose signature was checked: its sender holds the private key, and the key is one worth certifying.

    ``names`` are those of its subjectAltName alone. ``common_name`` is what the subject says; it never becomes a name by itself.
    """

    sha256: bytes
    """SHA-256 of the DER."""
    public_key: keys.PublicKey
    spki: bytes
    """The key's SubjectPublicKeyInfo, DER, in its one canonical encoding (whatever the request's was: a blocked key has one
    fingerprint)."""
    spki_sha256: bytes
    key_type: str
    names: Names
    common_name: str | None
    subject: bytes
    """The Name, DER, as it stands in the request."""
    extensions: x509.Extensions
    """Those that the request asks for. Nothing of them is ever copied."""


def parse_csr(data: str | bytes) -> Csr:
    """Read one request, PEM or DER, up to 16 KiB.

    Raises ``bad_csr`` (not a request, trailing data, more than one), ``weak_key`` (see :func:`keys.check_quality`), ``bad_key`` (a type
    that is not certified), ``bad_proof_of_possession`` (the signature is not by the key, or uses a broken hash), ``bad_name`` (its
    subjectAltName), and nothing else.
    """
    der_bytes = _to_der(data)
    try:
        request = x509.load_der_x509_csr(der_bytes)
        public_key = request.public_key()
    except UNREADABLE as error:
        raise HandclaspError(Kind.BAD_CSR, "this is not a certificate signing request that can be read") from error
    keys.check_quality(public_key)
    key_type = keys.key_type_of(public_key)
    _check_proof(request, public_key, key_type)
    spki = _canonical_spki(request, public_key, key_type)  # type: ignore[arg-type]  # key_type_of refused other types
    names, subject, extensions = _read_names(request)
    return Csr(
        hashlib.sha256(der_bytes).digest(),
        public_key,  # type: ignore[arg-type]
        spki,
        hashlib.sha256(spki).digest(),
        key_type,
        names,
        common_name(subject),
        subject,
        extensions,
    )


def _to_der(data: str | bytes) -> bytes:
    if len(data) > MAX_CSR_BYTES:
        raise HandclaspError(Kind.BAD_CSR, f"the certificate signing request is larger than {MAX_CSR_BYTES} bytes")
    try:
        raw = data.encode("ascii") if isinstance(data, str) else data
    except UnicodeEncodeError as error:
        raise HandclaspError(Kind.BAD_CSR, "the certificate signing request is not PEM") from error
    if raw[:1] == b"\x30" and isinstance(data, bytes):
        return raw
    text = raw.strip()
    for begin, end in _FRAMES:
        if text.startswith(begin) and text.endswith(end):
            try:  # strict: a second block, a header or trailing bytes inside the frame are no base64
                return binascii.a2b_base64(text[len(begin) : -len(end)].translate(None, b"\r\n"), strict_mode=True)
            except binascii.Error as error:
                raise HandclaspError(Kind.BAD_CSR, "the base64 of the certificate signing request is broken") from error
    raise HandclaspError(Kind.BAD_CSR, "the certificate signing request is not one PEM block", hint="send exactly one CERTIFICATE REQUEST")


def _check_proof(request: x509.CertificateSigningRequest, public_key: object, key_type: str) -> None:
    """Check the signature. P-256 with SHA-256 goes straight to the key that is already loaded: the general way would parse it again (8
    us)."""
    try:
        algorithm = request.signature_algorithm_oid
        if key_type == "p256" and algorithm == _ECDSA_SHA256:
            assert isinstance(public_key, ec.EllipticCurvePublicKey)
            public_key.verify(request.signature, request.tbs_certrequest_bytes, _ECDSA)
            return
        if algorithm not in _WITHOUT_HASH:
            digest = request.signature_hash_algorithm
            if digest is None or digest.name not in _HASHES:
                raise HandclaspError(Kind.BAD_PROOF, "the request is signed with a broken or unknown hash", hint="use SHA-256 or better")
        fine = request.is_signature_valid
    except (InvalidSignature, *UNREADABLE):
        fine = False
    if not fine:
        raise HandclaspError(Kind.BAD_PROOF, "the signature of the request is not by its key")


def _canonical_spki(request: x509.CertificateSigningRequest, public_key: keys.PublicKey, key_type: str) -> bytes:
    if key_type == "p256":
        tbs = request.tbs_certrequest_bytes
        _, version, _ = der.read(tbs)
        _, _, subject = der.read(tbs, version)
        _, _, at = der.read(tbs, subject)
        if tbs.startswith(_P256_SPKI, at):  # the key itself is at this place, not a copy of its prefix in some name
            return tbs[at : at + 91]
    return keys.spki_der(public_key)


def _read_names(request: x509.CertificateSigningRequest) -> tuple[Names, bytes, x509.Extensions]:
    try:
        extensions = request.extensions
        subject = der.children(request.tbs_certrequest_bytes)[1]
    except UNREADABLE as error:
        raise HandclaspError(Kind.BAD_CSR, "the extensions of the request cannot be read") from error
    names = Names()
    for extension in extensions:
        if extension.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME:
            assert isinstance(extension.value, x509.SubjectAlternativeName)
            names = names_from_san(extension.value)
    return names, subject, extensions
