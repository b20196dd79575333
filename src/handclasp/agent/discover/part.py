"""The agent's side of scans of files: fetches what is due, starts the process that scans, and hands on what it says."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from handclasp.agent.config.discover import DiscoverSettings
from handclasp.agent.discover.scan import Heard, Order
from handclasp.agent.discover.work import Said
from handclasp.agent.state import slug
from handclasp.errors import HandclaspError, Kind
from handclasp.wire.filescans import FileScan, FileSightings, host_of

if TYPE_CHECKING:
    from handclasp.client.api import ApiClient

_log = logging.getLogger("handclasp.agent")
_RESTARTS = 20
"""Files of one scan that may each end the process that scans."""
_PROGRAM = "from handclasp.agent.discover.work import main; main()"
_PATIENCE = 60.0
"""Seconds between attempts while the server is not there; the process that scans waits meanwhile."""
_KINDS_OF_ABSENCE = (Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.RATE_LIMITED)


class FileScans:
    """Does what is due, one scan after the other. For one thread at a time; ``stop`` ends it soon, and it goes on the next time."""

    def __init__(
        self,
        client: ApiClient,
        identity: str,
        state: Path,
        settings: DiscoverSettings,
        *,
        stop: Callable[[float], bool],
        busy: float = 0.25,
    ) -> None:
        self._client, self._identity, self._settings, self._stop, self._busy = client, identity, settings, stop, busy
        self._state = state
        self._home = state / "discover"
        self._tag = ""
        self._due: list[FileScan] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def run(self) -> None:
        """Ask what is due, and do it. Raises HandclaspError when the server cannot be asked."""
        found = self._client.file_scans(etag=self._tag)
        if found is not None:
            self._due, self._tag = found[0].items, found[1]
        for scan in self._due:
            if self._stop(0):
                return
            if self._settings.off:
                self._refuse(scan, "this agent's configuration (discover: off) does not let it look at files")
                continue
            _log.info("looking for certificates in files, for %s", scan.source)
            self._do(scan)
        self._due, self._tag = [], ""

    def end(self) -> None:
        """End the process that scans, from another thread."""
        with self._lock:
            if self._process is not None:
                self._process.kill()

    def _refuse(self, scan: FileScan, why: str) -> None:
        self._tell(FileSightings(scan=scan.scan, done=True, problem=why))

    def _do(self, scan: FileScan) -> None:
        order = Order(
            scan=scan,
            identity=self._identity,
            host=host_of(self._identity),
            allow=list(self._settings.allow),
            deny=list(self._settings.deny),
            own=os.path.realpath(self._state),
            passwords_file=str(self._settings.passwords_file or ""),
            memory=str(self._home / f"{slug(scan.source)}.known"),
            busy=self._busy,
        )
        for _ in range(_RESTARTS):
            at = self._once(order)
            if at is None or self._stop(0):
                return
            if not at:
                break
            order.avoid.append(at)
        self._refuse(scan, "the process that looks at files ended before it was done")

    def _once(self, order: Order) -> str | None:
        """Run the process; return None when it is done (or nobody wants it any more), else the file that it was at when it ended."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HANDCLASP_")}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
            )
        except OSError as error:
            _log.error("the process that looks at files cannot be started: %s", error)
            return ""
        with self._lock:
            self._process = process
        try:
            return self._talk(process, order)
        except OSError:  # it ended while it was spoken to
            return ""
        finally:
            with self._lock:
                self._process = None
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def _talk(self, process: subprocess.Popen[bytes], order: Order) -> str | None:
        assert process.stdin is not None
        assert process.stdout is not None
        at = ""
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        process.stdin.flush()
        for line in process.stdout:
            said = msgspec.json.decode(line, type=Said)
            if said.chunk is None:
                at = os.fsdecode(bytes.fromhex(said.at))
                continue
            heard = self._tell(said.chunk)
            if heard.over or self._stop(0):
                return None
            process.stdin.write(msgspec.json.encode(heard) + b"\n")
            process.stdin.flush()
            at = ""
        return None if process.wait() == 0 else at

    def _tell(self, chunk: FileSightings) -> Heard:
        """Hand a chunk on, however long the server is away meanwhile."""
        while True:
            try:
                answer = self._client.file_sightings(chunk)
                return Heard(unknown=answer.unknown, over=answer.over)
            except HandclaspError as error:
                if error.kind not in _KINDS_OF_ABSENCE:
                    _log.error("the server does not take what was found in files: %s", error.detail)
                    return Heard(over=True)
                _log.debug("the server cannot be told what was found in files: %s", error.detail)
                if self._stop(error.retry_after or _PATIENCE):
                    return Heard(over=True)
