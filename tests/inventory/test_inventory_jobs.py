"""A fresh installation as it runs: its jobs bring the inventory to exactly what was issued and seen, its own certificates apart."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from handclasp import wire
from handclasp.inventory import tallies
from handclasp.issuance.request import IssuanceRequest, Source
from handclasp.server.instance import open_instance
from handclasp.server.jobs import Jobs
from handclasp.server.own import OwnCertificate
from handclasp.server.settings import Settings
from handclasp.server.setup import initialise
from handclasp.wire.observations import Observed, Seen, Sightings
from support.inventory import foreign
from support.issuing import fresh_csr


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_a_fresh_installation_shows_exactly_four_states(database_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        settings = Settings(data=tmp_path / "data", trust_domain="example.org", database=database_url, unseen_after=0.0)
        await initialise(settings)
        instance = await open_instance(settings)
        services = instance.services
        own = OwnCertificate(instance)
        jobs = Jobs(instance, own)
        try:
            await own.renew()
            jobs.start()
            made = await services.tokens.create(
                wire.TokenRequest(name="t", allow=["spiffe://example.org/prod/*"], profiles=["workload"], uses=0), "local:test"
            )
            token = await services.tokens.authenticate(made.token)
            issued = [
                await services.issuance.issue(
                    IssuanceRequest(token, fresh_csr(), Source("rest"), identity=f"spiffe://example.org/prod/{n}")
                )
                for n in range(3)
            ]
            authority = services.authorities.get().authority
            key = services.authorities.crl_key(authority)
            now = services.clock()
            rogue = foreign("", uri="spiffe://example.org/prod/evil", signer=(authority.certificate, key), now=now)
            ders = [issued[0].der, issued[1].der, foreign(now=now), rogue]
            seen = [
                Observed(key=f"p{n}", kind="endpoint", shown=f"p{n}", at=now, certificates=[Seen(der=der, role="served")])
                for n, der in enumerate(ders)
            ]
            done = await services.inventory.recorder.record(1, Sightings(observed=seen))
            assert (done.fresh, done.locations) == (4, 4)
            wanted = {"seen": 2, "unseen": 1, "foreign": 1, "unissued": 1}
            end = time.monotonic() + 30
            while await tallies.of_kind(instance.store, "state") != wanted and time.monotonic() < end:
                await asyncio.sleep(0.05)
            assert await tallies.of_kind(instance.store, "state") == wanted
            overview = await services.inventory.overviews.overview()
            assert {one.name: one.number for one in overview.standings if one.number} == wanted
        finally:
            await jobs.stop()
            await instance.close()

    asyncio.run(run())
