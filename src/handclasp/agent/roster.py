"""Which identities an agent looks after just now, and when each is attended to next.

Keepers come and go from any thread while the agent runs: those of ``agent.yaml`` at its start, those of the socket when a process asks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from handclasp.agent.config import Managed
from handclasp.agent.keeper import Keeper, Mark
from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind

_log = logging.getLogger("handclasp.agent")

Change = Callable[[Keeper], None]
"""Called in a worker thread whenever ``keeper.content()`` has changed, the first one included; it must be quick and raise nothing."""

_AGAIN = 60_000


class Entry:
    """One keeper with its place in the schedule; its fields are the roster's, under its lock."""

    __slots__ = ("after", "again", "busy", "gone", "keeper", "listeners", "mark", "wake_at")

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.listeners: list[Change] = []
        self.mark: Mark | None = None
        self.wake_at = 0
        self.busy, self.gone, self.again = False, False, False
        self.after: Entry | None = None
        """A removed keeper of the same store that is still at work: this one begins when it has ended."""

    def wake(self) -> None:
        """Have it attended to at once, or once more when it is being attended to."""
        self.wake_at, self.again = 0, self.busy


class Roster:
    """The keepers of an agent. All methods may be called from any thread.

    ``make`` makes a keeper, which reads nothing until it is loaded; ``poke`` wakes whoever waits for the next thing that is due.
    An identity may be there once for each ``slot`` (``""`` is ``agent.yaml``'s): each slot has a store of its own on disk.
    """

    def __init__(self, make: Callable[[Managed], Keeper], poke: Callable[[], None], clock: Clock) -> None:
        self._make, self._poke, self._clock = make, poke, clock
        self._lock = threading.Lock()
        self._adding = threading.Lock()
        self._entries: dict[tuple[str, str], Entry] = {}
        self._leaving: dict[tuple[str, str], Entry] = {}

    # --- for everybody ----------------------------------------------------------------------------------------------------------------

    def add(self, managed: Managed, *, on_change: Change | None = None) -> Keeper:
        """Look after an identity from now on and return its keeper; what is on disk for it counts, so nothing is issued twice.

        One that is there already is returned as it is, with one more ``on_change``. Raises ``conflict`` when it is there with other
        settings: remove it first.
        """
        with self._adding:
            entry = self._entries.get((managed.slot, managed.name)) or self._enter(Entry(self._make(managed)))
            if entry.keeper.managed != managed:
                raise HandclaspError(Kind.CONFLICT, f"{managed.name} is looked after already, with other settings")
            with self._lock:
                if on_change is not None:
                    entry.listeners.append(on_change)
                    entry.mark = None
                    entry.wake()
        self._poke()
        return entry.keeper

    def remove(self, name: str, slot: str = "") -> None:
        """Look after it no longer; unknown names are fine. What it holds stays on disk, for when it comes back."""
        with self._lock:
            entry = self._entries.pop((slot, name), None)
            if entry is not None:
                entry.gone = True
                entry.listeners.clear()
                if entry.busy:
                    self._leaving[slot, name] = entry

    def find(self, name: str, slot: str = "") -> Keeper | None:
        """Return the keeper of an identity."""
        with self._lock:
            entry = self._entries.get((slot, name))
        return entry.keeper if entry else None

    def keepers(self) -> list[Keeper]:
        """Return all keepers but that of the agent's own identity."""
        with self._lock:
            return [entry.keeper for entry in self._entries.values() if not entry.keeper.own]

    def everyone(self) -> list[Keeper]:
        """Return all keepers, the agent's own first."""
        with self._lock:
            return [entry.keeper for entry in self._entries.values()]

    def wake(self, name: str = "", slot: str = "") -> None:
        """Have one identity, or all of them, decided afresh now: something that decides about them has changed."""
        with self._lock:
            for key, entry in self._entries.items():
                if not name or key == (slot, name):
                    entry.wake()
        self._poke()

    def idle(self, do: Callable[[Keeper], None]) -> None:
        """Call ``do`` with each keeper that no other thread is using, which none will meanwhile. It must be quick."""
        with self._lock:
            entries = list(self._entries.values())
        for entry in entries:
            with self._lock:
                if entry.busy or entry.gone:
                    continue
                entry.busy = True
            try:
                do(entry.keeper)
            finally:
                self._done(entry)
        self._poke()

    # --- for the loop -----------------------------------------------------------------------------------------------------------------

    def due(self, now: int) -> tuple[list[Entry], int]:
        """Take what is due (each is busy from here on, until :meth:`attend` has returned) and when the next is."""
        due, wake_at = [], now + _AGAIN
        with self._lock:
            for entry in self._entries.values():
                if entry.busy or (entry.after is not None and entry.after.busy):
                    continue
                if entry.wake_at <= now:
                    entry.busy = True
                    due.append(entry)
                elif entry.wake_at < wake_at:
                    wake_at = entry.wake_at
        return due, wake_at

    def attend(self, entry: Entry) -> bool:
        """Do what is due for one that :meth:`due` gave; return whether the server should hear of it."""
        changed = False
        try:
            if entry.after is not None:
                entry.after = None
                entry.keeper.load()  # its predecessor may have written since
            entry.wake_at = self._clock() + _AGAIN  # should this end by an exception, it is tried again, and not at once
            wake_at, changed = entry.keeper.attend()
            self._tell(entry)
            entry.wake_at = wake_at
        finally:
            self._done(entry)
            self._poke()
        return changed

    def _enter(self, entry: Entry) -> Entry:
        key = (entry.keeper.managed.slot, entry.keeper.managed.name)
        with self._lock:
            entry.after = self._leaving.get(key)
        if entry.after is None:
            entry.keeper.load()
            decision = entry.keeper.decision()
            entry.wake_at = 0 if decision.actions else decision.wake_at
        with self._lock:
            self._entries[key] = entry
        return entry

    def _tell(self, entry: Entry) -> None:
        mark = entry.keeper.mark()
        if mark is None or mark == entry.mark:
            return
        entry.mark = mark
        for listener in tuple(entry.listeners):
            try:
                listener(entry.keeper)
            except Exception:  # a part that listens may fail as it likes: renewals go on
                _log.exception("%s: whoever listens for its changes failed", entry.keeper.managed.name)

    def _done(self, entry: Entry) -> None:
        with self._lock:
            entry.busy = False
            if entry.again:
                entry.wake()
            key = (entry.keeper.managed.slot, entry.keeper.managed.name)
            if self._leaving.get(key) is entry:
                del self._leaving[key]
