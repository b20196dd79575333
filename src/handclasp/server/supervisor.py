"""Several serving processes under one: started, watched, started again when they die, and ended together."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable

from handclasp.errors import HandclaspError

RESTART_PAUSE = 1.0  # seconds before a worker that died is started again
MAX_FAILED_STARTS = 3
"""How often a worker may die before it was ever ready. A setting that cannot work is then an exit code, and not a loop."""
PATIENCE = 30.0
"""Seconds that workers have to end after SIGTERM: more than they give their requests. Then they are killed."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)

Work = Callable[[int, Callable[[], None]], None]
"""``work(worker, ready)`` serves in a process of its own until SIGTERM; it calls ``ready`` once it does."""


class Supervisor:
    """Runs N workers. For the main thread of a process that has nothing else to do."""

    def __init__(self, workers: int, work: Work, ready: Callable[[], None]) -> None:
        """``ready`` is called once, when every worker is."""
        self._workers = workers
        self._work = work
        self._ready = ready
        self._children: dict[int, int] = {}
        self._due: dict[int, float] = {}
        """When a worker that died is to be started again."""
        self._failed_starts: dict[int, int] = {}
        self._were_ready: set[int] = set()
        self._stopping = False
        self._told_at: float | None = None
        self._code = 0
        self._reader, self._writer = os.pipe()
        self._wake_reader, self._wake_writer = os.pipe()
        for descriptor in (self._reader, self._wake_reader, self._wake_writer):
            os.set_blocking(descriptor, False)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; return the exit code: 1 when a worker cannot be started at all."""
        for number in SIGNALS:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, _wake)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        try:
            for worker in range(self._workers):
                self._due[worker] = 0.0
            while self._children or not self._stopping:
                self._start_due()
                self._end_all_if_told()
                self._wait()
                self._collect()
        finally:
            signal.set_wakeup_fd(-1)
        return self._code

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _start_due(self) -> None:
        for worker, due in list(self._due.items()):
            if not self._stopping and time.monotonic() >= due:
                del self._due[worker]
                self._spawn(worker)

    def _end_all_if_told(self) -> None:
        if not self._stopping:
            return
        now = time.monotonic()
        if self._told_at is None:
            self._told_at = now
            self._signal(signal.SIGTERM)
        elif now - self._told_at > PATIENCE:
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._children:  # not collected yet, so the number is still theirs
            os.kill(pid, number)

    def _wait(self) -> None:
        """Sleep until a signal, an announcement, or a time that was set; a child that ends is a signal."""
        if self._stopping and not self._children:
            return
        pause = min((max(0.0, due - time.monotonic()) for due in self._due.values()), default=1.0)
        found, _, _ = select.select([self._reader, self._wake_reader], [], [], min(pause, 1.0))
        if self._wake_reader in found:
            os.read(self._wake_reader, 4096)
        if self._reader in found:
            announced = os.read(self._reader, 2)  # written at once, so read at once
            self._announced(int.from_bytes(announced, "big"))

    def _announced(self, worker: int) -> None:
        before = len(self._were_ready)
        self._were_ready.add(worker)
        if len(self._were_ready) == self._workers > before and not self._stopping:
            self._ready()

    def _collect(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            worker = self._children.pop(pid, None)
            if worker is not None and not self._stopping:
                self._ended(worker, os.waitstatus_to_exitcode(status))

    def _ended(self, worker: int, code: int) -> None:
        if worker not in self._were_ready:
            self._failed_starts[worker] = self._failed_starts.get(worker, 0) + 1
            if self._failed_starts[worker] >= MAX_FAILED_STARTS:
                _say(f"error: worker {worker} ended {MAX_FAILED_STARTS} times before it was ready (last exit code {code}); giving up")
                self._stopping, self._code = True, 1
                return
        _say(f"worker {worker} ended ({code}); starting it again")
        self._due[worker] = time.monotonic() + RESTART_PAUSE

    def _spawn(self, worker: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # one that comes now must not find the parent's handler in the child
        try:
            pid = os.fork()
            if pid == 0:
                self._be_worker(worker)
            self._children[pid] = worker
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _be_worker(self, worker: int) -> None:
        """Work, and end this process: nothing of the parent's may go on in it."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (*SIGNALS, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            self._work(worker, lambda: self._announce(worker))
            code = 0
        except HandclaspError as error:
            _say(f"error: {error}")
        except BaseException:  # whatever it is: a child must never go on in the parent's code
            traceback.print_exc()
        finally:
            os._exit(code)

    def _announce(self, worker: int) -> None:
        os.write(self._writer, worker.to_bytes(2, "big"))


def _wake(*_: object) -> None:
    """Take the signal: that it came is enough, for the wake-up descriptor tells."""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
