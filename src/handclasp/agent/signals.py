"""What signals mean to a process of the agent's: SIGTERM and SIGINT end it, SIGHUP has it read its configuration again."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def on_signals(stop: Callable[[], None], again: Callable[[], None], wake: int = -1) -> Iterator[None]:
    """Call ``stop`` and ``again`` on signals while the body runs; in a thread, where Python has no signals, do nothing.

    A byte is written to the descriptor ``wake`` (one that does not block) at each signal. A body that waits in ``poll`` without an end must
    wait for that too: a signal that comes just before it begins to wait would else be seen only after the next one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(_number: int, _frame: FrameType | None) -> None:
        stop()

    def hang_up(_number: int, _frame: FrameType | None) -> None:
        again()

    old = {number: signal.signal(number, terminate) for number in (signal.SIGTERM, signal.SIGINT)}
    old[signal.SIGHUP] = signal.signal(signal.SIGHUP, hang_up)
    before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in old.items():
            signal.signal(number, handler)
