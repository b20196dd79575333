"""The policy section ``enrolment:``: which evidence makes an agent, under which name and with which labels.

.. code-block:: yaml

    enrolment:
      - name: nodes
        evidence: kubernetes
        cluster: prod-a                           # a name under clusters:
        service_accounts: [handclasp/agent]       # NAMESPACE/NAME
        audience: handclasp                       # of the token; left out: one of the cluster's
        identity: "spiffe://example.org/agent/{cluster}-{node}"
        labels: {cluster: "{cluster}"}
        from: [10.0.0.0/8]
        ttl: 12h                                  # of the agent's own certificate; left out: the profile's
        once: false                               # true: the same subject enrols again only after its certificate was revoked

    oidc:        issuer: (a name under oidc:), claims: {…}
    x509:        ca: (PEM), subject: {organization: …}, dns: [patterns]
    aws:         accounts: […], regions: […], certificates: (PEM), max_age: 15m

A rule names every value that it uses, and only verified facts fill its placeholders: letters, digits and ``. _ -``, so that a fact can
never lead into another segment (the same rule as for claims in :mod:`handclasp.access.patterns`). The facts are kept with the agent; its
renewals are judged by the rule as it is then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from handclasp.access.grants import AGENT_PROFILE, Grant
from handclasp.access.patterns import ClaimPattern, DnsPatterns, IdentityPatterns, Networks
from handclasp.clock import format_duration
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import chains

PREFIX = "enrolment:"
METHODS = ("oidc", "x509", "kubernetes", "aws")

Facts = Mapping[str, Any]
"""What was verified, by name: texts, numbers, truth values, and lists of texts."""

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_VALUE = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,255}")


@dataclass(frozen=True, slots=True)
class OidcTakes:
    """Tokens of one issuer of the policy, with these claims."""

    provider: str
    issuer: str
    claims: tuple[tuple[str, ClaimPattern], ...]

    def refusal(self, facts: Facts) -> str | None:
        """Return why the facts do not fit, or None."""
        if facts.get("iss") != self.issuer:
            return "the token is of another issuer"
        return next((f"the claim {claim} does not fit" for claim, pattern in self.claims if not pattern.matches(facts.get(claim))), None)

    def meaning(self) -> dict[str, Any]:
        """Return what it says, for comparing two policies."""
        return {"issuer": self.provider, "claims": {claim: pattern.value for claim, pattern in self.claims}}


@dataclass(frozen=True, slots=True)
class X509Takes:
    """Certificates under these anchors."""

    anchors: tuple[bytes, ...]
    """DER."""
    subject: tuple[tuple[str, ClaimPattern], ...] = ()
    dns: DnsPatterns = field(default_factory=DnsPatterns)

    def refusal(self, facts: Facts) -> str | None:
        """Return why the facts do not fit, or None."""
        if facts.get("anchor") not in {chains.fingerprint(anchor).hex() for anchor in self.anchors}:
            return "the certificate is under another authority"
        for name, pattern in self.subject:
            if not pattern.matches(facts.get(name)):
                return f"the certificate's {name} does not fit"
        if self.dns and facts.get("dns") is None:
            return "no one DNS name of the certificate fits"
        if self.dns and not self.dns.covers(str(facts["dns"])):
            return "the certificate's DNS name does not fit"
        return None

    def dns_of(self, listed: list[str]) -> str | None:
        """Return the one DNS name of a certificate that counts: the only one that fits; None where there is none, or a choice."""
        fitting = [name for name in listed if not self.dns or self.dns.covers(name)]
        return fitting[0] if len(fitting) == 1 else None

    def meaning(self) -> dict[str, Any]:
        """Return what it says, for comparing two policies."""
        anchors = sorted(chains.fingerprint(anchor).hex() for anchor in self.anchors)
        return {"ca": anchors, "subject": {name: pattern.value for name, pattern in self.subject}, "dns": sorted(self.dns.texts)}


@dataclass(frozen=True, slots=True)
class KubernetesTakes:
    """Service accounts of one cluster of the policy."""

    cluster: str
    accounts: ClaimPattern
    audience: str | None = None

    def refusal(self, facts: Facts) -> str | None:
        """Return why the facts do not fit, or None."""
        if facts.get("cluster") != self.cluster:
            return "the token is of another cluster"
        account = f"{facts.get('namespace')}/{facts.get('service_account')}"
        return None if self.accounts.matches(account) else f"the service account {account} is not one of the rule's"

    def meaning(self) -> dict[str, Any]:
        """Return what it says, for comparing two policies."""
        return {"cluster": self.cluster, "service_accounts": self.accounts.value, "audience": self.audience}


@dataclass(frozen=True, slots=True)
class AwsTakes:
    """EC2 instances of these accounts."""

    accounts: frozenset[str]
    certificates: tuple[bytes, ...]
    """DER of the certificates that the cloud's signatures are checked with."""
    regions: frozenset[str] = frozenset()
    max_age: float | None = None
    """Seconds since the instance was started, at the enrolment."""

    def refusal(self, facts: Facts) -> str | None:
        """Return why the facts do not fit, or None. (The age is of the moment of the enrolment, and no fact.)"""
        if facts.get("account") not in self.accounts:
            return "the instance is of another account"
        return "the instance is in another region" if self.regions and facts.get("region") not in self.regions else None

    def meaning(self) -> dict[str, Any]:
        """Return what it says, for comparing two policies."""
        return {
            "accounts": sorted(self.accounts),
            "regions": sorted(self.regions),
            "certificates": sorted(chains.fingerprint(certificate).hex() for certificate in self.certificates),
            "max_age": None if self.max_age is None else format_duration(self.max_age),
        }


Takes = OidcTakes | X509Takes | KubernetesTakes | AwsTakes


@dataclass(frozen=True, slots=True)
class EnrolmentRule:
    """One rule: this evidence makes an agent of this name."""

    name: str
    method: str
    takes: Takes
    identity: str
    labels: tuple[tuple[str, str], ...] = ()
    once: bool = False
    sources: Networks = field(default_factory=Networks)
    ttl: float | None = None
    """Seconds: how long the agent's own certificate lives at most."""

    @property
    def grant_name(self) -> str:
        """What is recorded in ``granted_by``."""
        return PREFIX + self.name

    @property
    def wants(self) -> frozenset[str]:
        """The names of all facts that it looks at."""
        found = {name for text in (self.identity, *(value for _, value in self.labels)) for name in PLACEHOLDER.findall(text)}
        if isinstance(self.takes, OidcTakes):
            found |= {claim for claim, _ in self.takes.claims}
        return frozenset(found)

    def identity_for(self, facts: Facts) -> str:
        """Return the agent's identity. Raises ``not_allowed`` when the facts do not fit or fill it, which nothing but a fact decides."""
        refusal = self.takes.refusal(facts)
        if refusal is not None:
            raise HandclaspError(Kind.NOT_ALLOWED, f"{self.grant_name}: {refusal}")
        return self._filled(self.identity, facts)

    def labels_for(self, facts: Facts) -> dict[str, str]:
        """Return the agent's labels. Raises as :meth:`identity_for`."""
        return {label: self._filled(text, facts) for label, text in self.labels}

    def grant_for(self, facts: Facts) -> Grant | None:
        """Return what the rule, as it is, gives to an agent with these facts: its own certificate, and nothing else. None when nothing."""
        try:
            identity = self.identity_for(facts)
            self.labels_for(facts)
            patterns = IdentityPatterns([identity])
        except HandclaspError:
            return None
        return Grant(
            name=self.grant_name,
            identities=patterns,
            profiles=frozenset({AGENT_PROFILE}),
            max_ttl=self.ttl,
            sources=self.sources,
        )

    def meaning(self) -> dict[str, Any]:
        """Return what it says, for comparing two policies."""
        return {
            "evidence": self.method,
            **{key: value for key, value in self.takes.meaning().items() if value not in (None, [], {})},
            "identity": self.identity,
            "labels": dict(self.labels),
            "once": self.once,
            "from": sorted(self.sources.texts),
            "ttl": None if self.ttl is None else format_duration(self.ttl),
        }

    def _filled(self, text: str, facts: Facts) -> str:
        """Return a text with facts in the place of its placeholders; a fact is never more than a part of one segment."""

        def value_of(match: re.Match[str]) -> str:
            value = facts.get(match[1])
            if not isinstance(value, str) or _VALUE.fullmatch(value) is None:
                what = "is missing" if value is None else "has characters that a name cannot have"
                raise HandclaspError(Kind.NOT_ALLOWED, f"{self.grant_name}: {match[1]} {what}, and it is needed for {text}")
            return value

        return PLACEHOLDER.sub(value_of, text)
