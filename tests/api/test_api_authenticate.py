"""Who a client certificate is, at the moment of the request: also whether another is in its place by now."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from handclasp.access.authorize import Allowed, Refused, check_scope
from handclasp.access.principals import CertificatePrincipal
from handclasp.api.authenticate import authenticate
from handclasp.errors import Kind
from support.issuing import House, house


async def presented(here: House, sha256: bytes) -> CertificatePrincipal:
    services: Any = SimpleNamespace(store=here.here.store, tokens=here.tokens, issuance=here.issuance, clock=here.here.clock)
    principal = await authenticate(services, {}, sha256)
    assert isinstance(principal, CertificatePrincipal)
    return principal


def test_a_superseded_certificate_is_known_as_one_and_reports_only_in_its_grace_time(tmp_path: Path) -> None:
    async def work() -> None:
        async with house(tmp_path) as here:
            agent = await here.issue(await here.token(agent=True), identity="spiffe://example.org/agent/a", profile="agent")
            before = await presented(here, agent.sha256)
            assert (before.superseded_at, before.grace_is_over) == (None, False)
            newer = await here.renew(agent)
            since = here.here.clock()
            here.here.clock.pass_(600)
            in_time = await presented(here, agent.sha256)
            assert (in_time.superseded_at, in_time.grace_is_over) == (since, False)
            assert isinstance(check_scope(in_time, "agents:report"), Allowed)
            here.here.clock.pass_(1)
            late = await presented(here, agent.sha256)
            assert late.grace_is_over
            answer = check_scope(late, "agents:report")
            assert isinstance(answer, Refused)
            assert answer.kind is Kind.SUPERSEDED
            assert isinstance(check_scope(await presented(here, newer.sha256), "agents:report"), Allowed)

    asyncio.run(work())
