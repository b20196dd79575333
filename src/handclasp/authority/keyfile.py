"""One private key in one file: PKCS#8 PEM, always encrypted, read and written whole.

The encryption is PBES2 with scrypt and AES-256-CBC (RFC 8018, RFC 7914), which `openssl pkey` reads too. It is put together here because
`cryptography` itself writes PBKDF2 with 2,048 rounds, and a passphrase that a person can remember falls to that in hours.
"""

from __future__ import annotations

import base64
import os
import textwrap
from pathlib import Path

from cryptography.hazmat.primitives import padding, serialization
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from handclasp.authority.files import PRIVATE, check_private, read_small, write_new
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import der, keys

_COST, _BLOCK, _LANES = 1 << 14, 8, 1  # 16 MiB and 40 ms; twice that is over OpenSSL's own limit of 32 MiB, and its tools could not read it
_MARK = "ENCRYPTED PRIVATE KEY"


def write_key_file(path: Path, key: keys.PrivateKey, passphrase: bytes) -> None:
    """Write a new key file: encrypted, mode 0600, durable on return. Raises ``conflict`` when it exists."""
    if not passphrase:
        raise HandclaspError(Kind.BAD_SETTING, "a key file is never written without a passphrase")
    write_new(path, encrypt_key(key, passphrase), PRIVATE)


def load_key_file(path: Path, passphrase: bytes) -> keys.PrivateKey:
    """Open an encrypted key file.

    Raises ``not_found``, ``bad_setting`` (unreadable, or readable by others) or ``bad_key`` (wrong passphrase, not encrypted, damaged).
    """
    if not path.exists():
        raise HandclaspError(Kind.NOT_FOUND, f"there is no key file {path}")
    pem = read_small(path, what="key file")
    check_private(path, what="key file")
    if f"BEGIN {_MARK}".encode() not in pem:
        raise HandclaspError(
            Kind.BAD_KEY, f"{path} is not an encrypted PKCS#8 key", hint=f"openssl pkcs8 -topk8 -scrypt -in {path} writes an encrypted copy"
        )
    try:
        return keys.from_pem(pem, passphrase)
    except HandclaspError as error:
        raise HandclaspError(
            error.kind,
            f"the key file {path} cannot be opened: {error.detail}",
            hint="is it the passphrase it was written with? See --passphrase-file, HANDCLASP_PASSPHRASE_FILE and <data>/passphrase",
        ) from error


def encrypt_key(key: keys.PrivateKey, passphrase: bytes) -> bytes:
    """Return ``key`` as encrypted PKCS#8 PEM (EncryptedPrivateKeyInfo, RFC 5958 section 3)."""
    plain = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    salt, start = os.urandom(16), os.urandom(16)
    secret = Scrypt(salt, 32, n=_COST, r=_BLOCK, p=_LANES).derive(passphrase)
    padder = padding.PKCS7(128).padder()
    cipher = Cipher(algorithms.AES256(secret), modes.CBC(start)).encryptor()
    sealed = cipher.update(padder.update(plain) + padder.finalize()) + cipher.finalize()
    numbers = (der.integer(number) for number in (_COST, _BLOCK, _LANES))
    derivation = der.sequence(der.oid("1.3.6.1.4.1.11591.4.11"), der.sequence(der.octet_string(salt), *numbers))
    encryption = der.sequence(der.oid("2.16.840.1.101.3.4.1.42"), der.octet_string(start))
    algorithm = der.sequence(der.oid("1.2.840.113549.1.5.13"), der.sequence(derivation, encryption))
    text = base64.b64encode(der.sequence(algorithm, der.octet_string(sealed))).decode()
    return f"-----BEGIN {_MARK}-----\n{textwrap.fill(text, 64)}\n-----END {_MARK}-----\n".encode()
