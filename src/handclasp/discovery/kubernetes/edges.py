"""Who uses which Secret: Ingresses, Gateways, and cert-manager's Certificates, which also say what is wanted and when it is renewed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handclasp.discovery.kubernetes.around import MAX_USERS, Around, Users
from handclasp.discovery.kubernetes.shapes import Certificate, Gateway, Ingress
from handclasp.wire.observations import Observed

Edge = tuple[tuple[str, str], str, list[str], dict[str, str]]
"""((namespace, Secret), who uses it, for which hosts, labels of what makes it)."""


def ingress_edges(one: Ingress) -> Iterator[Edge]:
    """Yield the Secrets that an Ingress serves."""
    namespace = one.metadata.namespace
    for tls in (one.spec.tls if one.spec is not None else None) or ():
        if tls.secret_name:
            yield (namespace, tls.secret_name), f"ingress/{namespace}/{one.metadata.name}", tls.hosts or [], {}


def gateway_edges(one: Gateway) -> Iterator[Edge]:
    """Yield the Secrets that a Gateway's listeners serve."""
    namespace = one.metadata.namespace
    for listener in (one.spec.listeners if one.spec is not None else None) or ():
        for ref in (listener.tls.certificate_refs if listener.tls is not None else None) or ():
            if ref.name and ref.kind in (None, "", "Secret"):
                hosts = [listener.hostname] if listener.hostname else []
                yield (ref.namespace or namespace, ref.name), f"gateway/{namespace}/{one.metadata.name}", hosts, {}


def certificate_edges(one: Certificate) -> Iterator[Edge]:
    """Yield the Secret that cert-manager keeps for a Certificate."""
    namespace = one.metadata.namespace
    if one.spec.secret_name:
        used = f"certificate/{namespace}/{one.metadata.name}"
        yield (namespace, one.spec.secret_name), used, one.spec.dns_names or [], one.metadata.labels or {}


def add_edges(found: dict[tuple[str, str], Users], edges: Iterator[Edge]) -> None:
    """Collect edges by their Secret."""
    for secret, user, hosts, labels in edges:
        users = found.setdefault(secret, Users())
        if len(users.users) < MAX_USERS:
            users.users.add(user)
            users.hosts.update(hosts[:MAX_USERS])
            users.labels.update(labels)


def ingress(one: Ingress, around: Around) -> Iterator[Observed]:
    """Observe an Ingress that terminates TLS: no certificate, but whose Secret it serves."""
    yield from _user("ingress", one, list(ingress_edges(one)), around)


def gateway(one: Gateway, around: Around) -> Iterator[Observed]:
    """Observe a Gateway that terminates TLS."""
    yield from _user("gateway", one, list(gateway_edges(one)), around)


def _user(what: str, one: Any, edges: list[Edge], around: Around) -> Iterator[Observed]:
    if edges:
        tls = [{"secret": f"{namespace}/{secret}", "hosts": hosts[:MAX_USERS]} for (namespace, secret), _, hosts, _ in edges[:MAX_USERS]]
        yield around.observed(what, one.metadata, details={"tls": tls})


def certificate(one: Certificate, around: Around) -> Iterator[Observed]:
    """Observe what cert-manager was told to keep, and how it is doing."""
    spec, status = one.spec, one.status
    details: dict[str, Any] = {
        "secret": f"{one.metadata.namespace}/{spec.secret_name}",
        "common_name": spec.common_name,
        "dns": (spec.dns_names or [])[:MAX_USERS],
        "uris": (spec.uris or [])[:MAX_USERS],
        "ips": (spec.ip_addresses or [])[:MAX_USERS],
        "duration": spec.duration,
        "renew_before": spec.renew_before,
    }
    if spec.issuer_ref is not None:
        details["issuer"] = f"{spec.issuer_ref.kind or 'Issuer'}/{spec.issuer_ref.name}"
    if status is not None:
        ready = next((condition for condition in status.conditions or () if condition.type == "Ready"), None)
        details |= {
            "ready": ready.status == "True" if ready is not None else None,
            "reason": ready.reason if ready is not None else None,
            "not_after": status.not_after,
            "renewal_time": status.renewal_time,
            "revision": status.revision,
            "failed_attempts": status.failed_issuance_attempts,
            "last_failure": status.last_failure_time,
        }
    yield around.observed("certificate", one.metadata, details={name: value for name, value in details.items() if value not in (None, [])})
