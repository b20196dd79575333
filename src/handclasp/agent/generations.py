"""Generations: complete sets of files in numbered directories, and one link that says which of them counts.

    root/generations/00000007/key.pem …     written beside the others, each file and directory synced, named only when complete
    root/current -> generations/00000007    replaced by one rename: key, certificate and bundle change together or not at all

The directory may be one of the service's: everything is done from descriptors, so that nothing that its user puts there, or changes while
we are at it, leads elsewhere (:mod:`handclasp.agent.reach`).

Every function may be interrupted by ``kill -9`` or power loss anywhere: ``current`` then still leads to a complete generation, and
:meth:`Generations.recover` removes what was left over.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from handclasp.agent import reach
from handclasp.faults import declare, fault

declare("generation.made", "generation.file", "generation.complete", "generation.named", "generation.linked", "generation.flipped")

LINK = "current"
_NAME = re.compile(r"[0-9]{8,12}")


@dataclass(frozen=True, slots=True)
class File:
    """A file of a generation. Modes are exact; the umask plays no part."""

    data: bytes = field(repr=False)
    mode: int = 0o644


class Generations:
    """The generations below ``root``. One process at a time may write (the lease of the state directory sees to it).

    ``owner`` and ``group`` are numeric, -1 leaves them. All methods raise ``OSError``.
    """

    def __init__(self, root: Path, *, owner: int = -1, group: int = -1, directory_mode: int = 0o755) -> None:
        self.root = root
        self._home = root / "generations"
        self._owner, self._group, self._directory_mode = owner, group, directory_mode

    def current(self) -> str:
        """Return the name of the generation that counts, or an empty string."""
        try:
            name = (self.root / LINK).readlink().name
        except OSError:
            return ""
        return name if _NAME.fullmatch(name) and (self._home / name).is_dir() else ""

    def path(self, name: str) -> Path:
        """Return the directory of a generation."""
        return self._home / name

    def names(self) -> list[str]:
        """Return the complete generations, oldest first."""
        try:
            with self._open_home() as home:
                return sorted(name for name in os.listdir(home) if _NAME.fullmatch(name))  # noqa: PTH208  (a descriptor)
        except FileNotFoundError:
            return []

    def read(self, name: str, file: str, most: int = reach.LARGEST) -> bytes | None:
        """Return one file of a generation (without a name: of the one that counts), or None when it cannot be read.

        A generation may belong to the service: what is no regular file, or has more than ``most`` bytes, cannot be read either.
        """
        name = name or self.current()
        try:
            return reach.read(self._home / name / file, most) if name else None
        except OSError:
            return None

    def write(self, files: Mapping[str, File]) -> str:
        """Write a complete new generation and return its name. It is durable on return, and does not count yet."""
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        with self._open_home(make=True) as home:
            draft = f".new-{secrets.token_hex(8)}"
            os.mkdir(draft, 0o700, dir_fd=home)
            try:
                fault("generation.made")
                self._fill(draft, home, files)
                fault("generation.complete")
                name = f"{int((self.names() or ['0'])[-1]) + 1:08d}"
                os.rename(draft, name, src_dir_fd=home, dst_dir_fd=home)
            except BaseException:
                _remove(draft, home)
                raise
            os.fsync(home)
        fault("generation.named")
        return name

    def flip(self, name: str) -> None:
        """Make ``name`` the generation that counts. Durable on return."""
        with reach.directory(self.root) as root:
            # Relative: the directory may be mounted elsewhere in a container.
            replace_link(Path("generations") / name, LINK, root.descriptor, made="generation.linked")
        fault("generation.flipped")

    def recover(self) -> None:
        """Remove drafts that an interruption left behind."""
        with suppress(FileNotFoundError), reach.directory(self.root) as root:  # one walk: an agent does this for each identity at its start
            _sweep(root.descriptor, f".{LINK}-")
            home = _open_directory("generations", root.descriptor)
            try:
                _sweep(home, ".new-")
            finally:
                os.close(home)

    def remove(self, name: str) -> None:
        """Remove one generation, as far as that is possible."""
        with suppress(OSError), self._open_home() as home:
            _remove(name, home)

    def prune(self, keep: int, protect: Collection[str] = ()) -> None:
        """Remove all but the newest ``keep`` generations, never the one that counts nor one in ``protect``."""
        spared = {self.current(), *protect}
        for name in self.names()[:-keep]:
            if name not in spared:
                self.remove(name)

    @contextmanager
    def _open_home(self, *, make: bool = False) -> Iterator[int]:
        """Hold the directory of the generations open. Its names are ours alone, so no link is followed there."""
        with reach.directory(self.root) as root:
            if make:
                with suppress(FileExistsError):
                    os.mkdir("generations", 0o755, dir_fd=root.descriptor)
            home = _open_directory("generations", root.descriptor)
            try:
                if make and os.fstat(home).st_uid == os.geteuid():
                    os.fchmod(home, self._directory_mode)
                yield home
            finally:
                os.close(home)

    def _fill(self, draft: str, home: int, files: Mapping[str, File]) -> None:
        descriptor = _open_directory(draft, home)
        try:
            if os.fstat(descriptor).st_uid != os.geteuid():
                raise OSError(errno.EPERM, "somebody put another directory in the place of ours", str(self._home / draft))
            for name, file in files.items():
                self._write_file(name, file, descriptor)
                fault("generation.file")
            os.fchmod(descriptor, self._directory_mode)
            os.fchown(descriptor, self._owner, self._group)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _write_file(self, name: str, file: File, directory: int) -> None:
        # 0600 while the content goes in; owner before mode, because a change of owner may clear mode bits.
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(file.data)
            stream.flush()
            os.fchown(descriptor, self._owner, self._group)
            os.fchmod(descriptor, file.mode)
            os.fsync(descriptor)


def _open_directory(name: str, directory: int) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)


def _remove(name: str, directory: int) -> None:
    """Remove a generation or a draft, as far as that is possible: files, and only where others put something else there more than that."""
    try:
        held = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            for file in os.listdir(held):  # noqa: PTH208  (a descriptor)
                os.unlink(file, dir_fd=held)
        finally:
            os.close(held)
        os.rmdir(name, dir_fd=directory)
    except OSError:
        from shutil import rmtree  # with what it imports, 0.6 MB that an agent seldom needs

        rmtree(name, ignore_errors=True, dir_fd=directory)


def _sweep(directory: int, start: str) -> None:
    """Remove what begins with ``start`` from a directory that is held open."""
    for name in os.listdir(directory):
        if not name.startswith(start):
            continue
        try:
            os.unlink(name, dir_fd=directory)
        except (IsADirectoryError, PermissionError):
            _remove(name, directory)
        except FileNotFoundError:
            continue


def replace_link(target: Path, name: str, directory: int, *, made: str = "") -> None:
    """Let ``name``, in a directory that is held open, be a link to ``target``, by one rename; durable on return. Raises ``OSError``.

    ``made`` names the fault point between the two.
    """
    draft = f".{name}-{secrets.token_hex(8)}"
    os.symlink(target, draft, dir_fd=directory)
    try:
        if made:
            fault(made)
        os.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=directory)
        raise
    os.fsync(directory)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace one file so that it is always either the old or the new one; durable on return."""
    draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
