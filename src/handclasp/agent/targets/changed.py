"""Whether delivered files are still as they were delivered: told by a few calls of ``stat`` in each poll, and by reading nothing."""

from __future__ import annotations

import hashlib
import os

from handclasp.agent.generations import LINK
from handclasp.agent.targets.base import Drift, Place
from handclasp.agent.targets.files import Generated

DRIFT = Drift("the delivered files were changed or removed by somebody else")


def signature_of(place: Place) -> str:
    """Return what tells one state of a place of files from another: where its links lead, and of each file in the generation that counts
    the size, the times of change, the mode and the owner. Empty for other places, and where we may not look.
    """
    if not isinstance(place, Generated):
        return ""
    try:
        home = place.directory / LINK
        parts = [_link(str(home)), *(_link(str(path)) for _, path in place.links), *_files(str(home))]
    except PermissionError:
        return ""
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115  (five hundred targets in each poll)
    except PermissionError:
        raise
    except OSError as error:
        return f"errno {error.errno}"


def _files(home: str) -> list[str]:
    try:
        with os.scandir(home) as found:
            states = sorted((entry.name, entry.stat(follow_symlinks=False)) for entry in found)
    except PermissionError:
        raise
    except OSError as error:
        return [f"errno {error.errno}"]
    return [f"{name} {one.st_ino} {one.st_size} {one.st_mtime_ns} {one.st_mode} {one.st_uid} {one.st_gid}" for name, one in states]
