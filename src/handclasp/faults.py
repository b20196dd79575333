"""Named places where a test may stop, fail or kill the process.

``HANDCLASP_FAULT=issue.signed:kill`` kills the process (SIGKILL) the first time it passes that point; ``:fail`` raises an ``OSError``
there; ``:N:kill`` does so at the N-th passing. Without the variable a point costs one comparison. There is no way to arm a point at run
time from outside the process.
"""

from __future__ import annotations

import errno
import os
import signal

POINTS: set[str] = set()
"""Every point that code has declared; tests walk it so that a new point cannot be forgotten."""


def declare(*names: str) -> None:
    """Make points known to the tests that kill at each of them."""
    POINTS.update(names)


def _armed() -> tuple[str, int, str] | None:
    text = os.environ.get("HANDCLASP_FAULT", "")
    if not text:
        return None
    name, *rest = text.split(":")
    action = rest[-1] if rest else "kill"
    count = int(rest[0]) if len(rest) == 2 else 1
    return name, count, action


_ARMED = _armed()
_passed = 0


def fault(name: str) -> None:
    """Pass the point ``name``: nothing, unless this process was started with that point armed."""
    if _ARMED is None or _ARMED[0] != name:
        return
    global _passed
    _passed += 1
    if _passed != _ARMED[1]:
        return
    if _ARMED[2] == "fail":
        raise OSError(errno.ENOSPC, f"fault point {name}")
    os.kill(os.getpid(), signal.SIGKILL)
