"""One file: opened so that nothing can hold us up or lead us astray, read, and turned into an observation."""

from __future__ import annotations

import errno
import grp
import hashlib
import os
import pwd
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import msgspec

from handclasp.agent.discover.walk import File
from handclasp.pki.contents import Contents, interesting, read_contents
from handclasp.pki.contents.read import named_so
from handclasp.wire.observations import Observed, Seen, SeenKey

_HEAD = 65_536
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY
_MOST_PATH = 3500
_MOST_ANSWER = 6 * 1024 * 1024
"""Bytes of certificates in one observation; the server takes no more in one request than some times that."""


class Problem(Exception):  # noqa: N818  (it is what is told)
    """A file that should be told of and cannot be read."""


class Looker:
    """Looks at files of one host for one scan. ``risky`` is called before a file is opened that may take long, with its path."""

    def __init__(
        self,
        key: Callable[[str], str],
        host: str,
        *,
        most: int,
        passwords: Sequence[str] = (),
        risky: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._key, self._host, self._most, self._passwords, self._risky = key, host, most, tuple(passwords), risky

    def look(self, file: File, unit: str, at: int) -> Observed | None:
        """Return what a file holds, None where that is nothing of interest. A problem is told only of what is named like a certificate."""
        try:
            contents = self._read(file)
        except Problem as problem:
            return self.unreadable(file, unit, at, str(problem)) if named_so(file.name) and not file.name.endswith(".key") else None
        except FileNotFoundError:
            return None
        if contents is None or (contents.empty and not contents.problem):
            return None
        if contents.problem:
            # Read, and not what its name says: nothing to tell of what merely has a name like that, or begins with BEGIN.
            return self.unreadable(file, unit, at, contents.problem) if named_so(file.name) else None
        return self._observed(file, unit, at, contents)

    def unreadable(self, file: File, unit: str, at: int, problem: str) -> Observed:
        """Return that a file is there and could not be read."""
        details = _facts(file.state)
        return self._finish(
            Observed(key=self._key(shown(file.path)), kind="file", shown=shown(file.path), at=at, details=details), unit, problem
        )

    def _read(self, file: File) -> Contents | None:
        if file.state.st_size > self._most:
            if named_so(file.name):
                raise Problem(f"it has {file.state.st_size} bytes, more than are read")
            return None
        if len(shown(file.path)) > _MOST_PATH or not file.state.st_size:
            return None
        data = self._bytes(file)
        if data is None:
            return None
        try:
            if data[:1] == b"\x30":
                self._risky(file.path)
            return read_contents(data, file.name, self._passwords)
        finally:
            data[:] = bytes(len(data))  # there may be a private key in it

    def _bytes(self, file: File) -> bytearray | None:
        """Return the whole of a file that is worth it. Raises :class:`Problem`, also when it changed meanwhile, ``FileNotFoundError``."""
        try:
            descriptor = os.open(file.name, _OPEN, dir_fd=file.directory)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Problem(_words(error)) from error
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise Problem("it is no regular file any more")
            data = bytearray()
            _more(descriptor, data, min(_HEAD, self._most + 1))
            if not interesting(file.name, data):
                data[:] = bytes(len(data))
                return None
            _more(descriptor, data, self._most + 1)
            after = os.fstat(descriptor)
            if len(data) > self._most or (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
                data[:] = bytes(len(data))
                raise Problem("it changed while it was read")
            return data
        except OSError as error:
            raise Problem(_words(error)) from error
        finally:
            os.close(descriptor)

    def _observed(self, file: File, unit: str, at: int, contents: Contents) -> Observed:
        details: dict[str, Any] = {**_facts(file.state), "format": contents.format}
        if contents.keys:
            details["private_keys"] = len(contents.keys)
            details["others_read"] = bool(file.state.st_mode & (stat.S_IRGRP | stat.S_IROTH))
        if contents.locked:
            details["locked"] = True
        if contents.references:
            details["references"] = contents.references[:20]
        if contents.notes:
            details["notes"] = contents.notes[:20]
        certificates, size = [], 0
        for entry in contents.entries:
            size += len(entry.der) + sum(map(len, entry.chain))
            if size > _MOST_ANSWER:
                details["notes"] = [*details.get("notes", []), "not all of it is told: it is too much"]
                break
            how = {"alias": entry.alias} if entry.alias else {}
            certificates.append(Seen(der=entry.der, role="anchor" if entry.anchor else "stored", chain=list(entry.chain), how=how))
        key = next((one for one in contents.keys if one.spki_sha256), contents.keys[0] if contents.keys else None)
        path = shown(file.path)
        observed = Observed(
            key=self._key(path),
            kind="keystore" if contents.format in ("pkcs12", "jks", "jceks") else "file",
            shown=path,
            at=at,
            certificates=certificates,
            private_key=SeenKey(spki_sha256=key.spki_sha256, encrypted=key.encrypted) if key else None,
            details=details,
        )
        return self._finish(observed, unit, "it is locked: no password that the agent knows opens it" if contents.locked else None)

    def _finish(self, observed: Observed, unit: str, problem: str | None) -> Observed:
        observed.unit, observed.host, observed.problem = unit, self._host, problem
        told = msgspec.structs.replace(observed, at=0, details={key: value for key, value in observed.details.items() if key != "mtime"})
        observed.details["digest"] = hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()[:32]
        return observed


def shown(path: str) -> str:
    """Return a path as text, whatever bytes are in it."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _more(descriptor: int, data: bytearray, most: int) -> None:
    while len(data) < most and (chunk := os.read(descriptor, min(1 << 18, most - len(data)))):
        data += chunk


def _words(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "the agent may not read it"
    return (error.strerror or str(error)).lower()


def _facts(state: os.stat_result) -> dict[str, Any]:
    return {
        "mode": f"{stat.S_IMODE(state.st_mode):04o}",
        "owner": _user(state.st_uid),
        "group": _group(state.st_gid),
        "size": state.st_size,
        "mtime": state.st_mtime_ns // 1_000_000,
    }


@lru_cache(maxsize=256)
def _user(number: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(number).pw_name
    return str(number)


@lru_cache(maxsize=256)
def _group(number: int) -> str:
    with suppress(KeyError):
        return grp.getgrgid(number).gr_name
    return str(number)
