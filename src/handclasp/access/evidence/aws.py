"""The identity document of an EC2 instance as evidence.

The document says account, region and instance, and the cloud signs it; every process on the instance can read it, and so can whoever was
shown a copy. It does not change while the instance lives. So a rule takes it once unless it says otherwise, and can demand a young
instance.

Two forms of signature are taken, both RSA with SHA-256: the signed message that the metadata service has under ``rsa2048``, with the
document in it or beside it, and the bare one under ``signature``. The third, under ``pkcs7``, is DSA over SHA-1 and is refused. The
certificates to check with are the rule's: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/regions-certs.html lists them by region.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from handclasp import wire
from handclasp.access.enrolment import AwsTakes, EnrolmentRule
from handclasp.access.evidence import cms
from handclasp.access.evidence.proven import Proven, facts_of, refused
from handclasp.clock import format_duration, from_datetime, parse_rfc3339
from handclasp.errors import HandclaspError
from handclasp.pki.chains import UNREADABLE

LEEWAY = 300_000
"""Milliseconds that the cloud's clock may be ahead of ours."""
VALID = 300_000
"""Milliseconds that verified evidence is taken for, which itself does not say when it ends."""

_ACCOUNT = re.compile(r"[0-9]{12}")
_INSTANCE = re.compile(r"i-(?:[0-9a-f]{8}|[0-9a-f]{17})")
_REGION = re.compile(r"[a-z]{2,4}(?:-[a-z]+)+-[0-9]{1,2}")


def read(evidence: wire.Evidence) -> tuple[bytes | None, bytes]:
    """Return document (None where only the signed message was sent) and signature. Raises ``not_authenticated``."""
    try:
        document, signature = (base64.b64decode("".join(text.split()), validate=True) for text in (evidence.document, evidence.signature))
    except (binascii.Error, ValueError) as error:
        raise refused("its document or signature is not base64") from error
    if not signature:
        raise refused("it has no signature")
    return document or None, signature


def prove(rule: EnrolmentRule, document: bytes | None, signature: bytes, now: int) -> Proven:
    """Return what a document proves to one rule. Raises ``not_authenticated``."""
    takes = rule.takes
    assert isinstance(takes, AwsTakes)
    current = tuple(certificate for certificate in takes.certificates if _is_current(certificate, now))
    if cms.is_signed_data(signature):
        content, _ = cms.verify(signature, current, document)
    else:
        content = _bare(document, signature, current)
    found = _document(content)
    account, region, instance = found.get("accountId"), found.get("region"), found.get("instanceId")
    if not (_fits(_ACCOUNT, account) and _fits(_REGION, region) and _fits(_INSTANCE, instance)):
        raise refused("its document does not say account, region and instance")
    _check_age(found.get("pendingTime"), takes.max_age, now)
    facts = facts_of(
        (
            ("account", account),
            ("region", region),
            ("instance", instance),
            ("zone", found.get("availabilityZone")),
            ("image", found.get("imageId")),
            ("instance_type", found.get("instanceType")),
        )
    )
    return Proven(f"{account}/{region}/{instance}", facts, now + VALID)


def _fits(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_current(certificate: bytes, now: int) -> bool:
    try:
        loaded = x509.load_der_x509_certificate(certificate)
        return from_datetime(loaded.not_valid_before_utc) <= now <= from_datetime(loaded.not_valid_after_utc)
    except UNREADABLE:
        return False


def _bare(document: bytes | None, signature: bytes, signers: tuple[bytes, ...]) -> bytes:
    if document is None:
        raise refused("it has no document")
    for signer in signers:
        key = x509.load_der_x509_certificate(signer).public_key()
        try:
            if isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, document, padding.PKCS1v15(), hashes.SHA256())
                return document
        except InvalidSignature:
            continue
    raise refused(
        "its signature is not by a certificate of the rule",
        "take the certificates of the instance's region, and the signature under rsa2048",
    )


def _document(content: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(content)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise refused("its document is not JSON") from error
    if not isinstance(found, dict):
        raise refused("its document is not an identity document")
    return found


def _check_age(pending: Any, max_age: float | None, now: int) -> None:
    """The instance was started at ``pendingTime``: not in the future, and not too long ago for the rule."""
    try:
        started = parse_rfc3339(pending) if isinstance(pending, str) else None
    except HandclaspError as error:
        raise refused("its document does not say when the instance was started") from error
    if started is None:
        raise refused("its document does not say when the instance was started")
    if started > now + LEEWAY:
        raise refused("its instance will be started in the future")
    if max_age is not None and now - started > max_age * 1000:
        raise refused(f"its instance was started more than {format_duration(max_age)} ago, and the rule takes younger ones")
