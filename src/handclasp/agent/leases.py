"""One agent for each place: two agents (with a state directory each) must not deliver over each other.

A place that is a directory holds a file ``.lease``, locked by whoever delivers there. The kernel gives it free when that process ends,
however it ends, and the next one takes over. Only its owner can open it: whoever can read a file can lock it, and no user of the host is to
keep a service without certificates that way.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import socket
import stat
import threading
from pathlib import Path

from handclasp.agent import reach
from handclasp.agent.generations import LINK
from handclasp.agent.targets.base import Place
from handclasp.errors import HandclaspError, Kind

_FILE = ".lease"
_SPARE = 512
"""Open files that an agent needs besides its leases."""


class Leases:
    """The leases of one agent (``agent`` is its identity), held until :meth:`close`. May be used from several threads."""

    def __init__(self, identity: str, state: Path) -> None:
        self.agent = identity
        self._note = f"{identity}, with its state in {state} on {socket.gethostname()}\n".encode()
        self._lock = threading.Lock()
        self._held: dict[Path, int] = {}

    def take(self, place: Place, *, make: bool = True) -> bool:
        """Take the lease of a place; return False when another process has it.

        ``make`` makes the directory. A place without a directory needs no lease, and one where none can be had (a read-only file system)
        goes without: delivering there will say what is wrong.
        """
        return self._other(place, make) is None

    def require(self, place: Place) -> None:
        """Take it, or raise ``delivery_failed`` that names the other agent."""
        other = self._other(place, True)
        if other is not None:
            raise HandclaspError(
                Kind.DELIVERY_FAILED,
                f"another agent delivers there: {other}",
                hint="stop one of them, or let them deliver to different places; this one takes over when the other is gone",
            )

    def close(self) -> None:
        """Give all of them free."""
        with self._lock:
            for descriptor in self._held.values():
                os.close(descriptor)
            self._held.clear()

    def _other(self, place: Place, make: bool) -> str | None:
        directory = getattr(place, "directory", None)
        if not isinstance(directory, Path):
            return None
        with self._lock:
            if directory not in self._held:
                other = self._lease(directory, make)
                if other is not None:
                    return other
            return self._at_links(directory, getattr(place, "links", ()))

    def _at_links(self, directory: Path, links: tuple[tuple[str, Path], ...]) -> str | None:
        """The agent that holds the place where one of our links leads now, if that is not ours."""
        for _, path in links:
            try:
                leads_to = path.readlink()
            except OSError:
                continue
            home = leads_to.parent.parent
            if leads_to.parent.name == LINK and home != directory and home not in self._held and (home / _FILE).exists():
                with contextlib.suppress(OSError), reach.file(home / _FILE) as found:
                    if _is_ours(found.descriptor) and not _lock(found.descriptor):
                        return _read(found.descriptor)
        return None

    def _lease(self, directory: Path, make: bool) -> str | None:
        if make:
            with contextlib.suppress(OSError):
                directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        _allow_files(len(self._held) + _SPARE)
        try:
            with reach.directory(directory) as place:
                descriptor = os.open(
                    _FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=place.descriptor
                )
        except OSError:
            return None
        if not _is_ours(descriptor):  # the directory's user put it there, maybe a second name of a file that he may not write
            os.close(descriptor)
            return None
        if not _lock(descriptor):
            other = _read(descriptor)
            os.close(descriptor)
            return other
        self._held[directory] = descriptor
        with contextlib.suppress(OSError):  # the lock counts, and not what is written: a full disk takes nothing away
            os.fchmod(descriptor, 0o600)
            if os.pread(descriptor, 4096, 0) != self._note:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, self._note, 0)
        return None


def _lock(descriptor: int) -> bool:
    """Lock; return False when somebody else has. A file system without locks counts as free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
    return True


def _is_ours(descriptor: int) -> bool:
    """Tell whether a lease is one that root or we made, and has no other name."""
    state = os.fstat(descriptor)
    return stat.S_ISREG(state.st_mode) and state.st_uid in (0, os.geteuid()) and state.st_nlink == 1


def _read(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        text = os.pread(descriptor, 1000, 0).decode("utf-8", "replace").strip()
        if text and text.isprintable():
            return text
    return "one that does not say who it is"


def _allow_files(wanted: int) -> None:
    """Raise the soft limit of open files where so many leases need it; the usual 1,024 is for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        more = 2 * wanted if hard == resource.RLIM_INFINITY else min(2 * wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
