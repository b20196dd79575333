"""Read what the user names and write what the user asked for, all or nothing.

Not for certificates that are in use: those are flipped together by :mod:`handclasp.cli.credentials`.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from handclasp.errors import HandclaspError, Kind

_LIMIT = 64 * 1024 * 1024  # nothing that the command line reads whole is larger; a device or a wrong file is


def read_bytes(name: str) -> bytes:
    """Return the content of a file, or of stdin for ``-``; raise ``not_found`` or ``too_large``."""
    if name == "-":
        return sys.stdin.buffer.read(_LIMIT)
    try:
        with Path(name).open("rb") as file:
            data = file.read(_LIMIT + 1)
    except FileNotFoundError as error:
        raise HandclaspError(Kind.NOT_FOUND, f"there is no file {name}") from error
    except IsADirectoryError as error:
        raise HandclaspError(Kind.BAD_REQUEST, f"{name} is a directory, and a file is needed") from error
    if len(data) > _LIMIT:
        raise HandclaspError(Kind.TOO_LARGE, f"{name} is larger than {_LIMIT >> 20} MiB")
    return data


def read_text(name: str) -> str:
    """Return the UTF-8 text of a file, or of stdin for ``-``; raise ``bad_request`` for other bytes."""
    try:
        return read_bytes(name).decode()
    except UnicodeDecodeError as error:
        raise HandclaspError(Kind.BAD_REQUEST, f"{name} is not UTF-8 text (byte {error.start})") from error


def refuse_existing(*paths: Path, force: bool = False) -> None:
    """Raise ``conflict`` when one of the files is there and ``--force`` was not given: a key is not something to lose by a slip."""
    for path in paths:
        if not force and (path.exists() or path.is_symlink()):
            raise HandclaspError(Kind.CONFLICT, f"{path} exists", hint="--force replaces it")


def write_file(path: Path, data: bytes, mode: int) -> None:
    """Write a file whole or not at all; it is durable on return, and never readable by more than ``mode`` allows, not even briefly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.new"
    write_durably(temporary, data, mode)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_durably(path: Path, data: bytes, mode: int) -> None:
    """Create ``path``, which must not be there, with exactly ``mode``, and fsync it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode & 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
