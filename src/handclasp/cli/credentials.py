"""Key, certificate and bundle files that change together.

Two files cannot be renamed in one step, and a service that is started between two renames finds a certificate that is not its key's. So
files that are in use become links through one directory link, and that one link is what is renamed::

    /etc/web/cert.pem -> .cert.pem.handclasp/current/cert.pem      .cert.pem.handclasp/current -> 20260101T000000Z-5f2a
    /etc/web/key.pem  -> .cert.pem.handclasp/current/key.pem       (renamed once: key, certificate and bundle are the new ones)

Plain files are turned into links on the first renewal, each to a copy of itself, so that every moment before the one rename shows the old
pair and every moment after it the new pair: also when the process is killed, and also when the disk is full.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from handclasp.cli.files import sync_directory, write_durably, write_file
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault

declare("credentials.adopted", "credentials.linked", "credentials.staged", "credentials.flipped")

_STORE = ".handclasp"
_MODES = {"key.pem": 0o600, "cert.pem": 0o644, "bundle.pem": 0o644}


@dataclass(frozen=True)
class CredentialFiles:
    """Where one credential is kept. ``key`` and ``cert`` may be the same file, which then holds both."""

    key: Path
    cert: Path
    bundle: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file, each once."""
        named = (self.key, self.cert) if self.bundle is None else (self.key, self.cert, self.bundle)
        return tuple(dict.fromkeys(named))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands from changing these files meanwhile; raise ``conflict`` when one is already at it."""
        descriptor = os.open(_home(self.cert).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise HandclaspError(Kind.CONFLICT, f"another command is changing {self.cert}", hint="wait for it to end") from error
        finally:
            os.close(descriptor)

    def check_writable(self) -> None:
        """Make the directories and raise ``not_allowed`` where files cannot be put: before a token is spent, not after."""
        for path in self.paths:
            parent = _home(path).parent
            parent.mkdir(parents=True, exist_ok=True)
            if not os.access(parent, os.W_OK | os.X_OK):
                raise HandclaspError(Kind.NOT_ALLOWED, f"{parent} cannot be written to", hint="run it as the user who owns the directory")

    def install(self, key: bytes, cert: bytes, bundle: bytes) -> None:
        """Put a new credential in place. Durable on return; on any error, and after a kill, all files are the old ones or all the new."""
        if self.key == self.cert:
            if self.bundle is not None:
                write_file(self.bundle, bundle, 0o644)
            write_file(_home(self.cert), cert + key, 0o600)
            return
        contents = {"key.pem": key, "cert.pem": cert} | ({} if self.bundle is None else {"bundle.pem": bundle})
        if self.key.exists() or self.cert.exists():
            self._flip(contents)
        else:
            self._create(contents)

    def _named(self) -> dict[str, Path]:
        named = {"key.pem": self.key, "cert.pem": self.cert} | ({} if self.bundle is None else {"bundle.pem": self.bundle})
        return {name: _home(path) for name, path in named.items()}

    def _create(self, contents: Mapping[str, bytes]) -> None:
        """Write files where there were none; the certificate last, so that whoever waits for it finds the key."""
        written: list[Path] = []
        try:
            for name in ("key.pem", "bundle.pem", "cert.pem"):
                if name in contents:
                    path = self._named()[name]
                    write_file(path, contents[name], _MODES[name])
                    written.append(path)
        except OSError:
            for path in written:
                path.unlink(missing_ok=True)
            raise

    def _flip(self, contents: Mapping[str, bytes]) -> None:
        named = self._named()
        store = named["cert.pem"].parent / f".{named['cert.pem'].name}{_STORE}"
        store.mkdir(mode=0o755, exist_ok=True)
        current = store / "current"
        previous = self._adopt(named, store)
        new = _generation(store, contents, {name: _attributes(path) for name, path in named.items()})
        fault("credentials.staged")
        try:
            _point(current, new.name)
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            raise
        fault("credentials.flipped")
        for name, path in named.items():
            if not _is_through(path, current / name):
                _point(path, os.path.relpath(current / name, path.parent))
        for old in store.iterdir():
            # The generation before stays: a reader that opened its certificate a moment ago may open its key next.
            if old.is_dir() and not old.is_symlink() and old.name not in (new.name, previous):
                shutil.rmtree(old, ignore_errors=True)

    def _adopt(self, named: Mapping[str, Path], store: Path) -> str:
        """Make every file that is there a link through ``current`` without changing what is read; return the generation it reads."""
        current = store / "current"
        present = {name: path for name, path in named.items() if path.exists()}
        if not all(_is_through(path, current / name) for name, path in present.items()):
            copies = {name: path.read_bytes() for name, path in present.items()}
            old = _generation(store, copies, {name: _attributes(path) for name, path in present.items()})
            _point(current, old.name)
            fault("credentials.adopted")
            for name, path in present.items():
                _point(path, os.path.relpath(current / name, path.parent))
                fault("credentials.linked")
        return str(current.readlink()) if current.is_symlink() else ""


def _home(path: Path) -> Path:
    """Return where a file's own name is; raise ``conflict`` for a link that is not ours: whoever made it looks after the file."""
    if path.is_symlink():
        target = path.parent / path.readlink()
        if target.parent.name != "current" or not target.parent.parent.name.endswith(_STORE):
            raise HandclaspError(
                Kind.CONFLICT,
                f"{path} is a link to {target}, made by something else",
                hint="let whatever made the link renew it (an agent does), or name files that are not links",
            )
    return path.parent.resolve() / path.name


def _is_through(path: Path, target: Path) -> bool:
    return path.is_symlink() and (path.parent / path.readlink()).parent.parent.resolve() == target.parent.parent.resolve()


def _attributes(path: Path) -> os.stat_result | None:
    return path.stat() if path.exists() else None


def _generation(store: Path, contents: Mapping[str, bytes], like: Mapping[str, os.stat_result | None]) -> Path:
    """Write a new generation, durable on return; each file has the mode and owner of the one it follows, keys at most a group's."""
    directory = store / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}"
    directory.mkdir(mode=0o755)
    try:
        for name, data in contents.items():
            before = like.get(name)
            mode = _MODES[name] if before is None else stat.S_IMODE(before.st_mode) & (0o640 if name == "key.pem" else 0o644)
            write_durably(directory / name, data, mode | 0o600 if name == "key.pem" else mode)
            if before is not None and os.geteuid() == 0:
                os.chown(directory / name, before.st_uid, before.st_gid)
        sync_directory(directory)
        sync_directory(store)
    except OSError:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return directory


def _point(link: Path, target: str) -> None:
    """Make ``link`` a symbolic link to ``target`` in one rename; durable on return."""
    temporary = link.parent / f".{link.name}.{secrets.token_hex(4)}.new"
    temporary.symlink_to(target)
    try:
        temporary.replace(link)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(link.parent)
