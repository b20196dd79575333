"""``handclasp agent run``: one process, a few threads, every identity attended to when its time comes."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from handclasp import __version__, wire
from handclasp.agent.anchors import Anchors
from handclasp.agent.config import Config, Managed, load_config
from handclasp.agent.keeper import Keeper, Surroundings
from handclasp.agent.state import StateDirectory
from handclasp.client.api import ApiClient
from handclasp.clock import Clock, system_clock
from handclasp.errors import HandclaspError

_log = logging.getLogger("handclasp.agent")
WORKERS = 8
"""Identities attended to at once: one with a hung reload must not keep the others waiting."""
_TURN = 5.0
"""Seconds after which everything is decided afresh at the latest: the clock may have jumped, or the host slept."""
_REPORT_GAP = 0.5


def run(config_path: str | os.PathLike[str], state_dir: str | os.PathLike[str] | None = None) -> None:
    """Look after everything in ``config_path`` until SIGTERM or SIGINT; SIGHUP reads the configuration again.

    ``state_dir`` overrides the configuration's. Raises ``bad_setting`` for a bad configuration or an agent that is not enrolled,
    ``conflict`` when another one runs on the same state directory. Once running, nothing but a signal ends it.
    """
    config = load_config(config_path)
    state = StateDirectory(state_directory(config, state_dir))
    state.agent()
    state.prepare()
    stop, again = threading.Event(), threading.Event()
    with state.lease(), _signals(stop, again):
        while not stop.is_set():
            again.clear()
            Agent(config, state, stop=stop, again=again).run()
            if again.is_set() and not stop.is_set():
                config = _read_again(config_path, config)


def state_directory(config: Config, given: str | os.PathLike[str] | None) -> Path:
    """Return the state directory: the caller's, the configuration's, or the usual one."""
    return Path(given) if given is not None else config.state_dir or Path("/var/lib/handclasp-agent")


def _read_again(path: str | os.PathLike[str], config: Config) -> Config:
    try:
        return load_config(path)
    except HandclaspError as error:
        _log.error("the configuration is not taken: %s", error.detail)
        return config


@contextlib.contextmanager
def _signals(stop: threading.Event, again: threading.Event) -> Iterator[None]:
    """Let signals set events while the body runs; in a thread, where Python has no signals, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hang_up(_number: int, _frame: FrameType | None) -> None:
        again.set()

    def terminate(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    old = {number: signal.signal(number, terminate) for number in (signal.SIGTERM, signal.SIGINT)}
    old[signal.SIGHUP] = signal.signal(signal.SIGHUP, hang_up)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class Agent:
    """One run over one configuration. :meth:`run` returns when ``stop`` or ``again`` is set and what was under way has ended."""

    def __init__(
        self,
        config: Config,
        state: StateDirectory,
        *,
        stop: threading.Event,
        again: threading.Event | None = None,
        clock: Clock = system_clock,
    ) -> None:
        self._stop, self._again = stop, again or threading.Event()
        self._clock, self._poll = clock, config.poll
        self._random = random.SystemRandom().random
        agent = state.agent()
        own = state.own.generations.root / "current"
        ca = config.ca or str(state.anchors(agent.trust_domain))
        self._client = ApiClient(config.url or agent.url, ca=ca, credential=(own / "cert.pem", own / "key.pem"), timeout=10, attempts=1)
        self._anchors = Anchors(state, self._client)
        around = Surroundings(self._client, self._anchors, agent.trust_domain, config.poll, clock, self._random, self._wait)
        self._own = Keeper(own_identity(agent.identity), state.own, around, own=True)
        self._keepers = [self._own, *(Keeper(managed, state.identity(managed.name), around) for managed in config.identities)]
        try:
            state.save_managed([managed.name for managed in config.identities])
        except OSError as error:  # a full disk must not keep an agent from starting: there is much that it can do without writing
            _log.warning("the state directory cannot be written: %s", error)
        self._wakes = [0] * len(self._keepers)
        self._busy: set[int] = set()
        self._lock = threading.Lock()
        self._turn = threading.Event()
        self._reports = _Every(config.poll, clock, self._random)
        self._refreshes = _Every(config.poll, clock, self._random)
        self._changed = True

    def run(self) -> None:
        """Attend to everything until told to stop."""
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="keeper") as pool:
            decided = time.monotonic()
            while not self._over():
                self._turn.clear()
                now = self._clock()
                if time.monotonic() - decided >= _TURN:
                    decided = time.monotonic()
                    self._decide_all()
                wake_at = self._start_due(pool, now)
                self._turn.wait(min(max(wake_at - self._clock(), 0) / 1000, _TURN) + 0.002)
        self._client.close()
        watcher.join()

    def _over(self) -> bool:
        return self._stop.is_set() or self._again.is_set()

    def _watch(self) -> None:
        """Wake the loop when it is to stop: signals set events, and a wait on two events there is not."""
        while not (self._stop.wait(0.2) or self._again.is_set()):
            pass
        self._turn.set()

    def _wait(self, seconds: float) -> bool:
        return self._stop.wait(seconds)

    def _decide_all(self) -> None:
        for index, keeper in enumerate(self._keepers):
            with self._lock:
                busy = index in self._busy
            if not busy:
                decision = keeper.decision()
                self._wakes[index] = 0 if decision.actions else decision.wake_at

    def _start_due(self, pool: ThreadPoolExecutor, now: int) -> int:
        """Start what is due and return when the next is."""
        wakes = []
        for index in range(len(self._keepers)):
            with self._lock:
                if index in self._busy:
                    continue
                if self._wakes[index] > now:
                    wakes.append(self._wakes[index])
                    continue
                self._busy.add(index)
            self._submit(pool, index, self._attend)
        wakes.append(self._start_errand(pool, -1, self._refreshes, now, self._refresh))
        if self._changed:
            self._changed = False
            self._reports.hurry(now + int(_REPORT_GAP * 1000))
        wakes.append(self._start_errand(pool, -2, self._reports, now, self._report))
        return min(wakes)

    def _start_errand(self, pool: ThreadPoolExecutor, index: int, every: _Every, now: int, errand: Callable[[int], None]) -> int:
        with self._lock:
            if index in self._busy or every.at > now:
                return every.at if index not in self._busy else now + 60_000
            self._busy.add(index)
        every.next()
        self._submit(pool, index, errand)
        return every.at

    def _submit(self, pool: ThreadPoolExecutor, index: int, errand: Callable[[int], None]) -> None:
        def done(future: Future[None]) -> None:
            if future.exception() is not None:
                _log.error("unexpected", exc_info=future.exception())
            with self._lock:
                self._busy.discard(index)
            self._turn.set()

        pool.submit(errand, index).add_done_callback(done)

    def _attend(self, index: int) -> None:
        self._wakes[index] = self._clock() + 60_000  # should it end by an exception, it is tried again, and not at once
        self._wakes[index], changed = self._keepers[index].attend()
        self._changed |= changed

    def _refresh(self, _index: int) -> None:
        """Ask for bundles and CRLs of every trust domain; a change makes deliveries due."""
        wanted: dict[str, bool] = {}
        for keeper in self._keepers:
            wanted[keeper.trust_domain] = wanted.get(keeper.trust_domain, False) or keeper.wants_crl
        for trust_domain, crl in wanted.items():
            try:
                if self._anchors.refresh(trust_domain, crl=crl):
                    _log.info("the anchors of %s have changed", trust_domain)
                    self._wakes = [0] * len(self._keepers)
            except (HandclaspError, OSError) as error:
                _log.warning("the anchors of %s cannot be refreshed: %s", trust_domain, error)

    def _report(self, _index: int) -> None:
        identities = [keeper.told for keeper in self._keepers[1:]]
        own = self._own.told
        if own.state != "ok":
            identities.append(own)  # the server knows the rest about it
        try:
            self._client.report_agent(
                wire.AgentReport(hostname=socket.gethostname()[:255], version=__version__, identities=identities[:2000])
            )
        except HandclaspError as error:
            _log.warning("the server cannot be told: %s", error.detail)


class _Every:
    """An errand that comes again each interval, at a point that moves a little, so that agents do not fall into step."""

    def __init__(self, seconds: float, clock: Clock, random: Callable[[], float]) -> None:
        self._interval, self._clock, self._random = int(seconds * 1000), clock, random
        self.at = clock()

    def next(self) -> None:
        """Set the next time."""
        self.at = self._clock() + int(self._interval * (0.75 + 0.5 * self._random()))

    def hurry(self, at: int) -> None:
        """Have it happen at ``at`` when it would be later."""
        self.at = min(self.at, at)


def own_identity(identity: str) -> Managed:
    """Return the agent's own identity as one that is managed: no targets, and a configuration that never changes."""
    return Managed(identity, identity, (), (), "agent", None, "p256", ())
