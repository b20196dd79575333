"""A scan of files, from its roots to its last word: what was found comes out in chunks, and each is remembered once it is acknowledged."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from handclasp.agent.discover.look import Looker, shown
from handclasp.agent.discover.memory import Memory, mark
from handclasp.agent.discover.rules import Rules
from handclasp.agent.discover.walk import Closed, File, Walk
from handclasp.wire.filescans import FileScan, FileSightings, Unchanged, Unread, key_of, unit_of
from handclasp.wire.observations import Observed

_CHUNK = 200
_CHUNK_BYTES = 512 * 1024
_STILL = 2000
_EVERY = 2000
"""Files after which something is said, however little."""
_PACE = 64


class Order(msgspec.Struct, kw_only=True):
    """All that the scanning process is told."""

    scan: FileScan
    identity: str
    host: str
    allow: list[str]
    deny: list[str]
    own: str = ""
    """Where the agent's own state is."""
    passwords_file: str = ""
    memory: str = ""
    """Its file; empty: nothing is known, and nothing kept."""
    avoid: list[str] = []
    """Files that ended the process before."""
    busy: float = 0.25
    """The part of a processor that it may use."""


class Heard(msgspec.Struct, kw_only=True):
    """What came of a chunk."""

    unknown: list[str] = []
    over: bool = False


@dataclass(slots=True)
class _Chunk:
    observed: list[tuple[str, int, Observed]] = field(default_factory=list)
    unchanged: list[Unchanged] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    """Of ``unchanged``."""
    unread: list[Unread] = field(default_factory=list)
    read: int = 0
    size: int = 0

    @property
    def is_full(self) -> bool:
        return (
            len(self.observed) + len(self.unread) >= _CHUNK
            or self.size >= _CHUNK_BYTES
            or len(self.unchanged) >= _STILL
            or self.read >= _EVERY
        )


class Scan:
    """One scan on this host. ``tell`` hands a chunk on and returns what came of it; it may raise, and the scan then ends there."""

    def __init__(
        self,
        order: Order,
        rules: Rules,
        tell: Callable[[FileSightings], Heard],
        *,
        clock: Callable[[], int],
        passwords: Sequence[str] = (),
        risky: Callable[[str], None] = lambda _: None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._order, self._scan, self._rules, self._tell, self._clock = order, order.scan, rules, tell, clock
        self._memory = Memory(Path(order.memory), _asked(order, rules, passwords), order.scan.scan) if order.memory else None
        self._looker = Looker(self._key, order.host, most=order.scan.max_size, passwords=passwords, risky=risky)
        self._pause, self._spent, self._files = pause, time.thread_time(), 0
        self._chunk = _Chunk()
        self._over = False
        self._problems: list[str] = []
        self._skipped: list[str] = []

    def run(self) -> None:
        """Do it, from where an interrupted one was."""
        roots = self._roots()
        after = self._memory.place if self._memory else ""
        for root, unit in roots:
            if self._over:
                return
            if after and _behind(root, after):
                continue
            for step in Walk(root, self._rules, depth=self._scan.max_depth, after=after, stop=self._stopped):
                self._step(step, unit)
                if self._over:
                    return
        if self._files >= self._scan.max_files:
            self._problems.append(f"only the first {self._scan.max_files} files were looked at")
        whole = not self._problems
        covered = [self._unit(pattern) for pattern in self._scan.paths] if whole else []
        self._send("", done=True, covered=covered)
        if self._memory and not self._over:
            self._memory.finish(whole=whole)

    def _roots(self) -> list[tuple[str, str]]:
        found: dict[str, str] = {}
        for pattern in self._scan.paths:
            roots = self._rules.roots(pattern)
            if roots.problem:
                self._problems.append(shown(roots.problem))
            if roots.skipped:
                self._skipped.append(shown(roots.skipped))
            for root in roots.paths:
                found.setdefault(root, self._unit(pattern))
        inside = {root for root in found for other in found if root != other and root.startswith(other.rstrip("/") + "/")}
        return sorted(((root, unit) for root, unit in found.items() if root not in inside), key=lambda pair: pair[0].split("/"))

    def _unit(self, pattern: str) -> str:
        return unit_of(self._order.identity, pattern, _limits(self._scan, self._rules))

    def _stopped(self) -> bool:
        return self._over or self._files >= self._scan.max_files

    def _key(self, path: str) -> str:
        return key_of(self._order.identity, path)

    def _step(self, step: File | Closed, unit: str) -> None:
        if isinstance(step, Closed):
            self._chunk.unread.append(Unread(path=shown(step.path)[:4096], problem=step.problem.lower()))
        elif not self._stopped():
            self._files += 1
            self._file(step, unit)
        if self._files % _PACE == 0:
            self._rest()
        if self._chunk.is_full:
            self._send(step.path)

    def _file(self, file: File, unit: str) -> None:
        looks = mark(file.path, file.state)
        if self._memory:
            if self._memory.has_nothing(looks):
                self._memory.note_nothing(looks)
                self._chunk.read += 1
                return
            digest = self._memory.digest(file.path, looks)
            if digest:
                self._chunk.unchanged.append(Unchanged(key=self._key(shown(file.path)), digest=digest))
                self._chunk.paths.append(file.path)
                return
        self._read(file, unit, looks)

    def _read(self, file: File, unit: str, looks: int) -> None:
        if file.path in self._order.avoid:
            observed: Observed | None = self._looker.unreadable(file, unit, self._clock(), "reading it takes longer than it may")
        else:
            observed = self._looker.look(file, unit, self._clock())
        if observed is None:
            self._chunk.read += 1
            if self._memory:
                self._memory.note_nothing(looks)
            return
        self._chunk.observed.append((file.path, looks, observed))
        self._chunk.size += sum(len(one.der or b"") + sum(map(len, one.chain)) for one in observed.certificates) + 500

    def _send(self, place: str, *, done: bool = False, covered: Sequence[str] = ()) -> None:
        chunk, self._chunk = self._chunk, _Chunk()
        if not done or chunk != _Chunk():
            self._hand_on(chunk, place)
        if self._over:
            return
        if done:
            problem = "; ".join(self._problems)[:2000] or None
            skipped = "; ".join(self._skipped)[:2000] or None
            heard = self._tell(FileSightings(scan=self._scan.scan, covered=list(covered), done=True, problem=problem, skipped=skipped))
            self._over = heard.over
        elif self._memory:
            self._memory.save(place)

    def _hand_on(self, chunk: _Chunk, place: str) -> None:
        heard = self._tell(
            FileSightings(
                scan=self._scan.scan,
                observed=[observed for _, _, observed in chunk.observed],
                unchanged=chunk.unchanged,
                unread=chunk.unread,
                place=shown(place)[:4096],
                read=chunk.read,
            )
        )
        self._over = heard.over
        if self._over:
            return
        if self._memory:
            for path, looks, observed in chunk.observed:
                if observed.problem is None:  # what cannot be read, or opened, is tried again
                    self._memory.note(path, looks, observed.details["digest"])
        if heard.unknown:
            self._again(heard.unknown, chunk)

    def _again(self, unknown: Sequence[str], chunk: _Chunk) -> None:
        """Tell whole what the server does not know any more: it lost it, or never had it."""
        wanted = set(unknown)
        for still, path in zip(chunk.unchanged, chunk.paths, strict=True):
            if still.key not in wanted:
                continue
            if self._memory:
                self._memory.forget(path)
            root, unit = next((pair for pair in self._roots() if _below(path, pair[0])), ("", ""))
            if not root:
                continue
            for step in Walk(path, self._rules, depth=0):
                if isinstance(step, File):
                    self._read(step, unit, mark(step.path, step.state))
        if self._chunk.observed:
            self._send(chunk.paths[-1])

    def _rest(self) -> None:
        """Leave the processor to others: most of the time goes by in pauses."""
        spent = time.thread_time()
        if self._order.busy < 1:
            self._pause(min(5.0, (spent - self._spent) * (1 / self._order.busy - 1)))
        self._spent = spent


def _below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _behind(root: str, after: str) -> bool:
    """Tell whether everything below ``root`` comes before ``after``."""
    parts, last = root.split("/"), after.split("/")
    return parts < last and parts != last[: len(parts)]


def _limits(scan: FileScan, rules: Rules) -> str:
    """Return what stands for what a scan leaves out; empty where that is nothing but what is always left out."""
    usual = FileScan(scan="", source="", paths=[])
    limits = (sorted(rules.excludes), sorted(rules.deny), scan.max_depth, scan.max_size)
    return repr(limits) if limits != ([], [], usual.max_depth, usual.max_size) else ""


def _asked(order: Order, rules: Rules, passwords: Sequence[str]) -> str:
    """Return what stands for everything that decides what is told of a file; passwords only as part of a digest."""
    parts = [order.identity, order.host, str(order.scan.max_size), _limits(order.scan, rules), *order.scan.paths]
    return hashlib.sha256("\0".join([*parts, "", *passwords]).encode("utf-8", "surrogateescape")).hexdigest()
