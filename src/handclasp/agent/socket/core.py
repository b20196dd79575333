"""What the calls of the socket share: who is asking, what they may have, and who must be told when something changes.

Everything here runs in the socket's own thread and event loop; what blocks (attestation, the server) goes to a few worker threads. A change
has a topic: the policy, one certificate, or one trust domain; a stream looks only at the topics of what it carries.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from handclasp import wire
from handclasp.agent.config.socket import SocketSettings
from handclasp.agent.socket.attest import Attested, Attestor, Memory, attest
from handclasp.agent.socket.entitled import Entitlements
from handclasp.agent.socket.host import Host
from handclasp.agent.socket.issued import Issued
from handclasp.agent.socket.limits import Turns
from handclasp.agent.socket.match import Entitled, could_be, entitled, kinds_of
from handclasp.agent.socket.proc import Process
from handclasp.agent.socket.tokens import Tokens
from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.names import trust_domain_of

_log = logging.getLogger("handclasp.agent.socket")
T = TypeVar("T")
TICK = 0.5
"""Seconds between two looks at the trust bundles."""
_SYNC = 30.0
_AGAIN = 0.5
_WORKERS = 6
_PROBLEM_AGE = 600_000
_PROBLEMS = 50
_CHANCE = random.SystemRandom()


@dataclass
class Peer:
    """The other end of one connection. ``process`` is None where it cannot be known, and ``why`` says so."""

    process: Process | None
    why: str = ""
    memory: Memory = field(default_factory=Memory)
    looked_at: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One look at a time: many calls on one connection must not take every worker thread."""

    @property
    def uid(self) -> int:
        """Its user, -1 where it is not known."""
        return self.process.uid if self.process else -1


@dataclass(frozen=True, slots=True)
class Caller:
    """What a peer is at one moment: not empty, first the default."""

    entitled: tuple[Entitled, ...]

    @property
    def trust_domains(self) -> list[str]:
        """Its own trust domains, in the order of its identities."""
        return list(dict.fromkeys(trust_domain_of(item.identity) for item in self.entitled))

    @property
    def federated(self) -> list[str]:
        """The others that it may trust."""
        own = set(self.trust_domains)
        return list(dict.fromkeys(td for item in self.entitled for td in item.workload.federates_with if td not in own))


class Core:
    """Made and used in the event loop's thread; :meth:`run` keeps it up to date until it is cancelled."""

    def __init__(self, host: Host, settings: SocketSettings, attestors: Sequence[Attestor], clock: Clock) -> None:
        self.settings, self.trust, self.clock = settings, host.anchors, clock
        self._host, self._attestors = host, attestors
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="socket")
        self._turns = Turns(_WORKERS // 2)
        home = host.state.root / "socket"
        home.mkdir(mode=0o700, exist_ok=True)
        self.entitlements = Entitlements(home / "workloads.json", lambda tag: host.client.workloads(etag=tag))
        self.issued = Issued(host.roster, home / "used.json", self._from_elsewhere, clock=clock, keep=settings.keep, state=host.state.root)
        self.tokens = Tokens(lambda request: self.work(lambda: host.client.jwt_svid(request)), clock)
        self._versions: defaultdict[object, int] = defaultdict(int)
        self._change = asyncio.Event()
        self._seen: dict[str, tuple[bytes, bytes, bytes]] = {}
        self._problems: dict[str, tuple[int, str]] = {}

    # --- who is asking ----------------------------------------------------------------------------------------------------------------

    async def caller(self, peer: Peer) -> Caller:
        """Look at the peer now, and return what it is.

        Raises ``not_allowed`` for a process that is nothing by this policy, or is not the one that connected; ``unavailable`` while that
        cannot be said.
        """
        if peer.process is None:
            raise HandclaspError(Kind.NOT_ALLOWED, peer.why)
        process, deadline = peer.process, self._loop.time() + self.settings.wait
        workloads = await self._policy(deadline)
        wanted = kinds_of(workloads)
        while True:
            async with peer.looked_at, self._turns.of(peer.uid):
                attested = await self.work(lambda: attest(process, self._attestors, wanted, peer.memory))
            found = entitled(workloads, attested.selectors)
            if found or not attested.pending or self._loop.time() >= deadline:
                break
            await asyncio.sleep(_AGAIN)
        if not found:
            raise self._nobody(peer, workloads, attested)
        caller = Caller(tuple(found))
        for trust_domain in (*caller.trust_domains, *caller.federated):
            self._watch(trust_domain)
        return caller

    async def _policy(self, deadline: float) -> tuple[wire.Workload, ...]:
        """The policy's workloads; an agent that has just been enrolled hears of them in a moment."""
        while (workloads := self.entitlements.items) is None:
            left = deadline - self._loop.time()
            if left <= 0:
                raise HandclaspError(Kind.UNAVAILABLE, "the policy has not been heard of yet", hint="is the server there?")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._change.wait(), left)
        return workloads

    def _nobody(self, peer: Peer, workloads: Sequence[wire.Workload], attested: Attested) -> HandclaspError:
        if could_be(workloads, attested.selectors, attested.failed):
            return HandclaspError(Kind.UNAVAILABLE, f"it cannot be said what the caller is: {', '.join(attested.failed)} failed")
        pid = peer.process.pid if peer.process else 0
        _log.info("process %d (user %d) is no workload of the policy: %s", pid, peer.uid, " ".join(attested.selectors)[:1000])
        return HandclaspError(Kind.NOT_ALLOWED, "no identity is issued to the calling process")

    # --- what they get ----------------------------------------------------------------------------------------------------------------

    async def first(self, items: Iterable[Entitled]) -> None:
        """Wait until each has a certificate, or has failed to get one; at most as long as the settings say."""
        wanted = list(items)
        deadline = self._loop.time() + self.settings.wait
        while not all(self.issued.content(item) is not None or self.issued.failure(item) for item in wanted):
            left = deadline - self._loop.time()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):  # a failure comes without a word
                await asyncio.wait_for(self._change.wait(), min(left, 0.2))

    def none_yet(self, items: Iterable[Entitled]) -> HandclaspError:
        """Return the error for a caller whose certificates are not there."""
        reasons = [reason for item in items if (reason := self.issued.failure(item))]
        return HandclaspError(Kind.UNAVAILABLE, f"there is no certificate yet{': ' if reasons else ''}{'; '.join(reasons)[:500]}")

    def bundle(self, trust_domain: str) -> bytes:
        """Return the anchors of a trust domain (PEM), and have them looked at from now on."""
        self._watch(trust_domain)
        return self.trust.bundle(trust_domain)

    # --- who must be told -------------------------------------------------------------------------------------------------------------

    def mark(self, caller: Caller | None) -> tuple[int, ...]:
        """Return what changes whenever something that concerns the caller does."""
        if caller is None:
            return (self._versions["policy"],)
        topics: list[object] = ["policy", *(item.key for item in caller.entitled), *caller.trust_domains, *caller.federated]
        return tuple(self._versions[topic] for topic in topics)

    async def changed(self, caller: Caller, mark: tuple[int, ...]) -> None:
        """Return as soon as :meth:`mark` is another than ``mark``."""
        while self.mark(caller) == mark:
            await self._change.wait()

    def bump(self, topic: object) -> None:
        """Say that something has changed."""
        self._versions[topic] += 1
        change, self._change = self._change, asyncio.Event()
        change.set()

    def _from_elsewhere(self, topic: object) -> None:
        """The same, from any thread, also when the socket is closed already."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.bump, topic)

    def _watch(self, trust_domain: str) -> None:
        if trust_domain not in self._seen:
            self._seen[trust_domain] = self._look(trust_domain)
            self.trust.watch(trust_domain)

    def _look(self, trust_domain: str) -> tuple[bytes, bytes, bytes]:
        return self.trust.bundle(trust_domain), self.trust.crl(trust_domain), self.trust.jwks(trust_domain)

    # --- staying up to date -----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the policy and the trust bundles. Ends only by being cancelled."""
        if self.entitlements.items is not None:
            self.issued.restore(self.entitlements.items)
        policy = self._loop.create_task(self._follow_policy())
        try:
            synced = self._loop.time()
            while True:
                await asyncio.sleep(TICK)
                for trust_domain, seen in list(self._seen.items()):
                    now = self._look(trust_domain)
                    if now != seen:
                        self._seen[trust_domain] = now
                        self.bump(trust_domain)
                if self._loop.time() - synced >= _SYNC and self.entitlements.items is not None:
                    synced = self._loop.time()
                    self.issued.sync(self.entitlements.items)
        finally:
            policy.cancel()
            if self.entitlements.items is not None:
                self.issued.sync(self.entitlements.items)

    async def _follow_policy(self) -> None:
        while True:
            try:
                known = self.entitlements.items is not None
                if await self.work(self.entitlements.refresh):
                    self._new_policy(known)
                self.well("policy")
            except HandclaspError as error:
                self.problem("policy", f"the workloads of the policy: {error.detail}")
            await asyncio.sleep(self._host.poll * _CHANCE.uniform(0.75, 1.25))  # so that agents do not fall into step

    def _new_policy(self, known: bool) -> None:
        workloads = self.entitlements.items or ()
        _log.info("the policy gives %d workloads to this agent", len(workloads))
        if not known:
            self.issued.restore(workloads)
        self.issued.sync(workloads)
        self.bump("policy")

    async def work(self, do: Callable[[], T]) -> T:
        """Return what ``do`` returns, called in a worker thread."""
        return await self._loop.run_in_executor(self._pool, do)

    def close(self) -> None:
        """Give the worker threads back."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    # --- what is wrong ----------------------------------------------------------------------------------------------------------------

    def problem(self, subject: str, words: str) -> None:
        """Note that something is wrong, until it is well again or ten minutes have passed.

        Some of the words are a caller's: a line break or a terminal's command in them would be one in the log and in ``agent status``.
        """
        words = "".join(sign if sign.isprintable() else "?" for sign in words)
        if self._problems.get(subject, (0, ""))[1] != words:
            _log.warning("%s", words)
        self._problems.pop(subject, None)
        while len(self._problems) > _PROBLEMS:
            # What callers complain of makes room before what is wrong with us.
            self._problems.pop(next((one for one in self._problems if one.startswith("sds ")), next(iter(self._problems))))
        self._problems[subject] = (self.clock(), words)

    def well(self, subject: str) -> None:
        """Note that it is not."""
        self._problems.pop(subject, None)

    def problems(self) -> list[str]:
        """Return what is wrong, in words. May be called from any thread."""
        oldest = self.clock() - _PROBLEM_AGE
        unwritten = [self.entitlements.unwritten] if self.entitlements.unwritten else []
        return [words for at, words in list(self._problems.values()) if at > oldest] + unwritten
