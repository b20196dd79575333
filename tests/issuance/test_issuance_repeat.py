"""The same request a moment later, and lifetimes that may be shorter than wished."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from handclasp.access.principals import KubernetesPrincipal, Principal
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.repeat import WITHIN, issued_before
from handclasp.issuance.request import IssuanceRequest, IssuedCertificate
from handclasp.pki import keys
from handclasp.pki.csr import Csr, parse_csr
from handclasp.pki.profiles import BUILT_IN
from support.installation import BY
from support.issuing import HERE, House, fresh_csr, house
from support.kube import Cluster, cluster_entry, mesh_policy

IDENTITY = "spiffe://example.org/ns/prod/sa/web"
WEB = KubernetesPrincipal("Kubernetes", "prod", "web", expires_at=1 << 53)
PROXY = KubernetesPrincipal("Kubernetes", "istio-system", "ztunnel", "z", "uid", expires_at=1 << 53)


async def ready(here: House, **grant: Any) -> None:
    text = mesh_policy(cluster_entry(Cluster()), **{"profiles": ["mesh", "workload"], **grant})
    await here.rulebook.apply("policy", text, BY, "test")


def wish(csr: Csr, who: Principal = WEB, **more: Any) -> IssuanceRequest:
    return IssuanceRequest(who, csr, HERE, **{"identity": IDENTITY, "profile": "mesh", **more})


async def before(here: House, request: IssuanceRequest, csr: Csr, identity: str = IDENTITY) -> IssuedCertificate | None:
    profile = BUILT_IN[request.profile or "mesh"]
    return await issued_before(here.here.store, here.here.authorities, here.here.clock, request, csr, identity, profile)


def test_within_a_minute_the_same_request_is_known(tmp_path: Path) -> None:
    async def work() -> None:
        async with house(tmp_path) as here:
            await ready(here)
            key = keys.generate("p256")
            csr = parse_csr(fresh_csr(key=key))
            assert await before(here, wish(csr), csr) is None
            issued = await here.issuance.issue(wish(csr))
            assert await before(here, wish(csr), csr) == issued
            again = parse_csr(fresh_csr(IDENTITY, key=key))  # signed anew, over the same key
            assert await before(here, wish(again), again) == issued
            here.here.clock.pass_(WITHIN / 1000)
            assert await before(here, wish(csr), csr) == issued
            here.here.clock.pass_(1)
            assert await before(here, wish(csr), csr) is None

    asyncio.run(work())


def test_nobody_else_and_nothing_else_gets_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with house(tmp_path) as here:
            await ready(here)
            csr = parse_csr(fresh_csr())
            issued = await here.issuance.issue(wish(csr))
            other = parse_csr(fresh_csr())
            via = KubernetesPrincipal("Kubernetes", "prod", "web", via=PROXY)
            assert await before(here, wish(other), other) is None
            assert await before(here, wish(csr, via), csr) is None
            assert await before(here, wish(csr, KubernetesPrincipal("other", "prod", "web")), csr) is None
            assert await before(here, wish(csr, profile="workload"), csr) is None
            assert await before(here, wish(csr), csr, "spiffe://example.org/ns/prod/sa/api") is None
            assert await before(here, wish(csr, predecessor=issued.sha256), csr) is None
            await here.here.authorities.create_issuing("second", "root", by=BY)
            await here.here.authorities.retire("issuing", by=BY)
            assert await before(here, wish(csr), csr) is None

    asyncio.run(work())


def test_a_shorter_lifetime_will_do_only_for_who_says_so(tmp_path: Path) -> None:
    async def lasts(here: House, **more: Any) -> float:
        issued = await here.issuance.issue(wish(parse_csr(fresh_csr()), **more))
        return (issued.not_after - here.here.clock()) / 1000

    async def work() -> None:
        async with house(tmp_path) as here:
            await ready(here, max_ttl="30m")
            for ttl, expected in ((7200.0, 1800), (1e12, 1800), (600.0, 600), (0.5, 10), (None, 1800)):
                assert await lasts(here, ttl=ttl, or_shorter=True) == pytest.approx(expected, abs=1)
            for ttl in (7200.0, 1e12, 0.5):
                with pytest.raises(HandclaspError) as caught:
                    await lasts(here, ttl=ttl)
                assert caught.value.kind is Kind.LIFETIME_NOT_ALLOWED

    asyncio.run(work())
