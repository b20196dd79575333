"""The certificates of workloads: one for each (workload of the policy, identity), obtained when first asked for and kept in the roster.

A certificate is renewed while somebody has a stream open that carries it, or has asked for it within ``keep`` seconds. What is in use is
also written down, so that an agent that starts again goes on with it. Everything here is called from the socket's own thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from handclasp import wire
from handclasp.agent.config import Managed
from handclasp.agent.content import Content
from handclasp.agent.generations import replace_file
from handclasp.agent.socket.host import Holder, Keepers
from handclasp.agent.socket.match import Entitled, fits
from handclasp.agent.state import slug
from handclasp.clock import Clock, parse_rfc3339
from handclasp.errors import HandclaspError, Kind

_log = logging.getLogger("handclasp.agent.socket")
SLOT = "socket"
MAX_HELD = 1000
"""Identities at once. A selector that callers can choose (a label, say) must not make us ask for certificates without end."""
_SAVE = 600_000

Key = tuple[str, str]


class _Used(msgspec.Struct, kw_only=True):
    workload: str
    identity: str
    at: int


class _Held:
    __slots__ = ("changes", "content", "holder", "managed", "used")

    def __init__(self, managed: Managed, used: int) -> None:
        self.managed, self.used = managed, used
        self.holder: Holder | None = None
        self.content: Content | None = None
        self.changes = 0

    def read(self) -> Content | None:
        """What the holder has; kept until it says that this has changed, because it reads and checks files each time."""
        if self.content is None and self.holder is not None:
            changes = self.changes
            content = self.holder.content()
            if changes == self.changes:
                self.content = content
            return content
        return self.content


class Issued:
    """``changed`` is called with the key of a certificate that has come or changed, in any thread; ``state`` is the state directory."""

    def __init__(
        self, roster: Keepers, file: Path, changed: Callable[[Key], None], *, clock: Clock, keep: float, state: Path | None = None
    ) -> None:
        self._roster, self._file, self._changed, self._state = roster, file, changed, state
        self._clock, self._keep = clock, int(keep * 1000)
        self._held: dict[Key, _Held] = {}
        self._streams: Counter[Key] = Counter()
        self._saved_at, self._saved = 0, frozenset[Key]()

    def content(self, entitled: Entitled) -> Content | None:
        """Return what can be handed out now, having it obtained when nobody does; None before the first certificate, and when the last one
        has ended. Raises ``rate_limited`` for one identity too many.
        """
        held = self._want(entitled.workload, entitled.identity, self._clock())
        content, told = held.read(), self._told(held)
        # ``told`` may be of a moment before the content: that it has ended counts only for the certificate that it speaks of.
        if content is None or (told.not_after and told.sha256 == content.sha256 and parse_rfc3339(told.not_after) <= self._clock()):
            return None
        return content

    def failure(self, entitled: Entitled) -> str:
        """Return why there is no certificate, in words, or nothing when it is only a matter of time."""
        told = self._told(self._want(entitled.workload, entitled.identity, self._clock()))
        return told.last_failure or "" if told.state in ("failed", "overdue") else ""

    @staticmethod
    def _told(held: _Held) -> wire.AgentIdentity:
        assert held.holder is not None
        return held.holder.told

    def hold(self, keys: Iterable[Key], before: Iterable[Key] = ()) -> tuple[Key, ...]:
        """Say that a stream carries these from now on, and no longer ``before``; return them for the next time."""
        now = tuple(keys)
        self._streams.update(now)
        self._let_go(before)
        return now

    def _let_go(self, keys: Iterable[Key]) -> None:
        at = self._clock()
        for key in keys:
            self._streams[key] -= 1
            if self._streams[key] <= 0:
                del self._streams[key]
            if key in self._held:
                self._held[key].used = at

    def restore(self, workloads: Iterable[wire.Workload]) -> None:
        """Go on with what was in use when the agent last ran, as far as the policy still gives it."""
        named = {workload.name: workload for workload in workloads}
        for used in self._load():
            workload = named.get(used.workload)
            if workload is not None and fits(workload.identity, used.identity) and self._clock() - used.at < self._keep:
                try:
                    self._want(workload, used.identity, used.at)
                except (HandclaspError, OSError) as error:
                    _log.warning("%s cannot be gone on with: %s", used.identity, error)

    def sync(self, workloads: Iterable[wire.Workload]) -> None:
        """Let go of what the policy no longer gives, and of what nobody has asked for in a long time; write down the rest.

        Keys of what was let go of are removed from the disk at once: another certificate is soon had, should the policy give it again.
        """
        named, now = {workload.name: workload for workload in workloads}, self._clock()
        for key, held in list(self._held.items()):
            workload = named.get(key[0])
            given = workload is not None and fits(workload.identity, key[1])
            if given and (self._streams[key] or now - held.used < self._keep):
                continue
            self._roster.remove(held.managed.name, held.managed.slot)
            del self._held[key]
            _log.info("%s is looked after no longer: %s", key[1], "nobody asks for it" if given else "the policy does not give it")
        self._save(now)
        self._sweep()

    def __len__(self) -> int:
        return len(self._held)

    def _want(self, workload: wire.Workload, identity: str, used: int) -> _Held:
        key, managed = (workload.name, identity), managed_of(workload, identity)
        held = self._held.get(key)
        if held is None and len(self._held) >= MAX_HELD:
            raise HandclaspError(Kind.RATE_LIMITED, f"there are {MAX_HELD} identities on this socket already")
        if held is None or held.managed != managed:
            if held is not None:
                self._roster.remove(held.managed.name, held.managed.slot)  # the policy says something else about it now
            held = self._add(key, _Held(managed, used))
        held.used = max(held.used, used)
        return held

    def _add(self, key: Key, held: _Held) -> _Held:
        def on_change(_: object) -> None:
            held.changes += 1
            held.content = None
            self._changed(key)

        held.holder = self._roster.add(held.managed, on_change=on_change)
        self._held[key] = held
        return held

    def _load(self) -> list[_Used]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=list[_Used])[:MAX_HELD]
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return []

    def _sweep(self) -> None:
        """Remove the state of all that nobody looks after: also what an earlier run left, or a renewal that was under way."""
        if self._state is None:
            return
        kept = {(held.managed.slot, slug(held.managed.name)) for held in self._held.values()}
        slots = {slot for slot, _ in kept}
        for slot in self._state.glob(f"{SLOT}-*"):
            try:
                left = [home for home in slot.iterdir() if (slot.name, home.name) not in kept]
                if left:
                    from shutil import rmtree

                    for home in left:
                        rmtree(home)
                        _log.info("the key in %s is removed", home)
                if slot.name not in slots:
                    slot.rmdir()
            except OSError as error:
                _log.warning("%s cannot be removed: %s", slot, error)

    def _save(self, now: int) -> None:
        keys = frozenset(self._held)
        if keys == self._saved and now - self._saved_at < _SAVE:
            return
        used = [_Used(workload=key[0], identity=key[1], at=now if self._streams[key] else held.used) for key, held in self._held.items()]
        try:
            replace_file(self._file, msgspec.json.encode(used))
        except OSError as error:
            _log.warning("what is in use cannot be written down: %s", error)
        self._saved, self._saved_at = keys, now


def managed_of(workload: wire.Workload, identity: str) -> Managed:
    """Return a workload's identity as one that the agent looks after. Each workload has a slot of its own: two may share an identity."""
    return Managed(
        name=identity,
        identity=identity,
        dns=tuple(workload.dns),
        ip=(),
        profile=workload.profile,
        ttl=workload.ttl,
        key_type="p256",
        targets=(),
        slot=f"{SLOT}-{workload.name}",
    )
