"""Evidence in, principal out: the rules of the policy are asked in their order, and the first that is satisfied counts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from handclasp import wire
from handclasp.access.clusters import Clusters
from handclasp.access.enrolment import METHODS, EnrolmentRule, KubernetesTakes
from handclasp.access.evidence import aws, kubernetes, oidc, x509
from handclasp.access.evidence.challenge import Challenges
from handclasp.access.evidence.proven import Proven, refused
from handclasp.access.oidc import OidcVerifier
from handclasp.access.policy import Policy
from handclasp.access.principals import EvidencePrincipal, KubernetesPrincipal
from handclasp.clock import Clock, rfc3339
from handclasp.errors import HandclaspError, Kind

_Prove = Callable[[EnrolmentRule], Awaitable[Proven]]
_PASSING = frozenset({Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.RATE_LIMITED})


class EvidenceError(HandclaspError):
    """A refusal that knows which rule came nearest (empty: none was looked at)."""

    rule: str = ""


class EvidenceVerifier:
    """Verifies the evidence of machines. For one event loop; any number of calls at once."""

    def __init__(self, oidc_verifier: OidcVerifier, clusters: Clusters, challenges: Challenges, clock: Clock) -> None:
        self._oidc, self._clusters, self._challenges, self._clock = oidc_verifier, clusters, challenges, clock

    def challenge(self) -> wire.Challenge:
        """Return a new challenge."""
        text, expires_at = self._challenges.make()
        return wire.Challenge(challenge=text, expires_at=rfc3339(expires_at))

    async def verify(self, evidence: wire.Evidence, csr_sha256: bytes, policy: Policy, source: str | None) -> EvidencePrincipal:
        """Return who the evidence proves, by the first rule of the policy that takes it.

        ``csr_sha256`` is of the DER of the request that is to be certified; ``source`` the caller's address. Raises
        :class:`EvidenceError` of the kind ``not_authenticated`` or ``not_allowed`` with the reason that came nearest, ``too_large``, and
        ``unavailable`` when an issuer's or a cluster's keys cannot be had.
        """
        if evidence.method not in METHODS:
            raise EvidenceError(Kind.NOT_AUTHENTICATED, "this kind of evidence is not known", hint=f"one of {', '.join(METHODS)}")
        rules = [rule for rule in policy.enrolment if rule.method == evidence.method and _from(rule, source)]
        if not rules:
            raise EvidenceError(Kind.NOT_ALLOWED, f"no enrolment rule of the policy takes {evidence.method} evidence from here")
        try:
            prove = await self._method(evidence, csr_sha256, policy)
        except HandclaspError as error:
            raise _told(error, rules[0] if len(rules) == 1 else None) from error
        return await self._first(rules, prove)

    async def _first(self, rules: list[EnrolmentRule], prove: _Prove) -> EvidencePrincipal:
        nearest: EvidenceError | None = None
        for rule in rules:
            try:
                proven = await prove(rule)
                rule.identity_for(proven.facts)
                rule.labels_for(proven.facts)
            except HandclaspError as error:
                if error.kind in _PASSING:
                    raise
                # Who was recognised and is not wanted came nearer than who was not recognised.
                if nearest is None or (error.kind is Kind.NOT_ALLOWED and nearest.kind is not Kind.NOT_ALLOWED):
                    nearest = _told(error, rule)
                continue
            return EvidencePrincipal(rule.method, rule.name, proven.subject, proven.facts, proven.expires_at, proven.spends)
        assert nearest is not None
        raise nearest

    async def _method(self, evidence: wire.Evidence, csr_sha256: bytes, policy: Policy) -> _Prove:
        """Do what is the same for every rule, once, and return what is asked for each rule."""
        now = self._clock()
        if evidence.method == "oidc":
            self._oidc.use(policy)
            token = await self._oidc.verify(evidence.token)

            async def by_token(rule: EnrolmentRule) -> Proven:
                return oidc.prove(rule, token, policy)

            return by_token
        if evidence.method == "kubernetes":
            self._clusters.use(policy)
            return self._by_cluster(evidence)
        if evidence.method == "x509":
            shown = x509.read(evidence, csr_sha256, self._challenges)

            async def by_certificate(rule: EnrolmentRule) -> Proven:
                return shown.prove(rule, now)

            return by_certificate
        document, signature = aws.read(evidence)

        async def by_document(rule: EnrolmentRule) -> Proven:
            return aws.prove(rule, document, signature, now)

        return by_document

    def _by_cluster(self, evidence: wire.Evidence) -> _Prove:
        found: dict[str | None, KubernetesPrincipal] = {}

        async def prove(rule: EnrolmentRule) -> Proven:
            assert isinstance(rule.takes, KubernetesTakes)
            if rule.takes.cluster != evidence.cluster:
                raise refused("its cluster is not the rule's")
            audience = rule.takes.audience
            if audience not in found:
                audiences = None if audience is None else (audience,)
                found[audience] = await self._clusters.verify(evidence.cluster, evidence.token, audiences=audiences)
            return kubernetes.prove(rule, found[audience])

        return prove


def _from(rule: EnrolmentRule, source: str | None) -> bool:
    return not rule.sources or (source is not None and rule.sources.covers_source(source))


def _told(error: HandclaspError, rule: EnrolmentRule | None) -> EvidenceError:
    kind = Kind.NOT_AUTHENTICATED if error.kind is Kind.VERIFY_FAILED else error.kind
    told = EvidenceError(kind, error.detail, hint=error.hint, retry_after=error.retry_after)
    told.rule = rule.name if rule is not None else ""
    return told
