"""The passphrase that opens the key files of an installation: where it is looked for, and how one is made."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path

from handclasp.authority.files import PRIVATE, check_private, private_directory, read_small, write_new
from handclasp.errors import HandclaspError, Kind

FILE_NAME = "passphrase"
CREDENTIAL = "handclasp-passphrase"
_SHORTEST = 12  # characters. Key files use a password hash, and a hash only slows guessing down


_HINT = f"set HANDCLASP_PASSPHRASE_FILE, give the systemd credential {CREDENTIAL}, or let `handclasp up` make one"


def find_passphrase(data: Path, explicit: Path | None, environ: Mapping[str, str], *, hint: str = _HINT) -> bytes:
    """Return the passphrase of the installation in ``data``, without the newline at its end.

    Looked for in this order, and the first that is named wins, also when it is broken (a wrong path must not fall back to another secret):
    the file ``explicit``; the file in ``HANDCLASP_PASSPHRASE_FILE``; the systemd credential ``handclasp-passphrase`` in
    ``$CREDENTIALS_DIRECTORY`` (``LoadCredentialEncrypted=``); ``passphrase`` in the data directory, which `handclasp up` makes.

    Raises ``bad_setting`` when there is none (saying ``hint``), or it is unreadable, too short, or readable by everybody.
    """
    path, what = _place(data, explicit, environ)
    if path is None:
        raise HandclaspError(Kind.BAD_SETTING, f"no passphrase for the keys in {data}", hint=hint)
    text = read_small(path, what=what)
    check_private(path, what=what, group_may_read=True)  # mounted secrets are often root:group 0440
    return _checked(text, f"{what} {path}")


def make_passphrase(data: Path, random: Callable[[int], bytes]) -> bytes:
    """Make ``<data>/passphrase`` (mode 0600, 256 random bits as text) if it is not there, and return the one that is.

    Durable on return. It lies beside the keys it opens, so it protects copies of the key files and not the data directory as a whole;
    production keeps it elsewhere.
    """
    path = private_directory(data) / FILE_NAME
    if not path.exists():
        try:
            write_new(path, base64.urlsafe_b64encode(random(32)).rstrip(b"=") + b"\n", PRIVATE)
        except HandclaspError as error:
            if error.kind is not Kind.CONFLICT:
                raise  # another process was first: its passphrase is the passphrase
    check_private(path, what="passphrase file")
    return _checked(read_small(path, what="passphrase file"), f"passphrase file {path}")


def _place(data: Path, explicit: Path | None, environ: Mapping[str, str]) -> tuple[Path | None, str]:
    if explicit is not None:
        return explicit, "passphrase file"
    if named := environ.get("HANDCLASP_PASSPHRASE_FILE"):
        return Path(named), "passphrase file"
    if (directory := environ.get("CREDENTIALS_DIRECTORY")) and (credential := Path(directory) / CREDENTIAL).exists():
        return credential, "systemd credential"
    if (own := data / FILE_NAME).exists():
        return own, "passphrase file"
    return None, ""


def _checked(text: bytes, what: str) -> bytes:
    passphrase = text.rstrip(b"\r\n")
    if len(passphrase) < _SHORTEST:
        raise HandclaspError(
            Kind.BAD_SETTING, f"{what} is shorter than {_SHORTEST} characters", hint="openssl rand -base64 32 makes a good one"
        )
    if len(passphrase) > 1023:  # OpenSSL refuses longer ones when it reads a key
        raise HandclaspError(Kind.BAD_SETTING, f"{what} is longer than 1023 bytes")
    return passphrase
