"""Private keys at rest in the state directory: sealed with AES-256-GCM where a key is configured, plain PEM where none is.

    handclasp-sealed-1\\n  nonce (12 bytes)  ciphertext and tag

The key is 32 random bytes and not a passphrase, so that opening costs microseconds and not a key derivation each
(``docs/decisions/sealed-keys.md``). What targets are given is another matter: services read plain keys.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass, field
from pathlib import Path

from handclasp.errors import HandclaspError, Kind

MAGIC = b"handclasp-sealed-1\n"
_NONCE = 12
_ABOUT = b"handclasp agent private key"


class SealBrokenError(HandclaspError):
    """A sealed key cannot be opened with the keys that are configured; a person has to see to it, and nothing is replaced meanwhile."""


@dataclass(frozen=True, slots=True)
class Seal:
    """``key`` seals and opens, ``previous`` only opens; without a key nothing is sealed. Each is 32 bytes.

    ``name`` says whose private key it is: what was sealed for one identity does not open as another's, so nobody who can only move files
    about has one service given the key of another.
    """

    key: bytes | None = field(default=None, repr=False)
    previous: bytes | None = field(default=None, repr=False)

    def close(self, data: bytes, name: str = "") -> bytes:
        """Return what is to be written for a private key."""
        if self.key is None:
            return data
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(_NONCE)
        return MAGIC + nonce + AESGCM(self.key).encrypt(nonce, data, _about(name))

    def open(self, data: bytes, name: str = "") -> bytes:
        """Return the private key in what was read, sealed or plain; raise :class:`SealBrokenError`."""
        return self._open(data, name, (self.key, self.previous))

    def is_current(self, data: bytes, name: str = "") -> bool:
        """Tell whether what was read is as :meth:`close` would write it now."""
        if self.key is None:
            return not data.startswith(MAGIC)
        try:
            self._open(data, name, (self.key,))
        except SealBrokenError:
            return False
        return data.startswith(MAGIC)

    def _open(self, data: bytes, name: str, keys: tuple[bytes | None, ...]) -> bytes:
        if not data.startswith(MAGIC):
            return data
        if not any(keys):
            raise SealBrokenError(
                Kind.BAD_SETTING,
                "the private keys of the agent are sealed, and no state_key is configured",
                hint="configure the one that they were sealed with",
            )
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce, sealed = data[len(MAGIC) : len(MAGIC) + _NONCE], data[len(MAGIC) + _NONCE :]
        for key in keys:
            try:
                if key is not None:
                    return AESGCM(key).decrypt(nonce, sealed, _about(name))
            except (InvalidTag, ValueError):
                continue
        raise SealBrokenError(
            Kind.BAD_SETTING,
            "a private key of the agent cannot be opened with the configured state_key",
            hint="configure the key that it was sealed with, as `previous` when you are changing it; otherwise enrol again",
        )


def _about(name: str) -> bytes:
    return _ABOUT + b"\n" + name.encode()


def read_key(path: Path) -> bytes:
    """Return the 32 bytes of a key file: base64, hex or as they are. Raises ``bad_setting``, without a word about the content."""
    try:
        data = path.read_bytes()[:4096]
    except OSError as error:
        raise HandclaspError(Kind.BAD_SETTING, f"cannot read the state key {path}: {error.strerror}") from error
    if len(data) == 32:
        return data
    for decode in (binascii.unhexlify, lambda text: base64.b64decode(text, validate=True)):
        try:
            key = decode(data.strip())
        except ValueError:
            continue
        if len(key) == 32:
            return key
    raise HandclaspError(Kind.BAD_SETTING, f"{path} does not hold a state key of 32 bytes", hint="make one with `openssl rand -base64 32`")
