"""Small files that are there whole or not at all: keys, passphrases, certificates and lists of an offline ceremony."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from glob import escape
from pathlib import Path

from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault

declare("authority.file_written", "authority.file_named")

PRIVATE = 0o600
PUBLIC = 0o644
_LARGEST = 1 << 20  # nothing we read here is near 1 MiB; a device or a wrong path must not fill memory


def private_directory(path: Path) -> Path:
    """Make a directory (and its parents) that only its owner can enter; tighten one that was made wider."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o700)
    return path


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Create ``path`` with ``data``: durable on return, whole or not there, and never in place of an existing file.

    Raises ``conflict`` when the name is taken, and ``OSError`` when the disk cannot take it. A writer that is killed leaves at most a
    temporary file beside it (same mode, removed by the next write of that name), never a part under the real name.
    """
    temporary = _write_beside(path, data, mode)
    try:
        fault("authority.file_written")
        os.link(temporary, path)  # unlike a rename it fails when another process was first
    except FileExistsError as error:
        temporary.unlink(missing_ok=True)
        raise HandclaspError(Kind.CONFLICT, f"{path} exists already", hint="choose another name; nothing was overwritten") from error
    except FileNotFoundError as error:  # whoever was first has swept our temporary file away
        raise HandclaspError(Kind.CONFLICT, f"{path} is being written by another process") from error
    temporary.unlink(missing_ok=True)
    _finish(path)


def replace(path: Path, data: bytes, mode: int) -> None:
    """Put ``data`` at ``path`` in one rename: a reader sees the old bytes or the new ones. Durable on return; raises ``OSError``."""
    temporary = _write_beside(path, data, mode)
    fault("authority.file_written")
    temporary.replace(path)
    _finish(path)


def read_small(path: Path, *, what: str) -> bytes:
    """Return the bytes of a regular file of at most 1 MiB; raise ``bad_setting`` naming ``what`` it was to be when that fails."""
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise HandclaspError(Kind.BAD_SETTING, f"{what} {path} is not a regular file")
            data = file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise HandclaspError(Kind.BAD_SETTING, f"{what} {str(path)!r} cannot be read: {reason}") from error
    if len(data) > _LARGEST:
        raise HandclaspError(Kind.BAD_SETTING, f"{what} {path} is larger than 1 MiB")
    return data


def check_private(path: Path, *, what: str, group_may_read: bool = False) -> None:
    """Refuse (``bad_setting``) a secret that others on this machine can read or change."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (0o037 if group_may_read else 0o077):
        raise HandclaspError(Kind.BAD_SETTING, f"{what} {path} can be read by others (mode {mode:04o})", hint=f"chmod 600 {path}")


def _write_beside(path: Path, data: bytes, mode: int) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)  # whatever the umask says
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _finish(path: Path) -> None:
    fault("authority.file_named")
    for leftover in path.parent.glob(f".{escape(path.name)}.*.tmp"):  # of a writer that was killed
        with contextlib.suppress(OSError):
            leftover.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
