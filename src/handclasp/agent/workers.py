"""Threads that are there while there is work.

A thread that waits keeps what the C library set aside for it, some 200 KB after a burst; one that has ended gives it back. An agent does
nothing for most of its life, and threads are made in 0.1 ms.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

_log = logging.getLogger("handclasp.agent")


class Workers:
    """At most ``most`` threads. What is submitted is done in that order, each piece in one of them, and ``done`` is called after each."""

    def __init__(self, most: int, name: str, done: Callable[[], None]) -> None:
        self._most, self._name, self._done = most, name, done
        self._waiting: deque[Callable[[], None]] = deque()
        self._state = threading.Condition()
        self._threads = 0

    def submit(self, work: Callable[[], None]) -> None:
        """Have ``work`` done soon; what it raises is logged. Where the system has no thread left it is done when there is one again."""
        with self._state:
            self._waiting.append(work)
            if self._threads == self._most:
                return
            self._threads += 1
        try:
            threading.Thread(target=self._run, name=self._name).start()
        except RuntimeError as error:
            _log.error("%s", error)
            self._ended()

    def close(self) -> None:
        """Return when everything that was submitted has been done."""
        with self._state:
            self._state.wait_for(lambda: not self._threads)

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except Exception:  # a thread of the pool outlives whatever it is given to do
                _log.exception("unexpected")
            self._done()

    def _next(self) -> Callable[[], None] | None:
        with self._state:
            if self._waiting:
                return self._waiting.popleft()
            self._threads -= 1
            self._state.notify_all()
        return None

    def _ended(self) -> None:
        with self._state:
            self._threads -= 1
            self._state.notify_all()
