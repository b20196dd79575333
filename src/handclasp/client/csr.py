"""A new key and the request that proves its possession: made where the key will be used, so that it never travels."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

from handclasp.errors import HandclaspError, Kind
from handclasp.pki import keys


def new_request(key_type: str, *, identity: str | None, dns: Sequence[str] = (), ip: Sequence[str] = ()) -> tuple[bytes, str]:
    """Return a new private key (PKCS#8 PEM) and a CSR (PEM) over it that carries the names. Raises ``bad_key`` or ``bad_name``."""
    key = keys.generate(key_type)
    try:
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity)] if identity else []
        names += [x509.DNSName(name) for name in dns]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ip]
    except ValueError as error:
        raise HandclaspError(Kind.BAD_NAME, f"a name that a certificate cannot carry: {error}") from error
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)  # critical: the subject is empty
    request = builder.sign(cast("CertificateIssuerPrivateKeyTypes", key), _hash_for(key_type))
    return keys.to_pem(key), request.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _hash_for(key_type: str) -> hashes.SHA256 | hashes.SHA384 | None:
    if key_type in ("ed25519", "ml-dsa-44", "ml-dsa-65", "ml-dsa-87"):
        return None
    return hashes.SHA384() if key_type == "p384" else hashes.SHA256()
