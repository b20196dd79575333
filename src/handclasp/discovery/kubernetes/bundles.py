"""Anchors that a cluster's own machinery trusts: of webhooks, aggregated APIs, conversions, and ClusterTrustBundles.

A ``caBundle`` that expired or is garbled stops admission for everybody, so what cannot be read is kept as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handclasp.discovery.kubernetes.around import Around
from handclasp.discovery.kubernetes.content import MAX_DER, as_anchors, from_base64
from handclasp.discovery.kubernetes.shapes import (
    ApiService,
    ClusterTrustBundle,
    CustomResourceDefinition,
    WebhookClient,
    WebhookConfiguration,
)
from handclasp.wire.observations import Observed, Seen


def mutating(one: WebhookConfiguration, around: Around) -> Iterator[Observed]:
    """Observe the anchors for each webhook of a MutatingWebhookConfiguration."""
    yield from _webhooks("mutatingwebhook", one, around)


def validating(one: WebhookConfiguration, around: Around) -> Iterator[Observed]:
    """Observe the anchors for each webhook of a ValidatingWebhookConfiguration."""
    yield from _webhooks("validatingwebhook", one, around)


def _webhooks(what: str, one: WebhookConfiguration, around: Around) -> Iterator[Observed]:
    for webhook in one.webhooks or ():
        if webhook.client_config is not None and webhook.client_config.ca_bundle:
            yield _bundle(what, one, webhook.name, webhook.client_config, around)


def api_service(one: ApiService, around: Around) -> Iterator[Observed]:
    """Observe the anchors for an aggregated API."""
    if one.spec is not None and one.spec.ca_bundle:
        client = WebhookClient(ca_bundle=one.spec.ca_bundle, service=one.spec.service)
        yield _bundle("apiservice", one, "", client, around)


def definition(one: CustomResourceDefinition, around: Around) -> Iterator[Observed]:
    """Observe the anchors for the conversion webhook of a custom resource."""
    conversion = one.spec.conversion if one.spec is not None else None
    client = conversion.webhook.client_config if conversion is not None and conversion.webhook is not None else None
    if client is not None and client.ca_bundle:
        yield _bundle("crd", one, "conversion", client, around)


def trust_bundle(one: ClusterTrustBundle, around: Around) -> Iterator[Observed]:
    """Observe a ClusterTrustBundle."""
    details = {"signer": one.spec.signer_name} if one.spec.signer_name else {}
    yield around.observed("clustertrustbundle", one.metadata, certificates=as_anchors(one.spec.trust_bundle.encode()), details=details)


def _bundle(what: str, one: Any, entry: str, client: WebhookClient, around: Around) -> Observed:
    text = (client.ca_bundle or "").encode()
    pem = from_base64(text)
    found = as_anchors(pem or b"") or [Seen(der=(pem or text)[:MAX_DER], role="anchor")]
    return around.observed(what, one.metadata, entry, certificates=found, details=_reached(client))


def _reached(client: WebhookClient) -> dict[str, Any]:
    service = client.service or {}
    name, namespace = service.get("name"), service.get("namespace")
    if isinstance(name, str) and isinstance(namespace, str):
        return {"service": f"{namespace}/{name}"}
    return {"url": client.url[:2048]} if client.url else {}
