"""A server that is the CA of three clusters, and one connection to it at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from support.kube import ApiServer, Cluster, cluster_entry, mesh_policy
from support.live import Live
from support.mesh import MeshClient, connected

PROFILES = """
version: 1
profiles:
  mesh-short: {extend: mesh, lifetime: 10m, max_lifetime: 1h}
"""


@dataclass
class Mesh:
    """A server and the clusters that it knows."""

    live: Live
    cluster: Cluster
    """Named Kubernetes, checked locally; its API server says which pods a node runs."""
    strict: Cluster
    """Named strict; each of its tokens is reviewed."""
    other: Cluster
    """Named other, with the issuer text of the first."""
    api: ApiServer
    strict_api: ApiServer

    @property
    def address(self) -> str:
        return str(self.live.facts["grpc"])

    @property
    def ca_file(self) -> str:
        return str(self.live.facts["ca_file"])

    def apply(self, **grant: object) -> None:
        """Put the clusters in force, with one grant for all of them; and one for what tests want refused."""
        entries = [
            cluster_entry(self.cluster, api=self.api),
            cluster_entry(self.strict, name="strict", api=self.strict_api, mode="require") | {"review": self._strict_review()},
            cluster_entry(self.other, name="other"),
        ]
        with self.live.client(self.live.admin_token) as admin:
            admin("PUT", "/v1/profiles", {"text": PROFILES}).ok()
            admin("PUT", "/v1/policy", {"text": mesh_policy(*entries, **{"profiles": ["mesh", "mesh-short"], **grant})}).ok()

    def _strict_review(self) -> dict[str, object]:
        return {"url": self.strict_api.url, "ca": self.strict_api.ca, "token_file": "a.token", "mode": "require", "rate": 5000}

    def run(self, work: Callable[[MeshClient], Awaitable[Any]], **more: Any) -> Any:
        """Do something over one connection."""

        async def whole() -> Any:
            async with connected(self.address, self.ca_file, **more) as client:
                return await work(client)

        return asyncio.run(whole())

    def entries(self, type_: str) -> list[dict[str, Any]]:
        """Return the entries of the log of one type."""
        with self.live.client(self.live.admin_token) as admin:
            found = [item["entry"] for page in admin.pages("/v1/log/entries", limit=1000) for item in page]
        return [entry for entry in found if entry["type"] == type_]
