"""Clusters of a policy, and an API server that checks tokens for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from handclasp.access.clusters import Clusters
from handclasp.access.policy import parse_policy
from handclasp.access.principals import KubernetesPrincipal
from handclasp.errors import HandclaspError, Kind
from handclasp.server.kube import ApiConnection
from support.kube import ApiServer, Cluster, cluster_entry, mesh_policy


class ClusterWorld:
    """Clusters of a policy, on a clock that the test moves (from the real one: the simulated API server has no other)."""

    def __init__(self, *entries: dict[str, Any], tokens: Path | None = None) -> None:
        self.now = int(time.time() * 1000)
        self.fetched: list[str] = []
        self.pages: dict[str, bytes] = {}
        self.clusters = Clusters(self.fetch, lambda review: ApiConnection(review, tokens or Path("/nowhere")), lambda: self.now)
        self.policy = parse_policy(mesh_policy(*entries))
        self.clusters.use(self.policy)

    async def fetch(self, url: str) -> bytes:
        self.fetched.append(url)
        if url not in self.pages:
            raise OSError("connection refused")
        return self.pages[url]

    def run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Run one thing, and let go of connections: each run has an event loop of its own."""

        async def whole() -> Any:
            try:
                return await work()
            finally:
                for known in self.clusters._known.values():
                    await known.close()

        return asyncio.run(whole())

    def verify(self, token: str, cluster: str = "Kubernetes", **more: Any) -> KubernetesPrincipal:
        found: KubernetesPrincipal = self.run(lambda: self.clusters.verify(cluster, token, **more))
        return found

    def impersonate(self, caller: KubernetesPrincipal, namespace: str = "prod", account: str = "web") -> KubernetesPrincipal:
        found: KubernetesPrincipal = self.run(lambda: self.clusters.impersonate(caller, namespace, account))
        return found

    def refuses(self, work: Callable[[], Any], says: str, kind: Kind = Kind.NOT_AUTHENTICATED) -> HandclaspError:
        with pytest.raises(HandclaspError) as caught:
            work()
        assert caught.value.kind is kind, caught.value
        assert says in caught.value.detail
        return caught.value


CLUSTER = Cluster()


def with_api(api: ApiServer, mode: str = "require", **more: Any) -> ClusterWorld:
    """Return a world whose only cluster has this API server."""
    return ClusterWorld(cluster_entry(api.cluster, api=api, mode=mode, **more), tokens=api.directory)
