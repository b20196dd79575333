"""What an issuance means when it makes an agent: whose name it is, what may serve only once, what is kept of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from handclasp.access.enrolment import PREFIX, EnrolmentRule
from handclasp.access.grants import Grant
from handclasp.access.policy import Policy
from handclasp.access.principals import EvidencePrincipal, Once, TokenPrincipal
from handclasp.errors import HandclaspError, Kind
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.guard import name_taken
from handclasp.store.writes import Change

FOREVER = 1 << 53
"""Milliseconds: a subject that may enrol once is remembered for good."""

_EVIDENCE = "SELECT a.evidence FROM agent a JOIN identity i ON i.id = a.identity_id WHERE i.name = ?"


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """``agent.evidence``: by what an agent enrolled. Stored: fields are only ever added."""

    rule: str
    method: str
    subject: str
    facts: dict[str, Any]


async def origin_of(store: Store, policy: Policy, grant: str, identity: str) -> Grant | None:
    """Return what the rule ``enrolment:NAME``, as it is today, gives to the agent ``identity``; None when nothing, or by other evidence."""
    kept = await evidence_of(store, identity)
    rule = policy.enrolment_named(grant.removeprefix(PREFIX))
    if kept is None or rule is None or kept.rule != rule.name or kept.method != rule.method:
        return None
    return rule.grant_for(kept.facts)


async def evidence_of(store: Store, identity: str) -> Kept | None:
    """Return by what an agent enrolled last; None for a token."""
    row = await store.point(_EVIDENCE, (identity,))
    return None if row is None or row[0] is None else _read_kept(row[0])


def _read_kept(text: str) -> Kept:
    try:
        return msgspec.json.decode(text, type=Kept)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise HandclaspError(Kind.INTERNAL, "what is stored of an agent's evidence cannot be read") from error


async def prepare(store: Store, principal: TokenPrincipal | EvidencePrincipal, identity: str, policy: Policy, now: int) -> Enrolment:
    """Return what making ``identity`` an agent means, before anything is signed.

    Most enrolment tokens give any name, and the evidence of two machines may fill a name alike: who has one must not become an agent that
    somebody else enrolled, unless the token was made for this very name. Raises ``name_not_allowed`` and ``replayed``; the ledger looks at
    both again, atomically.
    """
    if isinstance(principal, EvidencePrincipal):
        rule = policy.enrolment_named(principal.rule)
        if rule is None:
            raise HandclaspError(Kind.NOT_ALLOWED, f"there is no enrolment rule {principal.rule}")
        await check_free(store, identity, principal.holder, now)
        used = await spends(store, principal, rule, identity)
        return Enrolment(principal, rule.labels_for(principal.facts), principal.holder, used, rule)
    claimant = None if identity in principal.grant.identities.texts else principal.grant.name
    if claimant is not None:
        await check_free(store, identity, claimant, now)
    return Enrolment(principal, dict(principal.labels), claimant)


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What is written when a certificate makes an agent."""

    principal: TokenPrincipal | EvidencePrincipal
    labels: Mapping[str, str]
    claimant: str | None
    """Who takes the name, where it must be free or theirs."""
    used: tuple[Once, ...] = ()
    rule: EnrolmentRule | None = None

    def changes(self, sqlite: bool, identity: str, address: str | None, now: int) -> list[Change]:
        """Return the changes beside the certificate: what is used up, and the agent's row."""
        insert = sqlite_insert if sqlite else postgres_insert
        found = [
            Change(
                insert(tables.replay).values(issuer=once.issuer, jti=once.key, expires_at=once.expires_at).on_conflict_do_nothing(),
                expect=1,
                conflict=_used(once, self.rule),
            )
            for once in self.used
        ]
        principal = self.principal
        kept: dict[str, Any] = {"labels": json.dumps(dict(self.labels), sort_keys=True), "enrolled_at": now}
        if isinstance(principal, EvidencePrincipal):
            evidence = Kept(rule=principal.rule, method=principal.method, subject=principal.subject, facts=dict(principal.facts))
            kept |= {"evidence": msgspec.json.encode(evidence).decode(), "holder": principal.holder}
        else:
            kept |= {"evidence": None, "holder": principal.grant.name}
        identity_id = select(tables.identity.c.id).where(tables.identity.c.name == identity).scalar_subquery()
        statement = insert(tables.agent).values(identity_id=identity_id, hostname="", version="", address=address, **kept)
        set_ = {**kept, "address": func.coalesce(address, tables.agent.c.address)}
        return [*found, Change(statement.on_conflict_do_update(index_elements=["identity_id"], set_=set_))]


async def check_free(store: Store, name: str, holder: str, now: int) -> None:
    """Refuse a name that another one's agent has, before anything is signed. (The ledger holds it atomically.)"""
    certificate, agent, identity = tables.certificate.c, tables.agent.c, tables.identity.c
    rows = await store.rows(
        select(certificate.granted_by, agent.holder)
        .join(tables.identity, identity.id == certificate.identity_id)
        .outerjoin(tables.agent, agent.identity_id == identity.id)
        .where(identity.name == name, certificate.not_after > now)
        .where(certificate.revoked_at.is_(None), certificate.superseded_at.is_(None))
    )
    refused = name_taken(name, holder, {row.granted_by for row in rows}, rows[0].holder if rows else None)
    if refused is not None:
        raise refused


async def spends(store: Store, principal: EvidencePrincipal, rule: EnrolmentRule, name: str) -> tuple[Once, ...]:
    """Return everything that this enrolment uses up. Raises ``replayed`` when the rule takes a subject once and it enrolled before.

    A subject whose certificates were all revoked may come again: whoever revoked the last one let it. Each time has a key of its own, so
    that of two at once one wins.
    """
    if not rule.once:
        return principal.spends
    certificate = tables.certificate.c
    rows = await store.rows(
        select(certificate.line, certificate.generation, certificate.obtained_by, certificate.superseded_at, certificate.revoked_at)
        .join(tables.identity, tables.identity.c.id == certificate.identity_id)
        .where(tables.identity.c.name == name, certificate.granted_by == rule.grant_name)
        .where((certificate.generation == 0) | certificate.superseded_at.is_(None))
    )
    lines = {bytes(row.line) for row in rows if row.generation == 0 and row.obtained_by == principal.describe()}
    if any(bytes(row.line) in lines and row.superseded_at is None and row.revoked_at is None for row in rows):
        raise _enrolled_before(rule)
    return (*principal.spends, Once(rule.grant_name, f"{principal.holder}#{len(lines)}", FOREVER))


def _enrolled_before(rule: EnrolmentRule) -> HandclaspError:
    return HandclaspError(
        Kind.REPLAYED,
        f"this machine enrolled before, and {rule.grant_name} takes it once",
        hint="revoke the agent's last certificate, or set once: false in the rule",
    )


async def stored_labels(store: Store, policy: Policy, grant: str, identity: str) -> Mapping[str, str]:
    """Return the labels that the rule ``enrolment:NAME``, as it is today, gives to an agent with the facts of its enrolment.

    None when the rule is gone, or takes it no more: what is taken out of the policy is gone at once, and does not live on in renewals.
    Enrolling the same name by something else must not add to what an earlier certificate may do.
    """
    kept, rule = await evidence_of(store, identity), policy.enrolment_named(grant.removeprefix(PREFIX))
    if kept is None or rule is None or kept.rule != rule.name or kept.method != rule.method or rule.grant_for(kept.facts) is None:
        return {}
    return rule.labels_for(kept.facts)


def _used(once: Once, rule: EnrolmentRule | None) -> HandclaspError:
    if rule is not None and once.issuer == rule.grant_name:
        return _enrolled_before(rule)
    return HandclaspError(Kind.REPLAYED, "this evidence was used before, and it serves once", hint="ask for a new challenge or a new token")
