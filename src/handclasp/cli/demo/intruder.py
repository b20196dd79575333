"""Credentials that must not be let in: from another CA, with the very names of a real client; self-signed; and none at all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from handclasp.client.material import Credential
from handclasp.pki import keys

TRUST_DOMAIN = "demo.internal"
CALLER = f"spiffe://{TRUST_DOMAIN}/caller"


def foreign_credentials() -> tuple[Credential | None, ...]:
    """Return what the intruder tries in turn."""
    authority, leaf, alone = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    root = _certificate("Another CA", authority.public_key(), "Another CA", authority, ca=True)
    from_other_ca = _certificate("", leaf.public_key(), "Another CA", authority, ca=False)
    self_signed = _certificate("caller", alone.public_key(), "caller", alone, ca=False)
    return Credential(_pem(from_other_ca) + _pem(root), keys.to_pem(leaf)), None, Credential(_pem(self_signed), keys.to_pem(alone))


def leave_behind(directory: Path) -> Path:
    """Leave a certificate of the intruder's in a file, for discovery to find; return the directory. Its key is not kept."""
    credential = foreign_credentials()[0]
    assert credential is not None
    directory.mkdir()
    (directory / "cert.pem").write_bytes(credential.certificate)
    return directory


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _certificate(
    subject: str, key: ec.EllipticCurvePublicKey, issuer: str, signer: ec.EllipticCurvePrivateKey, *, ca: bool
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(CALLER)]), critical=not subject)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
