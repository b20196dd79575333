"""Checks JWT-SVIDs (SPIFFE JWT-SVID section 4), by ``cryptography`` alone: the agent must stay small, and nine algorithms are not much."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from handclasp.agent.socket.messages import unpadded
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.names import check_spiffe_id, trust_domain_of

MAX_TOKEN = 16384
LEEWAY = 60
"""Seconds by which clocks may differ."""
_HASHES: Mapping[str, type[hashes.SHA256 | hashes.SHA384 | hashes.SHA512]] = {
    "256": hashes.SHA256,
    "384": hashes.SHA384,
    "512": hashes.SHA512,
}
_CURVES: Mapping[str, tuple[type[ec.EllipticCurve], str]] = {
    "P-256": (ec.SECP256R1, "ES256"),
    "P-384": (ec.SECP384R1, "ES384"),
    "P-521": (ec.SECP521R1, "ES512"),
}
ALGORITHMS = frozenset(f"{family}{size}" for family in ("RS", "PS", "ES") for size in _HASHES)
"""JWT-SVID section 2.1. No ``none`` and no HMAC: the choice is not the token's (RFC 8725 section 3.1)."""
_SMALLEST_RSA = 2048

PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
Keys: TypeAlias = Callable[[str], list[dict[str, Any]] | None]
"""Trust domain -> JWT keys of its bundle, None for one that the caller has no bundle of."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A token that is what it says."""

    identity: str
    claims: dict[str, Any]


def verify_jwt_svid(token: str, audience: str, keys: Keys, now: int) -> Checked:
    """Return identity and claims of a valid JWT-SVID for ``audience``. Raises ``not_authenticated`` with the reason.

    1 form and size, 2 algorithm from the list, key id present, 3 subject is a SPIFFE ID, and its trust domain's bundle (no other) has the
    key, 4 signature, with the algorithm that the key is for, 5 audience, 6 time.
    """
    if not audience:
        raise HandclaspError(Kind.BAD_REQUEST, "an audience is needed")
    header, claims, signed, signature = _parts(token)
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise _refused("its algorithm is not one that is allowed for JWT-SVIDs")
    if header.get("typ", "JWT") not in ("JWT", "JOSE"):
        raise _refused("its type is neither JWT nor JOSE")
    if "crit" in header:
        raise _refused("it demands extensions that nobody here knows")  # RFC 7515 section 4.1.11
    if not isinstance(key_id, str) or not key_id:
        raise _refused("it does not say which key signed it")
    identity = _subject(claims)
    held = keys(trust_domain_of(identity))
    if held is None:
        raise _refused(f"there is no bundle here of its trust domain, {trust_domain_of(identity)}")
    jwk = next((key for key in held if key.get("kid") == key_id), None)
    if jwk is None:
        raise _refused("the bundle of its trust domain does not have the key that signed it")
    _check_signature(jwk, algorithm, signed, signature)
    _check_audience(claims, audience)
    _check_time(claims, now)
    return Checked(identity, claims)


def _parts(token: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    if len(token) > MAX_TOKEN:
        raise _refused("it is too long")
    try:
        head, body, signature = token.split(".")
        header, claims = msgspec.json.decode(unpadded(head)), msgspec.json.decode(unpadded(body))
        if not isinstance(header, dict) or not isinstance(claims, dict):
            raise ValueError("no object")
        return header, claims, f"{head}.{body}".encode("ascii"), unpadded(signature)
    except (ValueError, msgspec.DecodeError, RecursionError) as error:
        raise _refused("it is not a token in compact form") from error


def _subject(claims: dict[str, Any]) -> str:
    subject = claims.get("sub")
    try:
        return check_spiffe_id(subject if isinstance(subject, str) else "")
    except HandclaspError as error:
        raise _refused("its subject is not a SPIFFE ID") from error


def _check_signature(jwk: dict[str, Any], algorithm: str, signed: bytes, signature: bytes) -> None:
    if jwk.get("alg", algorithm) != algorithm:
        raise _refused("its key is for another algorithm")
    try:
        key, digest = public_key(jwk), _HASHES[algorithm[2:]]()
        if isinstance(key, ec.EllipticCurvePublicKey):
            if _CURVES[str(jwk["crv"])][1] != algorithm or len(signature) != 2 * ((key.key_size + 7) // 8):
                raise _refused("its key is for another algorithm")
            half = len(signature) // 2
            r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
            key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(digest))
        elif algorithm.startswith("RS"):
            key.verify(signature, signed, padding.PKCS1v15(), digest)
        elif algorithm.startswith("PS"):
            key.verify(signature, signed, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        else:
            raise _refused("its key is for another algorithm")
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, KeyError, TypeError, OverflowError) as error:
        raise _refused("its signature is not right") from error


def public_key(jwk: Mapping[str, Any]) -> PublicKey:
    """Return the key of a JWK (RFC 7518 section 6). Raises ``ValueError``, ``KeyError``, ``TypeError`` for what is none of ours."""

    def number(name: str) -> int:
        return int.from_bytes(unpadded(jwk[name]), "big")

    if jwk["kty"] == "EC":
        return ec.EllipticCurvePublicNumbers(number("x"), number("y"), _CURVES[jwk["crv"]][0]()).public_key()
    if jwk["kty"] != "RSA":
        raise ValueError("not a type of key that we know")
    key = rsa.RSAPublicNumbers(number("e"), number("n")).public_key()
    if key.key_size < _SMALLEST_RSA:
        raise ValueError("too short a key")
    return key


def _check_audience(claims: dict[str, Any], audience: str) -> None:
    for_ = claims.get("aud")
    if audience not in (for_ if isinstance(for_, list) else [for_]):
        raise _refused("it is for another audience")


def _check_time(claims: dict[str, Any], now: int) -> None:
    seconds = now / 1000
    if seconds >= _number(claims, "exp") + LEEWAY:
        raise _refused("it has ended")
    if _is_number(claims.get("nbf")) and seconds < claims["nbf"] - LEEWAY:
        raise _refused("it does not count yet")


def _number(claims: dict[str, Any], name: str) -> float:
    value: Any = claims.get(name)
    if not _is_number(value):
        raise _refused(f"it does not have the claim {name}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _refused(reason: str) -> HandclaspError:
    return HandclaspError(Kind.NOT_AUTHENTICATED, f"the token does not count: {reason}")
