"""Waiting for something to become so, no longer than needed."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(condition: Callable[[], object], seconds: float = 30, what: str = "") -> None:
    """Return as soon as ``condition()`` holds; fail after ``seconds``, which only says how long a broken test takes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it never happened: {what}"
        time.sleep(0.01)
