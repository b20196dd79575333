"""JWT-SVIDs: what is made is verified by others, and what is not good is refused with the reason."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from handclasp.errors import HandclaspError, Kind
from handclasp.pki.bundles import jwk_of, spiffe_bundle
from handclasp.pki.jwt_svid import LEEWAY, base64url, from_base64url, sign_jwt_svid, thumbprint, verify_jwt_svid
from support.authorities import key_of
from support.errors import refused
from support.spiffe_bundles import jwt_only

NOW = 1_800_000_000
WEB = "spiffe://example.org/prod/web"
KEY = key_of("p256", 11)
assert isinstance(KEY, ec.EllipticCurvePrivateKey)
JWK = jwk_of(KEY.public_key())
KID = thumbprint(JWK)
TRUSTED = {"example.org": {KID: KEY.public_key()}}


def made(now: int = NOW, **changes: Any) -> str:
    wanted: dict[str, Any] = {"identity": WEB, "audience": ["db", "queue"], "issued_at": now, "expires_at": now + 300, "jti": "j"}
    return sign_jwt_svid(KEY, KID, **(wanted | changes))  # type: ignore[arg-type]


def signed(header: Any, claims: Any, key: Any = KEY) -> str:
    """Return a token that says anything, with a signature that is right."""
    text = f"{base64url(json.dumps(header).encode())}.{base64url(json.dumps(claims).encode())}"
    if isinstance(key, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        way = pss if header["alg"] == "PS256" else padding.PKCS1v15()
        return f"{text}.{base64url(key.sign(text.encode(), way, hashes.SHA256()))}"
    r, s = decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{text}.{base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


HEADER = {"alg": "ES256", "kid": KID, "typ": "JWT"}
CLAIMS = {"sub": WEB, "aud": ["db"], "exp": NOW + 300, "iat": NOW}


def test_the_thumbprint_is_that_of_the_rfc() -> None:
    """RFC 7638 section 3.1."""
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc"
        "5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vM"
        "QFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    assert (
        thumbprint({"kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"})
        == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    )


def test_what_is_made_is_good_for_each_of_its_audiences_and_until_its_end() -> None:
    token = made()
    header = json.loads(from_base64url(token.split(".")[0]))
    assert header == HEADER
    for audience in (["db"], ["queue", "other"]):
        claims = verify_jwt_svid(token, audience, TRUSTED, NOW * 1000)
        assert (claims["sub"], claims["aud"], claims["exp"], claims["iat"], claims["jti"]) == (WEB, ["db", "queue"], NOW + 300, NOW, "j")
    with refused(Kind.VERIFY_FAILED, "another audience"):
        verify_jwt_svid(token, ["other"], TRUSTED, NOW * 1000)
    last = round((NOW + 300 + LEEWAY) * 1000)
    verify_jwt_svid(token, ["db"], TRUSTED, last - 1)
    for at, words in ((last, "expired"), (round((NOW - LEEWAY) * 1000) - 1, "not valid yet")):
        with refused(Kind.VERIFY_FAILED, words):
            verify_jwt_svid(token, ["db"], TRUSTED, at)


def test_the_spiffe_package_accepts_it() -> None:
    from spiffe import JwtBundle, JwtSvid, TrustDomain

    bundle = JwtBundle.parse(TrustDomain("example.org"), jwt_only(spiffe_bundle([], 1, 300, [(KID, JWK)])))
    svid = JwtSvid.parse_and_validate(made(int(time.time())), bundle, {"db"})
    assert str(svid.spiffe_id) == WEB


def test_rsa_keys_of_others_are_verified_too() -> None:
    key = key_of("rsa2048", 11)
    trusted = {"example.org": {"r": key.public_key()}}
    for algorithm in ("RS256", "PS256"):
        verify_jwt_svid(signed({"alg": algorithm, "kid": "r"}, CLAIMS, key), ["db"], trusted, NOW * 1000)  # type: ignore[dict-item]
    with refused(Kind.VERIFY_FAILED, "algorithm"):
        verify_jwt_svid(signed({"alg": "ES256", "kid": "r"}, CLAIMS), ["db"], trusted, NOW * 1000)  # type: ignore[dict-item]


BAD: list[tuple[str, Any, Any, str]] = [
    ("no algorithm", {"kid": KID}, CLAIMS, "algorithm"),
    ("none", {**HEADER, "alg": "none"}, CLAIMS, "algorithm"),
    ("HMAC", {**HEADER, "alg": "HS256"}, CLAIMS, "algorithm"),
    ("another curve's algorithm", {**HEADER, "alg": "ES384"}, CLAIMS, "algorithm"),
    ("RSA for an elliptic key", {**HEADER, "alg": "RS256"}, CLAIMS, "algorithm"),
    ("no key ID", {"alg": "ES256"}, CLAIMS, "key ID"),
    ("a key ID that is a number", {**HEADER, "kid": 1}, CLAIMS, "key ID"),
    ("another key ID", {**HEADER, "kid": "x"}, CLAIMS, "key ID"),
    ("another type", {**HEADER, "typ": "at+jwt"}, CLAIMS, "type"),
    ("something critical", {**HEADER, "crit": ["b64"]}, CLAIMS, "extension"),
    ("no subject", HEADER, {**CLAIMS, "sub": None}, "subject"),
    ("a subject that is no SPIFFE ID", HEADER, {**CLAIMS, "sub": "web"}, "SPIFFE ID"),
    ("a trust domain as the subject", HEADER, {**CLAIMS, "sub": "spiffe://example.org"}, "SPIFFE ID"),
    ("another trust domain's subject", HEADER, {**CLAIMS, "sub": "spiffe://other.example/web"}, "no key of other.example"),
    ("no audience", HEADER, {**CLAIMS, "aud": None}, "audience"),
    ("an audience that only contains it", HEADER, {**CLAIMS, "aud": "dbx"}, "audience"),
    ("audiences that are numbers", HEADER, {**CLAIMS, "aud": [1, None]}, "audience"),
    ("no end", HEADER, {**CLAIMS, "exp": None}, "when it ends"),
    ("an end that is true", HEADER, {**CLAIMS, "exp": True}, "when it ends"),
    ("an end that is text", HEADER, {**CLAIMS, "exp": "9999999999"}, "when it ends"),
    ("a beginning in the future", HEADER, {**CLAIMS, "nbf": NOW + 3600}, "not valid yet"),
    ("header is a list", [], CLAIMS, "compact"),
    ("claims are a list", HEADER, [], "compact"),
]


@pytest.mark.parametrize(("header", "claims", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_token_that_is_not_one_is_refused(header: Any, claims: Any, words: str) -> None:
    with refused(Kind.VERIFY_FAILED, words):
        verify_jwt_svid(signed(header, claims), ["db"], TRUSTED, NOW * 1000)


def test_a_token_without_a_good_signature_is_refused() -> None:
    token = signed(HEADER, CLAIMS)
    head, body, signature = token.split(".")
    other = signed(HEADER, {**CLAIMS, "sub": "spiffe://example.org/prod/db"}).split(".")[1]
    stolen = signed(HEADER, CLAIMS, ec.generate_private_key(ec.SECP256R1()))
    for bad in (f"{head}.{other}.{signature}", f"{head}.{body}.AAAA", f"{head}.{body}.{base64url(bytes(64))}", stolen):
        with refused(Kind.VERIFY_FAILED, "signature"):
            verify_jwt_svid(bad, ["db"], TRUSTED, NOW * 1000)
    for bad in (f"{head}.{body}.", f"{head}.{body}", "", "a.b.c", f"{token}.x", token + "=", "x" * 20_000):
        with refused(Kind.VERIFY_FAILED):
            verify_jwt_svid(bad, ["db"], TRUSTED, NOW * 1000)


ODD = st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
SIGNED = st.builds(
    lambda header, claims: signed({**HEADER, **header}, {**CLAIMS, **claims}),
    st.dictionaries(st.sampled_from(["alg", "kid", "typ"]), ODD, max_size=2),
    st.dictionaries(st.sampled_from(["sub", "aud", "exp", "nbf", "iat"]), ODD, max_size=3),
)


@given(st.text(max_size=60) | st.lists(st.binary(max_size=40).map(base64url), min_size=3, max_size=3).map(".".join) | SIGNED)
def test_whatever_comes_is_verified_or_refused(token: str) -> None:
    try:
        claims = verify_jwt_svid(token, ["db"], TRUSTED, NOW * 1000)
    except HandclaspError as error:
        assert error.kind is Kind.VERIFY_FAILED  # noqa: PT017  (either is fine; nothing else may escape)
        return
    assert claims["sub"].startswith("spiffe://example.org/")
