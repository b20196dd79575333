"""Generations: complete sets of files in numbered directories, and one link that says which of them counts.

    root/generations/00000007/key.pem …     written beside the others, each file and directory synced, named only when complete
    root/current -> generations/00000007    replaced by one rename: key, certificate and bundle change together or not at all

Every function may be interrupted by ``kill -9`` or power loss anywhere: ``current`` then still leads to a complete generation, and
:meth:`Generations.recover` removes what was left over.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from handclasp.faults import declare, fault

declare("generation.made", "generation.file", "generation.complete", "generation.named", "generation.linked", "generation.flipped")

LINK = "current"


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
        return name if (self._home / name).is_dir() else ""

    def path(self, name: str) -> Path:
        """Return the directory of a generation."""
        return self._home / name

    def names(self) -> list[str]:
        """Return the complete generations, oldest first."""
        try:
            return sorted(entry.name for entry in self._home.iterdir() if entry.name.isdigit())
        except FileNotFoundError:
            return []

    def read(self, name: str, file: str) -> bytes | None:
        """Return one file of a generation (without a name: of the one that counts), or None when it cannot be read."""
        try:
            return ((self._home / name if name else self.root / LINK) / file).read_bytes()
        except OSError:
            return None

    def write(self, files: Mapping[str, File]) -> str:
        """Write a complete new generation and return its name. It is durable on return, and does not count yet."""
        self._home.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._home.chmod(self._directory_mode)
        draft = self._home / f".new-{secrets.token_hex(8)}"
        draft.mkdir(mode=0o700)
        try:
            fault("generation.made")
            for name, file in files.items():
                self._write_file(draft / name, file)
                fault("generation.file")
            draft.chmod(self._directory_mode)
            os.chown(draft, self._owner, self._group)
            sync_directory(draft)
            fault("generation.complete")
            name = f"{int((self.names() or ['0'])[-1]) + 1:08d}"
            draft.rename(self._home / name)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_directory(self._home)
        fault("generation.named")
        return name

    def flip(self, name: str) -> None:
        """Make ``name`` the generation that counts. Durable on return."""
        draft = self.root / f".{LINK}-{secrets.token_hex(8)}"
        # Relative: the directory may be mounted elsewhere in a container.
        draft.symlink_to(Path("generations") / name)
        fault("generation.linked")
        try:
            draft.replace(self.root / LINK)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_directory(self.root)
        fault("generation.flipped")

    def recover(self) -> None:
        """Remove drafts that an interruption left behind."""
        for place, start in ((self._home, ".new-"), (self.root, f".{LINK}-")):
            for name in _listed(place):
                if not name.startswith(start):
                    continue
                left = place / name
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove one generation, as far as that is possible."""
        shutil.rmtree(self._home / name, ignore_errors=True)

    def prune(self, keep: int, protect: Collection[str] = ()) -> None:
        """Remove all but the newest ``keep`` generations, never the one that counts nor one in ``protect``."""
        spared = {self.current(), *protect}
        for name in self.names()[:-keep]:
            if name not in spared:
                shutil.rmtree(self._home / name, ignore_errors=True)

    def _write_file(self, path: Path, file: File) -> None:
        # 0600 while the content goes in; owner before mode, because a change of owner may clear mode bits.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(file.data)
            stream.flush()
            os.fchown(descriptor, self._owner, self._group)
            os.fchmod(descriptor, file.mode)
            os.fsync(descriptor)


def _listed(place: Path) -> list[str]:
    try:
        return os.listdir(place)  # noqa: PTH208  (an agent does this for five hundred directories when it starts)
    except (FileNotFoundError, NotADirectoryError):
        return []


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
