"""What an agent does for all its identities together, once in each poll: fetch anchors, ask about renewals, report to the server.

One request asks about every certificate that is held, so that an agent with five hundred identities is as quiet as one with a single one.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from handclasp import __version__, wire
from handclasp.agent.anchors import Anchors
from handclasp.agent.keeper import Keeper
from handclasp.agent.memory import give_back
from handclasp.agent.roster import Roster
from handclasp.agent.state import StateDirectory
from handclasp.client.api import ApiClient
from handclasp.errors import HandclaspError

_log = logging.getLogger("handclasp.agent")
_MOST = 2000
"""Identities in one report, certificates in one question (the wire's limit)."""


class Every:
    """An errand that comes again each interval, at a point that moves a little, so that agents do not fall into step.

    ``clock`` is one that nobody sets (milliseconds): a wall clock that went back would leave everything undone until it comes round again.
    """

    def __init__(self, name: str, seconds: float, clock: Callable[[], int], random: Callable[[], float], do: Callable[[], None]) -> None:
        self.name, self.do = name, do
        self._interval, self._clock, self._random = int(seconds * 1000), clock, random
        self.at = clock()
        self.busy = False

    def start(self) -> None:
        """It starts now: set the next time."""
        self.busy = True
        self.at = self._clock() + int(self._interval * (0.75 + 0.5 * self._random()))

    def hurry(self, seconds: float) -> None:
        """Have it happen in so many seconds when it would be later."""
        self.at = min(self.at, self._clock() + int(seconds * 1000))

    def delay(self) -> None:
        """Let it begin at a random point of the interval: agents that start together must not ask together."""
        self.at = self._clock() + int(self._interval * self._random())


class Errands:
    """The errands of one agent. Each is done by one thread at a time."""

    def __init__(
        self, client: ApiClient, anchors: Anchors, roster: Roster, problems: Callable[[], list[str]], state: StateDirectory
    ) -> None:
        self._client, self._anchors, self._roster = client, anchors, roster
        self._problems, self._state = problems, state
        self._noted: tuple[list[str], list[tuple[str, str]]] | None = None
        self._asked: tuple[str, ...] = ()
        self._tags: list[str] = []
        self.scans_due: Callable[[], None] = lambda: None
        """Called when the server says that scans of files are due."""

    def refresh(self) -> None:
        """Ask for bundles and CRLs of every trust domain that somebody needs; a change makes deliveries due."""
        wanted = dict.fromkeys(self._anchors.watched(), False)
        ours = {keeper.trust_domain for keeper in self._roster.everyone()}
        for keeper in self._roster.everyone():
            wanted[keeper.trust_domain] = wanted.get(keeper.trust_domain, False) or keeper.wants_crl
        for trust_domain, crl in wanted.items():
            try:
                if self._anchors.refresh(trust_domain, crl=crl, foreign=trust_domain not in ours):
                    _log.info("the anchors of %s have changed", trust_domain)
                    self._roster.wake()
            except (HandclaspError, OSError) as error:
                _log.warning("the anchors of %s cannot be refreshed: %s", trust_domain, error)

    def look(self) -> None:
        """Have delivered again what somebody changed or removed."""
        drifted: list[Keeper] = []
        self._roster.idle(lambda keeper: drifted.append(keeper) if keeper.look() else None)
        for keeper in drifted:
            self._roster.wake(keeper.managed.name, keeper.managed.slot)

    def ask(self) -> None:
        """Ask for the server's present renewal windows; a window that is earlier than what was drawn is taken."""
        held = {keeper.obtained.sha256: keeper for keeper in self._roster.everyone() if keeper.obtained is not None}
        asked = tuple(sorted(held))
        if asked != self._asked:
            self._asked, self._tags = asked, [""] * (len(asked) // _MOST + 1)
        for part, start in enumerate(range(0, len(asked), _MOST)):
            query = wire.RenewalQuery(certificates=list(asked[start : start + _MOST]), tag=self._tags[part])
            try:
                answer = self._client.renewal_list(query)
            except HandclaspError as error:
                _log.debug("the server cannot be asked about renewals: %s", error)
                return
            for info in answer.items:
                keeper = held.get(info.sha256)
                if keeper is not None:
                    keeper.suggest(info)
                    self._roster.wake(keeper.managed.name, keeper.managed.slot)
            self._tags[part] = answer.tag

    def _note(self) -> None:
        """Leave a note of what is looked after and what needs a person, for ``agent status``, which reads the disk."""
        problems = self._problems()
        names = [(keeper.managed.slot, keeper.managed.name) for keeper in self._roster.keepers()]
        if (problems, names) == self._noted:
            return
        try:
            self._state.save_problems(problems)
            self._state.save_managed(names)
            self._noted = problems, names
        except OSError as error:
            _log.warning("the state directory cannot be written: %s", error)

    def report(self) -> None:
        """Tell the server how everything is."""
        self._note()
        own, *others = (keeper.told for keeper in self._roster.everyone())
        identities = others if own.state == "ok" else [own, *others]  # the server knows the rest about the agent itself
        try:
            told = self._client.report_agent(
                wire.AgentReport(hostname=socket.gethostname()[:255], version=__version__, identities=identities[:_MOST])
            )
            if told.scans:
                self.scans_due()
        except HandclaspError as error:
            _log.warning("the server cannot be told: %s", error.detail)
        self._client.rest()
        give_back()  # after each change, and once in each poll
