"""User, groups and executable: what the kernel says of a process.

    unix:uid:1000  unix:user:web  unix:gid:1000  unix:group:web  unix:supplementary_gid:27  unix:supplementary_group:sudo
    unix:path:/usr/sbin/nginx     unix:sha256:0f3a…

The path is given only when the file of that path, as the agent sees it, is the very file that runs: in a mount namespace of his own (which
any user can make) a process can put what he likes at ``/usr/sbin/nginx``, and the kernel shows that name. The agent needs to be root, to
have CAP_SYS_PTRACE, or to be the same user, to see an executable (proc_pid_exe(5)); where it may not, path and hash are left out.
"""

from __future__ import annotations

import grp
import hashlib
import logging
import os
import pwd
import stat
import threading
from collections import OrderedDict
from contextlib import suppress

from handclasp.agent.socket.proc import Process

_log = logging.getLogger("handclasp.agent.socket")
_GROUPS = 64
_CACHED = 256
HASH_LIMIT = 512 * 1024 * 1024
"""Bytes: larger executables are not hashed. A caller must not be able to keep us busy with a file of its choice."""

_Key = tuple[int, int, int, int, int]


class UnixAttestor:
    """Reads ``/proc``. ``hash_limit`` in bytes; 0: no executable is hashed."""

    name = "unix"

    def __init__(self, hash_limit: int = HASH_LIMIT) -> None:
        self._limit = hash_limit
        self._hashes: OrderedDict[_Key, str] = OrderedDict()
        self._lock = threading.Lock()
        self._hashing = threading.Lock()

    def selectors(self, process: Process, wanted: frozenset[str] | None) -> list[str]:
        """Return them all; the executable's hash only when somebody asks for it."""
        found = [f"unix:uid:{process.uid}", f"unix:gid:{process.gid}"]
        with suppress(KeyError):
            found.append(f"unix:user:{pwd.getpwuid(process.uid).pw_name}")
        with suppress(KeyError):
            found.append(f"unix:group:{grp.getgrgid(process.gid).gr_name}")
        for gid in process.status().get("Groups", "").split()[:_GROUPS]:
            if gid.isascii() and gid.isdigit():
                found.append(f"unix:supplementary_gid:{gid}")
                with suppress(KeyError, OverflowError):
                    found.append(f"unix:supplementary_group:{grp.getgrgid(int(gid)).gr_name}")
        return found + self._executable(process, wanted)

    def _executable(self, process: Process, wanted: frozenset[str] | None) -> list[str]:
        found = []
        try:
            if wanted is None or "unix:path" in wanted:
                path, running = process.link("exe"), process.stat("exe")
                with suppress(OSError):
                    here = os.stat(path)  # noqa: PTH116  (a path from outside: as it is)
                    if (here.st_dev, here.st_ino) == (running.st_dev, running.st_ino):
                        found.append(f"unix:path:{path}")
            if (wanted is None or "unix:sha256" in wanted) and (digest := self._digest(process)):
                found.append(f"unix:sha256:{digest}")
        except OSError as error:
            _log.debug("the executable of process %d cannot be seen: %s", process.pid, error.strerror)
        return found

    def _digest(self, process: Process) -> str:
        descriptor = process.open("exe")
        try:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode) or state.st_size > self._limit:
                return ""
            # With the time of the last change of the inode: a file's owner can set the other times back, and this one he cannot.
            key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
            with self._lock:
                if key in self._hashes:
                    self._hashes.move_to_end(key)
                    return self._hashes[key]
            with self._hashing:  # one at a time: it is work for a processor, and callers come as they like
                digest = _hash(descriptor, state.st_size)
            with self._lock:
                self._hashes[key] = digest
                while len(self._hashes) > _CACHED:
                    self._hashes.popitem(last=False)
            return digest
        finally:
            os.close(descriptor)


def _hash(descriptor: int, size: int) -> str:
    """Digest of the first ``size`` bytes: a running executable does not grow (ETXTBSY), a file on another's server may."""
    digest, left = hashlib.sha256(), size
    while left > 0 and (chunk := os.read(descriptor, min(1 << 20, left))):
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest()
