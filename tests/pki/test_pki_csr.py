"""Requests: proven, canonical, and refused for one clear reason."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from handclasp.errors import HandclaspError, Kind
from handclasp.pki import der, keys
from handclasp.pki.csr import MAX_CSR_BYTES, parse_csr
from handclasp.pki.names import Names
from support.authorities import key_of, make_csr
from support.errors import allowing

_SAN = [x509.UniformResourceIdentifier("spiffe://example.org/prod/web"), x509.DNSName("Web.example.org")]


def _kind(data):
    with pytest.raises(HandclaspError) as caught:
        parse_csr(data)
    return caught.value.kind


@pytest.mark.parametrize("key_type", keys.KEY_TYPES)
@pytest.mark.parametrize("encoding", [Encoding.DER, Encoding.PEM])
def test_a_request_of_each_type_is_read(key_type, encoding):
    key = key_of(key_type)
    csr = parse_csr(make_csr(key, san=_SAN, common_name="web", encoding=encoding))
    assert csr.key_type == key_type
    assert csr.spki == keys.spki_der(key.public_key())
    assert csr.spki_sha256 == keys.spki_sha256(key.public_key())
    assert csr.names == Names("spiffe://example.org/prod/web", ("web.example.org",))
    assert csr.common_name == "web"


def test_a_common_name_never_becomes_a_name():
    csr = parse_csr(make_csr(key_of("p256"), common_name="web.example.org"))
    assert csr.names.is_empty
    assert csr.common_name == "web.example.org"
    assert parse_csr(make_csr(key_of("p256"))).common_name is None


def test_text_and_bytes_line_ends_and_the_old_label_are_all_read():
    data = make_csr(key_of("p256"), san=_SAN)
    pem = make_csr(key_of("p256"), san=_SAN, encoding=Encoding.PEM)
    fingerprint = hashlib.sha256(data).digest()
    body = base64.b64encode(data).decode()
    for text in (data, f"-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----"):
        assert parse_csr(text).sha256 == fingerprint
    for variant in (pem, pem.decode(), pem.replace(b"\n", b"\r\n"), b"\n " + pem + b"\n", pem.replace(b"CERTIFICATE", b"NEW CERTIFICATE")):
        assert parse_csr(variant).names.dns == ("web.example.org",)


def test_what_is_not_one_request_is_bad_csr():
    good = make_csr(key_of("p256"), san=_SAN)
    pem = make_csr(key_of("p256"), san=_SAN, encoding=Encoding.PEM).decode()
    for data in (
        b"",
        "",
        "hello",
        b"\x30",
        good[:-1],
        good + b"\x00",
        good + good,
        pem + pem,
        "intro\n" + pem,
        pem + "trailing",
        pem.replace("REQUEST", "REQUES"),
        pem.replace("CERTIFICATE REQUEST", "CERTIFICATE"),
        pem.replace("BEGIN CERTIFICATE", "BEGIN NEW CERTIFICATE"),
        pem.replace("\nM", "\n*M"),
        pem.replace("-----END", "AAAA\n-----END"),
        "é" + pem,
        b"\x30" + b"\x00" * MAX_CSR_BYTES,
        pem + " " * MAX_CSR_BYTES,
        key_of("p256").public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    ):
        assert _kind(data) is Kind.BAD_CSR, data[:80]


@pytest.mark.parametrize("key_type", ["p256", "p384", "ed25519", "rsa2048", "ml-dsa-44"])
def test_a_signature_that_is_not_by_the_key_is_bad_proof(key_type):
    good = make_csr(key_of(key_type), san=_SAN)
    for at in (-1, -20, good.find(b"prod")):
        data = bytearray(good)
        data[at] ^= 1
        assert _kind(bytes(data)) in (Kind.BAD_PROOF, Kind.BAD_CSR)
    tbs, algorithm, _ = der.children(good)
    stolen = der.sequence(tbs, algorithm, der.bit_string(keys.sign(key_of(key_type, 9), tbs)))
    assert _kind(stolen) is Kind.BAD_PROOF
    other = "rsa2048" if key_type != "rsa2048" else "p256"
    assert (
        _kind(der.sequence(tbs, keys.signature_algorithm(key_of(other)), der.bit_string(keys.sign(key_of(other), tbs)))) is Kind.BAD_PROOF
    )


def test_other_sound_hashes_are_taken_and_broken_ones_are_not():
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for key in (key_of("p256"), key_of("p384"), key_of("rsa2048")):
        for digest in (hashes.SHA256(), hashes.SHA384(), hashes.SHA512()):
            parse_csr(builder.sign(key, digest).public_bytes(Encoding.DER))
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    parse_csr(builder.sign(key_of("rsa2048"), hashes.SHA256(), rsa_padding=pss).public_bytes(Encoding.DER))
    key = key_of("rsa2048")
    tbs = der.children(make_csr(key))[0]
    sha1 = der.sequence(der.oid("1.2.840.113549.1.1.5"), der.NULL)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert _kind(der.sequence(tbs, sha1, der.bit_string(key.sign(tbs, padding.PKCS1v15(), hashes.SHA1())))) is Kind.BAD_PROOF
    ecdsa_sha1 = der.sequence(der.oid("1.2.840.10045.4.1"))
    key = key_of("p256")
    tbs = der.children(make_csr(key))[0]
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert _kind(der.sequence(tbs, ecdsa_sha1, der.bit_string(key.sign(tbs, ec.ECDSA(hashes.SHA1()))))) is Kind.BAD_PROOF


def test_weak_and_unsupported_keys_are_refused():
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for key in (rsa.generate_private_key(65537, 1024), rsa.generate_private_key(3, 2048), ec.generate_private_key(ec.SECP521R1())):
        assert _kind(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)) is Kind.WEAK_KEY
    assert _kind(builder.sign(ed448.Ed448PrivateKey.generate(), None).public_bytes(Encoding.DER)) is Kind.BAD_KEY


def _with_spki(spki: bytes, subject: bytes, key: keys.PrivateKey) -> bytes:
    tbs = der.sequence(der.integer(0), subject, spki, der.tlv(0xA0, b""))
    return der.sequence(tbs, keys.signature_algorithm(key), der.bit_string(keys.sign(key, tbs)))


def test_one_key_has_one_fingerprint_however_it_is_written():
    """A blocked key must not come back as a compressed point; and a copy of another key in a name must not be taken for the key."""
    key = key_of("p256")
    public = key.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    spki = keys.spki_der(public)
    compressed = der.sequence(
        der.sequence(der.oid("1.2.840.10045.2.1"), der.oid("1.2.840.10045.3.1.7")),
        der.bit_string(public.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)),
    )
    stranger = keys.spki_der(key_of("p256", 9).public_key())
    decoy = der.sequence(der.set_(der.sequence(der.oid("2.5.4.3"), der.tlv(0x0C, stranger.decode("latin-1").encode()))))
    raw_decoy = der.sequence(der.set_(der.sequence(der.oid("2.5.4.45"), der.bit_string(stranger))))
    for subject in (der.EMPTY_SEQUENCE, decoy, raw_decoy):
        for written in (spki, compressed):
            with allowing(Kind.BAD_CSR, Kind.BAD_KEY):
                csr = parse_csr(_with_spki(written, subject, key))
                assert csr.spki == spki
                assert csr.spki_sha256 == keys.spki_sha256(public)
    assert parse_csr(_with_spki(spki, raw_decoy, key)).spki == spki


def test_bad_names_are_bad_name():
    for san in (
        [x509.UniformResourceIdentifier("https://x")],
        [x509.DNSName("a_b.org")],
        [x509.UniformResourceIdentifier("spiffe://a/b")] * 2,
    ):
        assert _kind(make_csr(key_of("p256"), san=san)) is Kind.BAD_NAME


_KINDS = {Kind.BAD_CSR, Kind.BAD_PROOF, Kind.BAD_NAME, Kind.BAD_KEY, Kind.WEAK_KEY}
_VALID = {kind: make_csr(key_of(kind), san=_SAN, common_name="web") for kind in ("p256", "ed25519", "rsa2048")}


@given(st.one_of(st.binary(max_size=400), st.text(max_size=200), st.binary(max_size=200).map(lambda tail: b"\x30\x82" + tail)))
def test_random_input_raises_only_our_errors(data):
    with allowing(*_KINDS):
        parse_csr(data)


@given(
    st.sampled_from(sorted(_VALID)),
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=3),
    st.integers(0, 3),
)
def test_a_changed_request_raises_only_our_errors(kind, changes, cut):
    data = bytearray(_VALID[kind])
    for at, value in changes:
        data[at % len(data)] = value
    mutated = bytes(data[: len(data) - cut])
    with allowing(*_KINDS):
        parse_csr(mutated)
        assert mutated == _VALID[kind]


@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_properly_signed_request_with_changed_content_raises_only_our_errors(changes):
    """Behind a good signature stands whatever its maker wanted: names and extensions must be read as safely as the rest."""
    key = key_of("p256")
    tbs, algorithm, _ = der.children(_VALID["p256"])
    data = bytearray(tbs)
    for at, value in changes:
        data[at % len(data)] = value
    with allowing(*_KINDS):
        csr = parse_csr(der.sequence(bytes(data), algorithm, der.bit_string(keys.sign(key, bytes(data)))))
        assert csr.spki == keys.spki_der(key.public_key())
