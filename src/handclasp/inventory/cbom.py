"""Certificates as a cryptographic bill of materials: CycloneDX 1.7 (ECMA-424), JSON, as a stream.

Each certificate is a component of type ``cryptographic-asset``; its public key is another one, with the algorithm that it is for, and the
certificate names both as related assets. An algorithm is written once, before the first key that has it.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from handclasp import __version__
from handclasp.clock import rfc3339
from handclasp.inventory.filters import Filters
from handclasp.wire import Certificate

_STATES = {"valid": "active", "superseded": "deactivated", "expired": "deactivated", "revoked": "revoked"}

# Security levels: NIST SP 800-57 part 1 rev. 5 table 2 (classical bits), and the categories of the NIST PQC call (section 4.A.5).
_ALGORITHMS: dict[str, tuple[str, str, str, int, int]] = {
    "p256": ("ECDSA", "", "secg/secp256r1", 128, 0),
    "p384": ("ECDSA", "", "secg/secp384r1", 192, 0),
    "ed25519": ("EdDSA", "", "other/Ed25519", 128, 0),
    "rsa2048": ("RSASSA-PKCS1", "2048", "", 112, 0),
    "rsa3072": ("RSASSA-PKCS1", "3072", "", 128, 0),
    "rsa4096": ("RSASSA-PKCS1", "4096", "", 152, 0),
    "ml-dsa-44": ("ML-DSA", "44", "", 128, 2),
    "ml-dsa-65": ("ML-DSA", "65", "", 192, 3),
    "ml-dsa-87": ("ML-DSA", "87", "", 256, 5),
}
"""Type of key -> (family, parameters, curve, classical bits, category after NIST)."""

_UNKNOWN = rfc3339(0)
"""A time that nobody told."""
_MAX_ALGORITHMS = 500
"""Types of keys that are remembered as written: sizes of RSA keys are whatever somebody chose."""


async def cbom(pages: AsyncIterator[list[Certificate]], filters: Filters, now: int) -> AsyncIterator[bytes]:
    """Yield one CycloneDX 1.7 document."""
    yield msgspec.json.encode(_head(filters, now))[:-1] + b',"components":['
    encode, written = msgspec.json.Encoder().encode, _Written()
    second = rfc3339(now - now % 1000)  # certificates begin with a whole one, and times are compared as they are written
    separator = b"\n"
    async for page in pages:
        parts = [encode(part) for one in page for part in _components(one, written, second)]
        yield separator + b",\n".join(parts)
        separator = b",\n"
    yield b"\n]}\n"


def _head(filters: Filters, now: int) -> dict[str, Any]:
    said = " ".join(f"{name}={value}" for name, value in sorted(filters.given.items()))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": rfc3339(now),
            "lifecycles": [{"phase": "operations"}],
            "tools": {"components": [{"type": "application", "name": "handclasp", "version": __version__}]},
            "properties": [{"name": "handclasp:filters", "value": said}],
        },
    }


class _Written:
    """The algorithms that the document has already."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def algorithm(self, key_type: str) -> tuple[str, dict[str, Any] | None]:
        """Return the reference of an algorithm, and its component when it is not in the document yet."""
        if len(self._known) >= _MAX_ALGORITHMS and key_type not in self._known:
            key_type = ""
        name = key_type or "unknown"
        if name in self._known:
            return self._known[name], None
        reference = self._known[name] = f"algorithm/{re.sub(r'[^A-Za-z0-9.-]', '_', name)}-{len(self._known)}"
        return reference, {"type": "cryptographic-asset", "bom-ref": reference, "name": name, "cryptoProperties": _algorithm(key_type)}


def _algorithm(key_type: str) -> dict[str, Any]:
    known = _ALGORITHMS.get(key_type)
    size = re.fullmatch(r"rsa(\d{1,6})", key_type)
    properties: dict[str, Any] = {"primitive": "signature" if known or size else "unknown"}
    if known is not None:
        family, parameters, curve, classical, category = known
        properties |= {"algorithmFamily": family, "classicalSecurityLevel": classical, "nistQuantumSecurityLevel": category}
        properties |= {"parameterSetIdentifier": parameters} if parameters else {"ellipticCurve": curve}
    elif size is not None:
        properties |= {"algorithmFamily": "RSASSA-PKCS1", "parameterSetIdentifier": size[1], "nistQuantumSecurityLevel": 0}
    return {"assetType": "algorithm", "algorithmProperties": properties}


def _components(one: Certificate, written: _Written, now: str) -> list[dict[str, Any]]:
    """Return the certificate with its key, and with its algorithm where that is new. References are unique in the document: a key that
    stands in several certificates is a component of each, with the same fingerprint."""
    parts: list[dict[str, Any]] = []
    related = []
    if one.key_sha256:
        reference, algorithm = written.algorithm(one.key_type)
        parts += [] if algorithm is None else [algorithm]
        key = f"key/{one.sha256}"
        parts.append(_key(one, key, reference))
        related = [{"type": "publicKey", "ref": key}, {"type": "algorithm", "ref": reference}]
    parts.append(_certificate(one, related, now))
    return parts


def _key(one: Certificate, reference: str, algorithm: str) -> dict[str, Any]:
    material = {
        "type": "public-key",
        "id": one.key_sha256,
        "algorithmRef": algorithm,
        "format": "SubjectPublicKeyInfo",
        "fingerprint": {"alg": "SHA-256", "content": one.key_sha256},
    }
    return {
        "type": "cryptographic-asset",
        "bom-ref": reference,
        "name": f"public key of {one.identity or one.subject or one.sha256}",
        "cryptoProperties": {"assetType": "related-crypto-material", "relatedCryptoMaterialProperties": material},
    }


def _state(one: Certificate, now: str) -> dict[str, Any]:
    if one.state != "valid":
        return {"state": _STATES[one.state], "reason": one.revocation_reason or one.state}
    return {"state": "pre-activation" if one.not_before > now else _STATES["valid"]}


def _certificate(one: Certificate, related: list[dict[str, str]], now: str) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "certificateFormat": "X.509",
        "fingerprint": {"alg": "SHA-256", "content": one.sha256},
        "certificateExtensions": [
            {"commonExtensionName": "basicConstraints", "commonExtensionValue": f"CA:{'TRUE' if one.is_ca else 'FALSE'}"},
            *_alternative_names(one),
        ],
    }
    optional = {
        "serialNumber": one.serial,
        "subjectName": one.subject,
        "issuerName": one.issuer or one.authority,
        "revocationDate": one.revoked_at,
        "relatedCryptographicAssets": related,
    }
    if one.problem is None and one.not_after != _UNKNOWN:  # what cannot be read has no dates
        begins = None if one.not_before == _UNKNOWN else one.not_before
        optional |= {"notValidBefore": begins, "notValidAfter": one.not_after, "certificateState": [_state(one, now)]}
    properties |= {name: value for name, value in optional.items() if value}
    return {
        "type": "cryptographic-asset",
        "bom-ref": f"certificate/{one.sha256}",
        "name": one.identity or one.subject or one.sha256,
        "cryptoProperties": {"assetType": "certificate", "certificateProperties": properties},
        "properties": _own(one),
    }


def _alternative_names(one: Certificate) -> list[dict[str, str]]:
    spiffe = [one.identity] if one.origin == "issued" and (one.identity or "").startswith("spiffe://") else []
    kinds = (("URI", [*spiffe, *one.uri]), ("DNS", one.dns), ("IP", one.ip), ("email", one.email))
    names = [f"{kind}:{name}" for kind, values in kinds for name in values]
    return [{"commonExtensionName": "subjectAlternativeName", "commonExtensionValue": ", ".join(names)}] if names else []


_OWN = (
    "origin", "state", "standing", "identity", "owner", "tier", "environment", "profile", "triage", "obtained_by", "granted_by", "problem"
)  # fmt: skip


def _own(one: Certificate) -> list[dict[str, str]]:
    """Return what CycloneDX has no field for."""
    values = {**{name: getattr(one, name) for name in _OWN}, "locations": one.locations, "last_seen": one.last_seen}
    return [{"name": f"handclasp:{name}", "value": str(value)} for name, value in values.items() if value not in (None, "")]
