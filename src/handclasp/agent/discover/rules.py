"""Where may be looked: what the agent's own configuration says counts, whatever the server asks for."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from handclasp.agent.config.discover import DEFAULT_ALLOW
from handclasp.agent.discover.exchange import in_force

NEVER = ("/proc", "/sys", "/dev")
LAYERS = ("/var/lib/docker", "/var/lib/containerd", "/var/lib/containers", "/var/lib/kubelet/pods", "/var/lib/rancher", "/var/lib/snapd")
"""Images and mounts of containers: each of them would be seen many times. Looked at only where a path names them."""
_FOREIGN = frozenset({
    "proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "securityfs", "debugfs", "tracefs", "mqueue", "autofs",
    "binfmt_misc", "bpf", "pstore", "configfs", "hugetlbfs", "fusectl", "overlay", "squashfs", "nfs", "nfs4", "cifs", "smb3", "9p", "afs",
    "ceph", "glusterfs", "fuse", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs",
})  # fmt: skip
"""Kinds of file system that are not this host's own: a network share would be read by everybody who has it mounted."""
_MOST_ROOTS = 1000


class Roots(NamedTuple):
    """Where a search begins; ``problem`` is why not everything is looked at, ``skipped`` what is passed over on purpose (or empty)."""

    paths: list[str]
    problem: str
    skipped: str


@dataclass(frozen=True, slots=True)
class Rules:
    """Paths are absolute and normal."""

    allow: tuple[str, ...] = DEFAULT_ALLOW
    deny: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    mounts: frozenset[str] = field(default_factory=frozenset)
    """Mount points of file systems that are not this host's own."""
    own: str = ""
    """Where the agent's own state is, which is passed over; empty: nowhere."""

    def forbids(self, path: str) -> str:
        """Return why a path may not be looked at, or an empty string."""
        if any(_within(path, one) for one in NEVER):
            return "it is never looked at"
        if self.is_own(path):
            return "it is the agent's own state, which is never looked at"
        if any(_within(path, one) for one in self.deny):
            return "this agent's configuration (discover: deny) forbids it"
        if not any(_within(path, one) for one in self.allow):
            return "this agent's configuration (discover: allow) does not name it"
        return ""

    def is_own(self, path: str) -> bool:
        """Tell whether a path is the agent's own state, or in it."""
        return bool(self.own) and _within(path, self.own)

    def skips(self, path: str, name: str, root: str) -> bool:
        """Tell whether a directory or file below ``root`` is passed over: denied, excluded, or another file system's."""
        if any(_within(path, one) for one in (*NEVER, *self.deny)) or self.is_own(path) or path in self.mounts:
            return True
        if path in LAYERS and not _within(root, path):
            return True
        return any(fnmatch.fnmatchcase(path if "/" in glob_ else name, glob_) for glob_ in self.excludes)

    def roots(self, pattern: str) -> Roots:
        """Return where to begin for one path or glob, and why not everything of it is looked at.

        Of a path that is wider than what is allowed, the parts that are allowed are looked at. The agent's own state is no part of what
        anybody asks for: it is passed over, and said to be where a path names it.
        """
        matches = islice(glob.iglob(pattern), _MOST_ROOTS + 1)  # noqa: PTH207  (absolute; pathlib has none for that)
        found = list(matches) if glob.has_magic(pattern) else [pattern]
        roots: list[str] = []
        skipped = ""
        problem = f"{pattern}: more than {_MOST_ROOTS} match" if len(found) > _MOST_ROOTS else ""
        real = sorted({in_force(os.path.realpath(path)) for path in found[:_MOST_ROOTS]} - {""})
        for path in real:  # where a link leads to must be allowed itself
            why = self.forbids(path)
            if not why:
                roots.append(path)
                continue
            if self.is_own(path):
                skipped = "" if glob.has_magic(pattern) else f"{path}: {why}"
                continue
            parts = [one for one in self.allow if _within(one, path) and not self.forbids(one)]
            roots += parts
            problem = problem or (f"{path}: {why}" + (f"; looked at: {', '.join(parts)}" if parts else ""))
        return Roots(_outermost(roots), problem, skipped)


def foreign_mounts(text: str | None = None) -> frozenset[str]:
    """Return the mount points of file systems that are not this host's own (``/proc/self/mountinfo``, proc_pid_mountinfo(5))."""
    if text is None:
        try:
            text = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
        except OSError:
            return frozenset()
    found = set()
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.partition(" ")[0]
        if len(fields) > 4 and kind in _FOREIGN and fields[4] != "/":
            found.add(fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
    return frozenset(found)


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/") or directory == "/"


def _outermost(paths: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(_within(path, one) for one in kept):
            kept.append(path)
    return kept


def normal(paths: Sequence[str]) -> tuple[str, ...]:
    """Return paths without ``..`` and doubled slashes."""
    return tuple(os.path.normpath(path) for path in paths)
