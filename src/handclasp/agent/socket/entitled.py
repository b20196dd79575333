"""The workloads that the policy gives this agent, as the server last said; on disk, so that they are known while the server is away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from handclasp import wire
from handclasp.agent.generations import replace_file

Fetch = Callable[[str], tuple[wire.WorkloadList, str] | None]
"""Asks the server with the tag of what is held: the list and its tag, or None while it is the same."""


class _File(msgspec.Struct, kw_only=True):
    version: int = 1
    items: list[wire.Workload]


class Entitlements:
    """``items`` is replaced whole, so any thread may read it; None: nobody has ever said."""

    def __init__(self, file: Path, fetch: Fetch) -> None:
        self._file, self._fetch = file, fetch
        self._tag = ""
        self.unwritten = ""
        """Why the newest list is not on disk, or empty."""
        self.items: tuple[wire.Workload, ...] | None = read_workloads(file)

    def refresh(self) -> bool:
        """Ask the server, and return whether anything has changed; blocks. What is new is on disk on return, or ``unwritten`` says why not.

        Raises what the client raises; what was known stays then.
        """
        answer = self._fetch(self._tag)
        if answer is None:
            return False
        listed, tag = answer
        items = tuple(listed.items)
        changed = items != self.items
        self.items, self._tag = items, tag
        if changed or self.unwritten:
            self._write(listed.items)
        return changed

    def _write(self, items: list[wire.Workload]) -> None:
        # It counts also when it cannot be written: a policy takes away as well as it gives.
        try:
            replace_file(self._file, msgspec.json.format(msgspec.json.encode(_File(items=items))))
            self.unwritten = ""
        except OSError as error:
            self.unwritten = f"the workloads of the policy cannot be written to {self._file}: {error.strerror}"


def read_workloads(file: Path) -> tuple[wire.Workload, ...] | None:
    """Return the workloads that were last heard of, or None."""
    try:
        return tuple(msgspec.json.decode(file.read_bytes(), type=_File).items)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
