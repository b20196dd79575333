"""The process that scans. It is told an :class:`Order` on its standard input, says chunks on its standard output, and hears after each.

It has the lowest priority, leaves no core dump (private keys are in its memory for moments), and is ended by the kernel when one file takes
too long or needs too much: what it was at then is left out when it is started again.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from handclasp.agent.discover.rules import Rules, foreign_mounts
from handclasp.agent.discover.scan import Heard, Order, Scan
from handclasp.clock import system_clock
from handclasp.wire.filescans import FileSightings

MEMORY = 1 << 29
"""Bytes of address space: twice what it ever needs, and less than would hurt the host."""
SECONDS = 20.0
"""Of a processor that one file may cost."""
MAX_LINE = 64 * 1024 * 1024
MAX_PASSWORDS = 100
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}  # ioprio_set(2); the C library has no name for it
_IDLE = 3 << 13


class Said(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of this process: a chunk, or the file that is opened next and may end it."""

    chunk: FileSightings | None = None
    at: str = ""


def main() -> None:
    """Do one scan."""
    _be_humble()
    words, ears = sys.stdout.buffer, sys.stdin.buffer
    order = msgspec.json.decode(_line(ears), type=Order)

    def tell(chunk: FileSightings) -> Heard:
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(words, Said(chunk=chunk))
        return msgspec.json.decode(_line(ears), type=Heard)

    passwords = read_passwords(order.passwords_file)
    scan = Scan(order, rules_of(order), tell, clock=system_clock, passwords=passwords, risky=_risky(words))
    scan.run()


def rules_of(order: Order) -> Rules:
    """Return where an order lets one look."""
    return Rules(tuple(order.allow), tuple(order.deny), tuple(order.scan.excludes), foreign_mounts(), order.own)


def read_passwords(file: str) -> list[str]:
    """Return the passwords to try on keystores: those in the file, one in a line, and the one that Java's trust stores have."""
    found: list[str] = []
    if file:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found = [line for line in Path(file).read_text("utf-8").splitlines() if line]
    return [*found[:MAX_PASSWORDS], "changeit"]


def _risky(words: BinaryIO) -> Callable[[str], None]:
    def begin(path: str) -> None:
        _say(words, Said(at=os.fsencode(path).hex()))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)

    return begin


def _say(words: BinaryIO, said: Said) -> None:
    words.write(msgspec.json.encode(said) + b"\n")
    words.flush()


def _line(ears: BinaryIO) -> bytes:
    line = ears.readline(MAX_LINE)
    if not line.endswith(b"\n"):
        raise SystemExit(1)  # whoever started this has gone
    return line


def _be_humble() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with contextlib.suppress(OSError):
        os.nice(19)
    with contextlib.suppress(ImportError, OSError, AttributeError, KeyError):
        import ctypes

        ctypes.CDLL(None).syscall(_IOPRIO_SET[platform.machine()], 1, 0, _IDLE)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
