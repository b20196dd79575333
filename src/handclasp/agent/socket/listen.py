"""The socket's file: bound beside its place and put there by one rename, so that a caller finds the old one or the new one."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import stat
from contextlib import suppress
from pathlib import Path

from handclasp.errors import HandclaspError, Kind

_BACKLOG = 256
_LONGEST = 107
"""Bytes of a socket's path (unix(7)): to a longer one a file can be renamed, but nobody can connect."""


class Listener:
    """A listening socket at ``path``. ``group`` is numeric, -1: unchanged.

    A file left by an agent that ended is replaced; one that somebody answers on is not taken from him. Raises ``conflict`` for that,
    ``bad_setting`` where there is something else than a socket, or the place cannot be used.
    """

    def __init__(self, path: Path, mode: int, group: int = -1) -> None:
        self.path = path
        self._lock = -1
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._lock = self._take_lock()
            self._check()
            self.socket = self._bind(mode, group)
        except OSError as error:
            self._unlock()
            raise HandclaspError(Kind.BAD_SETTING, f"the socket {path} cannot be made: {error.strerror or error}") from error
        except HandclaspError:
            self._unlock()
            raise

    def there(self) -> bool:
        """Tell whether the file is still the one that was made here."""
        try:
            return self.path.lstat().st_ino == self._inode
        except OSError:
            return False

    def close(self) -> None:
        """Stop listening and remove the file, if it is still ours."""
        with suppress(OSError):
            if self.there():
                self.path.unlink()
        self.socket.close()
        self._unlock()

    def _take_lock(self) -> int:
        # The kernel gives the lock back when a process ends, however it ends; the file stays, because removing it would be a race.
        lock = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise self._taken() from None
        return lock

    def _check(self) -> None:
        try:
            status = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(status.st_mode):
            raise HandclaspError(Kind.BAD_SETTING, f"{self.path} is there, and is not a socket", hint="choose another path, or remove it")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(2)
            try:
                probe.connect(str(self.path))
            except (ConnectionRefusedError, FileNotFoundError):
                return  # nobody is there any more
            except OSError:
                raise self._taken() from None
        raise self._taken()

    def _taken(self) -> HandclaspError:
        return HandclaspError(
            Kind.CONFLICT, f"somebody serves the socket {self.path} already", hint="another agent, or SPIRE's? choose another path"
        )

    def _bind(self, mode: int, group: int) -> socket.socket:
        if len(os.fsencode(self.path)) > _LONGEST:
            raise HandclaspError(Kind.BAD_SETTING, f"the socket {self.path} cannot be made: its path has more than {_LONGEST} bytes")
        draft = self.path.with_name(f".{self.path.name[:40]}-{secrets.token_hex(4)}")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(str(draft))
            if group >= 0:
                os.chown(draft, -1, group)
            draft.chmod(mode)  # nobody can connect before it listens, and nobody knows its name before the rename
            listening.listen(_BACKLOG)
            self._inode = draft.lstat().st_ino
            draft.rename(self.path)
        except OSError:
            listening.close()
            draft.unlink(missing_ok=True)
            raise
        listening.setblocking(False)
        return listening

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
