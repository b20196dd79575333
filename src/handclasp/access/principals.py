"""Principals: who a caller is, once that is proven. They hold no secret and may be logged as :meth:`to_log` gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from handclasp.access.grants import Grant
from handclasp.pki.names import Names

SCOPES: dict[str, str] = {
    "admin": "everything that any other scope allows",
    "agents:read": "list agents and what they report",
    "agents:report": "report as an agent (its own certificate carries this)",
    "authorities:read": "list authorities",
    "authorities:write": "retire authorities, and publish the revocation lists of offline roots",
    "certificates:read": "list certificates and identities, and their history",
    "certificates:revoke": "revoke any certificate",
    "certificates:rotate": "have certificates replaced before their time",
    "federation:read": "list federated trust domains",
    "federation:write": "add and remove federated trust domains",
    "inventory:read": "read the inventory: certificates issued and found, locations, sightings, lineage, exports; holds certificates:read",
    "inventory:write": "record sightings, and claim or dismiss what was found",
    "log:read": "read the log, its tiles, checkpoints and proofs",
    "log:write": "add cosignatures, and erase personal data from log entries",
    "metrics:read": "read metrics",
    "owners:read": "list owners, and what says who owns what",
    "owners:write": "import owners, put rules of ownership in force, assign and confirm",
    "policy:read": "read and compare policy and profiles",
    "policy:write": "put policy and profiles in force",
    "sources:collect": "read sources as a collector: lease parts of scans, and hand in what was there",
    "sources:read": "list sources and scans",
    "sources:write": "add, change, run and remove sources",
    "tokens:read": "list tokens",
    "tokens:write": "create tokens for any identity, with no scope beyond one's own, and revoke tokens that have none beyond it",
}
"""What a token that uses the API may be allowed. Append-only: a scope that was ever given out keeps its meaning."""

_NO_SCOPES: frozenset[str] = frozenset()
_AGENT_SCOPES = frozenset({"agents:report"})


@dataclass(frozen=True, slots=True)
class TokenPrincipal:
    """The bearer of an access token."""

    id: str
    name: str
    owner: str | None
    grant: Grant
    scopes: frozenset[str] = _NO_SCOPES
    agent: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    csr_sha256: bytes | None = None
    uses: int = 1
    """How many certificates it may obtain in all; 0 is without limit. The ledger counts them."""
    expires_at: int = 0

    kind = "token"

    def may_come_from(self, address: str | None) -> bool:
        """Tell whether the token may be presented from a network address; None, an unknown one, is in no network."""
        sources = self.grant.sources
        return not sources or (address is not None and sources.covers_source(address))

    def describe(self) -> str:
        """Return who this is, in words for rows and messages."""
        return f"token:{self.id} ({self.name})"

    def to_log(self) -> dict[str, str]:
        """Return who this is, for the log."""
        return {"kind": "token", "id": self.id, "name": self.name}


@dataclass(frozen=True, slots=True)
class CertificatePrincipal:
    """The holder of a certificate issued here, proven by the handshake of this very connection.

    ``sha256`` is of the whole certificate's DER: a serial and an issuer name are not enough (openbao#173).
    """

    sha256: bytes
    identity: str
    names: Names
    """Every name in the certificate; a renewal can have these and no others."""
    profile: str
    line: bytes
    generation: int
    granted_by: str
    """The grant its line began with: ``token:ID``, ``policy:NAME`` or both; see :func:`handclasp.access.grants.split_grant`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    is_agent: bool = False
    superseded_at: int | None = None
    """Since when another certificate is in its place, in ms: then it only repeats its renewal, and is revoked by its holder."""
    grace_is_over: bool = False
    """Whether it is superseded for so long that not even its renewal may be repeated."""

    kind = "certificate"

    @property
    def scopes(self) -> frozenset[str]:
        """What of the API it may use: agents report, and nothing else."""
        return _AGENT_SCOPES if self.is_agent else _NO_SCOPES

    def describe(self) -> str:
        """Return who this is, in words for rows and messages."""
        return f"certificate:{self.identity}"

    def to_log(self) -> dict[str, str]:
        """Return who this is, for the log."""
        identity = "email" if self.identity.startswith("email:") else self.identity  # an address is personal; the hash says which
        return {"kind": "certificate", "identity": identity, "sha256": self.sha256.hex()}


@dataclass(frozen=True, slots=True)
class OidcPrincipal:
    """A workload with a verified token of an OIDC issuer that the policy names."""

    issuer: str
    subject: str
    claims: Mapping[str, Any]
    jti: str | None
    expires_at: int

    kind = "oidc"

    @property
    def scopes(self) -> frozenset[str]:
        """Nothing of the API: such a token obtains certificates only."""
        return _NO_SCOPES

    def describe(self) -> str:
        """Return who this is, in words for rows and messages."""
        return f"oidc:{self.subject} ({self.issuer})"

    def to_log(self) -> dict[str, str]:
        """Return who this is, for the log."""
        return {"kind": "oidc", "issuer": self.issuer, "subject": self.subject} | ({"jti": self.jti} if self.jti else {})


@dataclass(frozen=True, slots=True)
class KubernetesPrincipal:
    """A service account of a cluster that the policy names, proven by its token, or by that of a node's proxy (``via``)."""

    cluster: str
    namespace: str
    service_account: str
    pod_name: str | None = None
    pod_uid: str | None = None
    node_name: str | None = None
    node_uid: str | None = None
    expires_at: int = 0
    """When the token ends, in ms, with the leeway between clocks."""
    claims: Mapping[str, Any] = field(default_factory=dict)
    """Of the token; none where another one asked for it."""
    via: KubernetesPrincipal | None = None
    """The proxy of the node that asks for one of the node's pods."""

    kind = "kubernetes"

    @property
    def scopes(self) -> frozenset[str]:
        """Nothing of the API: such a token obtains certificates only."""
        return _NO_SCOPES

    @property
    def placeholders(self) -> Mapping[str, str]:
        """What it fills in the patterns of a grant."""
        return {"cluster": self.cluster, "namespace": self.namespace, "service_account": self.service_account}

    @property
    def caller(self) -> str:
        """Who calls, for limits: the pod itself, for all pods of a node's proxy, or of a deployment, share one service account."""
        asking = self.via or self
        return f"kubernetes:{asking.cluster}/{asking.namespace}/{asking.service_account}/{asking.pod_uid or ''}"

    def describe(self) -> str:
        """Return who this is, in words for rows and messages."""
        asking = f" via {self.via.namespace}/{self.via.service_account}" if self.via is not None else ""
        return f"kubernetes:{self.cluster}/{self.namespace}/{self.service_account}{asking}"

    def to_log(self) -> dict[str, str]:
        """Return who this is, for the log."""
        asking = self.via or self
        who = {"kind": "kubernetes", "cluster": self.cluster, "namespace": self.namespace, "service_account": self.service_account}
        if self.via is not None:
            who["via"] = f"{asking.namespace}/{asking.service_account}"
        return who | {key: value for key, value in (("pod", asking.pod_name), ("node", asking.node_name)) if value}


@dataclass(frozen=True, slots=True)
class Once:
    """Something that serves once: it is spent in the transaction of the certificate, and forgotten after ``expires_at`` (ms)."""

    issuer: str
    key: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class EvidencePrincipal:
    """A machine that proved what it is, and may be an agent by the enrolment rule that takes its evidence; and nothing else."""

    method: str
    """``oidc``, ``x509``, ``kubernetes`` or ``aws``."""
    rule: str
    """The name of the rule in the policy."""
    subject: str
    """Who the evidence is about, the same each time: it tells one machine from another where both would have one name."""
    facts: Mapping[str, Any]
    """What was verified and the rule looks at; kept with the agent, so that renewals can be judged."""
    expires_at: int
    """When the evidence ends, in ms."""
    spends: tuple[Once, ...] = ()

    kind = "evidence"

    @property
    def scopes(self) -> frozenset[str]:
        """Nothing of the API."""
        return _NO_SCOPES

    @property
    def holder(self) -> str:
        """Who holds an agent's name that this evidence gave."""
        return f"{self.method}:{self.subject}"

    def describe(self) -> str:
        """Return who this is, in words for rows and messages."""
        return f"evidence:{self.method}:{self.subject} ({self.rule})"

    def to_log(self) -> dict[str, str]:
        """Return who this is, for the log."""
        return {"kind": "evidence", "method": self.method, "rule": self.rule, "subject": self.subject}


@dataclass(frozen=True, slots=True)
class ConsoleUser:
    """A person who is signed in to the console."""

    id: str
    """How they signed in, for rows and the log: ``token:ID``, ``certificate:IDENTITY``, ``oidc:SUBJECT``."""
    name: str
    """For people: what their pages show. It may be an address, so it goes into no log."""
    role: str
    """One of :data:`handclasp.access.sessions.ROLES`."""
    scopes: frozenset[str]
    teams: frozenset[str] = frozenset()
    """Owners for whom they may act, where their role alone does not let them."""

    kind = "console"

    def describe(self) -> str:
        """Return who this is, in words for rows and messages."""
        return f"console:{self.id} ({self.role})"

    def to_log(self) -> dict[str, str]:
        """Return who this is, for the log."""
        shown = "certificate:email" if self.id.startswith("certificate:email:") else self.id  # an address is personal
        return {"kind": "console", "id": shown, "role": self.role}


@dataclass(frozen=True, slots=True)
class ServerPrincipal:
    """The server itself, asking for the certificate of its own listeners. It is made in code, never from a request."""

    trust_domain: str
    dns: tuple[str, ...] = ()
    """The only names it may have: those of its settings."""
    ip: tuple[str, ...] = ()

    kind = "server"

    @property
    def scopes(self) -> frozenset[str]:
        """Nothing: it does not call the API."""
        return _NO_SCOPES

    def describe(self) -> str:
        """Return who this is, in words for rows and messages."""
        return "server"

    def to_log(self) -> dict[str, str]:
        """Return who this is, for the log."""
        return {"kind": "server"}


Principal = TokenPrincipal | CertificatePrincipal | OidcPrincipal | KubernetesPrincipal | EvidencePrincipal | ServerPrincipal | ConsoleUser
