"""The way of a JWT-SVID: what is issued is verified with the published bundle, and every answer, also no, is in the log and no token is."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from handclasp.access.principals import CertificatePrincipal
from handclasp.authority.jwtkeys import JwtKeys
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.jwt import IssuedJwt, JwtIssuance, JwtRequest
from handclasp.pki.bundles import parse_spiffe_bundle
from handclasp.pki.jwt_svid import verify_jwt_svid
from handclasp.trust.bundles import Bundles
from support.access import certificate
from support.errors import refused
from support.issuing import HERE, House, house

WEB = "spiffe://example.org/app/web"
POLICY = """
version: 1
grants:
  - name: own
    principals: [{certificate: "spiffe://example.org/prod/*"}]
    identities: ["spiffe://example.org/prod/*"]
    profiles: [workload]
    max_ttl: 1m
    actions: [jwt]
workloads:
  - {name: web, agents: {role: web}, selectors: ["unix:uid:33"], identity: spiffe://example.org/app/web, jwt: true}
  - {name: far, agents: {role: web}, selectors: ["unix:uid:34"], identity: spiffe://elsewhere.example/app/web, jwt: true}
"""
AGENT = certificate("spiffe://example.org/agent/a", profile="agent", is_agent=True, labels={"role": "web"})
PROD = certificate("spiffe://example.org/prod/db")


@dataclass
class Office:
    house: House
    keys: JwtKeys
    jwt: JwtIssuance
    bundles: Bundles

    async def ask(
        self, principal: CertificatePrincipal = AGENT, identity: str = WEB, *audience: str, ttl: float | None = None
    ) -> IssuedJwt:
        return await self.jwt.issue(JwtRequest(principal, identity, audience or ("db",), ttl, HERE))


def run(directory: Path, work: Callable[[Office], Awaitable[None]], url: str = "") -> None:
    async def main() -> None:
        async with house(directory, url) as made:
            here = made.here
            keys = JwtKeys(here.store, here.keystore, here.clock)
            await keys.step(["example.org"])
            await made.rulebook.apply("policy", POLICY, {"kind": "test"}, "test")
            jwt = JwtIssuance(here.store, here.authorities, keys, made.rulebook, here.clock)
            await work(Office(made, keys, jwt, Bundles(here.store, here.authorities, keys)))

    asyncio.run(main())


def test_what_is_issued_is_good_with_the_published_bundle_and_is_in_the_log_without_the_token(tmp_path: Path, migrated_url: str) -> None:
    async def work(office: Office) -> None:
        now = office.house.here.clock()
        issued = await office.ask(AGENT, WEB, "db", "queue", "db")
        assert issued.expires_at == now // 1000 * 1000 + 300_000
        bundle = parse_spiffe_bundle(await office.bundles.own("example.org"), "example.org")
        claims = verify_jwt_svid(issued.token, ["queue"], {"example.org": bundle.jwt_keys}, now)
        assert (claims["sub"], claims["aud"], claims["iat"], claims["exp"]) == (WEB, ["db", "queue"], now // 1000, now // 1000 + 300)
        entry = (await office.house.entries())[issued.log_entry]
        assert (entry["type"], entry["why"], entry["from"]) == ("jwt.issued", {"grant": "workload:web"}, HERE.to_log())
        assert entry["who"] == AGENT.to_log()
        assert (entry["what"]["identity"], entry["what"]["audience"], entry["what"]["jti"]) == (WEB, ["db", "queue"], claims["jti"])
        assert (await office.ask()).token != (await office.ask()).token
        stored = await office.house.everything_stored()
        for part in issued.token.split("."):
            assert part.encode() not in stored

    run(tmp_path, work, migrated_url if migrated_url.startswith("postgresql") else "")


REFUSED: list[tuple[str, CertificatePrincipal, dict[str, Any], Kind]] = [
    ("another's workload", certificate(WEB), {}, Kind.NOT_ALLOWED),
    ("what no workload has", AGENT, {"identity": "spiffe://example.org/app/db"}, Kind.NAME_NOT_ALLOWED),
    ("another trust domain", AGENT, {"identity": "spiffe://elsewhere.example/app/web"}, Kind.NAME_NOT_ALLOWED),
    ("no SPIFFE ID", AGENT, {"identity": "web"}, Kind.BAD_NAME),
    ("a mailbox", AGENT, {"identity": "a@example.org"}, Kind.BAD_NAME),
    ("a trust domain", AGENT, {"identity": "spiffe://example.org"}, Kind.BAD_NAME),
    ("for too long", AGENT, {"ttl": 3601.0}, Kind.LIFETIME_NOT_ALLOWED),
    ("for too short", AGENT, {"ttl": 9.0}, Kind.LIFETIME_NOT_ALLOWED),
    ("for longer than the grant", PROD, {"identity": PROD.identity, "ttl": 61.0}, Kind.LIFETIME_NOT_ALLOWED),
    ("a superseded certificate", certificate(PROD.identity, superseded_at=1), {"identity": PROD.identity}, Kind.SUPERSEDED),
]


@pytest.mark.parametrize(("principal", "asked", "kind"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_every_refusal_is_in_the_log(tmp_path: Path, principal: CertificatePrincipal, asked: dict[str, Any], kind: Kind) -> None:
    async def work(office: Office) -> None:
        with refused(kind):
            await office.ask(principal, **asked)
        entry = (await office.house.entries())[-1]
        assert (entry["type"], entry["why"]["kind"], entry["who"]) == ("jwt.refused", kind.value, principal.to_log())
        assert b"a@example.org" not in json.dumps(entry).encode()

    run(tmp_path, work)


def test_without_a_wish_it_lives_as_long_as_the_grant_allows(tmp_path: Path) -> None:
    async def work(office: Office) -> None:
        issued = await office.ask(PROD, PROD.identity)
        claims = json.loads(base64.urlsafe_b64decode(issued.token.split(".")[1] + "=="))
        assert claims["exp"] - claims["iat"] == 60
        assert (await office.house.entries())[-1]["why"] == {"grant": "policy:own"}

    run(tmp_path, work)


def test_an_audience_that_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    async def work(office: Office) -> None:
        for audience in ((), ("",), ("a\nb",)):
            with refused(Kind.BAD_REQUEST):
                await office.jwt.issue(JwtRequest(AGENT, WEB, audience, None, HERE))

    run(tmp_path, work)


def test_nothing_leaves_before_it_is_durable(tmp_path: Path) -> None:
    async def work(office: Office) -> None:
        store = office.house.here.store
        before = len(await office.house.entries())

        async def away(_write: object) -> int:
            raise HandclaspError(Kind.UNAVAILABLE, "the database cannot be written")

        real, store.ledger.commit = store.ledger.commit, away  # type: ignore[method-assign]
        with refused(Kind.UNAVAILABLE):
            await office.ask()
        store.ledger.commit = real  # type: ignore[method-assign]
        assert len(await office.house.entries()) == before

    run(tmp_path, work)
