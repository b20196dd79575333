"""JWT-SVIDs (SPIFFE JWT-SVID 1.0): made with one key, and verified with a trust domain's keys. Nothing here decides who may have one.

Small on purpose, on ``cryptography`` alone: the agent verifies them too, and it has to stay small.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from handclasp.errors import HandclaspError, Kind
from handclasp.pki import keys
from handclasp.pki.names import check_spiffe_id, trust_domain_of

VerifyKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
"""What a JWT-SVID may be signed with (JWT-SVID section 2.1: RSA and elliptic curves, and nothing else)."""

MAX_TOKEN = 16_384  # characters: in a header of HTTP more would not arrive anyway
LEEWAY = 30.0
"""Seconds by which clocks may differ."""

_PART = re.compile(r"[A-Za-z0-9_-]+")
_HASHES: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}  # RFC 7518 section 3.4: each with its own curve
_ALGORITHMS = frozenset({*_CURVES, "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})


def thumbprint(jwk: Mapping[str, Any]) -> str:
    """Return the RFC 7638 thumbprint (SHA-256, base64url) of an EC or RSA key's JWK: its ``kid``."""
    members = ("crv", "kty", "x", "y") if jwk["kty"] == "EC" else ("e", "kty", "n")
    return base64url(hashlib.sha256(msgspec.json.encode({name: jwk[name] for name in members})).digest())


def sign_jwt_svid(
    key: ec.EllipticCurvePrivateKey, kid: str, *, identity: str, audience: Sequence[str], issued_at: int, expires_at: int, jti: str
) -> str:
    """Return a JWT-SVID in compact form, signed with ES256; the times in whole seconds since the epoch.

    ``key`` is on P-256. The signature is verified before the token is returned: what a fault made must not leave.
    """
    header = {"alg": "ES256", "kid": kid, "typ": "JWT"}
    claims = {"sub": identity, "aud": list(audience), "exp": expires_at, "iat": issued_at, "jti": jti}
    signed = f"{base64url(msgspec.json.encode(header))}.{base64url(msgspec.json.encode(claims))}"
    signature = keys.sign(key, signed.encode())
    keys.verify(key.public_key(), signature, signed.encode())
    r, s = decode_dss_signature(signature)
    return f"{signed}.{base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def verify_jwt_svid(token: str, audience: Collection[str], bundles: Mapping[str, Mapping[str, VerifyKey]], now: int) -> dict[str, Any]:
    """Return the claims of a JWT-SVID for one of ``audience``, verified with the keys of its own trust domain at ``now`` (ms).

    ``bundles`` holds for each trust domain its keys by ``kid``; a key of one trust domain never vouches for another (SPIFFE Federation
    section 3). Raises ``verify_failed`` with the reason, for anything that is not a good JWT-SVID (JWT-SVID sections 2 to 5).
    """
    if len(token) > MAX_TOKEN:
        raise _not("it is too long")
    header, claims, signed, signature = _take_apart(token)
    # 1 Who it claims to be decides which keys count, and no other trust domain's.
    subject = claims.get("sub")
    try:
        trust_domain = trust_domain_of(check_spiffe_id(subject)) if isinstance(subject, str) else ""
    except HandclaspError as error:
        raise _not("its subject is not a SPIFFE ID") from error
    if not trust_domain:
        raise _not("it has no subject")
    # 2 The signature, with the algorithm that belongs to the key.
    kid = header.get("kid")
    key = bundles.get(trust_domain, {}).get(kid) if isinstance(kid, str) else None
    if key is None:
        raise _not(f"no key of {trust_domain} has its key ID")
    if header.get("typ", "JWT") not in ("JWT", "JOSE"):
        raise _not("its type is neither JWT nor JOSE")
    if "crit" in header:  # RFC 7515 section 4.1.11: what is critical must be understood, and we know no such extension
        raise _not("it needs an extension that is not known")
    _verify(key, str(header.get("alg")), signature, signed)
    # 3 For whom, and until when.
    _check_claims(claims, audience, now)
    return claims


def _check_claims(claims: Mapping[str, Any], audience: Collection[str], now: int) -> None:
    audiences = claims.get("aud")
    audiences = audiences if isinstance(audiences, list) else [audiences]
    if not any(isinstance(one, str) and one in audience for one in audiences):
        raise _not("it is for another audience")
    ends = claims.get("exp")
    if not isinstance(ends, int | float) or isinstance(ends, bool):
        raise _not("it does not say when it ends")
    if now >= (ends + LEEWAY) * 1000:
        raise _not("it has expired")
    for claim in ("nbf", "iat"):
        begins = claims.get(claim, 0)
        if not isinstance(begins, int | float) or isinstance(begins, bool) or now < (begins - LEEWAY) * 1000:
            raise _not("it is not valid yet")


def base64url(data: bytes) -> str:
    """Return bytes in base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_base64url(text: str) -> bytes:
    """Return the bytes of base64url without padding; raise ``ValueError`` for anything else."""
    if not _PART.fullmatch(text):
        raise ValueError("not base64url")
    return binascii.a2b_base64(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), strict_mode=True)


def _not(why: str) -> HandclaspError:
    return HandclaspError(Kind.VERIFY_FAILED, f"the JWT-SVID is refused: {why}")


def _take_apart(token: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    """Return header, claims, what is signed, and the signature, all unverified."""
    parts = token.split(".")
    if len(parts) != 3:
        raise _not("it is not a signed JWT in compact form")
    try:
        header, claims = (msgspec.json.decode(from_base64url(part), type=dict[str, Any]) for part in parts[:2])
        signature = from_base64url(parts[2])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _not("it is not a signed JWT in compact form") from error
    return header, claims, f"{parts[0]}.{parts[1]}".encode(), signature


def _verify(key: VerifyKey, algorithm: str, signature: bytes, signed: bytes) -> None:
    if algorithm not in _ALGORITHMS:  # "none" and HMAC are not even known here
        raise _not("its algorithm is not one for JWT-SVIDs")
    digest = _HASHES[algorithm[2:]]
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            if _CURVES.get(algorithm) != key.curve.name:
                raise _not("its algorithm is not that of the key")
            size = (key.curve.key_size + 7) // 8
            if len(signature) != 2 * size:
                raise _not("its signature is wrong")
            numbers = int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
            key.verify(encode_dss_signature(*numbers), signed, ec.ECDSA(digest))
        elif algorithm.startswith("RS"):
            key.verify(signature, signed, padding.PKCS1v15(), digest)
        elif algorithm.startswith("PS"):
            key.verify(signature, signed, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        else:
            raise _not("its algorithm is not that of the key")
    except InvalidSignature as error:
        raise _not("its signature is wrong") from error
