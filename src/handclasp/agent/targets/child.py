"""A child process that is kept running: started, told, stopped, started again when it ends, its output taken line by line.

Each child has a thread of ours, which starts it, waits for it and reads what it says. That thread also is what the child's life hangs on:
Linux sends PR_SET_PDEATHSIG when the *thread* that made a process ends, so no thread of a pool may do it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from handclasp.agent.targets.process import Spec, end_left_over, kill_group, spawn
from handclasp.errors import HandclaspError, Kind

_log = logging.getLogger("handclasp.agent.exec")
_LINE, _CHUNK = 2000, 65536
_RATE, _BURST = 100, 500
"""Lines of a child's output that are logged: so many each second, after so many at once. The rest is counted."""
_LAST = 8
"""Last lines that are kept for the finding when a child ends."""
_WELL = 60.0
"""Seconds after which a child that ends is started again at once, as if it had never ended before."""


@dataclass
class _Output:
    """What a child says: split into lines, bounded, into the log."""

    name: str
    rest: bytes = b""
    last: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST))
    credit: float = _BURST
    at: float = field(default_factory=time.monotonic)
    dropped: int = 0

    def take(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > _LINE:
            lines.append(self.rest)
            self.rest = b""
        for line in lines:
            self._line(line)

    def end(self) -> None:
        if self.rest:
            self._line(self.rest)
        self.rest = b""
        self._tell_dropped()

    def _line(self, line: bytes) -> None:
        text = "".join(c if c.isprintable() or c == "\t" else "?" for c in line[:_LINE].decode("utf-8", "replace").rstrip("\r"))
        self.last.append(text)
        now = time.monotonic()
        self.credit = min(_BURST, self.credit + (now - self.at) * _RATE)
        self.at = now
        if self.credit < 1:
            self.dropped += 1
            return
        self.credit -= 1
        self._tell_dropped()
        _log.info("%s: %s", self.name, text)

    def _tell_dropped(self) -> None:
        if self.dropped:
            _log.warning("%s: %d lines of output are not shown", self.name, self.dropped)
            self.dropped = 0


class Child:
    """One child. ``start``, ``stop`` and ``tell`` may be called from any thread, by one at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.spec: Spec | None = None
        self.told = ""
        """The generation that the running process was started on or was told about; empty while nobody knows."""
        self._changed = threading.Condition()
        self._wake_out, self._wake_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._since = 0.0
        self._failed, self._exits, self._ending = "", 0, False
        self.done = False
        """It ended well, and is not to be started again."""

    # --- for whoever delivers ---------------------------------------------------------------------------------------------------------

    def start(self, spec: Spec) -> None:
        """Have it run as ``spec`` says; what runs already is stopped first. Returns when it has been started, or could not be."""
        self.stop()
        end_left_over(spec.directory, spec.stop_timeout)
        with self._changed:
            self.spec, self._failed, self._ending, self.done = spec, "", False, False
            exits = self._exits
            self._thread = threading.Thread(target=self._run, args=(spec,), name=f"child {self.name}", daemon=True)
            self._thread.start()
            self._changed.wait_for(lambda: self._process is not None or self._exits > exits)

    def stop(self) -> None:
        """End it: SIGTERM to its process group, and SIGKILL when it is still there after ``stop_timeout``. Returns when it is gone."""
        with self._changed:
            thread, self._ending, self.told = self._thread, True, ""
            self._changed.notify_all()
        if thread is None:
            return
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_in, b"x")
        thread.join()
        self._thread, self.spec = None, None
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_out, 1024)

    def tell(self, number: int) -> None:
        """Send a signal to the process itself; raise ``delivery_failed`` when there is none."""
        with self._changed:
            process = self._process
            if process is None:
                raise HandclaspError(Kind.DELIVERY_FAILED, f"there is no process to signal: {self.problem or 'it was not started'}")
            self._since = time.monotonic()  # it has to outlive it: what a signal does by itself is to end a process
            os.kill(process.pid, number)  # it is not waited for while it stands here, so the number is its own

    def settled(self, seconds: float) -> str | None:
        """Wait until it has run for ``seconds`` since it was started or told; return None then, or when it is done, else what is wrong."""
        with self._changed:
            exits = self._exits
            while True:
                if self.done:
                    return None
                if self._exits != exits or self._process is None:
                    return self.problem or "it does not run"
                left = self._since + seconds - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)

    @property
    def pid(self) -> int:
        """Its process id, 0 while it does not run."""
        process = self._process
        return process.pid if process else 0

    @property
    def kept(self) -> bool:
        """Whether it runs, or will be started again when its pause is over."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def exits(self) -> int:
        """How often it has ended by itself."""
        return self._exits

    @property
    def problem(self) -> str:
        """How it ended last, in words; empty when it has not."""
        return self._failed

    def close(self) -> None:
        """Stop it, and give back what it needs of us."""
        self.stop()
        os.close(self._wake_out)
        os.close(self._wake_in)

    # --- its thread -------------------------------------------------------------------------------------------------------------------

    def _run(self, spec: Spec) -> None:
        pause = 0.0
        while not self._ending:
            began = time.monotonic()
            output = _Output(self.name)
            status = self._live(spec, output)
            lived = time.monotonic() - began
            with self._changed:
                if self._ending:
                    self._changed.notify_all()
                    return
                self._failed, self._exits = _ended(status, output), self._exits + 1
                self.done = spec.restart == "on_failure" and status == 0
                over = self.done or spec.restart == "never"
                first, longest = spec.backoff
                pause = first if lived >= _WELL else min(longest, max(first, pause * 2))
                self._changed.notify_all()
                again = "it is not started again" if over else f"it is started again in {pause:g} s"
                _log.warning("%s: %s; %s", self.name, self._failed, again)
                if over or self._changed.wait_for(lambda: self._ending, pause):
                    return

    def _live(self, spec: Spec, output: _Output) -> int | str:
        """One life: start it, read what it says until it ends, and return its status, or in words why there was no life."""
        try:
            process = spawn(spec)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            return f"cannot be started: {getattr(error, 'strerror', None) or error}"
        assert process.stdout is not None
        pidfd = os.pidfd_open(process.pid)
        try:
            with self._changed:
                self._process, self._since = process, time.monotonic()
                self._changed.notify_all()
            if not self._follow(process, pidfd, output):
                self._end(process, pidfd, spec.stop_timeout, output)
        finally:
            with self._changed:
                self._process = None
            # Before it is waited for: until then its number is nobody else's. What it left in its group holds old credentials.
            kill_group(process.pid)
            process.wait()
            os.close(pidfd)
            process.stdout.close()
            output.end()
        return process.returncode

    def _follow(self, process: subprocess.Popen[bytes], pidfd: int, output: _Output, until: float | None = None) -> bool:
        """Read its output until it ends (True), it is to be stopped (False; without ``until``), or until then (monotonic; False)."""
        assert process.stdout is not None
        said = process.stdout.fileno()
        poll = select.poll()
        for descriptor in (pidfd, said, *(() if until is not None else (self._wake_out,))):
            poll.register(descriptor, select.POLLIN)
        while until is None or time.monotonic() < until:
            ready = {fd for fd, _ in poll.poll(None if until is None else max(0, until - time.monotonic()) * 1000)}
            if said in ready and _read(said, output) == 0:
                poll.unregister(said)
            if pidfd in ready:
                while _read(said, output) == _CHUNK:
                    pass
                return True
            if self._wake_out in ready:
                return False
        return False

    def _end(self, process: subprocess.Popen[bytes], pidfd: int, timeout: float, output: _Output) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)
        if not self._follow(process, pidfd, output, time.monotonic() + timeout):
            _log.warning("%s: it did not end in %g s and is killed", self.name, timeout)


def _read(descriptor: int, output: _Output) -> int:
    """Read once; return how much came, 0 at the end, -1 when there is nothing now."""
    try:
        data = os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return -1
    output.take(data)
    return len(data)


def _ended(status: int | str, output: _Output) -> str:
    if isinstance(status, str):
        return status
    how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    said = " / ".join(line for line in output.last if line.strip())
    return f"the command {how}" + (f": {said[-1000:]}" if said else "")
