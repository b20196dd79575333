"""From PEM, as the agent keeps it, to the bytes that the protocols want."""

from __future__ import annotations

import binascii
import re
from typing import Any

import msgspec

from handclasp.errors import HandclaspError, Kind

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_CRL = re.compile(rb"-----BEGIN X509 CRL-----([A-Za-z0-9+/=\s]+)-----END X509 CRL-----")
_KEY = re.compile(rb"-----BEGIN PRIVATE KEY-----([A-Za-z0-9+/=\s]+)-----END PRIVATE KEY-----")


def certificates(pem: bytes) -> list[bytes]:
    """Return the DER of each certificate."""
    return _blocks(_CERTIFICATE, pem)


def revocation_lists(pem: bytes) -> list[bytes]:
    """Return the DER of each CRL."""
    return _blocks(_CRL, pem)


def pkcs8(pem: bytes) -> bytes:
    """Return a private key as PKCS#8 DER (Workload API section 5.2.2). Raises ``bad_key``."""
    found = _blocks(_KEY, pem)
    if found:
        return found[0]
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise HandclaspError(Kind.BAD_KEY, "the private key cannot be read") from error
    return key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def jwt_keys(bundle: bytes) -> list[dict[str, Any]]:
    """Return the keys of a SPIFFE bundle that verify JWT-SVIDs (SPIFFE Trust Domain and Bundle section 4.2.2).

    Others, and what is not a key at all, are left out (the same, section 4.2): nothing here is a reason to have no keys.
    """
    try:
        document = msgspec.json.decode(bundle) if bundle else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    keys = document.get("keys") if isinstance(document, dict) else None
    return [
        key
        for key in (keys if isinstance(keys, list) else [])
        if isinstance(key, dict) and key.get("use") == "jwt-svid" and isinstance(key.get("kid"), str) and key["kid"]
    ]


def jwks(bundle: bytes) -> bytes:
    """Return the JWT part of a SPIFFE bundle as the JWK set that FetchJWTBundles gives (Workload API section 6.2.2)."""
    return msgspec.json.encode({"keys": jwt_keys(bundle)})


def _blocks(pattern: re.Pattern[bytes], pem: bytes) -> list[bytes]:
    try:
        return [binascii.a2b_base64(match) for match in pattern.findall(pem)]
    except (binascii.Error, ValueError) as error:
        raise HandclaspError(Kind.BAD_CERTIFICATE, "what should be PEM is not") from error
