"""Whether root may believe a file: nobody but root can have written it, or can put another in its place.

The rules of ``sshd`` (StrictModes): the file, and every directory on the way to it, belongs to root and is writable by root alone. Links on
the way are followed, and what they lead to is held to the same.
"""

from __future__ import annotations

import stat
from pathlib import Path

from handclasp.errors import HandclaspError, Kind


def require_roots(path: Path, what: str) -> None:
    """Raise ``bad_setting`` unless only root can change ``path``; of what is not there yet, where it would be made."""
    for way in dict.fromkeys((path, path.resolve())):
        parts = [*reversed(way.parents), way]
        for part, below in zip(parts, [*parts[1:], None], strict=True):
            problem = _problem(part, below)
            if problem:
                raise HandclaspError(
                    Kind.BAD_SETTING,
                    f"{what}: {part} {problem}; the helper works as root and believes only what root alone can change",
                    hint=f"chown root: {part} && chmod go-w {part}",
                )


def _problem(part: Path, below: Path | None) -> str:
    try:
        found = part.lstat()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot be looked at ({error.strerror})"
    if found.st_uid != 0:
        return f"belongs to uid {found.st_uid}"
    if stat.S_ISLNK(found.st_mode) or not found.st_mode & 0o022:
        return ""
    # In a sticky directory nobody replaces what is there and another's; what is not there yet, anybody could put there first.
    if found.st_mode & stat.S_ISVTX and below is not None and below.exists():
        return ""
    return f"can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
