"""PEM texts: taken apart, put together, held against each other. Imported only by commands that need it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from handclasp.cli.files import read_bytes
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import keys

if TYPE_CHECKING:
    from handclasp.wire import Issued

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


def blocks(data: bytes) -> list[tuple[str, bytes]]:
    """Return the label and the text of each PEM block."""
    return [(match[1].decode("ascii"), match[0] + b"\n") for match in _BLOCK.finditer(data)]


def load_certificates(data: bytes, source: str) -> list[x509.Certificate]:
    """Return the certificates in PEM or DER bytes; raise ``bad_certificate`` when there is none or one cannot be read."""
    found = [text for label, text in blocks(data) if label in ("CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE")]
    try:
        if found:
            return [x509.load_pem_x509_certificate(text) for text in found]
        return [x509.load_der_x509_certificate(data)]
    except ValueError as error:
        raise HandclaspError(Kind.BAD_CERTIFICATE, f"{source} holds no certificate that can be read") from error


def load_key(path: Path) -> keys.PrivateKey:
    """Return the private key in a PEM file, which may hold certificates too; raise ``bad_key``."""
    for label, text in blocks(read_bytes(str(path))):
        if label.endswith("PRIVATE KEY"):
            return keys.from_pem(text)
    raise HandclaspError(Kind.BAD_KEY, f"{path} holds no private key")


def fingerprint_of(text: str) -> str:
    """Return the SHA-256 that names a certificate, given as hex (colons and ``sha256:`` are fine) or as a file that holds it."""
    plain = text.lower().removeprefix("sha256:").replace(":", "")
    if re.fullmatch("[0-9a-f]{64}", plain):
        return plain
    if text == "-" or Path(text).exists():
        first = load_certificates(read_bytes(text), text)[0]
        return hashlib.sha256(first.public_bytes(serialization.Encoding.DER)).hexdigest()
    raise HandclaspError(
        Kind.NOT_FOUND, f"{text} is neither a certificate's SHA-256 nor a file", hint="handclasp cert list shows the fingerprints"
    )


def served_chain(issued: Issued) -> str:
    """Return the certificate with the chain above it, as a server presents it."""
    leaf = issued.certificate.strip()
    rest = issued.chain.strip()
    return (rest if rest.startswith(leaf) else f"{leaf}\n{rest}").strip() + "\n"


def check_pair(key: keys.PrivateKey, certificate: bytes | str, source: str) -> None:
    """Raise ``verify_failed`` unless the first certificate is over ``key``: no file is touched with what does not belong together."""
    data = certificate.encode() if isinstance(certificate, str) else certificate
    public = load_certificates(data, source)[0].public_key()
    if keys.spki_der(public) != keys.spki_der(key.public_key()):  # type: ignore[arg-type]
        raise HandclaspError(Kind.VERIFY_FAILED, f"{source} is not for this key")
