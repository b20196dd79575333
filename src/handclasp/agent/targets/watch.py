"""Looks at targets that can change without the agent's doing: once when the agent starts, and in each poll."""

from __future__ import annotations

import logging
import random
import sys
import threading

from handclasp.agent.keeper import Keeper
from handclasp.agent.part import Whole
from handclasp.agent.targets.base import Around, Target, Watched
from handclasp.errors import HandclaspError

_log = logging.getLogger("handclasp.agent")
_EXEC = "handclasp.agent.targets.exec"


class Watch:
    """Part of an agent. It decides nothing: what has drifted is delivered again, by its keeper."""

    def __init__(self, agent: Whole) -> None:
        self._agent = agent
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Stop children that the configuration no longer has, and begin."""
        self._retain({target.name for managed in self._agent.config.identities for target in managed.targets})
        self._thread.start()

    def stop(self) -> None:
        """End; when the agent ends, its children do too. They outlive a reading of the configuration."""
        self._over.set()
        self._thread.join()
        if self._agent.stop.is_set():
            self._retain(set())

    def problems(self) -> list[str]:
        """Return nothing: what drifts is told with its target."""
        return []

    def _retain(self, names: set[str]) -> None:
        if _EXEC in sys.modules:
            sys.modules[_EXEC].CHILDREN.retain(names)

    def _run(self) -> None:
        while True:
            for keeper in self._agent.roster.keepers():
                for target in keeper.managed.targets:
                    if self._over.is_set():
                        return
                    self._look(keeper, target)
            if self._over.wait(self._agent.poll * random.uniform(0.75, 1.25)):  # noqa: S311  (it spreads, and protects nothing)
                return

    def _look(self, keeper: Keeper, target: Target) -> None:
        confirmed = keeper.confirmed(target.name)
        if not confirmed or not isinstance(target.place, Watched):
            return
        around = Around(keeper.managed.name, self._over.wait, target.timeout, self._agent.identity)
        try:
            drift = target.place.drift(confirmed, around)
        except (HandclaspError, OSError) as error:
            _log.warning("%s: %s cannot be looked at: %s", keeper.managed.name, target.name, getattr(error, "detail", error))
            return
        # Delivered anew while it was looked at: then it was no drift.
        if drift is not None and keeper.confirmed(target.name) == confirmed:
            keeper.drifted(target.name, drift)
            self._agent.roster.wake(keeper.managed.name, keeper.managed.slot)
