"""What can be said of a process: one small file per attestor.

    unix         user, groups, executable      kubernetes   pod, through the kubelet
    systemd      unit                          docker       container, through the Docker API
    cgroup       pure: which unit, container and pod a control group belongs to

An attestor that fails is logged and left out, unless all fail. What it said of the same process before is used instead where nothing of
that process has changed: a kubelet that is away for a moment must not take the identity from a service that runs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from handclasp.agent.socket.attest.base import Attestor, NotYetError, clean
from handclasp.agent.socket.proc import Process
from handclasp.errors import HandclaspError, Kind

__all__ = ["Attested", "Attestor", "Memory", "NotYetError", "attest"]

_log = logging.getLogger("handclasp.agent.socket")
_BASE = ("unix", "systemd")
"""Attestors that ask nobody, so that leaving them out saves nothing."""


@dataclass(frozen=True, slots=True)
class Attested:
    """What a process is. ``failed``: attestors that could not say; ``pending``: those that may be able to in a moment."""

    selectors: tuple[str, ...]
    failed: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()


@dataclass
class Memory:
    """What attestors said of one process, for as long as its mark (executable and control group) is the same."""

    mark: tuple[object, ...] = ()
    said: dict[str, list[str]] = field(default_factory=dict)


def attest(process: Process, attestors: Sequence[Attestor], wanted: frozenset[str] | None = None, memory: Memory | None = None) -> Attested:
    """Return what a process is; blocks. It is checked before and after that it is the same process all the time.

    ``wanted``: the kinds of selector that anybody asks for (None: all). Raises ``not_allowed`` for a process that is gone or is another
    one, ``unavailable`` when every attestor failed.
    """
    with process.in_use():
        return _attest(process, attestors, wanted, memory if memory is not None else Memory())


def _attest(process: Process, attestors: Sequence[Attestor], wanted: frozenset[str] | None, memory: Memory) -> Attested:
    process.check()
    mark = _mark(process)
    if mark != memory.mark:
        memory.mark, memory.said = mark, {}
    selectors: list[str] = []
    failed, pending = [], []
    for attestor in attestors:
        if wanted is not None and attestor.name not in _BASE and not any(kind.startswith(f"{attestor.name}:") for kind in wanted):
            continue
        try:
            memory.said[attestor.name] = found = clean(attestor.selectors(process, wanted))
        except (HandclaspError, OSError, ValueError) as error:
            _log.log(
                logging.DEBUG if isinstance(error, NotYetError) else logging.WARNING,
                "process %d: the %s attestor: %s", process.pid, attestor.name, error.detail if isinstance(error, HandclaspError) else error,
            )  # fmt: skip
            if attestor.name not in memory.said:
                failed.append(attestor.name)
                if isinstance(error, NotYetError):
                    pending.append(attestor.name)
                continue
            found = memory.said[attestor.name]
        selectors += found
    process.check()
    if failed and not selectors:
        raise HandclaspError(Kind.UNAVAILABLE, f"nothing can be said of the calling process: {', '.join(failed)} failed")
    return Attested(tuple(dict.fromkeys(selectors)), tuple(failed), tuple(pending))


def _mark(process: Process) -> tuple[object, ...]:
    """What must be the same for an earlier answer to be used: the executable and the control group, as far as they can be seen."""
    try:
        executable: object = (process.stat("exe").st_dev, process.stat("exe").st_ino)
    except OSError:
        executable = None
    try:
        cgroup = process.read("cgroup")
    except OSError:
        cgroup = b""
    return executable, cgroup
