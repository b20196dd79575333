"""A process at the other end of a socket, held so that another one that gets its number later is not taken for it.

``SO_PEERCRED`` tells the process that connected, as it was then (unix(7)). Its number may be reused as soon as it is gone. So a descriptor
of the process itself is held where the kernel gives one (``SO_PEERPIDFD``, Linux 6.5; else ``pidfd_open``), ``/proc/PID`` is opened once
and read through that directory, which goes dead with the process, and the time at which the process started is compared each time.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from handclasp.errors import HandclaspError, Kind

_SO_PEERPIDFD = 77  # include/uapi/asm-generic/socket.h; Python has no name for it yet
_MAX_FILE = 256 * 1024


class Process:
    """One process. ``uid`` and ``gid`` are those that it had when it connected; both must stay what they are.

    :meth:`check` says whether it is still the same; everything else is read through the directory that was opened at the start. Raises
    ``not_allowed`` at construction for a process that cannot be seen or is already another one.
    """

    def __init__(self, pid: int, uid: int, gid: int, *, root: Path = Path("/proc"), pidfd: int = -1) -> None:
        self.pid, self.uid, self.gid = pid, uid, gid
        self._pidfd, self._directory = pidfd, -1
        self._lock = threading.Lock()
        self._users, self._closing = 0, False
        try:
            if pid <= 0:
                raise HandclaspError(
                    Kind.NOT_ALLOWED,
                    "the calling process cannot be seen from here",
                    hint="the agent needs the host's process ids (hostPID)",
                )
            try:
                self._directory = os.open(root / str(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                self.started = self._start_time()
            except (OSError, ValueError, IndexError) as error:
                raise _gone() from error
            self.check()
        except HandclaspError:
            self.close()
            raise

    @classmethod
    def of_peer(cls, connection: socket.socket, *, root: Path = Path("/proc")) -> Process:
        """Return the process that connected ``connection``. Raises ``not_allowed``."""
        try:
            pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError as error:
            raise _gone() from error
        return cls(pid, uid, gid, root=root, pidfd=_descriptor(connection, pid))

    @classmethod
    def of_pid(cls, pid: int, *, root: Path = Path("/proc")) -> Process:
        """Return the process with this number now, with the ids that it has now. Raises ``not_found``."""
        try:
            status = _fields((root / str(pid) / "status").read_bytes())
            return cls(pid, int(status["Uid"].split()[1]), int(status["Gid"].split()[1]), root=root)
        except (OSError, KeyError, ValueError, IndexError, HandclaspError) as error:
            raise HandclaspError(Kind.NOT_FOUND, f"there is no process {pid} that can be looked at") from error

    def check(self) -> None:
        """Raise ``not_allowed`` unless this is the process that it was, with the same user and group."""
        if self._pidfd >= 0:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if poll.poll(0):  # readable once the process has ended (pidfd_open(2))
                raise _gone()
        try:
            same = self._start_time() == self.started
            status = self.status()
            uid, gid = int(status["Uid"].split()[1]), int(status["Gid"].split()[1])
        except (OSError, KeyError, ValueError, IndexError) as error:
            raise _gone() from error
        if not same:
            raise _gone()
        if (uid, gid) != (self.uid, self.gid):
            raise HandclaspError(Kind.NOT_ALLOWED, "the calling process is not the user and group that it was when it connected")

    def read(self, name: str) -> bytes:
        """Return a file of its directory in ``/proc``, at most 256 KiB of it. Raises ``OSError``."""
        descriptor = self.open(name)
        try:
            data = b""
            while len(data) < _MAX_FILE and (chunk := os.read(descriptor, 65536)):
                data += chunk
            return data
        finally:
            os.close(descriptor)

    def open(self, name: str) -> int:
        """Return a descriptor of such a file, for reading. Raises ``OSError``."""
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._directory)

    def link(self, name: str) -> str:
        """Return where a link in its directory leads. Raises ``OSError``."""
        return os.readlink(name, dir_fd=self._directory)

    def stat(self, name: str) -> os.stat_result:
        """Return the state of what a link in its directory leads to. Raises ``OSError``."""
        return os.stat(name, dir_fd=self._directory)

    def status(self) -> dict[str, str]:
        """Return ``/proc/PID/status`` by field. Raises ``OSError``."""
        return _fields(self.read("status"))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep it open while a worker thread looks at it: a descriptor that is closed meanwhile may be another file by the next read."""
        with self._lock:
            if self._closing:
                raise _gone()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                last = self._closing and not self._users
            if last:
                self._close()

    def close(self) -> None:
        """Let go of it, or have whoever still looks at it do so when he is done."""
        with self._lock:
            first, self._closing = not self._closing, True
            idle = not self._users
        if first and idle:
            self._close()

    def _close(self) -> None:
        for descriptor in (self._pidfd, self._directory):
            if descriptor >= 0:
                with suppress(OSError):
                    os.close(descriptor)
        self._pidfd = self._directory = -1

    def _start_time(self) -> int:
        """Clock ticks between boot and the start of the process: field 22 of stat, counted behind the name, which may hold anything."""
        return int(self.read("stat").rpartition(b")")[2].split()[19])


def _descriptor(connection: socket.socket, pid: int) -> int:
    with suppress(OSError):
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    with suppress(OSError):
        return os.pidfd_open(pid)
    return -1


def _fields(data: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in data.decode("utf-8", "replace").splitlines())
    return {name: value.strip() for name, _, value in lines}


def _gone() -> HandclaspError:
    return HandclaspError(Kind.NOT_ALLOWED, "the calling process is gone, or is another one by now")
