"""What PEM and DER texts say, in words: certificates, signing requests, revocation lists and keys, each with what is wrong with it.

Nothing here trusts its input: what cannot be read becomes a problem of that item, and only a source in which nothing can be read is an
error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from handclasp.cli.pem import blocks
from handclasp.clock import format_duration, from_datetime, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import keys

Item = dict[str, Any]
"""One decoded thing: ``type``, its facts, and ``problems`` as sentences."""

_USAGES = {
    "digital_signature": "digital signature",
    "content_commitment": "content commitment",
    "key_encipherment": "key encipherment",
    "data_encipherment": "data encipherment",
    "key_agreement": "key agreement",
    "key_cert_sign": "certificate signing",
    "crl_sign": "CRL signing",
}
_EXTENDED = {
    "1.3.6.1.5.5.7.3.1": "server authentication",
    "1.3.6.1.5.5.7.3.2": "client authentication",
    "1.3.6.1.5.5.7.3.3": "code signing",
    "1.3.6.1.5.5.7.3.4": "e-mail protection",
    "1.3.6.1.5.5.7.3.8": "time stamping",
    "1.3.6.1.5.5.7.3.9": "OCSP signing",
}
_BROKEN_DIGESTS = {"md2", "md4", "md5", "sha1"}
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion)


def describe(data: bytes, source: str, now: int) -> list[Item]:
    """Return what is in PEM or DER bytes, in their order; raise ``bad_certificate`` when that is nothing we can read."""
    found = blocks(data)
    items = [_block(label, text, now) for label, text in found] if found else [_der(data, source, now)]
    _relate(items)
    for item in items:
        item.pop("_object", None)
    return items


def _block(label: str, text: bytes, now: int) -> Item:
    readers: dict[str, Callable[[], Item]] = {
        "CERTIFICATE": lambda: certificate(x509.load_pem_x509_certificate(text), now),
        "X509 CERTIFICATE": lambda: certificate(x509.load_pem_x509_certificate(text.replace(b"X509 CERTIFICATE", b"CERTIFICATE")), now),
        "CERTIFICATE REQUEST": lambda: _request(x509.load_pem_x509_csr(text)),
        "NEW CERTIFICATE REQUEST": lambda: _request(x509.load_pem_x509_csr(text)),
        "X509 CRL": lambda: _crl(x509.load_pem_x509_crl(text), now),
        "PUBLIC KEY": lambda: _public(serialization.load_pem_public_key(text)),
        "ENCRYPTED PRIVATE KEY": lambda: {"type": "private key", "encrypted": True, "problems": []},
    }
    if label.endswith("PRIVATE KEY") and label not in readers:
        readers[label] = lambda: _private(text)
    reader = readers.get(label)
    if reader is None:
        return {"type": label.lower(), "problems": ["this kind of block is not decoded here"]}
    try:
        return reader()
    except _UNREADABLE as error:
        return {"type": label.lower(), "problems": [f"it cannot be read: {error}"]}


def _der(data: bytes, source: str, now: int) -> Item:
    attempts: tuple[Callable[[], Item], ...] = (
        lambda: certificate(x509.load_der_x509_certificate(data), now),
        lambda: _request(x509.load_der_x509_csr(data)),
        lambda: _crl(x509.load_der_x509_crl(data), now),
        lambda: _public(serialization.load_der_public_key(data)),
        lambda: _public(serialization.load_der_private_key(data, None).public_key(), "private key"),
    )
    for attempt in attempts:
        try:
            return attempt()
        except _UNREADABLE:
            continue
    raise HandclaspError(Kind.BAD_CERTIFICATE, f"{source} holds nothing that can be decoded", hint="PEM or DER: certificate, CSR, CRL, key")


# --- certificates -----------------------------------------------------------------------------------------------------------------------


def certificate(cert: x509.Certificate, now: int) -> Item:
    """Return the facts of one certificate, and what is wrong with it at ``now``."""
    problems: list[str] = []
    not_before, not_after = _at(cert.not_valid_before_utc), _at(cert.not_valid_after_utc)
    extensions = _extensions(cert, problems)
    constraints = _value(extensions, x509.BasicConstraints)
    names = _names(extensions)
    item: Item = {
        "type": "certificate",
        "subject": _text_of_name(cert, "subject", problems),
        "issuer": _text_of_name(cert, "issuer", problems),
        **names,
        "not_before": rfc3339(not_before),
        "not_after": rfc3339(not_after),
        "lifetime": format_duration((not_after - not_before) / 1000),
        "ca": bool(constraints and constraints.ca),
        "usages": _usages(extensions),
        **_key_facts(cert.public_key, problems),
        "serial": f"{cert.serial_number:x}",
        "sha256": hashlib.sha256(cert.public_bytes(serialization.Encoding.DER)).hexdigest(),
        "signature": _signature_of(cert, problems),
        "problems": problems,
        "_object": cert,
    }
    if now > not_after:
        problems.append("it has expired")
    if now < not_before:
        problems.append("it is not valid yet")
    if not_after < not_before:
        problems.append("it ends before it begins")
    if not item["ca"]:
        problems += _leaf_problems(item, extensions)
    return item


def _leaf_problems(item: Item, extensions: Sequence[x509.Extension[Any]]) -> list[str]:
    problems = []
    if not any(item[kind] for kind in ("spiffe", "dns", "ip", "email", "other_names")):
        problems.append("it carries no name in a subject alternative name: no client accepts the common name any more")
    if len(item["spiffe"]) > 1:
        problems.append("it carries more than one SPIFFE ID")
    if item["subject"] and item["subject"] == item["issuer"]:
        problems.append("it is self-signed: nothing above it can be trusted or revoked")
    if not any(usage.endswith("authentication") for usage in item["usages"]) and _value(extensions, x509.ExtendedKeyUsage):
        problems.append("it is for neither client nor server authentication")
    return problems


def _names(extensions: Sequence[x509.Extension[Any]]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {"spiffe": [], "dns": [], "ip": [], "email": [], "other_names": []}
    for name in _value(extensions, x509.SubjectAlternativeName) or ():
        if isinstance(name, x509.UniformResourceIdentifier):
            names["spiffe" if name.value.startswith("spiffe://") else "other_names"].append(name.value)
        elif isinstance(name, x509.DNSName):
            names["dns"].append(name.value)
        elif isinstance(name, x509.IPAddress):
            names["ip"].append(str(name.value))
        elif isinstance(name, x509.RFC822Name):
            names["email"].append(name.value)
        else:
            names["other_names"].append(type(name).__name__)
    return names


def _usages(extensions: Sequence[x509.Extension[Any]]) -> list[str]:
    usage = _value(extensions, x509.KeyUsage)
    found = [text for attribute, text in _USAGES.items() if usage is not None and getattr(usage, attribute)]
    return found + [_EXTENDED.get(oid.dotted_string, oid.dotted_string) for oid in _value(extensions, x509.ExtendedKeyUsage) or ()]


def _extensions(thing: Any, problems: list[str]) -> Sequence[x509.Extension[Any]]:
    try:
        return list(thing.extensions)
    except _UNREADABLE as error:
        problems.append(f"its extensions cannot be read: {error}")
        return []


def _value(extensions: Sequence[x509.Extension[Any]], kind: type) -> Any:
    return next((extension.value for extension in extensions if isinstance(extension.value, kind)), None)


def _text_of_name(thing: Any, which: str, problems: list[str]) -> str:
    try:
        name: str = getattr(thing, which).rfc4514_string()
    except _UNREADABLE as error:
        problems.append(f"its {which} cannot be read: {error}")
        return ""
    return name


def _signature_of(thing: Any, problems: list[str]) -> str:
    try:
        digest = thing.signature_hash_algorithm
        if digest is not None and digest.name in _BROKEN_DIGESTS:
            problems.append(f"it is signed with {digest.name.upper()}, which is broken")
        name = str(getattr(thing.signature_algorithm_oid, "_name", ""))
    except _UNREADABLE as error:
        problems.append(f"its signature algorithm is unknown: {error}")
        return ""
    return name if name and name != "Unknown OID" else str(thing.signature_algorithm_oid.dotted_string)


def _key_facts(get_key: Callable[[], Any], problems: list[str]) -> dict[str, str]:
    try:
        key = get_key()
        spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    except _UNREADABLE as error:
        problems.append(f"its key cannot be read: {error}")
        return {"key_type": "", "key_sha256": ""}
    try:
        keys.check_quality(key)
        name = keys.key_type_of(key)
    except HandclaspError as error:
        problems.append(error.detail)
        name = _other_key(key)
    return {"key_type": name, "key_sha256": hashlib.sha256(spki).hexdigest()}


def _other_key(key: object) -> str:
    if isinstance(key, rsa.RSAPublicKey):
        return f"rsa{key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.curve.name
    return type(key).__name__.removesuffix("PublicKey").strip("_").lower()


def _at(value: datetime) -> int:
    return from_datetime(value)


# --- the other kinds --------------------------------------------------------------------------------------------------------------------


def _request(csr: x509.CertificateSigningRequest) -> Item:
    problems: list[str] = []
    extensions = _extensions(csr, problems)
    item: Item = {
        "type": "signing request",
        "subject": _text_of_name(csr, "subject", problems),
        **_names(extensions),
        **_key_facts(csr.public_key, problems),
        "sha256": hashlib.sha256(csr.public_bytes(serialization.Encoding.DER)).hexdigest(),
        "signature": _signature_of(csr, problems),
        "problems": problems,
    }
    try:
        if not csr.is_signature_valid:
            problems.append("its signature is wrong: whoever made it does not hold the key")
    except (*_UNREADABLE, InvalidSignature) as error:
        problems.append(f"its signature cannot be checked: {error}")
    return item


def _crl(crl: x509.CertificateRevocationList, now: int) -> Item:
    problems: list[str] = []
    number = _value(_extensions(crl, problems), x509.CRLNumber)
    next_update = crl.next_update_utc
    if next_update is not None and now > _at(next_update):
        problems.append("it is out of date: a newer one should have been published")
    return {
        "type": "revocation list",
        "issuer": _text_of_name(crl, "issuer", problems),
        "number": None if number is None else number.crl_number,
        "revoked": len(crl),
        "this_update": rfc3339(_at(crl.last_update_utc)),
        "next_update": None if next_update is None else rfc3339(_at(next_update)),
        "signature": _signature_of(crl, problems),
        "problems": problems,
    }


def _public(key: Any, kind: str = "public key") -> Item:
    problems: list[str] = []
    return {"type": kind, **_key_facts(lambda: key, problems), "problems": problems}


def _private(text: bytes) -> Item:
    if b"Proc-Type: 4,ENCRYPTED" in text:
        return {"type": "private key", "encrypted": True, "problems": []}
    return _public(serialization.load_pem_private_key(text, None).public_key(), "private key") | {"encrypted": False}


# --- together ---------------------------------------------------------------------------------------------------------------------------


def _relate(items: Sequence[Item]) -> None:
    """Add the problems that show only when things are seen together: the order of a chain, a key that is another certificate's."""
    certificates = [item for item in items if item["type"] == "certificate" and "_object" in item]
    for lower, upper in pairwise(certificates):
        if lower["ca"] and not upper["ca"]:
            continue  # another chain begins
        try:
            lower["_object"].verify_directly_issued_by(upper["_object"])
        except (InvalidSignature, *_UNREADABLE):
            if not (lower["ca"] and lower["subject"] == lower["issuer"]):  # a bundle of roots is no chain
                lower["problems"].append("the certificate after it is not its issuer")
    for item in items:
        if (
            item["type"] == "private key"
            and item.get("key_sha256")
            and certificates
            and item["key_sha256"] != certificates[0].get("key_sha256")
        ):
            item["problems"].append("it does not belong to the first certificate here")
