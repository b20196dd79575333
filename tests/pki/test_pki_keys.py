"""Keys of every type sign, store and verify; weak ones are refused."""

from __future__ import annotations

import hashlib
import math

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa, x25519
from hypothesis import given
from hypothesis import strategies as st

from handclasp.errors import HandclaspError, Kind
from handclasp.pki import keys
from support.authorities import key_of
from support.errors import allowing


@pytest.mark.parametrize("key_type", keys.KEY_TYPES)
def test_a_key_of_each_type_signs_verifies_and_survives_pem(key_type):
    key = key_of(key_type)
    public = key.public_key()
    assert keys.key_type_of(public) == key_type
    keys.check_quality(public)
    signature = keys.sign(key, b"data")
    keys.verify(public, signature, b"data")
    for bad_signature, data in ((signature, b"other"), (b"", b"data"), (signature[:-1], b"data"), (b"\x00" * len(signature), b"data")):
        with pytest.raises(HandclaspError) as caught:
            keys.verify(public, bad_signature, data)
        assert caught.value.kind is Kind.VERIFY_FAILED
    for passphrase in (None, b"secret"):
        again = keys.from_pem(keys.to_pem(key, passphrase), passphrase)
        assert keys.spki_der(again.public_key()) == keys.spki_der(public)
    assert keys.spki_sha256(public) == hashlib.sha256(keys.spki_der(public)).digest()
    assert keys.spki_der(keys.public_from_spki(keys.spki_der(public))) == keys.spki_der(public)
    assert keys.signature_algorithm(key) == keys.signature_algorithm(public)


@pytest.mark.parametrize("key_type", keys.KEY_TYPES)
def test_the_algorithm_identifier_and_key_id_are_those_cryptography_writes(key_type):
    key = key_of(key_type)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, keys.signing_hash(key))
    assert request.public_bytes(serialization.Encoding.DER).find(keys.signature_algorithm(key)) > 0
    spki = keys.spki_der(key.public_key())
    # the SHA-1 identifier of cryptography hashes the same bits, so cutting the right ones can be checked against it
    bits = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest
    start = next(at for at in range(len(spki)) if hashlib.sha1(spki[at:]).digest() == bits)
    assert keys.key_id(spki) == hashlib.sha256(spki[start:]).digest()[:20]


def test_pem_errors_are_bad_key():
    locked = keys.to_pem(key_of("p256"), b"secret")
    other = x25519.X25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    p521 = ec.generate_private_key(ec.SECP521R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for pem, passphrase in (
        (locked, None),
        (locked, b"wrong"),
        (keys.to_pem(key_of("p256")), b"given"),
        (b"", None),
        (b"no", None),
        (other, None),
        (p521, None),
    ):
        with pytest.raises(HandclaspError) as caught:
            keys.from_pem(pem, passphrase)
        assert caught.value.kind is Kind.BAD_KEY


def test_unknown_types_are_bad_key():
    publics = [
        ed448.Ed448PrivateKey.generate().public_key(),
        ec.generate_private_key(ec.SECP521R1()).public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
        dsa.DSAPublicNumbers(3, dsa.DSAParameterNumbers(2**2047 + 1, 2**255 + 1, 2)),
        rsa.RSAPublicNumbers(65537, 2**1023 + 1).public_key(),
        None,
    ]
    for public in publics:
        with pytest.raises(HandclaspError) as caught:
            keys.key_type_of(public)
        assert caught.value.kind is Kind.BAD_KEY
    for key_type in ("", "p521", "rsa1024", "P256"):
        with pytest.raises(HandclaspError) as caught:
            keys.generate(key_type)
        assert caught.value.kind is Kind.BAD_KEY
    assert keys.key_type_of(rsa.RSAPublicNumbers(65537, 2**2303 + 1).public_key()) == "rsa2304"


def _prime(start: int) -> int:
    """Return a probable prime at or above ``start``."""
    candidate = start | 1
    while any(pow(base, candidate - 1, candidate) != 1 for base in (2, 3, 5, 7)):
        candidate += 2
    return candidate


_P = (1 << 1024) - 105  # 2**1024 - 105 is prime
_NEAR = _prime(_P - 2**400)


def _roca_modulus() -> int:
    """A number of the ROCA form: a power of 65537 modulo the product of the first 126 primes."""
    primorial = math.prod(p for p in range(3, 702) if all(p % q for q in range(2, math.isqrt(p) + 1)))
    small = math.prod(p for p in range(2, 752) if all(p % q for q in range(2, math.isqrt(p) + 1)))
    first, second = (
        next(
            candidate
            for k in range(1, 1000)
            if math.gcd(candidate := pow(65537, power, primorial) + primorial * (2**1024 // primorial + k), small) == 1
        )
        for power in (1234567, 7654321)
    )
    return first * second


_RSA = key_of("rsa2048").public_key().public_numbers().n
_WEAK = {
    "too short": (2**2046 + 1, 65537),
    "more than 8192 bits": (2**8300 + 1, 65537),
    "exponent 3": (_RSA, 3),
    "a small prime factor": (751 * (2**2047 + 9) | 1, 65537),
    "even": (2**2047, 65537),
    "close primes (CVE-2022-26320)": (_P * _NEAR, 65537),
    "a square": (_P * _P, 65537),
    "the ROCA form (CVE-2017-15361)": (_roca_modulus(), 65537),
}


@pytest.mark.parametrize("case", _WEAK)
def test_weak_rsa_keys_are_refused(case):
    assert keys._rsa_problem(*_WEAK[case])
    assert not keys._rsa_problem(_RSA, 65537)


def test_the_reason_of_a_weak_key_is_the_right_one():
    assert "close together" in keys._rsa_problem(_P * _NEAR, 65537)
    assert "ROCA" in keys._rsa_problem(_roca_modulus(), 65537)
    assert "small prime" in keys._rsa_problem(743 * _P * _NEAR, 65537)
    for public in (ec.generate_private_key(ec.SECP521R1()).public_key(), rsa.RSAPublicNumbers(65537, _P * _NEAR).public_key()):
        with pytest.raises(HandclaspError) as caught:
            keys.check_quality(public)
        assert caught.value.kind is Kind.WEAK_KEY


@given(st.binary(max_size=200))
def test_broken_keys_raise_only_our_error(data):
    for parser in (keys.from_pem, keys.public_from_spki, keys.key_id):
        with allowing(Kind.BAD_KEY):
            parser(data)


@given(st.integers(0, 90), st.integers(1, 255))
def test_a_changed_spki_raises_only_our_error(at, change):
    data = bytearray(keys.spki_der(key_of("p256").public_key()))
    data[at] ^= change
    for parser in (keys.public_from_spki, keys.key_id):
        with allowing(Kind.BAD_KEY):
            parser(bytes(data))
