"""Keystores: a private key with its chain, and trust anchors, as one file under a password. PKCS#12 (RFC 7292) and Java's JKS.

PKCS#12 is written with what both OpenSSL 3 and Java since 8u301, 11.0.12 and 17 read without settings: PBES2 with AES-256-CBC, PBKDF2 and
an HMAC with SHA-256. Older ones (3DES, RC2) are not written: OpenSSL 3 reads them only through its legacy provider.

JKS protects a key with SHA-1 alone, very much faster to guess than PBKDF2: whoever can read the file has all the time in the world. It is
here for what reads nothing else; the mode of the file is what protects it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from handclasp.errors import HandclaspError, Kind
from handclasp.pki import der

MIN_PASSWORD = 6
"""Java's tools refuse shorter ones."""

_MAGIC = 0xFEEDFEED
_VERSION = 2
_KEY, _ANCHOR = 1, 2
_SALT = 20
_WHITENER = b"Mighty Aphrodite"  # constant of the format: mixed into the digest over the whole file
_PROTECTION = der.sequence(der.oid("1.3.6.1.4.1.42.2.17.1.1"), der.NULL)  # Sun's JKS key protector


def _check_password(password: str) -> None:
    if len(password) < MIN_PASSWORD or not password.isascii() or not password.isprintable():
        raise HandclaspError(Kind.BAD_SETTING, f"a keystore's password is at least {MIN_PASSWORD} printable ASCII characters")


def _encryption(password: str) -> serialization.KeySerializationEncryption:
    builder = serialization.PrivateFormat.PKCS12.encryption_builder()
    builder = builder.key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC).hmac_hash(hashes.SHA256())
    return builder.build(password.encode("ascii"))


def pkcs12_keystore(key: bytes, chain: Sequence[bytes], alias: str, password: str) -> bytes:
    """Return a PKCS#12 file with one entry: the private key (PEM) and its certificates (DER, leaf first) under the friendly name ``alias``.

    Raises ``bad_key`` for a key that the format has no room for, ``bad_setting`` for a password that nobody could use.
    """
    _check_password(password)
    leaf, *above = (x509.load_der_x509_certificate(data) for data in chain)
    try:
        private = serialization.load_pem_private_key(key, None)
        return pkcs12.serialize_key_and_certificates(
            alias.encode(),
            private,  # type: ignore[arg-type]  # it says itself which keys it cannot write
            leaf,
            above,
            _encryption(password),
        )
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise HandclaspError(Kind.BAD_KEY, "the private key cannot be put into a PKCS#12 keystore") from error


def pkcs12_truststore(anchors: Sequence[bytes], password: str) -> bytes:
    """Return a PKCS#12 file that Java takes for a truststore: each anchor (DER) is marked as trusted (Oracle's trustedKeyUsage)."""
    _check_password(password)
    entries = [pkcs12.PKCS12Certificate(x509.load_der_x509_certificate(data), _anchor_alias(data).encode()) for data in anchors]
    return pkcs12.serialize_java_truststore(entries, _encryption(password))


def jks_keystore(key: bytes, chain: Sequence[bytes], alias: str, password: str, *, now: int, random: Callable[[int], bytes]) -> bytes:
    """Return a JKS file with one private key entry, key and file under the same password. ``random`` returns that many random bytes.

    ``alias`` is lower case. ``now`` (ms) is the entry's date. Raises ``bad_key`` and ``bad_setting``.
    """
    _check_password(password)
    try:
        private = serialization.load_pem_private_key(key, None)
        plain = private.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise HandclaspError(Kind.BAD_KEY, "the private key cannot be put into a JKS keystore") from error
    protected = der.sequence(_PROTECTION, der.octet_string(_protect(plain, password, random(_SALT))))
    entry = _number(_KEY) + _text(alias) + _moment(now) + _block(protected) + _number(len(chain)) + b"".join(map(_certificate, chain))
    return _jks([entry], password)


def jks_truststore(anchors: Sequence[bytes], password: str, *, now: int) -> bytes:
    """Return a JKS file with trusted certificates (DER)."""
    _check_password(password)
    entries = [_number(_ANCHOR) + _text(_anchor_alias(anchor)) + _moment(now) + _certificate(anchor) for anchor in anchors]
    return _jks(entries, password)


def _anchor_alias(anchor: bytes) -> str:
    """A name that is the same for the same anchor, and never for two."""
    return f"anchor-{hashlib.sha256(anchor).hexdigest()[:16]}"


def _jks(entries: Sequence[bytes], password: str) -> bytes:
    data = _number(_MAGIC) + _number(_VERSION) + _number(len(entries)) + b"".join(entries)
    return data + hashlib.sha1(_wide(password) + _WHITENER + data, usedforsecurity=False).digest()


def _protect(plain: bytes, password: str, salt: bytes) -> bytes:
    """Sun's protector: a stream of chained SHA-1 over password and salt, and a digest of password and key at the end."""
    secret, stream, block = _wide(password), b"", salt
    while len(stream) < len(plain):
        block = hashlib.sha1(secret + block, usedforsecurity=False).digest()
        stream += block
    hidden = bytes(a ^ b for a, b in zip(plain, stream, strict=False))
    return salt + hidden + hashlib.sha1(secret + plain, usedforsecurity=False).digest()


def _wide(password: str) -> bytes:
    return password.encode("utf-16-be")


def _number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _moment(value: int) -> bytes:
    return value.to_bytes(8, "big")


def _text(value: str) -> bytes:
    # Java's modified UTF-8 is the same as ASCII for what aliases may hold.
    data = value.encode("ascii")
    return len(data).to_bytes(2, "big") + data


def _block(data: bytes) -> bytes:
    return _number(len(data)) + data


def _certificate(data: bytes) -> bytes:
    return _text("X.509") + _block(data)
