"""Every request and response type of the REST API: one definition for server, CLI, agent and SDK.

    base          what all of them share; issuance, certificates, rotations, tokens, rules, trust, agents, log: one subject each, and all
                  their names can be imported from here
    observations  what sources hand to the inventory; inventory, discovery, filescans, ownership: imported by their own names by whoever
                  uses them, because agents read only what this file imports, and must stay small

Times are RFC 3339 strings in UTC, durations are strings such as ``90s`` or ``24h``, certificates and keys are PEM strings, fingerprints are
lower-case hex SHA-256 of the DER. Requests refuse unknown fields, so a misspelt option is an error and not a silent default; responses
accept them, so an older client reads a newer server.
"""

from __future__ import annotations

from handclasp.wire.agents import (
    Agent,
    AgentEvidence,
    AgentIdentity,
    AgentList,
    AgentMissed,
    AgentReport,
    AgentTarget,
    Challenge,
    Enrolled,
    EnrolRequest,
    Evidence,
    Reported,
    Workload,
    WorkloadList,
)
from handclasp.wire.base import Done, Duration, Health, Name, NameList, PatternList, Pem, Problem, Request, Response, Sha256, to_json
from handclasp.wire.certificates import Certificate, CertificateList, Identity, IdentityList, Sighting
from handclasp.wire.issuance import (
    BatchItem,
    BatchRequest,
    BatchResponse,
    Issued,
    IssueRequest,
    JwtSvid,
    JwtSvidRequest,
    RenewalInfo,
    RenewalList,
    RenewalQuery,
    RenewRequest,
    Revoked,
    RevokeRequest,
)
from handclasp.wire.log import ErasePersonal, LogEntry, LogEntryList, LogProof
from handclasp.wire.rotations import Rotation, RotationList, RotationPending, RotationRequest
from handclasp.wire.rules import Policy, PolicyChange, PolicyDiff, PolicyDocument, Profile, ProfileDocument, ProfileList
from handclasp.wire.tokens import Token, TokenCreated, TokenList, TokenRequest
from handclasp.wire.trust import (
    Authority,
    AuthorityList,
    Bundle,
    BundleList,
    CrlDocument,
    Federation,
    FederationList,
    FederationRequest,
    Published,
)

__all__ = [
    "Agent",
    "AgentEvidence",
    "AgentIdentity",
    "AgentList",
    "AgentMissed",
    "AgentReport",
    "AgentTarget",
    "Authority",
    "AuthorityList",
    "BatchItem",
    "BatchRequest",
    "BatchResponse",
    "Bundle",
    "BundleList",
    "Certificate",
    "CertificateList",
    "Challenge",
    "CrlDocument",
    "Done",
    "Duration",
    "EnrolRequest",
    "Enrolled",
    "ErasePersonal",
    "Evidence",
    "Federation",
    "FederationList",
    "FederationRequest",
    "Health",
    "Identity",
    "IdentityList",
    "IssueRequest",
    "Issued",
    "JwtSvid",
    "JwtSvidRequest",
    "LogEntry",
    "LogEntryList",
    "LogProof",
    "Name",
    "NameList",
    "PatternList",
    "Pem",
    "Policy",
    "PolicyChange",
    "PolicyDiff",
    "PolicyDocument",
    "Problem",
    "Profile",
    "ProfileDocument",
    "ProfileList",
    "Published",
    "RenewRequest",
    "RenewalInfo",
    "RenewalList",
    "RenewalQuery",
    "Reported",
    "Request",
    "Response",
    "RevokeRequest",
    "Revoked",
    "Rotation",
    "RotationList",
    "RotationPending",
    "RotationRequest",
    "Sha256",
    "Sighting",
    "Token",
    "TokenCreated",
    "TokenList",
    "TokenRequest",
    "Workload",
    "WorkloadList",
    "to_json",
]
