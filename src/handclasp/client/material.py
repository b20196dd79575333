"""Credentials and trust as bytes: read from files that belong together, and given to ``ssl`` without a key being written anywhere."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from handclasp.errors import HandclaspError, Kind

MAX_FILE = 16 * 1024 * 1024
_PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----[^-]+?-----END (?:X509 |TRUSTED )?CERTIFICATE-----")


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate chain (leaf first) and its private key, as PEM."""

    certificate: bytes
    key: bytes = field(repr=False)

    @classmethod
    def read(cls, certificate_file: str | PathLike[str], key_file: str | PathLike[str]) -> Credential:
        """Read both files; raise ``bad_setting`` when one cannot be read."""
        return cls(read_file(certificate_file), read_file(key_file))

    @property
    def leaf(self) -> bytes:
        """DER of the first certificate; raises ``bad_certificate`` when there is none."""
        match = _PEM.search(self.certificate)
        if match is None:
            raise HandclaspError(Kind.BAD_CERTIFICATE, "there is no certificate in it")
        try:
            return ssl.PEM_cert_to_DER_cert(match[0].decode("ascii"))
        except ValueError as error:
            raise HandclaspError(Kind.BAD_CERTIFICATE, "the certificate is not PEM") from error


@dataclass(frozen=True, slots=True)
class Material:
    """Everything a TLS endpoint needs: its credential and whom it trusts (PEM)."""

    credential: Credential
    bundle: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        """Fingerprint of the leaf, lower-case hex."""
        return hashlib.sha256(self.credential.leaf).hexdigest()

    def check(self) -> None:
        """Load it once for nothing: raise ``bad_key`` when key and certificate do not belong together, ``bad_certificate`` for the rest."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        load_credential(context, self.credential)
        load_trust(context, self.bundle)


def read_file(path: str | PathLike[str]) -> bytes:
    """Read a small file whole; raise ``bad_setting``, also when it is larger than 16 MiB."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise HandclaspError(Kind.BAD_SETTING, f"cannot read {os.fspath(path)}: {error.strerror}") from error
    if len(data) > MAX_FILE:
        raise HandclaspError(Kind.BAD_SETTING, f"{os.fspath(path)} is too large to be what it should be")
    return data


def file_signature(paths: Sequence[str | PathLike[str]]) -> tuple[object, ...]:
    """Return what tells one state of some files from another, by ``stat`` alone (a few microseconds); a missing file is a state too."""
    result: list[object] = []
    for path in paths:
        try:
            status = os.stat(path)  # noqa: PTH116  (three times faster than through Path, and it runs for each handshake)
        except OSError as error:
            result.append(error.errno)
            continue
        result.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(result)


def load_trust(context: ssl.SSLContext, bundle: bytes) -> None:
    """Make every certificate in ``bundle`` an anchor of ``context``, issuing authorities too; raise ``bad_certificate`` for none."""
    blocks = _PEM.findall(bundle)
    if not blocks or bundle.count(b"-----BEGIN ") != bundle.count(b"-----END "):
        raise HandclaspError(Kind.BAD_CERTIFICATE, "the trust bundle holds no certificate, or is cut off")
    try:
        context.load_verify_locations(cadata=b"\n".join(blocks).decode("ascii") + "\n")
    except (ssl.SSLError, ValueError) as error:
        raise HandclaspError(Kind.BAD_CERTIFICATE, "the trust bundle holds something that is not a certificate") from error
    # An issuing authority in the bundle is an anchor by itself: one signature less to check in each handshake.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def load_credential(context: ssl.SSLContext, credential: Credential) -> None:
    """Give ``context`` its certificate and key; raise ``bad_key`` when they do not belong together or cannot be used."""
    with _as_file(credential.certificate + b"\n" + credential.key) as path:
        try:
            context.load_cert_chain(path, password=_no_passphrase)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise HandclaspError(Kind.BAD_KEY, "the private key does not belong to the certificate") from error
            raise HandclaspError(Kind.BAD_KEY, f"certificate or key cannot be used: {error.reason or 'not PEM'}") from error
        except ValueError as error:
            raise HandclaspError(Kind.BAD_KEY, str(error)) from error


def _no_passphrase() -> str:
    raise ValueError("the private key is encrypted, and nobody is here to type its passphrase")


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """Show bytes to ``ssl`` as a file, which is all it can load: in anonymous memory, or (no Linux) in a private file that goes at once."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("handclasp", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, data)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        import tempfile

        with tempfile.NamedTemporaryFile() as file:  # 0600 from the start
            file.write(data)
            file.flush()
            yield file.name
