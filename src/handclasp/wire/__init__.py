"""Every request and response type of the REST API: one definition for server, CLI, agent and SDK.

Times are RFC 3339 strings in UTC, durations are strings such as ``90s`` or ``24h``, certificates and keys are PEM strings, fingerprints are
lower-case hex SHA-256 of the DER. Requests refuse unknown fields, so a misspelt option is an error and not a silent default; responses
accept them, so an older client reads a newer server.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Duration = Annotated[str, Meta(min_length=2, max_length=32, examples=["90s", "1h", "24h"])]
Pem = Annotated[str, Meta(max_length=65536)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
NameList = Annotated[list[Annotated[str, Meta(min_length=1, max_length=512)]], Meta(max_length=100)]
PatternList = Annotated[list[Annotated[str, Meta(min_length=1, max_length=512)]], Meta(max_length=1000)]


class Request(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of what a client sends."""


class Response(Struct, kw_only=True):
    """Base of what the server answers."""


class Problem(Response, kw_only=True):
    """RFC 9457 problem document; ``kind`` is the machine-readable reason (see :class:`handclasp.errors.Kind`)."""

    type: str
    title: str
    status: int
    kind: str
    detail: str
    hint: str = ""
    instance: str = ""


# --- certificates -----------------------------------------------------------------------------------------------------------------------


class IssueRequest(Request, kw_only=True):
    """Ask for a certificate over the key in ``csr``; the names come from here or from the CSR, and policy decides on the result."""

    csr: Pem
    identity: Annotated[str, Meta(max_length=2048)] | None = None
    dns: NameList = field(default_factory=list)
    ip: NameList = field(default_factory=list)
    email: NameList = field(default_factory=list)
    profile: Name | None = None
    ttl: Duration | None = None


class BatchRequest(Request, kw_only=True):
    """Up to 1,000 issuances in one request; each succeeds or fails by itself."""

    requests: Annotated[list[IssueRequest], Meta(min_length=1, max_length=1000)]


class RenewRequest(Request, kw_only=True):
    """Renew the certificate named in the path, over the key in ``csr`` (a new one, unless the profile allows the old)."""

    csr: Pem
    ttl: Duration | None = None


class Issued(Response, kw_only=True):
    """A new certificate with everything needed to use and to renew it."""

    certificate: str
    chain: str
    bundle: str
    sha256: str
    serial: str
    identity: str
    not_before: str
    not_after: str
    renew_after: str
    renew_before: str
    authority: str
    log_entry: int


class BatchItem(Response, kw_only=True):
    """Exactly one of ``issued`` and ``problem`` is set."""

    issued: Issued | None = None
    problem: Problem | None = None


class BatchResponse(Response, kw_only=True):
    """Answers in the order of the requests."""

    results: list[BatchItem]


class RevokeRequest(Request, kw_only=True):
    """Revoke a certificate. ``key_compromise`` also blocks its key everywhere and revokes what else carries it."""

    reason: str = "unspecified"
    comment: Annotated[str, Meta(max_length=1000)] = ""


class Revoked(Response, kw_only=True):
    """Certificates that this request revoked: more than one after a key compromise, none when it was revoked before."""

    revoked: list[str]
    reason: str
    revoked_at: str
    log_entry: int | None


class Sighting(Response, kw_only=True):
    """Certificate ``sha256`` was at ``location`` from ``first_seen`` to ``last_seen``; it still is while ``ended`` is null."""

    id: int
    sha256: str
    location: int
    shown: str
    kind: str
    host: str | None
    source: str
    role: str
    """``served``, ``stored``, ``chain`` or ``anchor``."""
    chain: list[str]
    """Fingerprints of what came with it, in its order, without the certificate itself."""
    how: dict[str, Any]
    first_seen: str
    last_seen: str
    ended: str | None
    problem: str | None = None
    """Why its location could not be read the last time."""


class Certificate(Response, kw_only=True):
    """One certificate as the inventory knows it: issued here, or found (``origin``).

    What only an issued one has is null for a found one, and a found one says of itself what its own bytes say.
    """

    sha256: str
    serial: str
    """Hexadecimal; empty where only the fingerprint is known."""
    identity: str | None
    """Null for a CA certificate, and for one without a name of a workload."""
    dns: list[str]
    ip: list[str]
    email: list[str]
    profile: str | None
    authority: str | None
    """The authority of ours that signed it, also where it was never issued here."""
    not_before: str
    not_after: str
    renew_after: str | None
    renew_before: str | None
    state: str
    """``valid``, ``superseded``, ``expired`` or ``revoked``."""
    key_sha256: str | None
    key_type: str
    line: str | None
    generation: int | None
    predecessor: str | None
    superseded_by: str | None
    revoked_at: str | None
    revocation_reason: str | None
    granted_by: str | None
    obtained_by: str | None
    log_entry: int | None
    certificate: str | None = None
    origin: str = "issued"
    """``issued`` or ``found``."""
    standing: str | None = None
    """Where it stands: ``unissued revoked_served expired_served old_served foreign gone seen``; null when it was never seen."""
    standing_since: str | None = None
    issuer: str | None = None
    """Distinguished name (RFC 4514)."""
    subject: str | None = None
    uri: list[str] = field(default_factory=list)
    """URI names of a found one."""
    owner: str | None = None
    tier: str | None = None
    environment: str | None = None
    first_seen: str | None = None
    last_seen: str | None = None
    locations: int = 0
    """At how many places it is served or stored now."""
    is_ca: bool = False
    signature: str | None = None
    """Signature algorithm of a found one."""
    triage: str | None = None
    """Of a found one: ``unmanaged``, ``claimed``, ``dismissed`` or ``investigate``."""
    triage_by: str | None = None
    triage_reason: str | None = None
    problem: str | None = None
    """Why it cannot be read, where it cannot."""
    sightings: list[Sighting] | None = None
    """Where it is and was, newest first, at most 100; only where one certificate is asked for, with ``expand=sightings``."""


class CertificateList(Response, kw_only=True):
    """One page; pass ``next_cursor`` as ``cursor`` for the next, until it is null.

    A page may have fewer items than asked for, or none, and still a ``next_cursor``: the server had looked through enough for one request.
    """

    items: list[Certificate]
    next_cursor: str | None = None


class RenewalInfo(Response, kw_only=True):
    """The server's current renewal suggestion for one certificate."""

    sha256: str
    renew_after: str
    renew_before: str
    state: str


class RenewalQuery(Request, kw_only=True):
    """Ask for the renewal suggestions of several certificates at once; ``tag`` is that of the last answer about the same certificates."""

    certificates: Annotated[list[Sha256], Meta(max_length=2000)]
    tag: str = ""


class RenewalList(Response, kw_only=True):
    """Suggestions for those of the certificates that the caller may know of. ``tag`` changes whenever any suggestion anywhere may have;
    while it is the caller's own, ``items`` is empty: nothing has changed.
    """

    tag: str
    items: list[RenewalInfo]


class RotationRequest(Request, kw_only=True):
    """Have every certificate that matches replaced, with new keys, spread over ``within``. Exactly one of the first three is given."""

    all: bool = False
    identity: Annotated[str, Meta(max_length=2048)] | None = None
    """An identity pattern, as in policy."""
    authority: Name | None = None
    within: Duration = "10m"
    reason: Annotated[str, Meta(max_length=1000)] = ""
    dry_run: bool = False


class RotationPending(Response, kw_only=True):
    """A certificate that has not been replaced yet, and who has it."""

    sha256: str
    identity: str
    not_after: str
    renew_before: str
    agent: str | None = None
    agent_last_contact: str | None = None
    state: str
    """``waiting``, or ``late`` when its time is over."""


class Rotation(Response, kw_only=True):
    """How far a rotation is. ``pending`` holds the first ones (at most 1,000) of those that have not answered."""

    id: str
    what: str
    reason: str
    by: str
    created_at: str
    begins_at: str
    """When the first certificate is due: a little later, so that agents have asked before."""
    ends_at: str
    state: str
    """``planned`` (a dry run), ``running``, ``done``, or ``late``: the time is over and something has not answered."""
    total: int
    replaced: int
    gone: int
    """Revoked or expired meanwhile."""
    late: int
    pending: list[RotationPending]
    log_entry: int | None = None
    notes: list[str] = field(default_factory=list)
    """What whoever starts it should know, in words."""


class RotationList(Response, kw_only=True):
    """Rotations, newest first, without their pending certificates."""

    items: list[Rotation]
    next_cursor: str | None = None


class JwtSvidRequest(Request, kw_only=True):
    """Ask for a JWT-SVID; policy decides whether the caller may have it for this identity."""

    identity: Annotated[str, Meta(max_length=2048)]
    audience: Annotated[list[Annotated[str, Meta(min_length=1, max_length=512)]], Meta(min_length=1, max_length=20)]
    ttl: Duration | None = None


class JwtSvid(Response, kw_only=True):
    """A JWT-SVID (SPIFFE JWT-SVID 1.0), compact."""

    token: str
    identity: str
    expires_at: str
    log_entry: int


# --- identities -------------------------------------------------------------------------------------------------------------------------


class Identity(Response, kw_only=True):
    """Who a workload is; outlives its certificates."""

    identity: str
    owner: str | None
    tier: str | None
    environment: str | None
    created_at: str
    certificates: int
    """Certificates issued to it so far."""
    newest: str | None
    newest_not_after: str | None
    newest_origin: str | None = None
    """``issued``, or ``found`` where none was ever issued here."""
    newest_renew_before: str | None = None
    state: str = "none"
    """Of its newest certificate: ``ok``, ``overdue`` (not renewed in time), ``expired``, or ``none`` when it has none."""


class IdentityList(Response, kw_only=True):
    """One page of identities."""

    items: list[Identity]
    next_cursor: str | None = None


# --- tokens -----------------------------------------------------------------------------------------------------------------------------


class TokenRequest(Request, kw_only=True):
    """Make a scoped access token. A token either issues certificates (``allow*``, ``profile``) or uses the API (``scopes``)."""

    name: Name
    owner: Annotated[str, Meta(max_length=256)] | None = None
    allow: PatternList = field(default_factory=list)
    allow_dns: PatternList = field(default_factory=list)
    allow_ip: PatternList = field(default_factory=list)
    allow_email: PatternList = field(default_factory=list)
    profiles: Annotated[list[Name], Meta(max_length=20)] = field(default_factory=list)
    max_ttl: Duration | None = None
    uses: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 1
    """How many certificates it may obtain; 0 is without limit until it expires."""
    expires: Duration = "10m"
    cidr: PatternList = field(default_factory=list)
    csr_hash: Sha256 | None = None
    """SHA-256 of the DER of the only CSR that may be presented with it."""
    renew: bool = True
    """Whether holders of certificates obtained with it may renew them while the token is not revoked."""
    agent: bool = False
    """An enrolment token: it also issues the agent's own certificate, and that agent may then obtain what the token allows."""
    labels: dict[str, str] = field(default_factory=dict)
    scopes: Annotated[list[str], Meta(max_length=50)] = field(default_factory=list)


class Token(Response, kw_only=True):
    """A token as listed: everything but its secret."""

    id: str
    name: str
    owner: str | None
    allow: list[str]
    allow_dns: list[str]
    allow_ip: list[str]
    allow_email: list[str]
    profiles: list[str]
    max_ttl: str | None
    uses: int
    used: int
    created_at: str
    expires_at: str
    last_used_at: str | None
    revoked_at: str | None
    cidr: list[str]
    csr_hash: str | None
    renew: bool
    agent: bool
    labels: dict[str, str]
    scopes: list[str]
    state: str


class TokenCreated(Response, kw_only=True):
    """The only answer that ever shows the secret."""

    id: str
    name: str
    token: str
    expires_at: str
    uses: int
    log_entry: int


class TokenList(Response, kw_only=True):
    """One page of tokens."""

    items: list[Token]
    next_cursor: str | None = None


# --- policy and profiles ----------------------------------------------------------------------------------------------------------------


class PolicyDocument(Request, kw_only=True):
    """A policy as its YAML text."""

    text: Annotated[str, Meta(max_length=1_000_000)]


class Policy(Response, kw_only=True):
    """The policy in force."""

    text: str
    sha256: str
    applied_at: str | None
    applied_by: str | None


class PolicyChange(Response, kw_only=True):
    """One difference between the policy in force and a proposed one: ``added``, ``removed`` or ``changed``."""

    change: str
    subject: str
    before: str | None = None
    after: str | None = None


class PolicyDiff(Response, kw_only=True):
    """What applying a policy would change; empty ``changes`` means nothing."""

    changes: list[PolicyChange]
    sha256: str
    applied: bool = False
    log_entry: int | None = None


class Profile(Response, kw_only=True):
    """What a kind of certificate looks like."""

    name: str
    description: str
    authority: str
    key_types: list[str]
    lifetime: str
    min_lifetime: str
    max_lifetime: str
    backdate: str
    usages: list[str]
    names: list[str]
    built_in: bool


class ProfileList(Response, kw_only=True):
    """Every profile."""

    items: list[Profile]


class ProfileDocument(Request, kw_only=True):
    """Profiles as their YAML text; replaces all profiles that are not built in."""

    text: Annotated[str, Meta(max_length=1_000_000)]


# --- authorities and bundles ------------------------------------------------------------------------------------------------------------


class Authority(Response, kw_only=True):
    """One authority: root or issuing."""

    name: str
    kind: str
    trust_domain: str
    subject: str
    sha256: str
    not_before: str
    not_after: str
    key_type: str
    state: str
    dns_zones: list[str]
    crl_shards: int
    certificate: str


class AuthorityList(Response, kw_only=True):
    """Every authority."""

    items: list[Authority]


class CrlDocument(Request, kw_only=True):
    """A revocation list that was made where the authority's key is, as PEM."""

    pem: Annotated[str, Meta(max_length=1_000_000)]


class Published(Response, kw_only=True):
    """A CRL is published; ``log_entry`` is null when it was before."""

    log_entry: int | None


class Bundle(Response, kw_only=True):
    """The anchors of one trust domain."""

    trust_domain: str
    pem: str


class BundleList(Response, kw_only=True):
    """Every trust domain served here, with its anchors."""

    items: list[Bundle]


# --- agents -----------------------------------------------------------------------------------------------------------------------------


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


# --- federation -------------------------------------------------------------------------------------------------------------------------


class FederationRequest(Request, kw_only=True):
    """Trust another trust domain's bundle, from its bundle endpoint (SPIFFE Federation section 5)."""

    url: Annotated[str, Meta(max_length=2048)]
    profile: str = "https_web"
    """``https_web`` or ``https_spiffe``."""
    endpoint_id: Annotated[str, Meta(max_length=2048)] | None = None
    """``https_spiffe``: the SPIFFE ID that the endpoint must show."""
    bundle: Annotated[str, Meta(max_length=1_000_000)] | None = None
    """``https_spiffe``: the bundle to begin with, PEM or SPIFFE JWKS."""


class Federation(Response, kw_only=True):
    """One federated trust domain, and how its bundle is kept up to date."""

    trust_domain: str
    url: str
    profile: str
    endpoint_id: str | None
    state: str
    """``waiting`` (no bundle yet), ``ok``, ``stale``: not refreshed for several of its refresh hints."""
    sequence: int | None
    refresh_hint: int
    anchors: int
    jwt_keys: int
    fetched_at: str | None
    tried_at: str | None
    problem: str | None
    created_at: str


class FederationList(Response, kw_only=True):
    """Every federated trust domain."""

    items: list[Federation]


# --- log --------------------------------------------------------------------------------------------------------------------------------


class LogEntry(Response, kw_only=True):
    """One entry of the log, with its place in it."""

    index: int
    leaf_hash: str
    entry: dict[str, Any]


class LogEntryList(Response, kw_only=True):
    """One page of entries in log order."""

    items: list[LogEntry]
    next_cursor: str | None = None


class LogProof(Response, kw_only=True):
    """An inclusion proof that can be checked without the server: C2SP tlog-proof text, and the entry it is about."""

    index: int
    tree_size: int
    leaf_hash: str
    path: list[str]
    checkpoint: str
    entry: str
    proof: str


class ErasePersonal(Request, kw_only=True):
    """Erase the salted personal data of one entry; the log itself keeps verifying."""

    index: Annotated[int, Meta(ge=0)]


class Done(Response, kw_only=True):
    """A change that has nothing to show but that it is durable and logged."""

    log_entry: int


class Health(Response, kw_only=True):
    """Liveness or readiness, with one line for each part that is not well."""

    status: str
    problems: list[str] = field(default_factory=list)


def to_json(value: Struct) -> bytes:
    """Encode a wire value."""
    return msgspec.json.encode(value)
