"""The one table of routes. The application, the OpenAPI document, the reference page and the scope checks are all made from it."""

from __future__ import annotations

from handclasp import wire
from handclasp.access.tokens import STATES as TOKEN_STATES
from handclasp.api.fleet import STATES as AGENT_STATES
from handclasp.api.handlers import agents, certificates, enrolment, log, renewals, rules, spiffe, system, trust
from handclasp.api.paging import CURSOR, LIMIT
from handclasp.api.routes import ANY_PRINCIPAL, PUBLIC, Parameter, Route
from handclasp.errors import Kind

KEY_KINDS = (Kind.BAD_CSR, Kind.BAD_PROOF, Kind.WEAK_KEY, Kind.BAD_KEY, Kind.BLOCKED_KEY, Kind.REUSED_KEY)
GRANT_KINDS = (Kind.BAD_NAME, Kind.NAME_NOT_ALLOWED, Kind.PROFILE_NOT_ALLOWED, Kind.LIFETIME_NOT_ALLOWED, Kind.LINT_FAILED)
PEM = "application/x-pem-file"
TEXT = "text/plain; charset=utf-8"
SINGLE = 65_536  # bytes: a CSR of 16 KiB with every name we accept fits several times


def _text(name: str, description: str) -> Parameter:
    return Parameter(name, description)


def _time(name: str, description: str) -> Parameter:
    return Parameter(name, description, {"type": "string", "format": "date-time"})


API: tuple[Route, ...] = (
    Route("POST", "/v1/certificates", certificates.issue, ANY_PRINCIPAL, "Issue a certificate",
          wire.IssueRequest, wire.Issued, status=201, max_body=SINGLE,
          kinds=(*KEY_KINDS, *GRANT_KINDS, Kind.UNKNOWN_PROFILE, Kind.UNKNOWN_AUTHORITY, Kind.TOKEN_SPENT, Kind.REPLAYED,
                 Kind.SUPERSEDED)),
    Route("GET", "/v1/certificates", certificates.list_certificates, "certificates:read", "List certificates",
          response=wire.CertificateList,
          parameters=(_text("identity", "Exact identity."),
                      Parameter("state", "Current state.", {"type": "string", "enum": list(certificates.STATES)}),
                      _text("profile", "Exact profile."), _text("authority", "Exact issuing authority."),
                      _text("serial", "Serial number, hexadecimal."), LIMIT, CURSOR)),
    Route("POST", "/v1/certificates:batch", certificates.issue_batch, ANY_PRINCIPAL, "Issue many certificates",
          wire.BatchRequest, wire.BatchResponse),
    Route("POST", "/v1/certificates/{sha256}:renew", certificates.renew, ANY_PRINCIPAL,
          "Renew a certificate, over mutual TLS with it", wire.RenewRequest, wire.Issued, status=201, max_body=SINGLE,
          kinds=(*KEY_KINDS, *GRANT_KINDS, Kind.NOT_FOUND, Kind.SUPERSEDED, Kind.REVOKED, Kind.UNKNOWN_AUTHORITY)),
    Route("POST", "/v1/certificates/{sha256}:revoke", certificates.revoke, ANY_PRINCIPAL,
          "Revoke a certificate: one's own, those that the policy lets one revoke, or any with certificates:revoke",
          wire.RevokeRequest, wire.Revoked, kinds=(Kind.NOT_FOUND, Kind.TOKEN_SPENT, Kind.REPLAYED)),
    Route("GET", "/v1/certificates/{sha256}:renewal-info", renewals.renewal_info, ANY_PRINCIPAL,
          "When to renew a certificate, for its holder and for agents", response=wire.RenewalInfo, kinds=(Kind.NOT_FOUND,)),
    Route("POST", "/v1/certificates:renewal-info", renewals.renewal_list, ANY_PRINCIPAL,
          "When to renew several certificates, for agents; empty while nothing has changed", wire.RenewalQuery, wire.RenewalList),
    Route("GET", "/v1/certificates/{sha256}", certificates.show, "certificates:read", "Show a certificate",
          response=wire.Certificate, kinds=(Kind.NOT_FOUND,)),
    Route("POST", "/v1/rotations", renewals.rotate, "certificates:rotate", "Have certificates replaced before their time",
          wire.RotationRequest, wire.Rotation, status=201, max_body=SINGLE, kinds=(Kind.UNKNOWN_AUTHORITY,)),
    Route("GET", "/v1/rotations", renewals.list_rotations, "certificates:rotate", "List rotations, newest first",
          response=wire.RotationList, parameters=(LIMIT, CURSOR)),
    Route("GET", "/v1/rotations/{id}", renewals.show_rotation, "certificates:rotate", "Show how far a rotation is",
          response=wire.Rotation, kinds=(Kind.NOT_FOUND,)),
    Route("GET", "/v1/identities", certificates.list_identities, "certificates:read", "List identities", response=wire.IdentityList,
          parameters=(_text("identity", "Exact identity."), _text("q", "Part of the identity."), _text("owner", "Exact owner."),
                      LIMIT, CURSOR)),
    Route("POST", "/v1/tokens", rules.create_token, "tokens:write", "Create a token", wire.TokenRequest, wire.TokenCreated, status=201,
          max_body=SINGLE, kinds=(Kind.BAD_NAME, Kind.UNKNOWN_PROFILE)),
    Route("GET", "/v1/tokens", rules.list_tokens, "tokens:read", "List tokens, newest first", response=wire.TokenList,
          parameters=(_text("name", "Exact name."), _text("owner", "Exact owner."),
                      Parameter("state", "Current state.", {"type": "string", "enum": list(TOKEN_STATES)}),
                      LIMIT, CURSOR)),
    Route("GET", "/v1/tokens/{id}", rules.show_token, "tokens:read", "Show a token", response=wire.Token, kinds=(Kind.NOT_FOUND,)),
    Route("POST", "/v1/tokens/{id}:revoke", rules.revoke_token, "tokens:write", "Revoke a token", response=wire.Done,
          kinds=(Kind.NOT_FOUND, Kind.CONFLICT)),
    Route("GET", "/v1/policy", rules.show_policy, "policy:read", "Show the policy in force", response=wire.Policy),
    Route("PUT", "/v1/policy", rules.apply_policy, "policy:write", "Put a policy in force", wire.PolicyDocument, wire.PolicyDiff,
          kinds=(Kind.BAD_POLICY,)),
    Route("POST", "/v1/policy:diff", rules.diff_policy, "policy:read", "Compare a policy with the one in force",
          wire.PolicyDocument, wire.PolicyDiff, kinds=(Kind.BAD_POLICY,)),
    Route("GET", "/v1/profiles", rules.list_profiles, "policy:read", "List profiles", response=wire.ProfileList),
    Route("PUT", "/v1/profiles", rules.apply_profiles, "policy:write", "Put profiles in force", wire.ProfileDocument, wire.PolicyDiff,
          kinds=(Kind.BAD_PROFILE,)),
    Route("POST", "/v1/profiles:diff", rules.diff_profiles, "policy:read", "Compare profiles with those in force",
          wire.ProfileDocument, wire.PolicyDiff, kinds=(Kind.BAD_PROFILE,)),
    Route("GET", "/v1/profiles/{name}", rules.show_profile, "policy:read", "Show a profile", response=wire.Profile,
          kinds=(Kind.NOT_FOUND,)),
    Route("GET", "/v1/authorities", trust.list_authorities, "authorities:read", "List authorities", response=wire.AuthorityList),
    Route("GET", "/v1/authorities/{name}", trust.show_authority, "authorities:read", "Show an authority", response=wire.Authority,
          kinds=(Kind.NOT_FOUND,)),
    Route("POST", "/v1/authorities/{name}:retire", trust.retire_authority, "authorities:write", "Retire an authority",
          response=wire.Done, kinds=(Kind.UNKNOWN_AUTHORITY, Kind.CONFLICT)),
    Route("PUT", "/v1/authorities/{name}/crl", trust.publish_crl, "authorities:write", "Publish the CRL of an offline root",
          wire.CrlDocument, wire.Published,
          kinds=(Kind.UNKNOWN_AUTHORITY, Kind.BAD_CERTIFICATE, Kind.CONFLICT)),
    Route("GET", "/v1/bundles", trust.list_bundles, PUBLIC, "List trust domains with their anchors", response=wire.BundleList),
    Route("GET", "/v1/bundles/{trust_domain}.pem", trust.pem_trust_bundle, PUBLIC, "A trust domain's anchors, PEM", media_type=PEM,
          kinds=(Kind.NOT_FOUND,)),
    Route("GET", "/v1/bundles/{trust_domain}", trust.spiffe_trust_bundle, PUBLIC, "A trust domain's SPIFFE bundle",
          media_type="application/json", kinds=(Kind.NOT_FOUND,)),
    Route("POST", "/v1/jwt-svids", spiffe.jwt_svid, ANY_PRINCIPAL, "Issue a JWT-SVID, to the holder of a certificate",
          wire.JwtSvidRequest, wire.JwtSvid, status=201, max_body=SINGLE,
          kinds=(Kind.BAD_NAME, Kind.NAME_NOT_ALLOWED, Kind.LIFETIME_NOT_ALLOWED, Kind.SUPERSEDED)),
    Route("GET", "/v1/federation", spiffe.list_federation, "federation:read", "List federated trust domains", response=wire.FederationList),
    Route("GET", "/v1/federation/{trust_domain}", spiffe.show_federation, "federation:read", "Show a federated trust domain",
          response=wire.Federation, kinds=(Kind.NOT_FOUND,)),
    Route("PUT", "/v1/federation/{trust_domain}", spiffe.put_federation, "federation:write",
          "Add a federated trust domain, or change how its bundle is fetched", wire.FederationRequest, wire.Federation,
          kinds=(Kind.BAD_NAME, Kind.BAD_CERTIFICATE, Kind.CONFLICT)),
    Route("DELETE", "/v1/federation/{trust_domain}", spiffe.remove_federation, "federation:write", "Remove a federated trust domain",
          response=wire.Done, kinds=(Kind.NOT_FOUND,)),
    Route("POST", "/v1/federation/{trust_domain}:refresh", spiffe.refresh_federation, "federation:write",
          "Fetch the bundle of a federated trust domain now", response=wire.Federation, kinds=(Kind.NOT_FOUND,)),
    Route("GET", "/v1/crls/{trust_domain}.pem", trust.trust_domain_crls, PUBLIC, "Every CRL of a trust domain, PEM", media_type=PEM,
          kinds=(Kind.NOT_FOUND,)),
    Route("PUT", "/v1/agents/self", agents.report, "agents:report", "Report as an agent", wire.AgentReport, wire.Reported,
          kinds=(Kind.NOT_FOUND, Kind.SUPERSEDED)),
    Route("POST", "/v1/agents:challenge", enrolment.challenge, PUBLIC, "A challenge for evidence that is a certificate",
          response=wire.Challenge),
    Route("POST", "/v1/agents:enroll", enrolment.enroll, PUBLIC, "Become an agent by evidence that the policy takes",
          wire.EnrolRequest, wire.Enrolled, status=201, max_body=2 * SINGLE,
          kinds=(*KEY_KINDS, *GRANT_KINDS, Kind.NOT_AUTHENTICATED, Kind.NOT_ALLOWED, Kind.REPLAYED, Kind.UNKNOWN_AUTHORITY)),
    Route("GET", "/v1/agents/self/workloads", enrolment.workloads, "agents:report", "The workloads that an agent may serve",
          response=wire.WorkloadList, kinds=(Kind.SUPERSEDED,)),
    Route("GET", "/v1/agents", agents.list_agents, "agents:read", "List agents", response=wire.AgentList,
          parameters=(Parameter("state", "Current state.", {"type": "string", "enum": list(AGENT_STATES)}),
                      _text("identity", "Exact identity: the agent's own, or one that it looks after."),
                      _text("label", "A label that it has, K=V."), _text("q", "Part of its identity or host name."), LIMIT, CURSOR)),
    Route("GET", "/v1/agents/{identity:path}", agents.show_agent, "agents:read", "Show an agent", response=wire.Agent,
          kinds=(Kind.NOT_FOUND,)),
    Route("GET", "/v1/log/entries", log.list_entries, "log:read", "List log entries, newest first", response=wire.LogEntryList,
          parameters=(_text("type", "Exact entry type."), _text("subject", "What it is about: token:ID, agent:NAME, certificate:SHA256."),
                      _time("since", "At this time or later."), _time("until", "At this time or earlier."), LIMIT, CURSOR)),
    Route("GET", "/v1/log/entries/{index}", log.show_entry, "log:read", "Show a log entry", response=wire.LogEntry,
          kinds=(Kind.NOT_FOUND,)),
    Route("GET", "/v1/log/checkpoint", log.checkpoint, "log:read", "The newest checkpoint", media_type=TEXT, kinds=(Kind.NOT_FOUND,)),
    Route("POST", "/v1/log/checkpoint:cosign", log.cosign, "log:write", "Add a witness's cosignature",
          raw_body="text/plain", media_type=TEXT,
          kinds=(Kind.NOT_FOUND,)),
    Route("GET", "/v1/log/proof", log.prove, "log:read", "Prove that an entry is in the log", response=wire.LogProof,
          parameters=(_text("index", "The entry's index."), _text("sha256", "Fingerprint of the certificate that the entry issued."),
                      Parameter("size", "Prove it against the log's checkpoint at this size, one that was kept; default: the newest.",
                                {"type": "integer", "minimum": 1})),
          kinds=(Kind.NOT_FOUND,)),
    Route("POST", "/v1/log/personal:erase", log.erase_personal, "log:write", "Erase an entry's personal data",
          wire.ErasePersonal, wire.Done, kinds=(Kind.NOT_FOUND,)),
    Route("GET", "/log/checkpoint", log.checkpoint, "log:read", "The newest checkpoint, where tlog-tiles has it", media_type=TEXT,
          kinds=(Kind.NOT_FOUND,)),
    Route("GET", "/log/tile/{path:path}", log.tile, "log:read", "A tile or entry bundle (C2SP tlog-tiles)",
          media_type="application/octet-stream", kinds=(Kind.NOT_FOUND,)),
    Route("GET", "/v1/openapi.json", system.openapi, PUBLIC, "This document", media_type="application/json"),
    Route("GET", "/healthz", system.healthz, PUBLIC, "Whether the process runs", response=wire.Health),
    Route("GET", "/readyz", system.readyz, PUBLIC, "Whether the process can work", response=wire.Health),
    Route("GET", "/metrics", system.metrics, "metrics:read", "Prometheus metrics", media_type="text/plain; version=1.0.0; charset=utf-8"),
)  # fmt: skip
"""Served on the HTTPS listener."""

PLAIN_HTTP: tuple[Route, ...] = (
    Route("GET", "/crl/{authority}/{shard}.crl", trust.crl, PUBLIC, "One shard of a CRL", media_type="application/pkix-crl",
          kinds=(Kind.NOT_FOUND,)),
    Route("GET", "/ca/{name}.cer", trust.authority_certificate, PUBLIC, "An authority's certificate",
          media_type="application/pkix-cert", kinds=(Kind.NOT_FOUND,)),
    Route("GET", "/healthz", system.healthz, PUBLIC, "Whether the process runs", response=wire.Health),
    Route("GET", "/readyz", system.readyz, PUBLIC, "Whether the process can work", response=wire.Health),
)  # fmt: skip
"""Served on the HTTP listener: only what must be reachable without TLS."""
