"""Agents by evidence: their certificate, their labels, their renewals, what serves once, and one winner for each name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from handclasp.access.principals import CertificatePrincipal, EvidencePrincipal, Once, Principal
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.holders import holder_of
from handclasp.issuance.request import IssuedCertificate
from handclasp.issuance.revoke import Revoker
from handclasp.store import tables
from support.issuing import HERE, House, house, outcome

AGENT = "spiffe://example.org/agent/n1"
POLICY = """
version: 1
clusters:
  - {name: a, issuer: "https://kubernetes.default.svc.cluster.local", jwks_url: "https://10.0.0.1:6443/openid/v1/jwks"}
enrolment:
  - name: nodes
    evidence: kubernetes
    cluster: a
    service_accounts: [handclasp/agent]
    identity: "spiffe://example.org/agent/{node}"
    labels: {role: web, node: "{node}"}
    ttl: 2h
workloads:
  - {name: web, agents: {role: web}, selectors: ["unix:uid:1"], identity: spiffe://example.org/prod/web, ttl: 1h}
"""
ONCE = POLICY.replace("ttl: 2h", "once: true")


@dataclass
class Rooms:
    """What a door hands to :func:`holder_of`."""

    store: Any
    tokens: Any
    rulebook: Any
    issuance: Any
    clock: Any


async def holder(here: House, issued: IssuedCertificate) -> CertificatePrincipal:
    return await holder_of(Rooms(here.here.store, here.tokens, here.rulebook, here.issuance, here.here.clock), issued.sha256)


def evidence(here: House, node: str = "n1", subject: str = "", **changes: Any) -> EvidencePrincipal:
    facts = {"cluster": "a", "namespace": "handclasp", "service_account": "agent", "node": node}
    known: dict[str, Any] = {
        "method": "kubernetes",
        "rule": "nodes",
        "subject": subject or f"a/handclasp/agent@{node}",
        "facts": facts,
        "expires_at": here.here.clock() + 3_600_000,
    }
    return EvidencePrincipal(**(known | changes))


async def enrol(here: House, principal: Principal, identity: str = AGENT) -> IssuedCertificate:
    return await here.issue(principal, identity=identity, profile="agent")


def run(directory: Path, work: Callable[[House], Awaitable[None]], policy: str = POLICY, url: str = "") -> None:
    async def main() -> None:
        async with house(directory, url if url.startswith("postgresql") else "") as here:
            await here.rulebook.apply("policy", policy, {"kind": "local"}, "test")
            await work(here)

    asyncio.run(main())


async def change(here: House, before: str, after: str, policy: str = POLICY) -> None:
    assert before in policy
    await here.rulebook.apply("policy", policy.replace(before, after), {"kind": "local"}, "test")


async def refused(work: Awaitable[Any], kind: Kind, *words: str) -> None:
    found = await outcome(work)
    assert isinstance(found, HandclaspError), found
    assert found.kind is kind, found
    for word in words:
        assert word in found.detail


def test_an_agent_by_evidence_has_its_labels_and_its_workloads(tmp_path: Path, migrated_url: str) -> None:
    async def work(here: House) -> None:
        issued = await enrol(here, evidence(here))
        row = await here.row(issued)
        assert (issued.identity, row.granted_by, row.profile) == (AGENT, "enrolment:nodes", "agent")
        assert row.not_after - here.here.clock() <= 2 * 3_600_000  # the rule's, not the profile's
        agent = (await here.here.store.rows(select(tables.agent)))[0]
        assert json.loads(agent.labels) == {"role": "web", "node": "n1"}
        assert json.loads(agent.evidence)["subject"] == "a/handclasp/agent@n1"
        entries = await here.entries()
        enrolled = next(entry for entry in entries if entry["type"] == "agent.enrolled")
        assert enrolled["who"] == {"kind": "evidence", "method": "kubernetes", "rule": "nodes", "subject": "a/handclasp/agent@n1"}
        assert enrolled["what"] == {"identity": AGENT, "labels": {"node": "n1", "role": "web"}}
        principal = await holder(here, issued)
        assert principal.labels == {"role": "web", "node": "n1"}
        web = await here.issue(principal, identity="spiffe://example.org/prod/web")
        assert (await here.row(web)).granted_by == "workload:web"
        renewed = await here.issue(await holder(here, web), predecessor=web.sha256)
        assert (await here.row(renewed)).granted_by == "workload:web"
        await refused(here.issue(principal, identity="spiffe://example.org/prod/db"), Kind.NAME_NOT_ALLOWED)
        await refused(here.issue(principal, identity="spiffe://example.org/agent/n2", profile="agent"), Kind.PROFILE_NOT_ALLOWED)

    run(tmp_path, work, url=migrated_url)


def test_evidence_obtains_nothing_but_its_agent(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        await refused(enrol(here, evidence(here), "spiffe://example.org/agent/n2"), Kind.NAME_NOT_ALLOWED)
        await refused(here.issue(evidence(here), identity="spiffe://example.org/prod/web"), Kind.PROFILE_NOT_ALLOWED)
        await refused(here.issue(evidence(here), identity=AGENT, profile="agent", ttl=7201.0), Kind.LIFETIME_NOT_ALLOWED)
        await refused(enrol(here, evidence(here, rule="gone")), Kind.NOT_ALLOWED)
        kinds = [entry["type"] for entry in await here.entries()]
        assert kinds.count("agent.refused") == 4
        assert "issuance.refused" not in kinds

    run(tmp_path, work)


def test_an_agents_renewal_is_judged_by_the_rule_of_today(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        issued = await enrol(here, evidence(here))
        renewed = await here.issue(await holder(here, issued), predecessor=issued.sha256)
        assert (await here.row(renewed)).granted_by == "enrolment:nodes"
        for before, after, kind in [
            ("name: nodes", "name: machines", Kind.NOT_ALLOWED),
            ("[handclasp/agent]", "[handclasp/other]", Kind.NOT_ALLOWED),
            ("agent/{node}", "agent/k8s-{node}", Kind.NAME_NOT_ALLOWED),
        ]:
            await change(here, before, after)
            await refused(here.issue(await holder(here, renewed), predecessor=renewed.sha256), kind)
        await change(here, "[handclasp/agent]", "[handclasp/other]")
        assert (await holder(here, renewed)).labels == {}  # and what its labels gave is gone at once
        await refused(here.issue(await holder(here, renewed), identity="spiffe://example.org/prod/web"), Kind.NOT_ALLOWED)
        await change(here, "labels: {role: web", "labels: {role: db")  # what a rule no longer gives must not live on in renewals
        assert (await holder(here, renewed)).labels == {"role": "db", "node": "n1"}
        await refused(here.issue(await holder(here, renewed), identity="spiffe://example.org/prod/web"), Kind.NOT_ALLOWED)
        await change(here, "labels: {role: web, ", "labels: {")
        assert (await holder(here, renewed)).labels == {"node": "n1"}
        await change(here, '{role: web, node: "{node}"}', '{role: web, pod: "{pod}"}')  # which nobody has proven
        assert (await holder(here, renewed)).labels == {}
        await change(here, "version: 1", "version: 1")
        assert (await holder(here, renewed)).labels == {"role": "web", "node": "n1"}

    run(tmp_path, work)


def test_labels_by_evidence_do_not_outlive_an_enrolment_by_token(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        issued = await enrol(here, evidence(here))
        token = await here.token(name="t", allow=[AGENT], profiles=["agent"], agent=True, labels={"role": "db"})
        await enrol(here, token)
        assert (await holder(here, issued)).labels == {}
        await refused(here.issue(await holder(here, issued), predecessor=issued.sha256), Kind.NOT_ALLOWED)

    run(tmp_path, work)


def test_a_name_belongs_to_one_subject_while_its_certificate_is_good(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        issued = await enrol(here, evidence(here))
        await enrol(here, evidence(here))  # the same machine, which lost its state
        await refused(enrol(here, evidence(here, subject="another")), Kind.NAME_NOT_ALLOWED, "somebody else enrolled")
        await refused(enrol(here, await here.token(agent=True, allow=[], profiles=[])), Kind.NAME_NOT_ALLOWED, "somebody else enrolled")
        here.here.clock.pass_(2 * 3600)
        assert (await enrol(here, evidence(here, subject="another"))).identity == AGENT  # it has ended
        assert issued.sha256

    run(tmp_path, work)


def test_evidence_does_not_take_the_name_of_a_tokens_agent(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        await enrol(here, await here.token(agent=True, allow=[], profiles=[]))
        await refused(enrol(here, evidence(here)), Kind.NAME_NOT_ALLOWED, "somebody else enrolled")

    run(tmp_path, work)


def test_what_is_spent_is_spent_with_the_certificate(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        once = (Once("challenge", "k1", here.here.clock() + 60_000),)
        await refused(enrol(here, evidence(here, spends=once), "spiffe://example.org/agent/x"), Kind.NAME_NOT_ALLOWED)
        await enrol(here, evidence(here, spends=once))  # a refusal spent nothing
        await refused(enrol(here, evidence(here, spends=once)), Kind.REPLAYED, "serves once")
        refusals = [entry for entry in await here.entries() if entry["type"] == "agent.refused"]
        assert [entry["why"]["kind"] for entry in refusals] == ["name_not_allowed", "replayed"]

    run(tmp_path, work)


def test_where_a_rule_takes_a_subject_once_only_a_revocation_lets_it_come_again(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        revoker = Revoker(here.here.store, here.rulebook, here.here.clock)
        first = await enrol(here, evidence(here))
        await refused(enrol(here, evidence(here)), Kind.REPLAYED, "enrolled before")
        assert (await enrol(here, evidence(here, "n2"), "spiffe://example.org/agent/n2")).identity  # others are not meant
        here.here.clock.pass_(86_400 * 2)
        await refused(enrol(here, evidence(here)), Kind.REPLAYED, "enrolled before")  # neither when it has ended
        revoked = await revoker.revoke(first.sha256, "superseded", "", await operator(here), HERE, any_certificate=True)
        assert revoked.revoked
        second = await enrol(here, evidence(here))
        await refused(enrol(here, evidence(here)), Kind.REPLAYED)
        renewed = await here.issue(await holder(here, second), predecessor=second.sha256)
        await revoker.revoke(second.sha256, "superseded", "", await operator(here), HERE, any_certificate=True)
        await refused(enrol(here, evidence(here)), Kind.REPLAYED)  # its newest is still good
        await revoker.revoke(renewed.sha256, "superseded", "", await operator(here), HERE, any_certificate=True)
        await enrol(here, evidence(here))
        await change(here, "once: true", "once: false", ONCE)
        await enrol(here, evidence(here))

    run(tmp_path, work, ONCE)


async def operator(here: House) -> Any:
    return await here.token(name="op", allow=[], profiles=[], scopes=["certificates:revoke"])


@pytest.mark.parametrize("kind", ["tokens", "evidence", "mixed", "once"])
def test_of_many_that_take_one_free_name_at_the_same_moment_one_wins(tmp_path: Path, kind: str, migrated_url: str) -> None:
    """All pass the check before signing, since nobody has the name yet; the ledger decides, in one batch or in several."""

    async def work(here: House) -> None:
        for round_ in range(4):
            name = f"n{round_}"
            callers: list[Principal] = []
            for number in range(6):
                by_token = kind == "tokens" or (kind == "mixed" and number % 2)
                if by_token:
                    callers.append(await here.token(name=f"t{number}", agent=True, allow=[], profiles=[]))
                else:
                    callers.append(evidence(here, name, subject=f"one{round_}" if kind == "once" else f"s{number}"))
            identity = f"spiffe://example.org/agent/{name}"
            found = await asyncio.gather(*(outcome(enrol(here, caller, identity)) for caller in callers))
            won = [answer for answer in found if isinstance(answer, IssuedCertificate)]
            lost = [answer.kind for answer in found if isinstance(answer, HandclaspError)]
            assert len(won) == 1, found
            assert set(lost) == {Kind.REPLAYED if kind == "once" else Kind.NAME_NOT_ALLOWED}
            rows = await here.here.store.rows(
                select(tables.certificate.c.sha256)
                .join(tables.identity, tables.identity.c.id == tables.certificate.c.identity_id)
                .where(tables.identity.c.name == identity)
            )
            assert [bytes(row.sha256) for row in rows] == [won[0].sha256]

    run(tmp_path, work, ONCE if kind == "once" else POLICY, migrated_url)


def test_a_token_made_for_the_name_takes_it_beside_the_race(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        exact = await here.token(name="exact", agent=True, allow=[AGENT], profiles=["agent"])
        others = [evidence(here, subject=f"s{number}") for number in range(3)]
        found = await asyncio.gather(*(outcome(enrol(here, caller)) for caller in (exact, *others)))
        assert isinstance(found[0], IssuedCertificate)
        # Who was committed before the token had a free name for that moment; nobody gets it after, and never two of them.
        assert sum(isinstance(answer, IssuedCertificate) for answer in found[1:]) <= 1
        late = await outcome(enrol(here, evidence(here, subject="late")))
        assert not isinstance(late, IssuedCertificate)

    run(tmp_path, work)
