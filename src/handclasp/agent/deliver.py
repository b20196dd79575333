"""One delivery: new generation beside the old, flip, validate, reload, look; and the way back when any of it fails.

It may be interrupted anywhere and repeated: a generation with the same content is found again instead of written again, and a delivery that
was flipped and not confirmed goes through validate, reload and look once more.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from handclasp.agent import reach
from handclasp.agent.commands import run_command
from handclasp.agent.content import Content
from handclasp.agent.generations import File, Generations, replace_file, replace_link
from handclasp.agent.look import look
from handclasp.agent.reload import tell
from handclasp.agent.targets.base import Around, Delivers, Interrupted, Target, Wait
from handclasp.agent.targets.files import Generated
from handclasp.client.material import Material
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault

declare("deliver.flipped", "deliver.validated", "deliver.reloaded", "deliver.looked", "deliver.rolled_back")

_log = logging.getLogger("handclasp.agent")
_DIGEST = ".content"
_HOLDER = ".identity"
_NOTE = 4096
"""Bytes of a note of ours at most. It may lie in a service's own directory, whose user can put anything in its place."""


class _Note(msgspec.Struct, kw_only=True):
    """What a generation notes of itself: the digest of its content, and the SHA-256 of each file (keystores are never the same twice)."""

    content: str
    files: dict[str, str]


class Hands(Protocol):
    """What does the work at a place of files: this process (:class:`Delivery`), or the privileged helper on its word."""

    def bring(self, confirmed: str) -> tuple[str, str]:
        """Write, flip, validate and reload; return the generation and the one to go back to (or nothing). On failure it has gone back."""

    def back(self, name: str, previous: str) -> str:
        """Put ``previous`` back in the place of ``name`` and reload; return in words what is in place now."""

    def settle(self, name: str, previous: str) -> None:
        """The delivery is done: remove generations that nobody needs any more."""


def deliver(target: Target, content: Content, confirmed: str, *, identity: str, wait: Wait, agent: str = "") -> str:
    """Deliver and return the name of the generation that the service now runs on.

    ``confirmed`` is what the last delivery that succeeded returned. Raises ``delivery_failed`` when a step failed: the previous generation
    is then back in place and the service was told again; ``OSError`` when nothing could be written; ``Interrupted`` when the agent stops.
    ``agent`` is the agent's own identity.
    """
    if isinstance(target.place, Delivers):
        return target.place.deliver(content, confirmed, Around(identity, wait, target.timeout, agent))
    hands = _hands(target, content, identity)
    name, previous = hands.bring(confirmed)
    try:
        if target.look is not None:
            look(target.look, content.sha256, content.credential, timeout=target.timeout, wait=wait)
        fault("deliver.looked")
    except Interrupted:
        raise
    except Exception as error:  # whatever went wrong, the old generation comes back
        raise HandclaspError(Kind.DELIVERY_FAILED, f"{_reason(error)}; {hands.back(name, previous)}") from error
    hands.settle(name, previous)
    return name


def _hands(target: Target, content: Content, identity: str) -> Hands:
    if target.helper is None:
        return Delivery(target, content, identity)
    from handclasp.agent.helper.client import Helped

    return Helped(target, content)


class Delivery:
    """One delivery by this process."""

    def __init__(self, target: Target, content: Content, identity: str) -> None:
        place = target.place
        assert isinstance(place, Generated)
        self.target, self.place, self.content, self.identity = target, place, content, identity
        self.generations = Generations(place.directory, owner=place.owner, group=place.group)
        self.environment = {"HANDCLASP_IDENTITY": identity, "HANDCLASP_DIRECTORY": str(place.directory / "current")}
        self.told = False

    def bring(self, confirmed: str) -> tuple[str, str]:
        """Write, flip, validate and reload."""
        generations = self.generations
        self.place.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        with reach.directory(self.place.directory):  # raises for one that others lead us to
            _hold(self.place.directory, self.identity)
        generations.recover()
        _adopt(generations, self.place)
        Material(self.content.credential, self.content.bundle).check()
        name = self._generation()
        previous = (
            confirmed if confirmed in generations.names() else next((old for old in reversed(generations.names()) if old != name), "")
        )
        try:
            self._bring(name)
        except Exception as error:  # whatever went wrong, the old generation comes back
            raise HandclaspError(Kind.DELIVERY_FAILED, f"{_reason(error)}; {self.back(name, previous)}") from error
        return name, previous

    def _bring(self, name: str) -> None:
        target = self.target
        if self.generations.current() != name:
            self.generations.flip(name)
        _link(self.place)
        fault("deliver.flipped")
        if target.validate:
            run_command("validate", target.validate, timeout=target.timeout, environment=self.environment)
        fault("deliver.validated")
        self.told = True
        self._tell()
        fault("deliver.reloaded")

    def settle(self, name: str, previous: str) -> None:
        """Remove generations that nobody needs any more."""
        self.generations.prune(self.place.keep, (name, previous))

    def back(self, name: str, previous: str) -> str:
        """Put the previous generation back, and say in words what is in place now."""
        if not previous or previous == name:
            return "there was no previous certificate to go back to, so this one stays in place"
        self.generations.flip(previous)
        fault("deliver.rolled_back")
        if self.told:
            with contextlib.suppress(HandclaspError):  # the finding is about what failed first
                self._tell()
        return "the previous certificate is back in place"

    def _tell(self) -> None:
        if self.target.reload is not None:
            tell(self.target.reload, timeout=self.target.timeout, environment=self.environment)

    def _generation(self) -> str:
        """Return the generation with this content: the one that an earlier try wrote, or a new one."""
        digest = self.place.digest(self.content)
        files = self.place.render(self.content)
        for name in reversed(self.generations.names()):
            if self._is_as_written(name, digest, files):
                return name
        sums = {file: hashlib.sha256(one.data).hexdigest() for file, one in files.items()}
        return self.generations.write({**files, _DIGEST: File(msgspec.json.encode(_Note(content=digest, files=sums)))})

    def _is_as_written(self, name: str, digest: str, files: Mapping[str, File]) -> bool:
        """Tell whether a generation has this content, and nobody has changed anything in it since."""
        try:
            note = msgspec.json.decode(self.generations.read(name, _DIGEST, _NOTE) or b"", type=_Note)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        if note.content != digest or note.files.keys() != files.keys():
            return False
        for file, expected in files.items():
            data = self.generations.read(name, file)
            if data is None or hashlib.sha256(data).hexdigest() != note.files[file]:
                return False
            if stat.S_IMODE((self.generations.path(name) / file).lstat().st_mode) != expected.mode:
                return False
        return True


def _reason(error: Exception) -> str:
    """Say in words what failed. A fault of ours fails a delivery too: no service is left on files that nobody has seen it take."""
    if isinstance(error, HandclaspError):
        return error.detail
    if isinstance(error, OSError):
        return str(error)
    _log.error("unexpected", exc_info=error)
    return f"{type(error).__name__}: {error}"


def _hold(directory: Path, identity: str) -> None:
    """Note whose directory this is; raise ``delivery_failed`` when it is another identity's, which would be overwritten."""
    note = directory / _HOLDER
    try:
        with reach.file(note) as reached:
            # What somebody else's file says is not for our log: it may be a link to one that he cannot read.
            ours = reached.trusts(os.fstat(reached.descriptor))
            holder = reach.read_all(reached.descriptor, note, _NOTE).decode("utf-8").strip() if ours else ""
    except (OSError, UnicodeDecodeError):
        holder = ""  # replaced by one that can be read
    if holder == identity:
        return
    if holder:
        raise HandclaspError(
            Kind.DELIVERY_FAILED,
            f"the directory {directory} is that of {holder if holder.isprintable() else 'somebody else'}",
            hint=f"deliver somewhere else, or remove {note} when it no longer is",
        )
    for left in directory.glob(f".{_HOLDER}-*"):  # by an interruption
        left.unlink(missing_ok=True)
    replace_file(note, f"{identity}\n".encode(), 0o644)


def _adopt(generations: Generations, place: Generated) -> None:
    """Take files that stand where our links will be as the first generation, so that there is something to go back to."""
    if generations.current():
        return
    found = {name: path for name, path in place.links if path.is_file() and not path.is_symlink()}
    if not any(wanted <= found.keys() for wanted in place.adopts):
        return
    files = {name: file for name, path in found.items() if (file := _theirs(path)) is not None}
    if len(files) < len(found):
        return
    generations.flip(generations.write(files))
    _link(place, only=found)


def _theirs(path: Path) -> File | None:
    """Return a file that a service had before us; None for one that its user may have put there without being able to read it."""
    with reach.file(path) as reached:
        state = os.fstat(reached.descriptor)
        if not reached.trusts(state):
            _log.warning("%s is not kept as a way back: it is not a file of the user whose directory it is in", path)
            return None
        return File(reach.read_all(reached.descriptor, path), stat.S_IMODE(state.st_mode) & 0o777)


def _link(place: Generated, only: Container[str] | None = None) -> None:
    """Let the configured paths lead into the generation that counts; each is replaced by one rename."""
    for name, path in place.links:
        wanted = place.directory / "current" / name
        if (only is not None and name not in only) or (path.is_symlink() and path.readlink() == wanted):
            continue
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with reach.directory(path.parent) as parent:
            replace_link(wanted, path.name, parent.descriptor)
