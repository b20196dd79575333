"""Secrets and ConfigMaps: certificates out of them, and nothing else."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from handclasp.discovery.kubernetes.around import Around
from handclasp.discovery.kubernetes.content import as_anchors, as_chain, as_found, from_base64, has_certificate
from handclasp.discovery.kubernetes.shapes import Annotations, ConfigMap, Metadata, OpaqueSecret, TlsSecret
from handclasp.wire.observations import Observed, Seen, SeenKey

ROOTS: Mapping[str, tuple[str, ...]] = {
    "kube-root-ca.crt": ("ca.crt",),
    "extension-apiserver-authentication": ("client-ca-file", "requestheader-client-ca-file"),
}
"""ConfigMaps of Kubernetes itself, and the entries that hold anchors."""
_ENCODED = re.compile(b"|".join(base64.b64encode(b"\0" * at + b"CERTIFICATE-----")[(0, 2, 3)[at] : -4] for at in range(3)))
"""``CERTIFICATE-----`` as it looks in base64, at each of the three places that it may begin at."""


def tls_secret(secret: TlsSecret, around: Around) -> Iterator[Observed]:
    """Observe ``tls.crt`` and ``ca.crt`` of a TLS Secret. ``tls.key`` stays unread."""
    metadata, data = secret.metadata, secret.data
    facts, details = around.secret_facts(metadata), _details(metadata.annotations)
    held = SeenKey() if data is not None and bytes(memoryview(data.key)[:2]) not in (b"nu", b'""') else None
    pem = from_base64((data.certificate or "").encode()) if data is not None else b""
    found = as_chain(pem or b"")
    problem = None
    if pem is None:
        problem = "tls.crt is not base64"
    elif not found and pem:
        problem = "tls.crt holds no certificate" + (", but a private key" if b"PRIVATE KEY" in pem else "")
    if found or held or problem:  # cert-manager makes the Secret first, and fills it later
        yield around.observed(
            "secret", metadata, "tls.crt", certificates=found, problem=problem, private_key=held, details=details, facts=facts
        )
    if data is not None and data.authority:
        anchors = as_anchors(from_base64(data.authority.encode()) or b"")
        if anchors:
            yield around.observed("secret", metadata, "ca.crt", certificates=anchors, details=details, facts=facts)


def opaque_secret(secret: OpaqueSecret, around: Around) -> Iterator[Observed]:
    """Observe every entry of another Secret in which PEM certificates are; entries without are not decoded."""
    for name, raw in (secret.data or {}).items():
        text = memoryview(raw)[1:-1]
        if _ENCODED.search(text):
            yield from _entry("secret", secret.metadata, name, from_base64(text), around)


def config_map(one: ConfigMap, around: Around) -> Iterator[Observed]:
    """Observe every entry of a ConfigMap in which PEM certificates are."""
    if one.metadata.name in ROOTS:
        return
    for name, raw in (one.data or {}).items():
        if has_certificate(bytes(raw)):
            yield from _entry("configmap", one.metadata, name, msgspec.json.decode(raw, type=str).encode(), around)


def root_config_map(one: ConfigMap, around: Around) -> Iterator[Observed]:
    """Observe the anchors in one of the ConfigMaps that Kubernetes itself makes."""
    yield from anchors_in(one, ROOTS.get(one.metadata.name, ()), around)


def anchors_in(one: ConfigMap, entries: tuple[str, ...], around: Around, *, kind: str = "kubernetes") -> Iterator[Observed]:
    """Observe entries of a ConfigMap that hold anchors by their purpose; one that holds something else is one with no anchors."""
    for name in entries:
        raw = (one.data or {}).get(name)
        if raw is not None:
            found = as_anchors(msgspec.json.decode(raw, type=str).encode())
            yield around.observed("configmap", one.metadata, name, certificates=found, kind=kind)


def _entry(what: str, metadata: Metadata, name: str, pem: bytes | None, around: Around) -> Iterator[Observed]:
    found: list[Seen] = as_found(pem or b"")
    if found:
        held = SeenKey(encrypted=b"ENCRYPTED" in (pem or b"")) if b"PRIVATE KEY-----" in (pem or b"") else None
        yield around.observed(
            what, metadata, name, certificates=found, private_key=held, facts=around.secret_facts(metadata) if what == "secret" else None
        )


def _details(annotations: Annotations | None) -> dict[str, Any]:
    if annotations is None or annotations.certificate is None:
        return {}
    return {"cert_manager": {"certificate": annotations.certificate, "issuer": annotations.issuer, "issuer_kind": annotations.issuer_kind}}
