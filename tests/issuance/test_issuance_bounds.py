"""What bounds what was obtained: the token behind a policy grant, the agent that has a name already, uses that are left, who may revoke."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handclasp.access.principals import OidcPrincipal
from handclasp.authority.signer import Signer
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance import revoke, rulebook
from handclasp.issuance.request import IssuedCertificate, Source
from handclasp.pki import keys
from support.errors import refused
from support.installation import BY
from support.issuing import HERE, WEB, House, fresh_csr, house, outcome, types

GRACE = 600
AGENT = "spiffe://example.org/agent/host1"
POLICY = f"""
version: 1
oidc: [{{name: ci, issuer: 'https://oidc.example.org', audience: handclasp, single_use: true}}]
grants:
- {{name: boot, principals: [{{token: boot}}], identities: ['{WEB}'], profiles: [workload], max_ttl: 4h}}
- {{name: sweep, principals: [{{token: sweeper}}, {{certificate: 'spiffe://example.org/prod/ops'}}], identities: ['{WEB}'],
   profiles: [workload], actions: [revoke]}}
- {{name: once, principals: [{{oidc: ci, claims: {{job: sweep}}}}], identities: ['{WEB}'], profiles: [workload], actions: [revoke]}}
"""


def run(directory: Path, work: Callable[[House], Awaitable[None]]) -> None:
    async def main() -> None:
        async with house(directory) as here:
            await here.rulebook.apply("policy", POLICY, BY, "test")
            await work(here)

    asyncio.run(main())


async def kind_of(work: Awaitable[IssuedCertificate]) -> Kind | None:
    result = await outcome(work)
    return result.kind if isinstance(result, HandclaspError) else None


# --- a superseded agent -----------------------------------------------------------------------------------------------------------------


def test_a_superseded_agent_issues_nothing(tmp_path: Path) -> None:
    """Regression: whoever had copied an agent's key went on issuing with it until its certificate ended."""

    async def work(here: House) -> None:
        enrolment = await here.token(agent=True)
        agent = await here.issue(enrolment, identity=AGENT, profile="agent")
        await here.issue(await here.holder(agent), identity=WEB)
        await here.renew(agent)
        thief = await here.holder(agent)
        assert await kind_of(here.issue(thief, identity=WEB)) is Kind.SUPERSEDED
        entry = (await here.entries())[-1]
        assert (entry["type"], entry["why"]["kind"]) == ("issuance.refused", "superseded")
        newest = await here.renew(agent)  # the answer may have been lost
        await here.issue(await here.holder(newest), identity=WEB)
        here.here.clock.pass_(GRACE + 1)
        assert await kind_of(here.issue(await here.holder(agent), identity=WEB)) is Kind.SUPERSEDED
        assert await kind_of(here.renew(agent)) is Kind.SUPERSEDED
        done = await here.revoker.revoke(agent.sha256, "superseded", "", await here.holder(agent), HERE, any_certificate=False)
        assert done.revoked == [agent.sha256]  # that one remains: it only takes away

    run(tmp_path, work)


# --- a token that a policy grant names --------------------------------------------------------------------------------------------------


async def _revoke_token(here: House, token_id: str) -> None:
    await here.tokens.revoke(token_id, "local:test")


async def _nothing(here: House, token_id: str) -> None:
    pass


BOUNDS: list[tuple[str, dict[str, Any], Callable[[House, str], Awaitable[None]], dict[str, Any], Kind | None]] = [
    ("nothing more", {}, _nothing, {}, None),
    ("revoked since", {}, _revoke_token, {}, Kind.NOT_ALLOWED),
    ("no renewals", {"renew": False}, _nothing, {}, Kind.NOT_ALLOWED),
    ("a shorter lifetime", {"max_ttl": "30m"}, _nothing, {"ttl": 3600.0}, Kind.LIFETIME_NOT_ALLOWED),
    ("a shorter lifetime, and none is wished for", {"max_ttl": "30m"}, _nothing, {}, None),
    ("longer than the grant", {"max_ttl": "9h"}, _nothing, {"ttl": 5 * 3600.0}, Kind.LIFETIME_NOT_ALLOWED),
    ("from its network", {"cidr": ["10.0.0.0/8"]}, _nothing, {}, None),
    ("from another", {"cidr": ["10.0.0.0/8"]}, _nothing, {"source": Source("rest", "192.0.2.1")}, Kind.NOT_ALLOWED),
]  # fmt: skip


@pytest.mark.parametrize(("limits", "before", "wanted", "kind"), [case[1:] for case in BOUNDS], ids=[case[0] for case in BOUNDS])
def test_a_token_that_a_grant_names_bounds_what_it_obtained(
    tmp_path: Path, limits: dict[str, Any], before: Callable[[House, str], Awaitable[None]], wanted: dict[str, Any], kind: Kind | None
) -> None:
    async def work(here: House) -> None:
        token = await here.token(name="boot", allow=[], profiles=[], **limits)
        issued = await here.issue(token, identity=WEB)
        assert (await here.row(issued)).granted_by == f"policy:boot+token:{token.id}"
        await before(here, token.id)
        assert await kind_of(here.renew(issued, **wanted)) is kind
        if kind is None:
            await here.rulebook.apply("policy", "version: 1\n", BY, "test")
            assert await kind_of(here.renew(issued)) is Kind.NOT_ALLOWED  # the grant has to be there too

    run(tmp_path, work)


# --- agents' names ----------------------------------------------------------------------------------------------------------------------


def test_an_enrolment_token_does_not_take_the_name_of_an_agent(tmp_path: Path) -> None:
    """Regression: any enrolment token became any agent, also one that another token had enrolled."""

    async def work(here: House) -> None:
        first, second = await here.token(agent=True), await here.token(agent=True)
        some = await here.token(agent=True, allow=["spiffe://example.org/agent/*"], profiles=["agent"])
        exact = await here.token(agent=True, allow=[AGENT], profiles=["agent"])
        agent = await here.issue(first, identity=AGENT, profile="agent")
        again = await here.issue(first, identity=AGENT, profile="agent")
        for other in (second, some):
            assert await kind_of(here.issue(other, identity=AGENT, profile="agent")) is Kind.NAME_NOT_ALLOWED
            await here.issue(other, identity=f"{AGENT}-{other.id}", profile="agent")
        entry = next(one for one in reversed(await here.entries()) if one["type"] == "issuance.refused")
        assert entry["why"]["kind"] == "name_not_allowed"
        for one in (agent, again):
            assert await kind_of(here.issue(second, identity=AGENT, profile="agent")) is Kind.NAME_NOT_ALLOWED
            await here.revoker.revoke(one.sha256, "superseded", "", await here.holder(one), HERE, any_certificate=False)
        taken = await here.issue(second, identity=AGENT, profile="agent")  # whose were revoked has the name no more
        await here.issue(exact, identity=AGENT, profile="agent")  # somebody said: exactly this one
        here.here.clock.now = taken.not_after
        fresh = await here.token(agent=True)
        await here.issue(fresh, identity=AGENT, profile="agent")  # nor has it one whose certificate ended

    run(tmp_path, work)


# --- uses -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uses", [1, 3, 0])
def test_nothing_is_signed_for_a_token_that_is_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uses: int) -> None:
    """Regression: each try of a spent token cost a signature by the authority's key."""
    signed: list[Any] = []
    sign = Signer.sign
    monkeypatch.setattr(Signer, "sign", lambda self, plan: signed.append(plan) or sign(self, plan))

    async def work(here: House) -> None:
        token = await here.token(uses=uses)
        kinds = [await kind_of(here.issue(token)) for _ in range(5)]
        allowed = uses or 5
        assert kinds == [None] * allowed + [Kind.TOKEN_SPENT] * (5 - allowed)
        assert len(signed) == allowed
        # At once they may all be signed, but the ledger is the judge.
        token = await here.token(uses=uses)
        at_once = await asyncio.gather(*(kind_of(here.issue(token)) for _ in range(5)))
        assert list(at_once).count(None) == allowed

    run(tmp_path, work)


# --- revocation by policy ---------------------------------------------------------------------------------------------------------------


def test_a_grant_to_revoke_revokes_what_it_names(tmp_path: Path) -> None:
    """Regression: ``actions: [revoke]`` was taken in a policy and did nothing."""

    async def work(here: House) -> None:
        token = await here.token(allow=[WEB, "spiffe://example.org/prod/ops", "spiffe://example.org/prod/db"])
        web = [await here.issue(token, identity=WEB) for _ in range(4)]
        ops = await here.issue(token, identity="spiffe://example.org/prod/ops")
        other = await here.issue(token, identity="spiffe://example.org/prod/db")
        holder = await here.holder(ops)

        async def by(principal: Any, one: IssuedCertificate) -> revoke.Revocation:
            return await here.revoker.revoke(one.sha256, "superseded", "", principal, HERE, any_certificate=False)

        assert (await by(holder, web[0])).revoked == [web[0].sha256]
        assert (await by(holder, web[0])).revoked == []
        with refused(Kind.NOT_ALLOWED):
            await by(holder, other)
        with refused(Kind.NOT_ALLOWED):  # nobody learns so which certificates there are
            await here.revoker.revoke(bytes(32), "superseded", "", holder, HERE, any_certificate=False)
        with refused(Kind.NOT_ALLOWED):
            await by(replace(holder, superseded_at=1), web[1])
        sweeper = await here.token(name="sweeper", allow=[], profiles=[], uses=1)
        assert (await by(sweeper, web[1])).revoked == [web[1].sha256]
        with refused(Kind.TOKEN_SPENT):
            await by(sweeper, web[2])
        with refused(Kind.NOT_ALLOWED):
            await by(await here.token(), web[2])  # its own grant is to obtain, and nothing else
        job = OidcPrincipal("https://oidc.example.org", "job", {"sub": "job", "job": "sweep"}, "id-1", 2**50)
        assert (await by(job, web[2])).revoked == [web[2].sha256]
        with refused(Kind.REPLAYED):
            await by(job, web[3])
        assert (await here.row(web[3])).revoked_at is None
        refusals = [one for one in await here.entries() if one["type"] == "revocation.refused"]
        assert {one["why"]["kind"] for one in refusals} == {"not_allowed", "token_spent", "replayed"}

    run(tmp_path, work)


# --- a compromised key with many certificates -------------------------------------------------------------------------------------------


def test_a_compromised_key_loses_all_its_certificates_however_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: it stopped at a number, asking again did nothing, and one that was issued meanwhile stayed."""
    monkeypatch.setattr(revoke, "_AT_ONCE", 2)

    async def work(here: House) -> None:
        token, key = await here.token(), keys.generate("p256")
        over_it = [await here.issue(token, fresh_csr(key=key)) for _ in range(5)]
        holder = await here.holder(over_it[0])
        await here.revoker.revoke(over_it[4].sha256, "superseded", "", await here.holder(over_it[4]), HERE, any_certificate=False)
        search, found = here.revoker._same_key, []

        async def and_another(row: Any, code: int) -> Sequence[Any]:
            rows = await search(row, code)
            if not found:  # committed after the search and before the key is blocked
                over_it.append(await here.issue(token, fresh_csr(key=key)))
            found.append(len(rows))
            return rows

        monkeypatch.setattr(here.revoker, "_same_key", and_another)
        done = await here.revoker.revoke(over_it[0].sha256, "key_compromise", "", holder, HERE, any_certificate=False)
        assert found == [2, 2, 2, 0]
        assert sorted(done.revoked) == sorted(one.sha256 for one in over_it)
        assert {(await here.row(one)).revocation_reason for one in over_it} == {1}
        assert types(await here.entries()).count("key.blocked") == 1
        assert (await here.entries())[done.log_entry or 0]["type"] == "certificate.revoked"
        again = await here.revoker.revoke(over_it[0].sha256, "key_compromise", "", holder, HERE, any_certificate=False)
        assert (again.revoked, again.revoked_at, again.log_entry) == ([], done.revoked_at, None)

    run(tmp_path, work)


def test_a_revocation_that_was_stopped_goes_on_when_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revoke, "_AT_ONCE", 2)

    async def work(here: House) -> None:
        token, key = await here.token(), keys.generate("p256")
        over_it = [await here.issue(token, fresh_csr(key=key)) for _ in range(5)]
        holder, commit, commits = await here.holder(over_it[0]), here.here.store.ledger.commit, 0

        async def once(write: Any) -> int:
            nonlocal commits
            commits += 1
            if commits == 2:
                raise HandclaspError(Kind.UNAVAILABLE, "the database is away")
            return await commit(write)

        monkeypatch.setattr(here.here.store.ledger, "commit", once)
        with refused(Kind.UNAVAILABLE):
            await here.revoker.revoke(over_it[0].sha256, "key_compromise", "", holder, HERE, any_certificate=False)
        assert await kind_of(here.issue(token, fresh_csr(key=key))) is Kind.BLOCKED_KEY
        done = await here.revoker.revoke(over_it[0].sha256, "key_compromise", "", holder, HERE, any_certificate=False)
        assert len(done.revoked) == 3
        assert all([(await here.row(one)).revoked_at is not None for one in over_it])

    run(tmp_path, work)


# --- documents of any size --------------------------------------------------------------------------------------------------------------


def test_documents_are_read_beside_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte takes seconds, and whoever may read the policy may send one."""
    threads = set()

    def noting(read: Any) -> Any:
        def reading(*args: Any) -> Any:
            threads.add(threading.get_ident())
            return read(*args)

        return reading

    for name in ("parse_policy", "load_profiles"):
        monkeypatch.setattr(rulebook, name, noting(getattr(rulebook, name)))

    async def work(here: House) -> None:
        await here.rulebook.compare("policy", POLICY, BY)
        await here.rulebook.compare("profiles", "version: 1\nprofiles: {}", BY)
        await here.rulebook.apply("profiles", "version: 1\nprofiles: {mine: {extend: workload}}", BY, "test")
        assert "mine" in (await here.rulebook.current()).profiles
        assert len(threads) > 0
        assert threading.get_ident() not in threads

    run(tmp_path, work)
