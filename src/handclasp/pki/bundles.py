"""Trust bundles: the anchors of a trust domain, as PEM and as a SPIFFE bundle (SPIFFE Trust Domain and Bundle, section 4)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from handclasp.errors import HandclaspError, Kind
from handclasp.pki import chains, keys

MAX_BUNDLE_BYTES = 4 * 1024 * 1024
_CURVES = {"secp256r1": ("P-256", 32), "secp384r1": ("P-384", 48)}


@dataclass(frozen=True, slots=True)
class SpiffeBundle:
    """A SPIFFE bundle that was read: the X.509 authorities (DER), and when to look again (seconds)."""

    authorities: tuple[bytes, ...]
    sequence: int | None
    refresh_hint: int | None


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


def parse_spiffe_bundle(data: bytes) -> SpiffeBundle:
    """Read a SPIFFE bundle; raise ``bad_certificate`` for anything that is not one.

    Keys for other uses are passed over, as the specification says; an ``x509-svid`` key without exactly one readable certificate refuses
    the whole bundle.
    """
    try:
        document = msgspec.json.decode(data) if len(data) <= MAX_BUNDLE_BYTES else None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise HandclaspError(Kind.BAD_CERTIFICATE, "this is not a SPIFFE bundle: not JSON") from error
    items = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise HandclaspError(Kind.BAD_CERTIFICATE, "this is not a SPIFFE bundle: no list of keys, or too large")
    assert isinstance(document, dict)
    authorities = tuple(_authority(item) for item in items if isinstance(item, dict) and item.get("use") == "x509-svid")
    return SpiffeBundle(authorities, _count(document, "spiffe_sequence"), _count(document, "spiffe_refresh_hint"))


def _authority(item: dict[str, Any]) -> bytes:
    chain = item.get("x5c")
    if not isinstance(chain, list) or len(chain) != 1 or not isinstance(chain[0], str):
        raise HandclaspError(Kind.BAD_CERTIFICATE, "an x509-svid key of the bundle does not carry exactly one certificate")
    try:
        der = binascii.a2b_base64(chain[0], strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise HandclaspError(Kind.BAD_CERTIFICATE, "the base64 of a certificate in the bundle is broken") from error
    chains.load(der)
    return der


def _count(document: dict[str, Any], name: str) -> int | None:
    value = document.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise HandclaspError(Kind.BAD_CERTIFICATE, f"{name} of the bundle is not a number")
    return value


def pem_bundle(authorities: Sequence[bytes]) -> str:
    """Return DER certificates as one PEM text."""
    return "".join(map(chains.to_pem, authorities))
