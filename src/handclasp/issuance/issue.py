"""The way of an issuance, in numbered steps. Read this page to know what Handclasp does when it is asked for a certificate."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Sequence

from sqlalchemy import select

from handclasp.access.authorize import Allowed, Circumstances, Refused, authorize
from handclasp.access.enrolment import PREFIX as ENROLMENT
from handclasp.access.grants import AGENT_PROFILE, Grant, split_grant
from handclasp.access.principals import CertificatePrincipal, EvidencePrincipal, OidcPrincipal, TokenPrincipal
from handclasp.access.tokens import Tokens
from handclasp.authority.authorities import Authorities
from handclasp.clock import Clock, format_duration
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault
from handclasp.issuance import enrolling
from handclasp.issuance.enrolling import Enrolment
from handclasp.issuance.entries import enrolled_entry, issued_entry, refusal_entry
from handclasp.issuance.request import IssuanceRequest, IssuedCertificate
from handclasp.issuance.resolve import Predecessor, resolve_names, resolve_profile, trust_domain_for, wanted_lifetime
from handclasp.issuance.rulebook import Rulebook, Rules
from handclasp.issuance.window import grace_after, renewal_window
from handclasp.pki.csr import Csr, parse_csr
from handclasp.pki.lint import lint
from handclasp.pki.names import Names, make_names
from handclasp.pki.plan import Plan, make_plan, new_serial
from handclasp.pki.profiles import Profile
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import CertificateRow, Change, Write

declare("issue.checked", "issue.planned", "issue.authorized", "issue.signed", "issue.committed")

NOT_DECISIONS = frozenset({Kind.UNAVAILABLE, Kind.INTERNAL, Kind.TIMEOUT, Kind.RATE_LIMITED})
"""Kinds of failure that say nothing about the request: they are not logged as refusals (and mostly could not be)."""

_PREDECESSOR = (
    "SELECT i.name, c.profile, c.names, c.not_before, c.not_after, c.line, c.generation, c.superseded_at, c.superseded_by, c.revoked_at,"
    " c.granted_by, c.spki_sha256, c.authority_id FROM certificate c JOIN identity i ON i.id = c.identity_id WHERE c.sha256 = ?"
)
_TOKEN_USED = "SELECT used FROM token WHERE id = ?"  # noqa: S105  (a query, not a secret)


class Issuance:
    """Issues and renews certificates. One object a process; its methods may run concurrently."""

    def __init__(
        self,
        store: Store,
        authorities: Authorities,
        rulebook: Rulebook,
        tokens: Tokens,
        clock: Clock,
        *,
        instance: int = 0,
        renewal_grace: float = 600.0,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._store = store
        self._authorities = authorities
        self._rulebook = rulebook
        self._tokens = tokens
        self._clock = clock
        self._instance = instance
        self._renewal_grace = renewal_grace
        self._random = random
        self._blocked: frozenset[bytes] = frozenset()
        self._blocked_generation = -1

    async def issue(self, request: IssuanceRequest) -> IssuedCertificate:
        """Issue or renew a certificate, or raise the reason why not.

        On return the certificate and its log entry are durable. A refusal is a log entry too, durable when this raises. Raises
        ``HandclaspError`` of any kind that :mod:`handclasp.errors` lists for requests, keys, access and availability.
        """
        try:
            return await self._issue(request)
        except HandclaspError as refusal:
            if refusal.kind not in NOT_DECISIONS:
                await self._store.ledger.commit(Write([refusal_entry(request, refusal, self._clock())]))
            raise

    def grace_is_over(self, superseded_at: int, not_before: int, not_after: int) -> bool:
        """Return whether a superseded certificate (times in ms) is past the time in which it may repeat its renewal."""
        return self._clock() > superseded_at + grace_after(self._renewal_grace, not_before, not_after) * 1000

    async def _issue(self, request: IssuanceRequest) -> IssuedCertificate:
        rules = await self._rulebook.current()
        # 1 Check the CSR: size, syntax, proof of possession, and that the key is worth certifying.
        csr = request.csr if isinstance(request.csr, Csr) else parse_csr(request.csr)
        await self._check_key(csr)
        fault("issue.checked")
        # 2 Resolve profile and identity: from the request, the CSR, the predecessor, or a token that leaves no choice.
        predecessor = await self._predecessor(request.predecessor) if request.predecessor is not None else None
        profile = resolve_profile(request, predecessor, rules)
        names = resolve_names(request, csr, predecessor)
        if predecessor is not None:
            self._check_predecessor(request, predecessor, csr, profile)
        # 3 Plan: the complete content to be signed.
        now = self._clock()
        await self._authorities.refresh()
        signer = self._authorities.get(profile.authority, trust_domain_for(request, names))

        def plan_for(ttl: float | None) -> Plan:
            serial = new_serial(self._instance, self._random)
            return make_plan(profile=profile, names=names, csr=csr, issuer=signer.issuer, now=now, ttl=ttl, serial=serial)

        plan = plan_for(wanted_lifetime(request, predecessor, profile))
        fault("issue.planned")
        # 4 Authorize. The one place that decides; it sees the final names, usages and dates.
        origin, origin_token = await self._origin(request, predecessor, rules)
        circumstances = Circumstances(
            action="issue" if predecessor is None else "renew",
            source=request.source.address,
            csr_sha256=csr.sha256,
            origin=origin,
            now=now,
            origin_token=origin_token,
        )
        decision = authorize(request.principal, plan, circumstances, rules.policy)
        if isinstance(decision, Refused) and decision.longest is not None and (request.ttl is None or request.or_shorter):
            # Nobody asked for just this lifetime, and it is too long for this grant: plan the longest it allows, and ask about that.
            plan = plan_for(decision.longest)
            decision = authorize(request.principal, plan, circumstances, rules.policy)
        if isinstance(decision, Refused):
            raise HandclaspError(decision.kind, decision.reason, hint=decision_hint(decision.kind))
        enrolment = await self._enrolment(request, plan, rules, now)
        await self._check_uses(request)
        fault("issue.authorized")
        # 5 Lint what would be signed.
        lint(plan.tbs, plan)
        # 6 Sign. The plan can be redeemed once; the signer checks its own signature.
        der = await asyncio.to_thread(signer.sign, plan) if signer.remote else signer.sign(plan)
        fault("issue.signed")
        # 7 Commit row, lineage and log entry together.
        draw = int.from_bytes(self._random(2), "big") / 65536
        sha256 = hashlib.sha256(der).digest()
        write = self._write(request, plan, decision, signer.authority.id, der, sha256, predecessor, now, draw, enrolment)
        log_entry = await self._store.ledger.commit(write)
        fault("issue.committed")
        # 8 Answer. Nothing has left before this line.
        row = write.certificate
        assert row is not None
        return IssuedCertificate(
            der, sha256, plan.serial, row.identity, signer.issuer.name, signer.chain_pem,
            self._authorities.bundle_pem(signer.issuer.trust_domain),
            plan.not_before, plan.not_after, row.renew_after, row.renew_before, log_entry,
        )  # fmt: skip

    # --- 1 ----------------------------------------------------------------------------------------------------

    async def _check_key(self, csr: Csr) -> None:
        """Refuse a blocked key before anything is signed. (That a key stays with one identity is held by the ledger, atomically.)"""
        if self._blocked_generation != self._store.generation:
            generation = self._store.generation
            rows = await self._store.rows(select(tables.key.c.spki_sha256).where(tables.key.c.blocked_at.is_not(None)))
            self._blocked, self._blocked_generation = frozenset(bytes(row.spki_sha256) for row in rows), generation
        if csr.spki_sha256 in self._blocked:
            raise HandclaspError(Kind.BLOCKED_KEY, "this key is blocked", hint="it was reported compromised: make a new key")

    # --- 2 ----------------------------------------------------------------------------------------------------

    async def _predecessor(self, sha256: bytes) -> Predecessor:
        row = await self._store.point(_PREDECESSOR, (sha256,))
        if row is None:
            raise HandclaspError(Kind.NOT_FOUND, "the certificate to renew was not issued here")
        name, profile, names, not_before, not_after, line, generation, superseded_at, superseded_by, *rest = row
        revoked_at, granted_by, spki, authority_id = rest
        others = json.loads(names)
        spiffe = name if name.startswith("spiffe://") else None
        # Otherwise who renewed near the end of an authority would have ever shorter certificates, and from its successor no longer ones.
        clamped = any(one.id == authority_id and not_after >= one.not_after // 1000 * 1000 for one in self._authorities.all())
        return Predecessor(
            sha256, make_names(spiffe, others.get("dns", ()), others.get("ip", ()), others.get("email", ())), profile,
            None if clamped else (not_after - not_before) / 1000, not_before, not_after,
            bytes(line), generation, superseded_at, bytes(superseded_by) if superseded_by else None, revoked_at, granted_by, bytes(spki),
        )  # fmt: skip

    def _check_predecessor(self, request: IssuanceRequest, predecessor: Predecessor, csr: Csr, profile: Profile) -> None:
        """The one who renews must hold the newest certificate of its line; a superseded one only in its grace time, for a lost answer.

        Without this rule a stolen key keeps renewing beside its owner, and nobody sees it (smallstep/certificates#319).
        """
        principal = request.principal
        if not isinstance(principal, CertificatePrincipal) or principal.sha256 != predecessor.sha256:
            raise HandclaspError(
                Kind.NOT_ALLOWED, "a certificate is renewed over mutual TLS with that certificate", hint="present it as client certificate"
            )
        now = self._clock()
        if predecessor.revoked_at is not None:
            raise HandclaspError(Kind.REVOKED, "the certificate to renew is revoked", hint="ask for a new token")
        if now >= predecessor.not_after:
            raise HandclaspError(Kind.NOT_ALLOWED, "the certificate to renew has expired", hint="ask for a new token")
        superseded_at = predecessor.superseded_at
        if superseded_at is not None and self.grace_is_over(superseded_at, predecessor.not_before, predecessor.not_after):
            grace = grace_after(self._renewal_grace, predecessor.not_before, predecessor.not_after)
            raise HandclaspError(
                Kind.SUPERSEDED,
                f"the certificate to renew was itself renewed more than {format_duration(grace)} ago",
                hint="renew with the newest certificate; if you have it nowhere, somebody else does: revoke",
            )
        if csr.spki_sha256 == predecessor.spki_sha256 and not profile.renew_same_key:
            raise HandclaspError(Kind.REUSED_KEY, "a renewal needs a new key", hint="make a new key, or set renew_same_key in the profile")

    # --- 4 ----------------------------------------------------------------------------------------------------

    async def _origin(self, request: IssuanceRequest, predecessor: Predecessor | None, rules: Rules) -> tuple[Grant | None, Grant | None]:
        """Return the grant that the caller's line began with, and the token that used it, as they are today; None for what is gone."""
        if not isinstance(request.principal, CertificatePrincipal):
            return None, None
        name, token = split_grant(predecessor.granted_by if predecessor is not None else request.principal.granted_by)
        if name.startswith(ENROLMENT):
            # Only for the renewal of an agent's own certificate: what it obtains for others is the policy's business, or a token's.
            identity = predecessor.names.identity if predecessor is not None else ""
            return await enrolling.origin_of(self._store, rules.policy, name, identity) if identity else None, None
        if name.startswith("token:"):
            return await self._tokens.grant_of(name), None
        return rules.policy.grant_named(name), await self._tokens.grant_of(token) if token else None

    async def _enrolment(self, request: IssuanceRequest, plan: Plan, rules: Rules, now: int) -> Enrolment | None:
        """Return what it means that this certificate makes an agent; None when it does not. Refuses a name that another one's agent has."""
        principal = request.principal
        if plan.profile.name != AGENT_PROFILE or not isinstance(principal, TokenPrincipal | EvidencePrincipal):
            return None
        if isinstance(principal, TokenPrincipal) and not principal.agent:
            return None
        return await enrolling.prepare(self._store, principal, plan.names.identity, rules.policy, now)

    async def _check_uses(self, request: IssuanceRequest) -> None:
        """Refuse a spent token before anything is signed. (That the last use is not used twice is held by the ledger, atomically.)"""
        principal = request.principal
        if not isinstance(principal, TokenPrincipal) or not principal.uses:
            return
        row = await self._store.point(_TOKEN_USED, (principal.id,))
        if row is not None and row[0] >= principal.uses:
            raise HandclaspError(Kind.TOKEN_SPENT, "this token has no use left", hint="ask its owner for a new one")

    # --- 7 ----------------------------------------------------------------------------------------------------

    def _write(
        self, request: IssuanceRequest, plan: Plan, decision: Allowed, authority_id: int, der: bytes, sha256: bytes,
        predecessor: Predecessor | None, now: int, draw: float, enrolment: Enrolment | None,
    ) -> Write:  # fmt: skip
        principal = request.principal
        renew_after, renew_before = renewal_window(now, plan.not_after, draw)
        serial = plan.serial.to_bytes((plan.serial.bit_length() + 8) // 8, "big")
        row = CertificateRow(
            sha256=sha256, serial=serial, der=der, authority_id=authority_id, identity=plan.names.identity,
            owner=principal.owner if isinstance(principal, TokenPrincipal) else None, profile=plan.profile.name,
            names=names_json(plan.names), spki_sha256=plan.spki_sha256, key_type=plan.key_type, not_before=plan.not_before,
            not_after=plan.not_after, renew_after=renew_after, renew_before=renew_before,
            line=predecessor.line if predecessor else sha256, generation=predecessor.generation + 1 if predecessor else 0,
            predecessor=predecessor.sha256 if predecessor else None, granted_by=predecessor.granted_by if predecessor else decision.grant,
            obtained_by=principal.describe(), crl_shard=plan.crl_shard,
        )  # fmt: skip
        entries = [issued_entry(request, plan, row, decision.grant, predecessor.superseded_by if predecessor else None, now)]
        changes: Sequence[Change] = ()
        if enrolment is not None:
            entries.append(enrolled_entry(request, enrolment.labels, row, now))
            changes = enrolment.changes(self._store.is_sqlite, row.identity, request.source.address, now)
        jwt = None
        if decision.single_use and isinstance(principal, OidcPrincipal) and principal.jti:
            jwt = (principal.issuer, principal.jti, principal.expires_at)
        return Write(
            entries,
            changes,
            certificate=row,
            spend_token=principal.id if isinstance(principal, TokenPrincipal) else None,
            spend_jwt=jwt,
            claimant=enrolment.claimant if enrolment is not None else None,
        )


def decision_hint(kind: Kind) -> str:
    """Return what someone who was refused should do next."""
    if kind in (Kind.NAME_NOT_ALLOWED, Kind.PROFILE_NOT_ALLOWED, Kind.LIFETIME_NOT_ALLOWED):
        return "ask for what the token or policy grants, or have the grant changed (handclasp policy test shows why)"
    return ""


def names_json(names: Names) -> str:
    """Return the names other than the SPIFFE ID as the certificate row keeps them."""
    if not names.dns and not names.ip and not names.email:
        return "{}"
    return json.dumps({kind: values for kind, values in (("dns", names.dns), ("ip", names.ip), ("email", names.email)) if values})
