"""Public key sets (JWKS, RFC 7517), as issuers of tokens publish them: what of them is taken, and how. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from joserfc import jwk

from handclasp.errors import HandclaspError, Kind

MAX_KEYS = 100

# RFC 7518 section 3.1, RFC 8037, RFC 9864. Never "none", and never a symmetric one: a published key would be the shared secret
# (CVE-2015-9235).
ALGORITHMS: Mapping[str, str] = {"RS256": "RSA", "ES256": "P-256", "ES384": "P-384", "EdDSA": "Ed25519", "Ed25519": "Ed25519"}
"""Every signature algorithm that is taken, and the kind of key that it goes with."""

_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384"}


def json_object(data: bytes) -> dict[str, Any]:
    """Return a JSON object; raise ``unavailable`` or a msgspec error for anything else: an issuer's answer that cannot be used."""
    found = msgspec.json.decode(data)
    if not isinstance(found, dict):
        raise HandclaspError(Kind.UNAVAILABLE, "the issuer's answer is not a JSON object")
    return found


def read_keys(data: bytes) -> dict[str, tuple[str, Any]]:
    """Return the keys of a JWKS (RFC 7517) that can verify our algorithms, by ``kid``. Others are passed over; none at all is an error."""
    listed = json_object(data).get("keys")
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise HandclaspError(Kind.UNAVAILABLE, "the issuer's answer is not a key set")
    keys: dict[str, tuple[str, Any]] = {}
    for item in listed:
        found = _read_key(item) if isinstance(item, dict) else None
        if found is not None and item["kid"] not in keys:
            keys[item["kid"]] = found
    if not keys:
        raise HandclaspError(Kind.UNAVAILABLE, "the issuer's key set has no key that can be used")
    return keys


def _read_key(item: dict[str, Any]) -> tuple[str, Any] | None:
    if not isinstance(item.get("kid"), str) or item.get("use", "sig") != "sig":
        return None
    kty = item.get("kty")
    if kty not in ("RSA", "EC", "OKP"):
        return None
    public: Any = {name: item[name] for name in ("kty", "crv", "n", "e", "x", "y") if name in item}
    try:
        key = jwk.import_key(public, kty)
        kind = _kind(key.get_op_key("verify"))
    except Exception:  # one odd key must not take the others away, and libraries raise all sorts for one
        return None
    declared = item.get("alg")
    if kind is None or (declared is not None and ALGORITHMS.get(str(declared)) != kind):
        return None
    return kind, key


def _kind(key: Any) -> str | None:
    if isinstance(key, rsa.RSAPublicKey):
        return "RSA" if 2048 <= key.key_size <= 8192 else None
    if isinstance(key, ec.EllipticCurvePublicKey):
        return _CURVES.get(key.curve.name)
    return "Ed25519" if isinstance(key, ed25519.Ed25519PublicKey) else None
