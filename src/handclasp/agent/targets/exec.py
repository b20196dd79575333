"""A child with its credentials: started on them, and restarted or signalled when they change.

The files are generations as everywhere, in a directory of the child's own. The children of a process are in one place (:class:`Children`),
because they outlive a reading of the configuration: one that did not change there runs on.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from handclasp.agent.content import Content
from handclasp.agent.generations import File, Generations
from handclasp.agent.look import look
from handclasp.agent.targets.base import Around, Drift, Interrupted, Look
from handclasp.agent.targets.child import Child
from handclasp.agent.targets.files import Files, digest_of
from handclasp.agent.targets.process import DIRECTORY, Spec
from handclasp.client.material import Material
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault

declare("exec.flipped", "exec.told", "exec.rolled_back")

_log = logging.getLogger("handclasp.agent.exec")
_DIGEST = ".content"
VARIABLES = {
    "key": ("HANDCLASP_KEY_FILE", "key.pem"),
    "certificate": ("HANDCLASP_CERTIFICATE_FILE", "cert.pem"),
    "chain": ("HANDCLASP_CHAIN_FILE", "chain.pem"),
    "bundle": ("HANDCLASP_BUNDLE_FILE", "bundle.pem"),
    "combined": ("HANDCLASP_COMBINED_FILE", "combined.pem"),
    "crl": ("HANDCLASP_CRL_FILE", "crl.pem"),
}
"""What a child is told the path of: the word in the configuration, the variable's usual name, and the file."""


@dataclass(frozen=True, slots=True)
class Exec:
    """One child. ``signal`` 0: it is restarted on a change. It counts as started when it has run for ``settle`` seconds.

    ``names`` are other names for variables of :data:`VARIABLES`, by the word in the configuration.
    """

    files: Files
    command: tuple[str, ...]
    names: tuple[tuple[str, str], ...] = ()
    signal: int = 0
    restart: str = "always"
    backoff: tuple[float, float] = (1.0, 60.0)
    user: int = -1
    group: int = -1
    stop_timeout: float = 10.0
    settle: float = 1.0
    look: Look | None = None
    extra: tuple[tuple[str, str], ...] = field(default=())
    """Further variables, as they are."""

    @property
    def kind(self) -> str:
        """Its word in the configuration."""
        return "exec"

    @property
    def name(self) -> str:
        """Unique: no two children have one directory."""
        return f"{self.kind}:{self.files.directory}"

    @property
    def directory(self) -> Path:
        """Where its generations are."""
        return self.files.directory

    @property
    def crl(self) -> bool:
        """Whether revocation lists are part of it."""
        return self.files.crl

    @property
    def spec(self) -> Spec:
        """What to run."""
        return Spec(
            self.command,
            self.files.directory,
            self._environment(),
            self.restart,
            self.backoff,
            self.user,
            self.group,
            self.stop_timeout,
        )

    def digest(self, content: Content, /) -> str:
        """Digest of what this place is to hold."""
        how = (self.command, self._environment(), self.signal, self.restart, self.backoff, self.user, self.group, self.stop_timeout)
        return digest_of(content, self.crl, (self.files.digest(content), how))

    def deliver(self, content: Content, confirmed: str, around: Around, /) -> str:
        """Write and flip the generation, have a child that runs on it, and return the generation's name.

        When the child does not come up with it, or does not serve it, the previous generation is put back and the child is started on that.
        """
        generations = self._generations()
        Material(content.credential, content.bundle).check()
        name = self._generation(generations, content)
        others = [old for old in reversed(generations.names()) if old != name]
        previous = confirmed if confirmed in generations.names() else next(iter(others), "")
        child = CHILDREN.child(self)
        with child.busy:
            try:
                if generations.current() != name:
                    generations.flip(name)
                fault("exec.flipped")
                self._tell(child.child, name)
                fault("exec.told")
                self._see(child.child, content, around)
            except (HandclaspError, OSError) as error:
                reason = error.detail if isinstance(error, HandclaspError) else str(error)
                after = "it is tried again" if name == confirmed else self._go_back(generations, child.child, name, previous)
                raise HandclaspError(Kind.DELIVERY_FAILED, f"{reason}; {after}") from error
            child.exits = child.child.exits
        generations.prune(self.files.keep, (name, previous))
        return name

    def drift(self, confirmed: str, around: Around, /) -> Drift | None:  # noqa: ARG002  (what counts is whether the child runs)
        """Say that the child does not run as it should, or has ended since this was asked last."""
        return CHILDREN.drift(self)

    def _generations(self) -> Generations:
        # A child of another user must get through to files that are its own; nobody else can read them.
        mode = 0o700 if self.files.owner < 0 else 0o755
        self.files.directory.mkdir(mode=mode, parents=True, exist_ok=True)
        generations = Generations(self.files.directory, owner=self.files.owner, group=self.files.group, directory_mode=mode)
        generations.recover()
        return generations

    def _generation(self, generations: Generations, content: Content) -> str:
        digest = self.files.digest(content).encode()
        for name in reversed(generations.names()):
            if generations.read(name, _DIGEST, len(digest)) == digest:
                return name
        return generations.write(self.files.render(content) | {_DIGEST: File(digest)})

    def _environment(self) -> tuple[tuple[str, str], ...]:
        home, names = self.files.directory / "current", dict(self.names)
        there = {"combined": bool(self.files.combine), "crl": self.files.crl}
        files = [(names.get(word, usual), str(home / file)) for word, (usual, file) in VARIABLES.items() if there.get(word, True)]
        return ((DIRECTORY, str(home)), *files, *self.extra)

    def _tell(self, child: Child, name: str) -> None:
        """Have it run on the generation that counts now: nothing to do, a signal, or a start."""
        if child.spec != self.spec or not child.kept or (child.told != name and not (self.signal and child.pid)):
            child.start(self.spec)
        elif child.told != name:
            child.tell(self.signal)
        child.told = name

    def _see(self, child: Child, content: Content, around: Around) -> None:
        problem = child.settled(self.settle)
        if problem is not None:
            raise HandclaspError(Kind.DELIVERY_FAILED, problem)
        if self.look is not None:
            look(self.look, content.sha256, content.credential, timeout=around.timeout, wait=around.wait)
        elif around.wait(0):
            raise Interrupted

    def _go_back(self, generations: Generations, child: Child, name: str, previous: str) -> str:
        if not previous or previous == name:
            child.stop()
            return "there was no previous certificate to go back to"
        generations.flip(previous)
        fault("exec.rolled_back")
        try:
            self._tell(child, previous)
        except HandclaspError as error:  # what is reported is what failed first; its thread goes on trying to start it
            _log.warning("%s: with the previous certificate: %s", self.name, error.detail)
        return "the previous certificate is back in place"


@dataclass
class _Kept:
    child: Child
    busy: threading.Lock = field(default_factory=threading.Lock)
    exits: int = 0


class Children:
    """All children of this process, by the name of their target. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}

    def child(self, place: Exec) -> _Kept:
        """Return the child of a target, made when there is none yet; whoever works with it holds ``busy``."""
        with self._lock:
            return self._kept.setdefault(place.name, _Kept(Child(place.name)))

    def drift(self, place: Exec) -> Drift | None:
        """Say what is wrong with a child, or what has been since this was asked last."""
        with self._lock:
            kept = self._kept.get(place.name)
        if kept is None:
            return Drift("the command was not started yet", expected=True)
        before, kept.exits = kept.exits, kept.child.exits
        if kept.child.pid:
            return Drift(f"{kept.child.problem}, and was started again") if kept.exits > before else None
        return None if kept.child.done else Drift(kept.child.problem or "the command does not run")

    def retain(self, names: set[str]) -> None:
        """Stop all but these, at the same time; an empty set ends everything."""
        with self._lock:
            gone = [self._kept.pop(name) for name in list(self._kept) if name not in names]
        if gone:
            with ThreadPoolExecutor(len(gone)) as pool:
                list(pool.map(lambda kept: kept.child.close(), gone))


CHILDREN = Children()
"""The children of this process."""
