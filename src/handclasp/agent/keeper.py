"""Looks after one identity: what it holds, what :mod:`decide` says about that, and doing it, one action at a time.

A keeper is used by one thread at a time. Whatever goes wrong in it ends as a stated condition and a next attempt, never as an exception.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from handclasp import wire
from handclasp.agent.anchors import Anchors
from handclasp.agent.config import Managed
from handclasp.agent.decide import FAR, Action, Ask, Decision, Deliver, Held, Issue, Renew, TargetView, View, condition, decide
from handclasp.agent.deliver import Content, deliver
from handclasp.agent.generations import File
from handclasp.agent.look import Interrupted, Wait
from handclasp.agent.state import IdentityState, IdentityStore, Obtained, TargetState, target_condition
from handclasp.client import renewal
from handclasp.client.api import ApiClient, Credential
from handclasp.client.csr import new_request
from handclasp.client.material import Material
from handclasp.clock import Clock, parse_rfc3339, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault

declare("agent.keyed", "agent.answered", "agent.obtained")

_log = logging.getLogger("handclasp.agent")
_KEEP = 3
_REISSUE = frozenset({Kind.SUPERSEDED, Kind.NOT_FOUND})
"""Refusals of a renewal that an issuance gets around: an answer was lost on its way, or the server was restored from before it."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every keeper works with. ``client`` shows the agent's own certificate; ``random`` returns a float in [0, 1)."""

    client: ApiClient
    anchors: Anchors
    trust_domain: str
    poll: float
    clock: Clock
    random: Callable[[], float]
    wait: Wait


class Keeper:
    """The keeper of one identity; ``own`` is the agent's, which is renewed like the others and never issued."""

    def __init__(self, managed: Managed, store: IdentityStore, around: Surroundings, *, own: bool = False) -> None:
        store.prepare()
        self.managed, self.store, self.around, self.own = managed, store, around, own
        self.state = store.load()
        self.state.identity = managed.name
        self.obtained = store.obtained()
        self.trust_domain = managed.identity.removeprefix("spiffe://").partition("/")[0] if managed.identity else around.trust_domain
        self.wants_crl = any(target.place.crl for target in managed.targets)
        self._tag = ""
        # Asking begins at a random point of the interval: agents that start together must not ask together.
        self._next_ask = around.clock() + int(around.poll * 1000 * around.random())
        # Digests and not contents: an agent may have five hundred identities, and 45 MB.
        self._digests: dict[str, str] = {}
        self._digests_of: tuple[object, ...] = ()
        self.state.targets = self._targets()
        self.told = self._tell(self.view(), around.clock())
        """What the server is told about this identity; replaced whole, so any thread may read it."""

    # --- what is ----------------------------------------------------------------------------------------------------------------------

    def view(self) -> View:
        """Return everything that decides."""
        held = None
        if self.obtained is not None:
            renew_at = self.obtained.renew_at
            if self.state.renew_at_of == self.obtained.sha256:
                renew_at = min(renew_at, self.state.renew_at)
            held = Held(self.obtained.sha256, self.obtained.not_after, renew_at, self.obtained.renew_before, self.obtained.wanted)
        return View(
            wanted=self.managed.digest,
            held=held,
            targets=tuple(self._target_view(target.name) for target in self.managed.targets),
            failures=self.state.failures,
            next_attempt=self.state.next_attempt,
            next_ask=self._next_ask,
            blocked=held is not None and self.state.blocked == held.sha256,
            can_issue=not self.own,
        )

    def decision(self) -> Decision:
        """Decide what is next. As everything here but ``told``, not to be called while another thread attends."""
        view, now = self.view(), self.around.clock()
        self.told = self._tell(view, now)
        return decide(view, now)

    def _tell(self, view: View, now: int) -> wire.AgentIdentity:
        problems = [self.state.last_failure] if self.state.failures or view.blocked else []
        problems += [f"{name}: {state.last_failure}" for name, state in self._targets().items() if state.failures]
        return wire.AgentIdentity(
            identity=self.managed.name,
            sha256=view.held.sha256 if view.held else None,
            not_after=rfc3339(view.held.not_after) if view.held else None,
            renew_at=rfc3339(view.held.renew_at) if view.held else None,
            state=condition(view, now),
            targets=[self._tell_target(name, state, view.held.sha256 if view.held else None) for name, state in self._targets().items()],
            rotations=self.state.rotations,
            last_success=rfc3339(self.state.last_success) if self.state.last_success else None,
            last_failure="\n".join(problems)[:2000] or None,
        )

    def _tell_target(self, name: str, state: TargetState, sha256: str | None) -> wire.AgentTarget:
        return wire.AgentTarget(
            name=name[:1024],
            state=target_condition(state, sha256),
            sha256=state.certificate or None,
            last_success=rfc3339(state.last_success) if state.last_success else None,
            last_failure=state.last_failure[:2000] or None,
        )

    def _targets(self) -> dict[str, TargetState]:
        return {target.name: self.state.targets.setdefault(target.name, TargetState()) for target in self.managed.targets}

    def _target_view(self, name: str) -> TargetView:
        state = self._targets()[name]
        return TargetView(name, self._wanted().get(name, ""), state.content, state.failures, state.next_attempt)

    def _wanted(self) -> dict[str, str]:
        """Digests of what the targets should hold now; none while there is nothing to deliver."""
        if self.obtained is None:
            return {}
        bundle, crl = self._anchors()
        of = (self.obtained.sha256, bundle, crl)
        if of != self._digests_of:
            content = self._content() if self.managed.targets else None
            if self.managed.targets and content is None:
                return {}
            self._digests = {target.name: content.digest(target.place) for target in self.managed.targets if content is not None}
            self._digests_of = of
        return self._digests

    def _anchors(self) -> tuple[bytes, bytes]:
        anchors = self.around.anchors
        return anchors.bundle(self.trust_domain), anchors.crl(self.trust_domain) if self.wants_crl else b""

    def _content(self) -> Content | None:
        """What targets should hold now; None while its files cannot be read."""
        assert self.obtained is not None
        bundle, crl = self._anchors()
        if self.wants_crl and not crl:
            return None  # a service told to read CRLs would refuse to start without them
        try:
            key, certificate, chain, own = (self.store.file(name) for name in ("key.pem", "leaf.pem", "chain.pem", "bundle.pem"))
        except OSError:
            return None
        return Content(self.obtained.sha256, key, certificate, chain, bundle or own, crl)

    # --- what is done -----------------------------------------------------------------------------------------------------------------

    def attend(self) -> tuple[int, bool]:
        """Do everything that is due. Returns when to come back, and whether anything happened that the server should hear of."""
        changed = False
        for _ in range(4 + 2 * len(self.managed.targets)):
            decision = self.decision()
            if not decision.actions:
                return decision.wake_at, changed
            action = decision.actions[0]
            try:
                self._do(action)
            except Interrupted:
                return FAR, changed
            changed |= not isinstance(action, Ask)
        return self.around.clock() + 1000, changed

    def _do(self, action: Action) -> None:
        try:
            if isinstance(action, (Issue, Renew)):
                self._obtain(action)
            elif isinstance(action, Deliver):
                self._deliver(action)
            else:
                self._ask()
        except Interrupted:
            raise
        except Exception as error:
            # OSError: disk full or read-only. Anything else is a fault of ours, which must not stop the renewals of the other identities.
            if not isinstance(error, (HandclaspError, OSError)):
                _log.exception("%s: unexpected", self.managed.name)
            self._failed(action, error)

    def _obtain(self, action: Issue | Renew) -> None:
        key, csr = new_request(self.managed.key_type, identity=self.managed.identity, dns=self.managed.dns, ip=self.managed.ip)
        fault("agent.keyed")
        issued, wanted = self._renewed(csr) if isinstance(action, Renew) else (self._issued(csr), self.managed.digest)
        fault("agent.answered")
        now = self.around.clock()
        self.obtained = keep(self.store, key, issued, wanted, now, self.around.random)
        fault("agent.obtained")
        self.state.rotations += isinstance(action, Renew)
        self.state.failures, self.state.last_failure, self.state.blocked = 0, "", ""
        self.state.last_success = now
        self.state.next_attempt = renewal.settle_until(self.obtained.not_after, now)
        for target in self._targets().values():
            target.next_attempt = 0  # what failed with the old certificate is tried with the new one at once
        self._tag, self._next_ask = "", self._ask_again(now)
        self.store.save(self.state)
        _log.info("%s: %s, until %s (%s)", self.managed.name, issued.sha256[:16], issued.not_after, action.why)
        if not self.around.anchors.offer(self.trust_domain, issued.bundle):
            # It came with other anchors than those we hold: deliver it together with the newest, not a poll later.
            with contextlib.suppress(HandclaspError):
                self.around.anchors.refresh(self.trust_domain, crl=False)

    def _renewed(self, csr: str) -> tuple[wire.Issued, str]:
        assert self.obtained is not None
        credential = Credential(self.store.file("cert.pem"), self.store.file("key.pem"))
        try:
            with self.around.client.with_credential(credential) as holder:
                request = wire.RenewRequest(csr=csr, ttl=self.managed.ttl)
                return holder.renew(self.obtained.sha256, request), self.obtained.wanted
        except HandclaspError as error:
            if error.kind not in _REISSUE or self.own:
                raise
        return self._issued(csr), self.managed.digest

    def _issued(self, csr: str) -> wire.Issued:
        managed = self.managed
        return self.around.client.issue(
            wire.IssueRequest(
                csr=csr, identity=managed.identity, dns=list(managed.dns), ip=list(managed.ip), profile=managed.profile, ttl=managed.ttl
            )
        )

    def _deliver(self, action: Deliver) -> None:
        target = next(target for target in self.managed.targets if target.name == action.target)
        content, state = self._content(), self._targets()[action.target]
        if content is None:
            raise HandclaspError(Kind.UNAVAILABLE, f"the certificate cannot be read back from {self.store.home}")
        generation = deliver(target, content, state.generation, identity=self.managed.name, wait=self.around.wait)
        state.content, state.generation, state.certificate = content.digest(target.place), generation, content.sha256
        state.failures, state.next_attempt, state.last_failure = 0, 0, ""
        state.last_success = self.around.clock()
        self.store.save(self.state)
        _log.info("%s: %s runs on %s", self.managed.name, target.name, content.sha256[:16])

    def _ask(self) -> None:
        """Ask for the server's present renewal window, and take it when it is earlier than what was drawn."""
        assert self.obtained is not None
        now = self.around.clock()
        self._next_ask = self._ask_again(now)
        answer = self.around.client.renewal_info(self.obtained.sha256, etag=self._tag)
        if answer is None:
            return
        info, self._tag = answer
        after, before = parse_rfc3339(info.renew_after), parse_rfc3339(info.renew_before)
        renew_at = self.state.renew_at if self.state.renew_at_of == self.obtained.sha256 else self.obtained.renew_at
        if info.state == "revoked":
            self._block()
        elif before < renew_at:
            self.state.renew_at = after + int(max(0, before - after) * self.around.random())
            self.state.renew_at_of = self.obtained.sha256
            self.store.save(self.state)
            _log.info("%s: the server wants it renewed by %s", self.managed.name, info.renew_before)

    def _ask_again(self, now: int) -> int:
        return now + int(self.around.poll * 1000 * (0.75 + 0.5 * self.around.random()))

    # --- what goes wrong --------------------------------------------------------------------------------------------------------------

    def _failed(self, action: Action, error: Exception) -> None:
        if isinstance(action, Ask):
            _log.debug("%s: %s", self.managed.name, error)
            return
        now = self.around.clock()
        reason = error.detail if isinstance(error, HandclaspError) else f"{type(error).__name__}: {error}"
        wish = error.retry_after if isinstance(error, HandclaspError) else None
        if isinstance(action, Deliver):
            state = self._targets()[action.target]
            state.failures += 1
            state.last_failure = reason
            state.next_attempt = renewal.back_off(now, state.failures, self.around.random)
        elif isinstance(error, HandclaspError) and error.kind is Kind.REVOKED:
            self._block()
        else:
            self.state.failures += 1
            self.state.last_failure = reason
            self.state.next_attempt = self._next_try(now, wish)
        _log.warning("%s: %s: %s", self.managed.name, getattr(action, "target", type(action).__name__.lower()), reason)
        self._save_quietly()

    def _next_try(self, now: int, wish: float | None) -> int:
        held = self.obtained
        if held is None or now >= held.not_after:
            return renewal.back_off(now, self.state.failures, self.around.random, retry_after=wish)
        return renewal.retry_at(
            now,
            renew_after=held.renew_after,
            renew_before=held.renew_before,
            not_after=held.not_after,
            random=self.around.random,
            retry_after=wish,
        )

    def _block(self) -> None:
        assert self.obtained is not None
        self.state.blocked = self.obtained.sha256
        self.state.last_failure = "the certificate was revoked; the agent obtains another only after `handclasp agent forget`"
        self._save_quietly()

    def _save_quietly(self) -> None:
        try:
            self.store.save(self.state)
        except OSError as error:
            _log.warning("%s: the state cannot be written: %s", self.managed.name, error)


def keep(store: IdentityStore, key: bytes, issued: wire.Issued, wanted: str, now: int, random: Callable[[], float]) -> Obtained:
    """Make an answer durable as the generation that counts, with its renewal time drawn, and return its facts.

    Raises ``bad_key`` or ``bad_certificate`` for an answer that cannot be used, ``OSError`` when it cannot be written.
    """
    credential = Credential((issued.certificate.rstrip() + "\n" + issued.chain).encode(), key)
    Material(credential, issued.bundle.encode()).check()
    if hashlib.sha256(credential.leaf).hexdigest() != issued.sha256:
        raise HandclaspError(Kind.BAD_CERTIFICATE, "the server's answer names another certificate than it contains")
    after, before, not_after = (parse_rfc3339(text) for text in (issued.renew_after, issued.renew_before, issued.not_after))
    facts = Obtained(
        sha256=issued.sha256,
        identity=issued.identity,
        serial=issued.serial,
        authority=issued.authority,
        not_after=not_after,
        renew_after=after,
        renew_before=before,
        renew_at=renewal.draw_renewal(after, before, not_after, now, random),
        obtained_at=now,
        wanted=wanted,
    )
    contents = {
        "key.pem": key,
        "cert.pem": credential.certificate,
        "leaf.pem": issued.certificate.encode(),
        "chain.pem": issued.chain.encode(),
        "bundle.pem": issued.bundle.encode(),
        "facts.json": msgspec.json.format(msgspec.json.encode(facts)),
    }
    name = store.generations.write({file: File(data, 0o600) for file, data in contents.items()})
    store.generations.flip(name)
    store.generations.prune(_KEEP)
    return facts


def forget(store: IdentityStore) -> None:
    """Drop what is known about an identity, so that it is issued anew; what was delivered stays until then. Raises ``OSError``."""
    (store.generations.root / "current").unlink(missing_ok=True)
    state = store.load()
    store.save(IdentityState(identity=state.identity, rotations=state.rotations, targets=state.targets))
