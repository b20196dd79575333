"""Where authority keys are kept: encrypted files in one directory, or PKCS#11 tokens. A key is named by a URI everywhere else."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from pathlib import Path

from handclasp.authority import hsm
from handclasp.authority.files import private_directory
from handclasp.authority.keyfile import encrypt_key, load_key_file, write_key_file
from handclasp.authority.pkcs11_uri import parse_pkcs11_uri
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import keys

_FILE_URI = re.compile(r"file:([A-Za-z0-9][A-Za-z0-9._-]{0,123}\.key)")


class KeyStore:
    """The keys of one installation.

    ``file:NAME.key`` is PKCS#8 PEM in ``directory`` (0700), encrypted under ``passphrase``, mode 0600. ``pkcs11:…`` (RFC 7512) stays on its
    token; ``module`` is the library to use where a URI names none. With ``passphrase`` None, file keys are refused and tokens still work.
    Any number of threads may use one store.
    """

    def __init__(self, directory: Path, passphrase: bytes | None, *, module: str = "", environ: Mapping[str, str] | None = None) -> None:
        self._directory = directory
        self._passphrase = passphrase
        self._module = module
        self._environ = os.environ if environ is None else environ

    def generate(self, uri: str, key_type: str) -> keys.PrivateKey:
        """Make a key at ``uri`` and return it. Durable on return.

        Raises ``conflict`` when there is one already (nothing is overwritten), ``bad_setting`` for a URI or passphrase that cannot be used,
        ``bad_key`` for a type the place cannot hold, ``OSError`` when the disk cannot take it.
        """
        if uri.startswith("pkcs11:"):
            place = parse_pkcs11_uri(uri)
            hsm.open_token(place, module=self._module, environ=self._environ).generate(place, key_type)
        else:
            path = self._path(uri)
            if path.exists():  # asked before the work of making an RSA key; write_new is what decides
                raise HandclaspError(Kind.CONFLICT, f"{path} exists already", hint="choose another name; nothing was overwritten")
            self._write(path, keys.generate(key_type))
        return self.load(uri)

    def import_key(self, uri: str, pem: bytes, passphrase: bytes | None = None) -> keys.PrivateKey:
        """Take over a PEM key (opened with ``passphrase`` where it is encrypted) as ``file:NAME.key``, under this store's own passphrase.

        Raises ``bad_key``/``weak_key`` for a key we would not sign with, ``conflict`` when the name is taken, ``bad_setting`` for a PKCS#11
        URI: a key that has been outside a token is better replaced by one that was not.
        """
        if uri.startswith("pkcs11:"):
            raise HandclaspError(Kind.BAD_SETTING, "keys are made on a PKCS#11 token, not copied to it", hint="generate one there instead")
        key = keys.from_pem(pem, passphrase)
        keys.check_quality(key.public_key())
        self._write(self._path(uri), key)
        return self.load(uri)

    def seal(self, key: keys.PrivateKey) -> str:
        """Return a URI that is the key itself, encrypted as in a key file: for keys that live in a row, and not for long.

        Whoever reads the row needs the passphrase too. Raises ``bad_setting`` without one.
        """
        return "sealed:" + base64.urlsafe_b64encode(encrypt_key(key, self._secret())).decode()

    def load(self, uri: str) -> keys.PrivateKey:
        """Return the key at ``uri``: a key of `cryptography`, or an object that signs on its token and can be used like one.

        Raises ``bad_setting`` when the place cannot be read, ``not_found`` when there is no such key, ``bad_key`` when the passphrase does
        not open it or it is damaged.
        """
        if uri.startswith("pkcs11:"):
            place = parse_pkcs11_uri(uri)
            return hsm.open_token(place, module=self._module, environ=self._environ).key(place)
        if uri.startswith("sealed:"):
            return self._unseal(uri.removeprefix("sealed:"))
        return load_key_file(self._path(uri), self._secret())

    def _unseal(self, text: str) -> keys.PrivateKey:
        try:
            pem = base64.urlsafe_b64decode(text)
        except ValueError as error:
            raise HandclaspError(Kind.BAD_KEY, "a sealed key is damaged") from error
        try:
            return keys.from_pem(pem, self._secret())
        except HandclaspError as error:
            words = f"a sealed key cannot be opened: {error.detail}"
            raise HandclaspError(error.kind, words, hint="is it the passphrase it was sealed with?") from error

    def _path(self, uri: str) -> Path:
        match = _FILE_URI.fullmatch(uri)
        if match is None:
            raise HandclaspError(Kind.BAD_SETTING, f"{uri[:200]!r} is not a key URI", hint="write file:NAME.key or pkcs11:token=…;object=…")
        return self._directory / match[1]

    def _write(self, path: Path, key: keys.PrivateKey) -> None:
        private_directory(self._directory)
        write_key_file(path, key, self._secret())

    def _secret(self) -> bytes:
        if self._passphrase is None:
            raise HandclaspError(
                Kind.BAD_SETTING, "key files need a passphrase", hint="set HANDCLASP_PASSPHRASE_FILE, or use a PKCS#11 token"
            )
        return self._passphrase
