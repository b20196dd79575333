"""Looks after one identity: what it holds, what :mod:`decide` says about that, and doing it, one action at a time.

A keeper is used by one thread at a time, but for :meth:`Keeper.content`, :meth:`Keeper.suggest` and ``told``. Whatever goes wrong in it
ends as a stated condition and a next attempt, never as an exception.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from handclasp import wire
from handclasp.agent.anchors import Anchors
from handclasp.agent.config import Managed
from handclasp.agent.content import Content
from handclasp.agent.decide import FAR, Action, Decision, Deliver, Issue, Renew, TargetView, View, decide
from handclasp.agent.deliver import deliver
from handclasp.agent.held import next_try, renew_at, what_is_held
from handclasp.agent.leases import Leases
from handclasp.agent.obtain import Enrol, check_answer, issue, keep, renew
from handclasp.agent.state import IdentityState, IdentityStore, Obtained, TargetState
from handclasp.agent.targets.base import Drift, Interrupted, Wait
from handclasp.agent.targets.changed import DRIFT, signature_of
from handclasp.agent.telling import in_words, tell
from handclasp.client import renewal
from handclasp.client.api import ApiClient
from handclasp.client.material import Credential, Material
from handclasp.clock import Clock, parse_rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault

declare("agent.obtained")

_log = logging.getLogger("handclasp.agent")
_SPREAD = 30_000
"""Milliseconds over which renewals are spread that were all missed at once, because the host slept."""

Mark: TypeAlias = tuple[str, bytes, bytes]
"""Tells one content from another: the certificate's fingerprint, and the anchors and CRLs that go with it."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every keeper works with. ``client`` shows the agent's own certificate; ``random`` returns a float in [0, 1)."""

    client: ApiClient
    anchors: Anchors
    trust_domain: str
    clock: Clock
    random: Callable[[], float]
    wait: Wait
    leases: Leases
    enrol: Enrol | None = None
    """How the agent's own certificate is obtained anew; None where only a person can."""


class Keeper:
    """The keeper of one identity; ``own`` is the agent's, which is renewed like the others and never issued.

    It reads nothing from disk until :meth:`load`.
    """

    __slots__ = (
        "_configured", "_digests", "_digests_of", "_drifts", "_suggestion", "around", "managed", "obtained", "own", "state", "store",
        "trust_domain", "wants_crl",
    )  # fmt: skip

    def __init__(self, managed: Managed, store: IdentityStore, around: Surroundings, *, own: bool = False) -> None:
        self.managed, self.store, self.around, self.own = managed, store, around, own
        self.trust_domain = managed.identity.removeprefix("spiffe://").partition("/")[0] if managed.identity else around.trust_domain
        self.wants_crl = any(target.place.crl for target in managed.targets)
        self.state = IdentityState(identity=managed.name)
        self._configured = managed.digest
        self.obtained: Obtained | None = None
        self._suggestion: wire.RenewalInfo | None = None
        # Digests and not contents: an agent may have five hundred identities, and 45 MB.
        self._digests: dict[str, str] = {}
        self._digests_of: Mark | None = None
        self._drifts: dict[str, Drift] = {}

    def load(self) -> None:
        """Take what is on disk."""
        try:
            self.obtained = self.store.prepare()
        except OSError as error:
            _log.warning("%s: %s cannot be prepared: %s", self.managed.name, self.store.home, error)
            self.obtained = self.store.obtained()
        self.state = self.store.load()
        self.state.identity = self.managed.name
        self.state.targets = {target.name: self.state.targets.get(target.name) or TargetState() for target in self.managed.targets}
        for target in self.managed.targets:
            # Where another agent delivers now, ours is not delivered, whatever we wrote: trying says so, and takes over when it is gone.
            if not self.around.leases.take(target.place, make=False):
                self.state.targets[target.name].content = ""

    # --- what is ----------------------------------------------------------------------------------------------------------------------

    def view(self) -> View:
        """Return everything that decides."""
        return self._view(tuple(self._target_view(target.name) for target in self.managed.targets))

    def _view(self, targets: tuple[TargetView, ...]) -> View:
        state, held = self.state, what_is_held(self.obtained, self.state, self.around.clock())
        return View(
            wanted=self._configured,
            held=held,
            targets=targets,
            failures=state.failures,
            next_attempt=state.next_attempt,
            blocked=held is not None and state.blocked == held.sha256,
            can_issue=not self.own or self.around.enrol is not None,
        )

    def renew_at(self) -> int:
        """Return when the certificate is to be renewed; only while there is one."""
        assert self.obtained is not None
        return renew_at(self.obtained, self.state, self.around.clock())

    def decision(self) -> Decision:
        """Decide what is next."""
        self._heed()
        return decide(self.view(), self.around.clock())

    @property
    def told(self) -> wire.AgentIdentity:
        """What the server is told about this identity now. For any thread; made anew each time, because most of the time nobody asks."""
        targets = tuple(TargetView(name, "", "", state.failures) for name, state in self.state.targets.items())
        return tell(self.managed.name, self._view(targets), self.state, self.around.clock())

    def mark(self) -> Mark | None:
        """Return what tells one content from another, or None while there is none."""
        if self.obtained is None:
            return None
        return (self.obtained.sha256, *self._anchors())

    def content(self) -> Content | None:
        """Return what is held now, whole and checked; None while there is nothing. For any thread.

        It is what was last obtained, also when that has ended: whoever uses it sees so in it.
        """
        try:
            return self._content()
        except (OSError, HandclaspError):
            return None

    def _content(self) -> Content:
        """The same; raises ``OSError`` and ``HandclaspError`` with the reason."""
        kept = self.store.kept()
        bundle, crl = self._anchors()
        if self.wants_crl and not crl:
            # A service told to read CRLs would refuse to start without them.
            raise HandclaspError(Kind.UNAVAILABLE, f"there are no revocation lists of {self.trust_domain} yet")
        content = Content(kept.facts.sha256, kept.key, kept.certificate, kept.chain, bundle or kept.bundle, crl)
        Material(content.credential, content.bundle).check()
        return content

    def _target_view(self, name: str) -> TargetView:
        state = self.state.targets[name]
        delivered = "" if name in self._drifts else state.content
        return TargetView(name, self._wanted().get(name, ""), delivered, state.failures, state.next_attempt)

    def _wanted(self) -> dict[str, str]:
        """Digests of what the targets should hold now; none while there is nothing to deliver."""
        mark = self.mark() if self.managed.targets else None
        if mark is None or (self.wants_crl and not mark[2]):
            return {}
        if mark != self._digests_of:
            try:
                chain, own = self.store.file("chain.pem"), b"" if mark[1] else self.store.file("bundle.pem")
            except OSError:
                return {}
            # No key: a digest does not depend on it, and five hundred of them need not be read to find that nothing is to be done.
            content = Content(mark[0], b"", b"", chain, mark[1] or own, mark[2])
            self._digests = {target.name: target.place.digest(content) for target in self.managed.targets}
            self._digests_of = mark
        return self._digests

    def _anchors(self) -> tuple[bytes, bytes]:
        anchors = self.around.anchors
        return anchors.bundle(self.trust_domain), anchors.crl(self.trust_domain) if self.wants_crl else b""

    # --- what is done -----------------------------------------------------------------------------------------------------------------

    def attend(self) -> tuple[int, bool]:
        """Do everything that is due. Returns when to come back, and whether anything happened that the server should hear of."""
        changed = False
        for _ in range(4 + 2 * len(self.managed.targets)):
            decision = self.decision()
            if not decision.actions:
                return decision.wake_at, changed
            try:
                self._do(decision.actions[0])
            except Interrupted:
                return FAR, changed
            changed = True
        return self.around.clock() + 1000, changed

    def suggest(self, info: wire.RenewalInfo) -> None:
        """Take what the server says about the certificate; it is heeded at the next decision. For any thread."""
        self._suggestion = info

    def confirmed(self, target: str) -> str:
        """Return what the last delivery to a target was called; empty when none succeeded or another is due. For any thread."""
        state = self.state.targets.get(target)
        return state.generation if state is not None and state.content and target not in self._drifts else ""

    def drifted(self, target: str, drift: Drift) -> None:
        """Take it that a target is no longer as it was delivered; the next decision is to deliver again. For any thread."""
        self._drifts[target] = drift
        if not drift.expected:
            _log.warning("%s: %s: %s", self.managed.name, target, drift.words)

    def look(self) -> bool:
        """Look whether the files of each target are as they were delivered, and return whether one must be delivered again."""
        drifted = False
        for target in self.managed.targets:
            state = self.state.targets[target.name]
            if not state.content or not state.signature or target.name in self._drifts:
                continue
            now = signature_of(target.place)
            if now and now != state.signature:
                self.drifted(target.name, DRIFT)
                drifted = True
        return drifted

    def spread(self) -> None:
        """Let what the host slept through be renewed at a random moment soon: everything on it, and other hosts, woke up with it."""
        now, held = self.around.clock(), self.obtained
        if held is None or self.state.next_attempt > now or now < self.renew_at():
            return
        longest = min(_SPREAD, max(held.not_after - now, 0) // 4 + 2000)
        self.state.next_attempt = now + int(longest * self.around.random())

    def _do(self, action: Action) -> None:
        try:
            if isinstance(action, Deliver):
                self._deliver(action)
            else:
                self._obtain(action)
        except Interrupted:
            raise
        except Exception as error:
            # OSError: disk full or read-only. Anything else is a fault of ours, which must not stop the renewals of the other identities.
            if not isinstance(error, (HandclaspError, OSError)):
                _log.exception("%s: unexpected", self.managed.name)
            self._failed(action, error)

    def _obtain(self, action: Issue | Renew) -> None:
        around, credential = self.around, self._credential() if isinstance(action, Renew) else None
        if credential is None:
            if self.own and around.enrol is None:
                raise HandclaspError(Kind.BAD_CERTIFICATE, "the agent's own certificate cannot be read back", hint="enrol again")
            (key, issued), wanted = issue(around.client, self.managed, around.enrol if self.own else None), self.managed.digest
        else:
            assert self.obtained is not None
            key, issued, wanted = renew(around.client, self.managed, self.obtained, credential, own=self.own, enrol=around.enrol)
        check_answer(self.managed, issued)
        now = around.clock()
        self.obtained = keep(self.store, key, issued, wanted, now, around.random)
        fault("agent.obtained")
        self.state.rotations += isinstance(action, Renew)
        self.state.failures, self.state.last_failure, self.state.blocked = 0, "", ""
        self.state.last_success = now
        self.state.next_attempt = renewal.settle_until(self.obtained.not_after, now)
        for target in self.state.targets.values():
            target.next_attempt = 0  # what failed with the old certificate is tried with the new one at once
        self.store.save(self.state)
        _log.info("%s: %s, until %s (%s)", self.managed.name, issued.sha256[:16], issued.not_after, action.why)
        if not around.anchors.offer(self.trust_domain, issued.bundle):
            # It came with other anchors than those we hold: deliver it together with the newest, not a poll later.
            with contextlib.suppress(HandclaspError):
                around.anchors.refresh(self.trust_domain, crl=False)

    def _credential(self) -> Credential | None:
        """The credential to renew with; None when what is kept is damaged, so that only another certificate helps."""
        try:
            kept = self.store.kept()
            Material(kept.credential, kept.bundle).check()
        except HandclaspError as error:
            if error.kind is Kind.BAD_SETTING:
                raise
        except FileNotFoundError:
            pass
        else:
            return kept.credential
        _log.warning("%s: what is kept in %s is damaged", self.managed.name, self.store.home)
        return None

    def _deliver(self, action: Deliver) -> None:
        target = next(target for target in self.managed.targets if target.name == action.target)
        state, content = self.state.targets[action.target], self._deliverable()
        self.around.leases.require(target.place)
        drift = self._drifts.get(target.name)
        generation = deliver(
            target, content, state.generation, identity=self.managed.name, wait=self.around.wait, agent=self.around.leases.agent
        )
        self._drifts.pop(target.name, None)
        state.content, state.generation, state.certificate = target.place.digest(content), generation, content.sha256
        state.signature = signature_of(target.place)
        state.failures, state.next_attempt = 0, 0
        state.last_failure = f"{drift.words}; that was put right" if drift is not None and not drift.expected else ""
        state.last_success = self.around.clock()
        self.store.save(self.state)
        _log.info("%s: %s runs on %s", self.managed.name, target.name, content.sha256[:16])

    def _deliverable(self) -> Content:
        try:
            return self._content()
        except (OSError, HandclaspError) as error:
            if isinstance(error, HandclaspError) and error.kind in (Kind.BAD_SETTING, Kind.UNAVAILABLE):
                raise
            self._damaged()
            raise HandclaspError(Kind.BAD_CERTIFICATE, f"what is kept in {self.store.home} is damaged; it is replaced") from error

    def _damaged(self) -> None:
        """Go back to a generation that is whole, or to none: then another certificate is issued."""
        with contextlib.suppress(OSError):
            self.store.repair()
        self.obtained = self.store.obtained()
        self._digests_of = None

    def _heed(self) -> None:
        """Take the server's suggestion when it is an earlier renewal than what was drawn, or says that the certificate was revoked."""
        info, self._suggestion = self._suggestion, None
        if info is None or self.obtained is None or info.sha256 != self.obtained.sha256:
            return
        try:
            after, before = parse_rfc3339(info.renew_after), parse_rfc3339(info.renew_before)
        except HandclaspError as error:
            _log.warning("%s: %s", self.managed.name, error.detail)
            return
        if info.state == "revoked":
            self._block("the certificate was revoked; the agent obtains another only after `handclasp agent forget`")
        elif before < self.renew_at():
            self.state.renew_at = after + int(max(0, before - after) * self.around.random())
            self.state.renew_at_of = self.obtained.sha256
            self._save_quietly()
            _log.info("%s: the server wants it renewed by %s", self.managed.name, info.renew_before)

    # --- what goes wrong --------------------------------------------------------------------------------------------------------------

    def _failed(self, action: Action, error: Exception) -> None:
        now = self.around.clock()
        reason = in_words(error)
        wish = error.retry_after if isinstance(error, HandclaspError) else None
        kind = error.kind if isinstance(error, HandclaspError) else None
        if isinstance(action, Deliver):
            state = self.state.targets[action.target]
            state.failures += 1
            state.last_failure, state.last_failure_at = reason, now
            state.next_attempt = renewal.back_off(now, state.failures, self.around.random)
        elif kind is Kind.REVOKED and self.obtained is not None:
            self._block("the certificate was revoked; the agent obtains another only after `handclasp agent forget`")
        elif kind is Kind.SUPERSEDED and self.own:
            self._block(
                "another holder of this identity renewed it: is this host a copy of another one? It cannot renew any more; revoke what the "
                "other holds and enrol again"
            )
        else:
            self.state.failures += 1
            self.state.last_failure, self.state.last_failure_at = reason, now
            self.state.next_attempt = next_try(self.obtained, self.state.failures, now, self.around.random, wish=wish)
        _log.warning("%s: %s: %s", self.managed.name, getattr(action, "target", type(action).__name__.lower()), reason)
        self._save_quietly()

    def _block(self, reason: str) -> None:
        assert self.obtained is not None
        if self.state.blocked == self.obtained.sha256:
            return
        self.state.blocked = self.obtained.sha256
        self.state.last_failure, self.state.last_failure_at = reason, self.around.clock()
        self._save_quietly()

    def _save_quietly(self) -> None:
        try:
            self.store.save(self.state)
        except OSError as error:
            _log.warning("%s: the state cannot be written: %s", self.managed.name, error)
