"""Begins scans of files when the server says that some are due, in a thread that exists as long as they do. Loads nothing before."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from handclasp.agent.memory import give_back
from handclasp.errors import HandclaspError

if TYPE_CHECKING:
    from handclasp.agent.config.discover import DiscoverSettings
    from handclasp.agent.discover.part import FileScans
    from handclasp.client.api import ApiClient

_log = logging.getLogger("handclasp.agent")


class Discovering:
    """One agent's scans of files. May be called from any thread."""

    def __init__(self, client: ApiClient, identity: str, state: Path, settings: DiscoverSettings | None) -> None:
        self._client, self._identity, self._state, self._settings = client, identity, state, settings
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._scans: FileScans | None = None

    def begin(self) -> None:
        """Something is due; when a scan is under way already, it is found after that."""
        with self._lock:
            if self._ended.is_set() or (self._thread is not None and self._thread.is_alive()):
                return
            self._thread = threading.Thread(target=self._run, name="discover")
            try:
                self._thread.start()
            except RuntimeError as error:  # the system has no thread left: the next report comes soon
                _log.warning("files cannot be looked at: %s", error)
                self._thread = None

    def stop(self) -> None:
        """End what is under way, and return when it has ended. It goes on when the agent is started again."""
        self._ended.set()
        with self._lock:
            scans, thread = self._scans, self._thread
        if scans is not None:
            scans.end()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        from handclasp.agent.config.discover import DiscoverSettings
        from handclasp.agent.discover.part import FileScans

        scans = FileScans(self._client, self._identity, self._state, self._settings or DiscoverSettings(), stop=self._stopped)
        with self._lock:
            self._scans = scans
        try:
            scans.run()
        except HandclaspError as error:
            _log.warning("the server does not say which files are to be looked at: %s", error.detail)
        except Exception:  # a mistake here must not be one that nobody sees
            _log.exception("looking at files failed")
        finally:
            with self._lock:
                self._scans = None
        give_back()

    def _stopped(self, seconds: float) -> bool:
        return self._ended.wait(seconds) if seconds else self._ended.is_set()
