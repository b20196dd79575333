"""SPIFFE bundles of others: what the standard demands is demanded, what it says to pass over is passed over, and nothing crashes."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from handclasp.errors import HandclaspError, Kind
from handclasp.pki import bundles, chains, keys
from handclasp.pki.jwt_svid import thumbprint
from support.authorities import authority, key_of, plan_of
from support.errors import refused
from support.spiffe_bundles import jwt_only

ROOT = authority().root
LEAF = authority().sign(plan_of())
JWK = bundles.jwk_of(key_of("p256", 7).public_key())
RSA = bundles.jwk_of(key_of("rsa2048", 7).public_key())


def anchor(der: bytes = ROOT, **changes: Any) -> dict[str, Any]:
    return {"kty": "EC", "use": "x509-svid", "x5c": [base64.b64encode(der).decode()], **changes}


def jwt(kid: Any = "k1", **changes: Any) -> dict[str, Any]:
    return {**JWK, "use": "jwt-svid", "kid": kid, **changes}


def document(*items: Any, **more: Any) -> bytes:
    return json.dumps({"keys": list(items), **more}).encode()


def test_what_is_written_is_read_again() -> None:
    kid = thumbprint(JWK)
    read = bundles.parse_spiffe_bundle(bundles.spiffe_bundle([ROOT], 7, 300, [(kid, JWK)]), "example.org")
    assert (read.authorities, set(read.jwt_keys), read.sequence, read.refresh_hint) == ((ROOT,), {kid}, 7, 300)
    assert keys.spki_der(read.jwt_keys[kid]) == keys.spki_der(key_of("p256", 7).public_key())
    assert "spiffe_sequence" not in json.loads(bundles.spiffe_bundle([ROOT], None, 300))


ACCEPTED: list[tuple[str, bytes, int, int]] = [
    ("no keys at all: everything is revoked", document(), 0, 0),
    ("no numbers", document(anchor(), jwt()), 1, 1),
    ("an anchor twice is one anchor", document(anchor(), anchor()), 1, 0),
    ("a kty that is not known", document(anchor(), {"kty": "XYZ", "use": "x509-svid"}, {"use": "jwt-svid"}), 1, 0),
    ("a use that is not known, or none", document(anchor(), jwt(use="wit-svid"), jwt("b", use=None), {"kty": "EC"}), 1, 0),
    ("a curve that is not known", document(jwt(crv="secp256k1")), 0, 0),
    ("an RSA key", document({**RSA, "use": "jwt-svid", "kid": "r", "alg": "RS256"}), 0, 1),
    ("members that are not known", document(anchor(extra=[1]), other={"a": 1}), 1, 0),
    (
        "an Ed25519 key of JWT-SVIDs, which signs none",
        document({"kty": "OKP", "crv": "Ed25519", "x": "AA", "use": "jwt-svid", "kid": "o"}),
        0,
        0,
    ),
]


@pytest.mark.parametrize(("data", "anchors", "jwt_keys"), [case[1:] for case in ACCEPTED], ids=[case[0] for case in ACCEPTED])
def test_a_bundle_is_read(data: bytes, anchors: int, jwt_keys: int) -> None:
    read = bundles.parse_spiffe_bundle(data, "example.org")
    assert (len(read.authorities), len(read.jwt_keys)) == (anchors, jwt_keys)


SMALL = rsa.generate_private_key(65537, 1024).public_key().public_numbers()
REFUSED: list[tuple[str, bytes]] = [
    ("not JSON", b"\xff{"),
    ("not an object", b"[]"),
    ("no keys", b'{"spiffe_sequence": 1}'),
    ("a bundle map", json.dumps({"trust_domains": {"example.org": {"keys": []}}}).encode()),
    ("keys that are none", document("x")),
    ("nested too deep", b'{"keys": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    ("too many keys", document(*([{"kty": "EC"}] * 501))),
    ("too large", b'{"keys": []}' + b" " * bundles.MAX_BUNDLE),
    ("an anchor without a certificate", document({"kty": "EC", "use": "x509-svid"})),
    ("an anchor with two", document(anchor(x5c=[base64.b64encode(ROOT).decode()] * 2))),
    ("an anchor of garbage", document(anchor(x5c=["AAAA"]))),
    ("an anchor that is not base64", document(anchor(x5c=["*"]))),
    ("an anchor that is a number", document(anchor(x5c=[1]))),
    ("a leaf as an anchor", document(anchor(LEAF))),
    ("a JWT key without a key ID", document(jwt(None))),
    ("a JWT key with an empty key ID", document(jwt(""))),
    ("two JWT keys with one key ID", document(jwt(), jwt())),
    ("a point that is not on the curve", document(jwt(x=JWK["y"]))),
    ("a coordinate that is too short", document(jwt(x="AA"))),
    ("no coordinate", document({"kty": "EC", "crv": "P-256", "use": "jwt-svid", "kid": "k"})),
    ("an RSA key of 1024 bits", document({"kty": "RSA", "n": bundles._number(SMALL.n), "e": "AQAB", "use": "jwt-svid", "kid": "k"})),
    ("a private key", document(jwt(d="AA"))),
    ("a symmetric key", document({"kty": "oct", "k": "AA"})),
    ("a sequence that is text", document(spiffe_sequence="1")),
    ("a sequence that is negative", document(spiffe_sequence=-1)),
    ("a sequence that no row holds", document(spiffe_sequence=1 << 63)),
    ("a sequence with a fraction", document(spiffe_sequence=1.5)),
    ("a refresh hint that is true", document(spiffe_refresh_hint=True)),
]


@pytest.mark.parametrize("data", [case[1] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_bundle_is_refused(data: bytes) -> None:
    with refused(Kind.BAD_CERTIFICATE):
        bundles.parse_spiffe_bundle(data, "example.org")


def test_an_anchor_of_another_trust_domain_is_refused() -> None:
    """An authority that says whose it is must be of the trust domain whose bundle it stands in."""
    from cryptography import x509

    key = key_of("p256", 9)
    above = chains.load(ROOT)
    for uri, fits in (("spiffe://other.example", False), ("spiffe://example.org", True), ("spiffe://example.org/path", False)):
        builder = x509.CertificateBuilder(
            above.subject, above.subject, key.public_key(), 5, above.not_valid_before_utc, above.not_valid_after_utc
        )
        builder = builder.add_extension(x509.BasicConstraints(True, None), True)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), False)
        from cryptography.hazmat.primitives.serialization import Encoding

        data = document(anchor(builder.sign(key, keys.signing_hash(key)).public_bytes(Encoding.DER)))  # type: ignore[arg-type]
        if fits:
            assert len(bundles.parse_spiffe_bundle(data, "example.org").authorities) == 1
        else:
            with refused(Kind.BAD_CERTIFICATE, "spiffe://"):
                bundles.parse_spiffe_bundle(data, "example.org")


def test_content_is_what_one_trusts_and_nothing_else() -> None:
    base = bundles.parse_spiffe_bundle(document(anchor(), jwt(), spiffe_sequence=1), "example.org").content
    same = document(jwt(alg="ES256"), anchor(extra=1), {"kty": "new"}, spiffe_sequence=9, spiffe_refresh_hint=5)
    assert bundles.parse_spiffe_bundle(same, "example.org").content == base
    for other in (
        document(anchor()),
        document(jwt()),
        document(anchor(), jwt("k2")),
        document(anchor(), {**RSA, "use": "jwt-svid", "kid": "k1"}),
    ):
        assert bundles.parse_spiffe_bundle(other, "example.org").content != base


def test_what_is_handed_in_may_be_pem_or_spiffe() -> None:
    data, read = bundles.read_bundle("# ours\n" + chains.to_pem(ROOT) * 2, "example.org")
    assert (read.authorities, read.sequence) == ((ROOT,), None)
    assert bundles.parse_spiffe_bundle(data, "example.org") == read
    text = document(anchor(), spiffe_sequence=4).decode()
    assert bundles.read_bundle(text, "example.org")[1].sequence == 4
    for bad in ("", "-----BEGIN CERTIFICATE-----", chains.to_pem(LEAF), "{}", "\ud800"):
        with refused(Kind.BAD_CERTIFICATE):
            bundles.read_bundle(bad, "example.org")


def test_the_spiffe_package_reads_what_we_write() -> None:
    """Another implementation's parsers accept our bundle: anchors as DER and PEM, JWT keys as a JWK set."""
    from spiffe import JwtBundle, TrustDomain, X509Bundle

    kid = thumbprint(JWK)
    data = bundles.spiffe_bundle([ROOT], 1, 300, [(kid, JWK)])
    read = JwtBundle.parse(TrustDomain("example.org"), jwt_only(data))
    assert read.jwt_authorities[kid].public_numbers() == key_of("p256", 7).public_key().public_numbers()  # type: ignore[union-attr]
    certificates = bundles.parse_spiffe_bundle(data, "example.org").authorities
    assert len(X509Bundle.parse_raw(TrustDomain("example.org"), b"".join(certificates)).x509_authorities) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
MEMBERS = st.sampled_from(["kty", "use", "kid", "x5c", "crv", "x", "y", "n", "e", "d", "alg"])
VALUES = JSON | st.sampled_from(["EC", "RSA", "OKP", "x509-svid", "jwt-svid", "P-256", JWK["x"], JWK["y"], "AQAB", anchor()["x5c"]])


@given(
    st.binary(max_size=200)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {"keys": st.lists(st.dictionaries(MEMBERS, VALUES, max_size=8), max_size=4)},
        optional={"spiffe_sequence": JSON, "spiffe_refresh_hint": JSON},
    ).map(lambda value: json.dumps(value).encode())
)
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    try:
        read = bundles.parse_spiffe_bundle(data, "example.org")
    except HandclaspError as error:
        assert error.kind is Kind.BAD_CERTIFICATE  # noqa: PT017  (either is fine; nothing else may escape)
        return
    assert all(isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) for key in read.jwt_keys.values())
    assert hash(read.content) == hash(read.content)
