"""Memory that the C library would keep for itself: an agent works in bursts, and is idle for most of its life."""

from __future__ import annotations

import contextlib
import gc

_M_ARENA_MAX = -8
"""From <malloc.h> of glibc: how many heaps it makes so that threads need not wait for each other. Ours wait for the network."""


def be_frugal() -> None:
    """Have all threads share one heap; where the C library knows of none such, nothing happens. Call it before there are threads."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Give back what the last burst of work needed."""
    gc.collect()
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
