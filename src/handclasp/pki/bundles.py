"""Trust bundles: the anchors of a trust domain, as PEM and as a SPIFFE bundle (SPIFFE Trust Domain and Bundle, section 4)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from handclasp.pki import chains, keys

_CURVES = {"secp256r1": ("P-256", 32), "secp384r1": ("P-384", 48)}


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _number(value: int, size: int = 0) -> str:
    return _base64url(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def _jwk(public_key: keys.PublicKey) -> dict[str, Any]:
    """Return the key's JWK members: RFC 7518 section 6, RFC 8037 for Ed25519, and the AKP type for ML-DSA."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        curve, size = _CURVES[public_key.curve.name]
        point = public_key.public_numbers()
        return {"kty": "EC", "crv": curve, "x": _number(point.x, size), "y": _number(point.y, size)}
    if isinstance(public_key, rsa.RSAPublicKey):
        modulus = public_key.public_numbers()
        return {"kty": "RSA", "n": _number(modulus.n), "e": _number(modulus.e)}
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": _base64url(public_key.public_bytes_raw())}
    return {"kty": "AKP", "alg": keys.key_type_of(public_key).upper(), "pub": _base64url(public_key.public_bytes_raw())}


def spiffe_bundle(authorities: Sequence[bytes], sequence: int, refresh_hint: int) -> bytes:
    """Return the SPIFFE bundle (a JWK set, JSON) of root certificates in DER; ``refresh_hint`` in seconds.

    ``sequence`` must rise with each change of content. Raises ``bad_certificate`` or ``bad_key`` for an authority that cannot be published.
    """
    items = []
    for der in authorities:
        public_key = chains.load(der).public_key()
        keys.key_type_of(public_key)
        items.append({**_jwk(public_key), "use": "x509-svid", "x5c": [base64.b64encode(der).decode()]})  # type: ignore[arg-type]
    return msgspec.json.encode({"keys": items, "spiffe_sequence": sequence, "spiffe_refresh_hint": refresh_hint})


def pem_bundle(authorities: Sequence[bytes]) -> str:
    """Return DER certificates as one PEM text."""
    return "".join(map(chains.to_pem, authorities))
