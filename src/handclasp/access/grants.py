"""Grants: who may obtain what, for how long, from where. A grant stands alone; nothing ever adds two of them up."""

from __future__ import annotations

from dataclasses import dataclass, field

from handclasp.access.patterns import NO_CLAIMS, ClaimPattern, Claims, DnsPatterns, EmailPatterns, IdentityPatterns, Networks, Patterns
from handclasp.errors import HandclaspError
from handclasp.pki.names import Names, make_names

ACTIONS = frozenset({"issue", "renew", "revoke"})
"""Everything that can be asked of :func:`handclasp.access.authorize.authorize`. What is not here is refused."""

GRANT_ACTIONS = ACTIONS | {"jwt"}
"""Everything that a grant can allow; ``jwt`` is judged by :func:`handclasp.access.authorize_jwt.authorize_jwt`."""

AGENT_PROFILE = "agent"


@dataclass(frozen=True, slots=True)
class CertificateRule:
    """Fits a client certificate by its identity: a SPIFFE ID, or ``dns:NAME`` / ``email:ADDRESS`` where it has none."""

    prefix: str
    patterns: Patterns

    def fits(self, identity: str) -> bool:
        """Return whether the identity (as :attr:`Names.identity`) is covered."""
        return identity.startswith(self.prefix) and self.patterns.covers(identity.removeprefix(self.prefix))


@dataclass(frozen=True, slots=True)
class AgentRule:
    """Fits an agent's certificate when the agent has every one of these labels."""

    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class OidcRule:
    """Fits a verified token of one issuer when every named claim is there and matches."""

    provider: str
    issuer: str
    claims: tuple[tuple[str, ClaimPattern], ...]


@dataclass(frozen=True, slots=True)
class KubernetesRule:
    """Fits a service account of one cluster; by its namespace and name where they are given."""

    cluster: str
    namespace: ClaimPattern | None = None
    service_account: ClaimPattern | None = None

    def fits(self, cluster: str, namespace: str, service_account: str) -> bool:
        """Return whether it is this cluster, and both names are covered."""
        pairs = ((self.namespace, namespace), (self.service_account, service_account))
        return self.cluster == cluster and all(pattern is None or pattern.matches(text) for pattern, text in pairs)


@dataclass(frozen=True, slots=True)
class TokenRule:
    """Fits an access token by its name, when that token carries no grant of its own."""

    name: str


PrincipalRule = CertificateRule | AgentRule | OidcRule | KubernetesRule | TokenRule


@dataclass(frozen=True, slots=True)
class Grant:
    """One grant, of the policy (``policy:NAME``) or of a token (``token:ID``).

    What is empty allows nothing, with two exceptions that only ever narrow: no ``sources`` means from anywhere, no ``max_ttl`` means as
    long as the profile allows.
    """

    name: str
    principals: tuple[PrincipalRule, ...] = ()
    identities: IdentityPatterns = field(default_factory=IdentityPatterns)
    dns: DnsPatterns = field(default_factory=DnsPatterns)
    ip: Networks = field(default_factory=Networks)
    email: EmailPatterns = field(default_factory=EmailPatterns)
    profiles: frozenset[str] = frozenset()
    max_ttl: float | None = None
    """Seconds."""
    sources: Networks = field(default_factory=Networks)
    actions: frozenset[str] = frozenset({"issue"})
    """What its principals may do by it themselves; see :data:`ACTIONS`."""
    renew: bool = True
    """Whether who holds a certificate obtained by it may renew that certificate, as long as the grant is there and covers it."""
    single_use_jwt: bool = False
    """Whether each OIDC token serves once; its ``jti`` is spent with the certificate."""
    agent: bool = False
    """An enrolment grant: it gives an agent its own certificate, and that agent then obtains what the grant allows."""

    only_names: Names | None = field(init=False, compare=False, default=None)
    """The names of the one identity that this grant speaks of, so that who has it need not name them; None where there is a choice.

    Patterns with ``*`` are a choice; among DNS names and addresses they are left out.
    """

    def __post_init__(self) -> None:
        """Work out ``only_names`` once: it is asked for with each request that names nothing."""
        object.__setattr__(self, "only_names", _only_names(self))

    @property
    def has_names(self) -> bool:
        """Whether it covers any name at all."""
        return bool(self.identities or self.dns or self.ip or self.email)

    def uncovered(self, names: Names, claims: Claims = NO_CLAIMS) -> str | None:
        """Return the first of the names that this grant, by itself, does not cover; None when it covers all."""
        if names.spiffe is not None and not self.identities.covers(names.spiffe, claims):
            return names.spiffe
        for name in names.dns:
            if not self.dns.covers(name, claims):
                return name
        for address in names.ip:
            if not self.ip.covers(address):
                return address
        for mailbox in names.email:
            if not self.email.covers(mailbox, claims):
                return mailbox
        return None

    def uncovered_by_enrolment(self, names: Names) -> str | None:
        """As :meth:`uncovered`, for an agent's own certificate: any ``spiffe://TD/agent/NAME`` in a trust domain that the grant
        names.

        A grant that lists agents' identities gives these and no others.
        """
        patterns = self.identities
        if not self.agent or names.spiffe is None or patterns.agents:
            return self.uncovered(names)
        trust_domain = names.spiffe.removeprefix("spiffe://").partition("/")[0]
        if not is_agent_identity(names.spiffe) or (patterns.trust_domains and trust_domain not in patterns.trust_domains):
            return names.spiffe
        return self.uncovered(Names(dns=names.dns, ip=names.ip, email=names.email))


def joint_grant(policy_grant: str, token_grant: str) -> str:
    """Return what is recorded where a policy's grant let a token have something: both bind what was obtained, for as long as it is renewed.

    A policy grant's name has no ``+``.
    """
    return f"{policy_grant}+{token_grant}"


def split_grant(granted_by: str) -> tuple[str, str]:
    """Return the grant by which a line began, and the token that had to do with it; the second is empty where one grant is all there is."""
    grant, _, token = granted_by.partition("+")
    return grant, token


def _only_names(grant: Grant) -> Names | None:
    spiffe = [text for text in grant.identities.texts if not set(text) & set("*{")]
    if len(spiffe) != len(grant.identities.texts) or len(spiffe) > 1:
        return None
    dns, ip, email = ([text for text in patterns.texts if not set(text) & set("*{/")] for patterns in (grant.dns, grant.ip, grant.email))
    try:
        names = make_names(spiffe[0] if spiffe else None, dns, ip, email)
    except HandclaspError:  # more of them than one certificate can have
        return None
    return None if names.is_empty else names


def is_agent_identity(spiffe_id: str) -> bool:
    """Return whether the SPIFFE ID is an agent's own: ``spiffe://TD/agent/NAME`` with one segment after ``agent``."""
    path = spiffe_id.removeprefix("spiffe://").split("/")[1:]
    return len(path) == 2 and path[0] == "agent"


def in_agent_space(spiffe_id: str) -> bool:
    """Return whether the SPIFFE ID is below ``spiffe://TD/agent``, where nobody but agents has a name."""
    return spiffe_id.removeprefix("spiffe://").split("/", 2)[1:2] == ["agent"]


def server_identity(trust_domain: str) -> str:
    """Return the SPIFFE ID of this server itself, which its bundle endpoint shows (SPIFFE Federation 5.2.2)."""
    return f"spiffe://{trust_domain}/handclasp/server"


def in_server_space(spiffe_id: str) -> bool:
    """Return whether the SPIFFE ID is below ``spiffe://TD/handclasp``, where nobody but this server has a name."""
    return spiffe_id.removeprefix("spiffe://").split("/", 2)[1:2] == ["handclasp"]
