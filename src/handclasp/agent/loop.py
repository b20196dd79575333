"""``handclasp agent run``: one process, a few threads, every identity attended to when its time comes."""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from handclasp.agent.anchors import Anchors
from handclasp.agent.config import Config, Managed, load_config
from handclasp.agent.discovering import Discovering
from handclasp.agent.errands import Errands, Every
from handclasp.agent.evidence import reenrol
from handclasp.agent.evidence import warning as enrolment_warning
from handclasp.agent.hours import Hours
from handclasp.agent.keeper import Keeper, Surroundings
from handclasp.agent.leases import Leases
from handclasp.agent.memory import be_frugal
from handclasp.agent.part import Part
from handclasp.agent.parts import start_parts, state_seal
from handclasp.agent.roster import Entry, Roster
from handclasp.agent.signals import on_signals
from handclasp.agent.state import StateDirectory
from handclasp.agent.workers import Workers
from handclasp.client.api import ApiClient
from handclasp.errors import HandclaspError

_log = logging.getLogger("handclasp.agent")
WORKERS = 8
"""Identities attended to at once: one with a hung reload must not keep the others waiting."""
_TURN = 5.0
"""Seconds between two looks at the clock: somebody may have set it, or the host slept."""
_SLEPT = 35_000
"""Milliseconds between two of these looks from which the host has slept: a turn takes five seconds, not half a minute."""
_REPORT_GAP = 0.5


def run(config_path: str | os.PathLike[str], state_dir: str | os.PathLike[str] | None = None) -> None:
    """Look after everything in ``config_path`` until SIGTERM or SIGINT; SIGHUP reads the configuration again.

    ``state_dir`` overrides the configuration's. Raises ``bad_setting`` for a bad configuration, an agent that is not enrolled, or private
    keys that cannot be opened; ``conflict`` when another one runs on the same state directory. Once running, nothing but a signal ends it.
    """
    be_frugal()
    config = load_config(config_path)
    state = StateDirectory(state_directory(config, state_dir))
    state.agent()
    state.prepare()
    stop, again = threading.Event(), threading.Event()
    with state.lease(), on_signals(stop.set, again.set):
        agent = Agent(config, state, stop=stop, again=again)
        while True:
            agent.run()
            if stop.is_set():
                return
            again.clear()
            agent = _again(config_path, agent)


def state_directory(config: Config, given: str | os.PathLike[str] | None) -> Path:
    """Return the state directory: the caller's, the configuration's, or the usual one."""
    return Path(given) if given is not None else config.state_dir or Path("/var/lib/handclasp-agent")


def _again(path: str | os.PathLike[str], agent: Agent) -> Agent:
    """The agent with the configuration as it is now, or as it was when it cannot be used."""
    try:
        return agent.anew(load_config(path))
    except HandclaspError as error:
        _log.error("the configuration is not taken: %s", error.detail)
        return agent.anew(agent.config)


class Agent:
    """One run over one configuration. :meth:`run` returns when ``stop`` or ``again`` is set and what was under way has ended.

    What its parts may use of it, from any thread: :class:`handclasp.agent.part.Whole`.
    """

    def __init__(
        self,
        config: Config,
        state: StateDirectory,
        *,
        stop: threading.Event,
        again: threading.Event | None = None,
        hours: Hours | None = None,
    ) -> None:
        self.config, self.state, self.stop, self.poll = config, state, stop, config.poll
        self._again = again or threading.Event()
        self.clock = hours or Hours()
        self._random = random.SystemRandom().random
        self._turn = threading.Event()
        state.seal = state_seal(config)
        agent = state.agent()
        self.identity, self._enrolled = agent.identity, agent
        own = own_identity(agent.identity)
        state.own.check_seal()
        ca = config.ca or str(state.anchors(agent.trust_domain))
        url = self.url = config.url or agent.url
        self.client = ApiClient(url, ca=ca, credential=state.own, timeout=10, attempts=1, dates=self.clock.answered)
        self.anchors = Anchors(state, self.client, self._hurry_refresh)
        self.leases = Leases(agent.identity, state.root)
        enrol = reenrol(state, agent, url, ca)
        around = Surroundings(self.client, self.anchors, agent.trust_domain, self.clock, self._random, stop.wait, self.leases, enrol)
        self.roster = Roster(lambda managed: self._keeper(managed, own, around), self._turn.set, self.clock)
        for managed in (own, *config.identities):
            self.roster.add(managed)
        self._save_managed()
        self.parts: list[Part] = []
        """What runs beside the identities while the agent runs: the socket, the metrics."""
        self.troubles: dict[str, str] = {}
        """Parts that could not start, and why."""
        self._discovering = Discovering(self.client, self.identity, state.root, config.section("discover"))
        errands = Errands(self.client, self.anchors, self.roster, self.problems, state)
        errands.scans_due = self._discovering.begin
        self._errands = self._plan(errands)

    def anew(self, config: Config) -> Agent:
        """Return another one for the same state directory, to run when this one has ended."""
        return Agent(config, self.state, stop=self.stop, again=self._again, hours=self.clock)

    def run(self) -> None:
        """Attend to everything until told to stop."""
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        self.parts = start_parts(self)
        count = len(self.config.identities)
        _log.info("%s looks after %d identit%s, for %s", self.identity, count, "y" if count == 1 else "ies", self.url)
        workers = Workers(WORKERS, "keeper", self._turn.set)
        try:
            looked = self.clock.boot()
            while not self._over():
                self._turn.clear()
                passed = self.clock.boot() - looked
                if passed >= _TURN * 1000:
                    looked += passed
                    self._look_at_the_clock(slept=passed > _SLEPT)
                wake_in = self._start_due(workers)
                self._turn.wait(min(max(wake_in, 0) / 1000, _TURN) + 0.002)
        finally:
            self._discovering.stop()
            workers.close()
            for part in self.parts:
                part.stop()
            self.leases.close()
            self.client.close()
            watcher.join()

    def problems(self) -> list[str]:
        """Return what needs a person, besides what the identities say themselves."""
        found = [self.clock.problem, *self.troubles.values(), *(problem for part in self.parts for problem in part.problems())]
        found.append(enrolment_warning(self._enrolled, self.state.own.obtained(), self.clock()))
        return [problem for problem in found if problem]

    def _hurry_refresh(self) -> None:
        self._errands["refresh"].hurry(0)
        self._turn.set()

    def _keeper(self, managed: Managed, own: Managed, around: Surroundings) -> Keeper:
        if managed is own:
            return Keeper(managed, self.state.own, around, own=True)
        return Keeper(managed, self.state.identity(managed.name, managed.slot), around)

    def _save_managed(self) -> None:
        try:
            self.state.save_managed([("", managed.name) for managed in self.config.identities])
        except OSError as error:  # a full disk must not keep an agent from starting: there is much that it can do without writing
            _log.warning("the state directory cannot be written: %s", error)

    def _plan(self, errands: Errands) -> dict[str, Every]:
        todo: dict[str, Callable[[], None]] = {
            "refresh": errands.refresh,
            "ask": errands.ask,
            "look": errands.look,
            "report": errands.report,
        }
        plan = {name: Every(name, self.poll, self.clock.boot, self._random, do) for name, do in todo.items()}
        plan["seal"] = Every("seal", 86400.0, self.clock.boot, self._random, self._seal)
        plan["ask"].delay()
        plan["look"].delay()
        plan["report"].hurry(_REPORT_GAP)
        return plan

    def _over(self) -> bool:
        return self.stop.is_set() or self._again.is_set()

    def _watch(self) -> None:
        """Wake the loop when it is to stop: signals set events, and a wait on two events there is not."""
        while not (self.stop.wait(0.2) or self._again.is_set()):
            pass
        self._turn.set()

    def _look_at_the_clock(self, *, slept: bool) -> None:
        """When the clock was set or the host slept, everything is decided afresh, and what was missed is spread a little."""
        if self.clock.jumped() or slept:
            _log.warning("the clock was set, or time has passed unseen: %s", self.clock.problem or "deciding afresh")
            self.roster.idle(Keeper.spread)
            self.roster.wake()

    def _start_due(self, workers: Workers) -> int:
        """Start what is due and return in how many milliseconds the next is."""
        now = self.clock()
        due, wake_at = self.roster.due(now)
        for entry in due:
            workers.submit(partial(self._attend, entry))
        wakes = [wake_at - now]
        ticks = self.clock.boot()
        for every in self._errands.values():
            if every.busy:
                continue
            if every.at <= ticks:
                every.start()
                workers.submit(partial(self._do_errand, every))
            wakes.append(every.at - ticks)
        return min(wakes)

    def _attend(self, entry: Entry) -> None:
        if self.roster.attend(entry):
            self._errands["report"].hurry(_REPORT_GAP)

    def _do_errand(self, every: Every) -> None:
        try:
            every.do()
        finally:
            every.busy = False

    def _seal(self) -> None:
        """Have every private key kept as the present setting says; done at the start, and for good once it is done."""
        for keeper in self.roster.everyone():
            try:
                if keeper.store.reseal():
                    _log.info("%s: its private key is sealed now", keeper.managed.name)
            except (HandclaspError, OSError) as error:
                _log.error("%s: its private key cannot be sealed: %s", keeper.managed.name, error)


def own_identity(identity: str) -> Managed:
    """Return the agent's own identity as one that is managed: no targets, and a configuration that never changes."""
    return Managed(identity, identity, (), (), "agent", None, "p256", (), slot="agent")
