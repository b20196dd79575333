"""What observations of one cluster have in common: keys, units, and the evidence of who owns an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from handclasp.clock import Clock
from handclasp.discovery.kubernetes.shapes import Metadata
from handclasp.wire.observations import Observed, Seen, SeenKey

MAX_LABELS = 64
MAX_USERS = 100  # Ingresses, Gateways and hosts that are named with one Secret


@dataclass(slots=True)
class Users:
    """Who refers to a Secret: evidence of what it is for, and whose."""

    hosts: set[str] = field(default_factory=set)
    users: set[str] = field(default_factory=set)
    """``ingress/NAMESPACE/NAME``, ``gateway/…``, ``certificate/…``."""
    labels: dict[str, str] = field(default_factory=dict)
    """Labels of the cert-manager Certificate that makes it."""


@dataclass(slots=True)
class Around:
    """For one listing. ``unit`` is what :class:`~handclasp.wire.observations.Covered` will say when it is complete."""

    cluster: str
    unit: str
    clock: Clock
    namespaces: Mapping[str, dict[str, str]] = field(default_factory=dict)
    """Labels of each namespace; empty where they may not be read."""
    users: Mapping[tuple[str, str], Users] = field(default_factory=dict)
    """By (namespace, Secret)."""

    def observed(
        self,
        what: str,
        metadata: Metadata,
        entry: str = "",
        *,
        certificates: Sequence[Seen] = (),
        problem: str | None = None,
        private_key: SeenKey | None = None,
        details: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        kind: str = "kubernetes",
    ) -> Observed:
        """Return an object as it was observed; ``what`` is its kind in a key (``secret``), ``entry`` what of it."""
        path = "/".join(part for part in (metadata.namespace, what, metadata.name) if part)
        return Observed(
            key=f"k8s:{self.cluster}/{path}" + (f"#{entry}" if entry else ""),
            kind=kind,
            shown=f"{self.cluster}: {path}" + (f" ({entry})" if entry else ""),
            unit=self.unit,
            at=self.clock(),
            certificates=list(certificates),
            private_key=private_key,
            details={"object": what, **(details or {})},
            facts=self.facts(metadata) | dict(facts or {}),
            problem=problem,
        )

    def facts(self, metadata: Metadata) -> dict[str, Any]:
        """Return the evidence of an object's owner that its metadata and its namespace give."""
        found: dict[str, Any] = {"cluster": self.cluster}
        if metadata.namespace:
            found["namespace"] = metadata.namespace
            labels = self.namespaces.get(metadata.namespace)
            if labels:
                found["namespace_labels"] = labels
        if metadata.labels:
            found["workload_labels"] = some(metadata.labels)
        owner = owner_of(metadata)
        if owner:
            found["workload"] = owner
        return found

    def secret_facts(self, metadata: Metadata) -> dict[str, Any]:
        """Return what refers to a Secret."""
        users = self.users.get((metadata.namespace, metadata.name))
        if users is None:
            return {}
        found: dict[str, Any] = {"used_by": sorted(users.users)[:MAX_USERS]}
        if users.hosts:
            found["hosts"] = sorted(users.hosts)[:MAX_USERS]
        if users.labels:
            found["workload_labels"] = some(users.labels | (metadata.labels or {}))
        return found


def some(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels, as many as are kept."""
    return dict(sorted(labels.items())[:MAX_LABELS])


def owner_of(metadata: Metadata) -> str:
    """Return ``Kind/name`` of what an object belongs to; the ReplicaSet of a Deployment as the Deployment, by the name it gives them."""
    owners = metadata.owner_references or []
    owner = next((one for one in owners if one.controller), owners[0] if owners else None)
    if owner is None:
        return ""
    if owner.kind == "ReplicaSet" and (metadata.labels or {}).get("pod-template-hash") == owner.name.rpartition("-")[2] != "":
        return f"Deployment/{owner.name.rpartition('-')[0]}"
    return f"{owner.kind}/{owner.name}"
