"""Roles of a simulated cluster: what the manifests bind, and what that allows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Rule:
    """One rule of a role, as bound: ``namespace`` is where, None for the whole cluster."""

    namespace: str | None
    groups: list[str]
    resources: list[str]
    verbs: list[str]
    names: list[str] = field(default_factory=list)

    def allows(self, verb: str, group: str, resource: str, namespace: str, name: str) -> bool:
        return (
            self.namespace in (None, namespace)
            and group in self.groups
            and resource in self.resources
            and verb in self.verbs
            and (not self.names or name in self.names)
        )


def rules_of(documents: Iterable[Mapping[str, Any]]) -> list[Rule]:
    """The rules that the manifests bind to anybody."""
    found = list(documents)
    roles = {(one["kind"], one["metadata"]["name"]): one for one in found if one["kind"] in ("Role", "ClusterRole")}
    rules = []
    for one in found:
        if one["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            role = roles[one["roleRef"]["kind"], one["roleRef"]["name"]]
            where = one["metadata"]["namespace"] if one["kind"] == "RoleBinding" else None
            rules += [Rule(where, r["apiGroups"], r["resources"], r["verbs"], r.get("resourceNames", [])) for r in role["rules"]]
    return rules
