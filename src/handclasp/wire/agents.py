"""Agents: how they enrol, what they report, and what is known of them."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from handclasp.wire.base import Pem, Request, Response
from handclasp.wire.issuance import Issued


class AgentIdentity(Request, kw_only=True):
    """What an agent reports about one identity it looks after."""

    identity: str
    sha256: str | None = None
    not_after: str | None = None
    renew_at: str | None = None
    state: str
    """``ok``, ``renewing``, ``overdue``, ``failed``."""
    targets: Annotated[list[AgentTarget], Meta(max_length=100)] = field(default_factory=list)
    rotations: int = 0
    last_success: str | None = None
    last_failure: Annotated[str, Meta(max_length=2000)] | None = None


class AgentTarget(Request, kw_only=True):
    """What an agent reports about one place of delivery: the certificate that was last seen in use there, and what is wrong."""

    name: Annotated[str, Meta(max_length=1024)]
    state: str
    """``ok``, ``pending`` or ``failed``."""
    sha256: str | None = None
    last_success: str | None = None
    last_failure: Annotated[str, Meta(max_length=2000)] | None = None


class AgentReport(Request, kw_only=True):
    """What an agent sends after each change and at least once in its poll interval."""

    hostname: Annotated[str, Meta(max_length=255)]
    version: Annotated[str, Meta(max_length=64)]
    identities: Annotated[list[AgentIdentity], Meta(max_length=2000)] = field(default_factory=list)


class Workload(Response, kw_only=True):
    """One workload of the policy that an agent may serve on its socket.

    A process that has all ``selectors`` gets ``identity``. Placeholders in it, such as ``{k8s:ns}``, are filled from the process's own
    selectors of that name.
    """

    name: str
    selectors: list[str]
    identity: str
    dns: list[str]
    profile: str
    ttl: str | None
    hint: str
    federates_with: list[str]
    jwt: bool
    """Whether it may have JWT-SVIDs too."""


class WorkloadList(Response, kw_only=True):
    """Every workload that the policy in force gives this agent."""

    items: list[Workload]


class Evidence(Request, kw_only=True):
    """What an agent proves itself with where it has no token of ours. ``method`` says which of the others are read.

    * ``oidc``, ``kubernetes``: ``token``, a JWT; ``cluster`` names the cluster of the policy
    * ``x509``: ``chain`` (PEM, leaf first) and ``signature`` (base64, by the leaf's key) over what ``challenge`` says
    * ``aws``: ``document`` (base64 of the instance identity document) and ``signature`` (as the metadata service has it under ``rsa2048``
      or ``signature``: base64)
    """

    method: str
    token: Annotated[str, Meta(max_length=16384)] = ""
    cluster: Annotated[str, Meta(max_length=128)] = ""
    chain: Pem = ""
    document: Annotated[str, Meta(max_length=16384)] = ""
    signature: Annotated[str, Meta(max_length=16384)] = ""
    challenge: Annotated[str, Meta(max_length=512)] = ""


class EnrolRequest(Request, kw_only=True):
    """Ask for an agent's certificate on evidence; its name and labels come from the policy's rule, never from here."""

    csr: Pem
    evidence: Evidence


class Enrolled(Issued, kw_only=True):
    """An agent's certificate, and whether the same evidence would serve once more when that certificate has ended."""

    again: bool = False


class Challenge(Response, kw_only=True):
    """What an agent signs to prove that it holds a key: once, and before ``expires_at``."""

    challenge: str
    expires_at: str


class Reported(Response, kw_only=True):
    """A report was taken."""

    received_at: str
    scans: bool = False
    """Whether scans of files are due for this agent (``GET /v1/agents/self/scans``)."""


class AgentMissed(Response, kw_only=True):
    """A certificate of an agent whose renewal point has passed, by the server's own record of it."""

    identity: str
    sha256: str
    renew_before: str
    not_after: str
    state: str
    """``overdue``, or ``ended`` without a successor."""


class AgentEvidence(Response, kw_only=True):
    """What an agent last enrolled with: a rule of the policy, and whom its evidence named."""

    rule: str
    method: str
    subject: str


class Agent(Response, kw_only=True):
    """An agent as the server knows it."""

    identity: str
    hostname: str
    version: str
    labels: dict[str, str]
    enrolled_at: str
    last_contact: str | None
    address: str | None
    state: str
    """``ok``; ``attention``: it reports a failure; ``overdue``: it missed a renewal; ``silent``; ``enrolled``: never heard of since."""
    identities: list[AgentIdentity]
    missed: list[AgentMissed] = field(default_factory=list)
    evidence: AgentEvidence | None = None
    """None where it enrolled with a token."""
    can_enrol_again: bool = False
    """Whether its evidence would serve once more, when all its certificates have ended."""


class AgentList(Response, kw_only=True):
    """One page of agents."""

    items: list[Agent]
    next_cursor: str | None = None
