"""Sets of files that are exchanged at once by a link: ``current -> generations/7``, ``..data -> ..2026_11_22``.

What counts is where the link leads. The other sets beside it are what was there before, or will be: certificates in them are not in use.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path


def gone_through(links: Iterable[str], directories: Collection[str], descriptor: int) -> dict[str, tuple[str, str]]:
    """Return which of ``directories`` are gone through by a link beside them: name -> (the link's name, where it leads).

    ``descriptor`` is of the directory that they are all in.
    """
    found: dict[str, tuple[str, str]] = {}
    for name in sorted(links):
        with suppress(OSError):
            parts = os.readlink(name, dir_fd=descriptor).split("/")
            below = parts[0] in directories and parts[0] not in found and not {"", ".", ".."} & set(parts)
            if below and stat.S_ISDIR(os.stat(name, dir_fd=descriptor).st_mode):
                found[parts[0]] = name, "/".join(parts)
    return found


def in_force(path: str) -> str:
    """Return what counts of a real path that lies in such sets, or holds them: the path itself, a part of it, or nothing (empty).

    Somebody who asks for ``/srv/tls/*`` means neither older sets nor the same one twice.
    """
    above = Path(path)
    for parent in reversed(above.parents):
        name = path[len(str(parent).rstrip("/")) + 1 :].partition("/")[0]
        way = _way(parent, name)
        if way is None:
            continue
        target = str(parent / way)
        if not (path == target or path.startswith(f"{target}/")):
            return target if target.startswith(f"{path}/") else ""
    return path


def _way(parent: Path, name: str) -> str | None:
    """Return where the link leads by which ``name`` is gone through; None for a directory of the usual sort."""
    with suppress(OSError):
        descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with os.scandir(descriptor) as entries:
                links = [entry.name for entry in entries if entry.is_symlink()]
            found = gone_through(links, {name}, descriptor).get(name)
        finally:
            os.close(descriptor)
        return found[1] if found is not None else None
    return None
