"""The leader's job of federation: fetch what is due, and show how old each bundle is."""

from __future__ import annotations

import structlog
from prometheus_client import Gauge

from handclasp.clock import Clock
from handclasp.trust.federation import Federation

AGE = Gauge("handclasp_federation_age_seconds", "Seconds since the bundle of a federated trust domain was last fetched.", ["trust_domain"])
STALE = Gauge("handclasp_federation_stale", "1 while a federated bundle is stale or has never been fetched.", ["trust_domain"])
_log = structlog.get_logger("handclasp.federation")


class FederationJob:
    """Runs while this process leads. A trust domain that cannot be reached is reported, and stops nothing else."""

    def __init__(self, federation: Federation, clock: Clock) -> None:
        self._federation = federation
        self._clock = clock
        self._problems: dict[str, str] = {}

    async def run(self) -> None:
        """Do one round."""
        peers = await self._federation.poll()
        now = self._clock()
        AGE.clear()  # a trust domain that is not federated any more has no age
        STALE.clear()
        for peer in peers:
            AGE.labels(peer.trust_domain).set(peer.age(now))
            STALE.labels(peer.trust_domain).set(peer.state(now) != "ok")
            if peer.problem is not None and self._problems.get(peer.trust_domain) != peer.problem:
                _log.warning("federated bundle not refreshed", trust_domain=peer.trust_domain, reason=peer.problem)
        self._problems = {peer.trust_domain: peer.problem for peer in peers if peer.problem is not None}
