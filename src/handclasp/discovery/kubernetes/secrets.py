"""Secrets and ConfigMaps: certificates out of them, and nothing else."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from handclasp.discovery.kubernetes.around import Around
from handclasp.discovery.kubernetes.content import MAX_FOUND, as_anchors, as_chain, as_found, from_base64, has_certificate
from handclasp.discovery.kubernetes.shapes import Annotations, ConfigMap, Metadata, OpaqueSecret, TlsSecret
from handclasp.pki.contents import read_contents
from handclasp.wire.observations import Observed, Seen, SeenKey

ROOTS: Mapping[str, tuple[str, ...]] = {
    "kube-root-ca.crt": ("ca.crt",),
    "extension-apiserver-authentication": ("client-ca-file", "requestheader-client-ca-file"),
}
"""ConfigMaps of Kubernetes itself, and the entries that hold anchors."""
_ENCODED = re.compile(b"|".join(base64.b64encode(b"\0" * at + b"CERTIFICATE-----")[(0, 2, 3)[at] : -4] for at in range(3)))
"""``CERTIFICATE-----`` as it looks in base64, at each of the three places that it may begin at."""
_KEYSTORES = (b"/u3+7", b"zs7Oz")  # JKS and JCEKS begin with FEEDFEED and CECECECE
_KEYSTORE_NAMES = (".p12", ".pfx", ".pkcs12", ".jks", ".jceks", ".ks", ".keystore", ".truststore")


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
    """Observe every entry of another Secret in which certificates are, PEM or in a keystore; other entries are not decoded."""
    facts = around.secret_facts(secret.metadata)
    for name, raw in (secret.data or {}).items():
        text = memoryview(raw)[1:-1]
        if _ENCODED.search(text):
            yield from _entry("secret", secret.metadata, name, from_base64(text), around, facts)
        elif _is_keystore(name, text):
            yield from _keystore("secret", secret.metadata, name, from_base64(text), around, facts)


def config_map(one: ConfigMap, around: Around) -> Iterator[Observed]:
    """Observe every entry of a ConfigMap in which certificates are, PEM or in a keystore."""
    if one.metadata.name in ROOTS:
        return
    for name, raw in (one.data or {}).items():
        if has_certificate(bytes(raw)):
            yield from _entry("configmap", one.metadata, name, msgspec.json.decode(raw, type=str).encode(), around, {})
    for name, raw in (one.binary_data or {}).items():
        text = memoryview(raw)[1:-1]
        if _is_keystore(name, text):
            yield from _keystore("configmap", one.metadata, name, from_base64(text), around, {})


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


def _entry(what: str, metadata: Metadata, name: str, pem: bytes | None, around: Around, facts: Mapping[str, Any]) -> Iterator[Observed]:
    found: list[Seen] = as_found(pem or b"")
    if found:
        held = SeenKey(encrypted=b"ENCRYPTED" in (pem or b"")) if b"PRIVATE KEY-----" in (pem or b"") else None
        yield around.observed(what, metadata, name, certificates=found, private_key=held, facts=facts)


def _is_keystore(name: str, text: memoryview) -> bool:
    return bytes(text[:5]) in _KEYSTORES or (name.lower().endswith(_KEYSTORE_NAMES) and bytes(text[:2]) == b"MI")


def _keystore(what: str, metadata: Metadata, name: str, data: bytes | None, around: Around, facts: Mapping[str, Any]) -> Iterator[Observed]:
    """Observe the certificates of a keystore that need no password. That of its keys is not looked for."""
    contents = read_contents(data or b"", name)
    if contents is None:
        return
    found = [
        Seen(
            der=entry.der,
            role="anchor" if entry.anchor else "stored",
            chain=list(entry.chain),
            how={"alias": entry.alias[:300]} if entry.alias else {},
        )
        for entry in contents.entries[:MAX_FOUND]
    ]
    problem = contents.problem or ("it opens with a password alone" if contents.locked and not found else None)
    held = SeenKey(spki_sha256=contents.keys[0].spki_sha256, encrypted=contents.keys[0].encrypted) if contents.keys else None
    if found or problem:
        yield around.observed(
            what, metadata, name, certificates=found, problem=problem, private_key=held, details={"format": contents.format}, facts=facts
        )


def _details(annotations: Annotations | None) -> dict[str, Any]:
    if annotations is None or annotations.certificate is None:
        return {}
    return {"cert_manager": {"certificate": annotations.certificate, "issuer": annotations.issuer, "issuer_kind": annotations.issuer_kind}}
