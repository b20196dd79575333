"""Keys: making, naming, checking, storing as PEM, signing and verifying, for every key type that Handclasp certifies.

Keys are recognised by ``cryptography``'s abstract classes and not by its own implementations, so an object that keeps its private half in a
token (PKCS#11, a KMS) and derives from ``ec.EllipticCurvePrivateKey`` or ``rsa.RSAPrivateKey`` works everywhere.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa

from handclasp.errors import HandclaspError, Kind
from handclasp.pki import der

KEY_TYPES: tuple[str, ...] = ("p256", "p384", "ed25519", "rsa2048", "rsa3072", "rsa4096", "ml-dsa-44", "ml-dsa-65", "ml-dsa-87")
"""Every key type that a profile may name."""

PrivateKey: TypeAlias = (
    ec.EllipticCurvePrivateKey
    | rsa.RSAPrivateKey
    | ed25519.Ed25519PrivateKey
    | mldsa.MLDSA44PrivateKey
    | mldsa.MLDSA65PrivateKey
    | mldsa.MLDSA87PrivateKey
)
PublicKey: TypeAlias = (
    ec.EllipticCurvePublicKey
    | rsa.RSAPublicKey
    | ed25519.Ed25519PublicKey
    | mldsa.MLDSA44PublicKey
    | mldsa.MLDSA65PublicKey
    | mldsa.MLDSA87PublicKey
)

_CURVES = {"secp256r1": "p256", "secp384r1": "p384"}
_OTHER_PUBLIC: tuple[tuple[type, str], ...] = (
    (ed25519.Ed25519PublicKey, "ed25519"),
    (mldsa.MLDSA44PublicKey, "ml-dsa-44"),
    (mldsa.MLDSA65PublicKey, "ml-dsa-65"),
    (mldsa.MLDSA87PublicKey, "ml-dsa-87"),
)
_PRIVATE = (
    ec.EllipticCurvePrivateKey,
    rsa.RSAPrivateKey,
    ed25519.Ed25519PrivateKey,
    mldsa.MLDSA44PrivateKey,
    mldsa.MLDSA65PrivateKey,
    mldsa.MLDSA87PrivateKey,
)
_GENERATORS: dict[str, Callable[[], PrivateKey]] = {
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "rsa2048": lambda: rsa.generate_private_key(65537, 2048),
    "rsa3072": lambda: rsa.generate_private_key(65537, 3072),
    "rsa4096": lambda: rsa.generate_private_key(65537, 4096),
    "ml-dsa-44": mldsa.MLDSA44PrivateKey.generate,
    "ml-dsa-65": mldsa.MLDSA65PrivateKey.generate,
    "ml-dsa-87": mldsa.MLDSA87PrivateKey.generate,
}
_SHA256, _SHA384 = hashes.SHA256(), hashes.SHA384()
_ECDSA_SHA256, _ECDSA_SHA384 = ec.ECDSA(_SHA256), ec.ECDSA(_SHA384)
_PKCS1 = padding.PKCS1v15()

_RSA_SIGNATURE = der.sequence(der.oid("1.2.840.113549.1.1.11"), der.NULL)  # RFC 4055: the NULL must be there
_SIGNATURES = {
    "p256": der.sequence(der.oid("1.2.840.10045.4.3.2")),
    "p384": der.sequence(der.oid("1.2.840.10045.4.3.3")),
    "ed25519": der.sequence(der.oid("1.3.101.112")),
    "ml-dsa-44": der.sequence(der.oid("2.16.840.1.101.3.4.3.17")),
    "ml-dsa-65": der.sequence(der.oid("2.16.840.1.101.3.4.3.18")),
    "ml-dsa-87": der.sequence(der.oid("2.16.840.1.101.3.4.3.19")),
}


def generate(key_type: str) -> PrivateKey:
    """Make a private key of one of :data:`KEY_TYPES`; raise ``bad_key`` for another type or one this build of OpenSSL lacks."""
    maker = _GENERATORS.get(key_type)
    if maker is None:
        raise HandclaspError(Kind.BAD_KEY, f"{key_type!r} is not a key type", hint="one of " + ", ".join(KEY_TYPES))
    try:
        return maker()
    except UnsupportedAlgorithm as error:
        raise HandclaspError(Kind.BAD_KEY, f"this installation cannot make {key_type} keys") from error


def key_type_of(public_key: object) -> str:
    """Return the name of a public key's type (RSA of another size than the usual is ``rsa<bits>``); raise ``bad_key`` when it is not
    supported."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        name = _CURVES.get(public_key.curve.name)
        if name is None:
            raise HandclaspError(Kind.BAD_KEY, f"elliptic curve {public_key.curve.name} is not supported", hint="use P-256 or P-384")
        return name
    if isinstance(public_key, rsa.RSAPublicKey):
        if public_key.key_size < 2048:
            raise HandclaspError(Kind.BAD_KEY, f"RSA keys of {public_key.key_size} bits are not supported", hint="use at least 2048")
        return f"rsa{public_key.key_size}"
    for cls, name in _OTHER_PUBLIC:
        if isinstance(public_key, cls):
            return name
    raise HandclaspError(Kind.BAD_KEY, "this kind of key is not supported", hint="one of " + ", ".join(KEY_TYPES))


def check_quality(public_key: object) -> None:
    """Raise ``weak_key`` unless the key is one worth certifying.

    Elliptic curves: P-256 and P-384 only (points are checked when a key is loaded). RSA: 2048 to 8192 bits, exponent 65537, no small
    factor, not made by the ROCA generator (CVE-2017-15361), primes not close together (CVE-2022-26320). Same list as Boulder's ``goodkey``.
    """
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        if public_key.curve.name not in _CURVES:
            raise HandclaspError(Kind.WEAK_KEY, f"elliptic curve {public_key.curve.name} is not accepted", hint="use P-256 or P-384")
    elif isinstance(public_key, rsa.RSAPublicKey):
        numbers = public_key.public_numbers()
        problem = _rsa_problem(numbers.n, numbers.e)
        if problem:
            raise HandclaspError(Kind.WEAK_KEY, f"the RSA key is weak: {problem}", hint="make a new key with current software")


@lru_cache(maxsize=256)
def _rsa_problem(n: int, e: int) -> str:
    bits = n.bit_length()
    if not 2048 <= bits <= 8192:  # above 8192 a verification is a denial of service
        return f"{bits} bits (2048 to 8192 are accepted)"
    if e != 65537:
        return f"public exponent {e} (65537 is accepted)"
    if math.gcd(n, _small_primes_product()) != 1:
        return "it has a small prime factor"
    if all(n % prime in residues for prime, residues in _roca_residues()):
        return "it was made by the broken generator known as ROCA (CVE-2017-15361)"
    if _fermat_factors(n):
        return "its prime factors are close together (CVE-2022-26320)"
    return ""


@cache
def _small_primes_product() -> int:
    return math.prod(p for p in range(2, 752) if all(p % q for q in range(2, math.isqrt(p) + 1)))


@cache
def _roca_residues() -> tuple[tuple[int, frozenset[int]], ...]:
    """ROCA moduli are powers of 65537 modulo each of these primes; for a sound key that has probability 2**-27 or so."""
    primes = (11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157)
    return tuple((p, frozenset(pow(65537, k, p) for k in range(p - 1))) for p in primes)


def _fermat_factors(n: int, rounds: int = 110) -> bool:
    """Say whether Fermat's method factors ``n`` within a few rounds (badkeys and Boulder: 100 find every known bad device)."""
    a = math.isqrt(n)
    if a * a == n:
        return True
    a += 1
    rest = a * a - n
    for _ in range(rounds):
        # A square is 0, 1, 4 or 9 modulo 16: the cheap test spares three of four square roots.
        if rest & 15 in (0, 1, 4, 9) and math.isqrt(rest) ** 2 == rest:
            return True
        rest += 2 * a + 1
        a += 1
    return False


def spki_der(public_key: PublicKey) -> bytes:
    """Return the SubjectPublicKeyInfo in its one canonical encoding."""
    return public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def spki_sha256(public_key: PublicKey) -> bytes:
    """Return the fingerprint that names a key everywhere: SHA-256 of :func:`spki_der`."""
    return hashlib.sha256(spki_der(public_key)).digest()


def key_id(spki: bytes) -> bytes:
    """Return the subject key identifier of an SPKI: the leftmost 160 bits of the SHA-256 of its key bits (RFC 7093 section 2, method 1)."""
    try:
        _, start, _ = der.read(spki)
        _, _, end = der.read(spki, start)
        tag, first, last = der.read(spki, end)
    except ValueError as error:
        raise HandclaspError(Kind.BAD_KEY, "not a SubjectPublicKeyInfo") from error
    if tag != 0x03 or first == last:
        raise HandclaspError(Kind.BAD_KEY, "not a SubjectPublicKeyInfo")
    return hashlib.sha256(spki[first + 1 : last]).digest()[:20]


def to_pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """Return a private key as PKCS#8 PEM, encrypted when a passphrase is given."""
    protection = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def from_pem(pem: bytes, passphrase: bytes | None = None) -> PrivateKey:
    """Return the private key in a PEM text; raise ``bad_key`` when it is not one, not supported, or the passphrase does not open it."""
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except TypeError as error:  # this is how cryptography says that a passphrase is missing, or given for an open key
        words = "the key is not encrypted, but a passphrase was given" if passphrase else "the key is encrypted and needs a passphrase"
        raise HandclaspError(Kind.BAD_KEY, words) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise HandclaspError(Kind.BAD_KEY, "not a PEM private key, or the passphrase is wrong") from error
    if not isinstance(key, _PRIVATE):
        raise HandclaspError(Kind.BAD_KEY, "this kind of key is not supported", hint="one of " + ", ".join(KEY_TYPES))
    key_type_of(key.public_key())
    return key


def public_from_spki(spki: bytes) -> PublicKey:
    """Return the public key in a DER SubjectPublicKeyInfo; raise ``bad_key`` when it is not one or not supported."""
    try:
        key = serialization.load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise HandclaspError(Kind.BAD_KEY, "not a public key that can be used") from error
    key_type_of(key)
    return key  # type: ignore[return-value]  # key_type_of refused every other type


def signature_algorithm(key: PrivateKey | PublicKey) -> bytes:
    """Return the DER AlgorithmIdentifier of the signatures that :func:`sign` makes with this key (or its private half)."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return _SIGNATURES[_CURVES[key.curve.name]]
    if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        return _RSA_SIGNATURE
    return _SIGNATURES[key_type_of(key.public_key() if isinstance(key, _PRIVATE) else key)]


def signing_hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | None:
    """Return the hash that goes with a key in ``cryptography``'s builders; None for the types that bring their own."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return _SHA256 if key.curve.name == "secp256r1" else _SHA384
    return _SHA256 if isinstance(key, rsa.RSAPrivateKey) else None


def sign(key: PrivateKey, data: bytes) -> bytes:
    """Sign ``data`` with the one algorithm that :func:`signature_algorithm` names for this key."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, _ECDSA_SHA256 if key.curve.name == "secp256r1" else _ECDSA_SHA384)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, _PKCS1, _SHA256)
    return key.sign(data)


def verify(public_key: PublicKey, signature: bytes, data: bytes) -> None:
    """Raise ``verify_failed`` unless ``signature`` is one that :func:`sign` could have made over ``data`` with the key's private half."""
    try:
        if isinstance(public_key, ec.EllipticCurvePublicKey):
            public_key.verify(signature, data, _ECDSA_SHA256 if public_key.curve.name == "secp256r1" else _ECDSA_SHA384)
        elif isinstance(public_key, rsa.RSAPublicKey):
            public_key.verify(signature, data, _PKCS1, _SHA256)
        else:
            public_key.verify(signature, data)
    except InvalidSignature as error:
        raise HandclaspError(Kind.VERIFY_FAILED, "the signature does not verify") from error
