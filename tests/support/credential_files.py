"""Questions about key and certificate files."""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization


def belong_together(key: Path, cert: Path) -> bool:
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    return private.public_key() == x509.load_pem_x509_certificate(cert.read_bytes()).public_key()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
