"""The fields of Kubernetes objects that are read, and no others: what is not here is skipped by the parser and never becomes a value.

That is how ``tls.key`` is dropped unread, and also the annotation in which ``kubectl apply`` keeps a copy of the whole Secret.
"""

from __future__ import annotations

from typing import Any

from msgspec import Raw, Struct, field


class Annotations(Struct):
    """Those that cert-manager writes."""

    certificate: str | None = field(default=None, name="cert-manager.io/certificate-name")
    issuer: str | None = field(default=None, name="cert-manager.io/issuer-name")
    issuer_kind: str | None = field(default=None, name="cert-manager.io/issuer-kind")


class OwnerReference(Struct):
    """Who an object belongs to."""

    kind: str = ""
    name: str = ""
    controller: bool | None = None


class Metadata(Struct, rename="camel"):
    """Of every object."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: Annotations | None = None
    owner_references: list[OwnerReference] | None = None


class Bare(Struct):
    """An object of which only the metadata is of interest."""

    metadata: Metadata


class TlsData(Struct):
    """Of a Secret of the type ``kubernetes.io/tls``. ``key`` is a view of the answer, for whether there is one."""

    certificate: str | None = field(default=None, name="tls.crt")
    authority: str | None = field(default=None, name="ca.crt")
    key: Raw = field(default=Raw(b"null"), name="tls.key")


class TlsSecret(Bare):
    """A Secret of the type ``kubernetes.io/tls``."""

    data: TlsData | None = None


class OpaqueSecret(Bare):
    """Any other Secret; its values are views of the answer."""

    data: dict[str, Raw] | None = None


class ConfigMap(Bare, rename="camel"):
    """Text, of which most is no certificate."""

    data: dict[str, Raw] | None = None
    binary_data: dict[str, Raw] | None = None


class WebhookClient(Struct, rename="camel"):
    """How an API server reaches a webhook."""

    ca_bundle: str | None = None
    url: str | None = None
    service: dict[str, Any] | None = None


class Webhook(Struct, rename="camel"):
    """One of a configuration's."""

    name: str = ""
    client_config: WebhookClient | None = None


class WebhookConfiguration(Bare):
    """Mutating or validating."""

    webhooks: list[Webhook] | None = None


class ApiServiceSpec(Struct, rename="camel"):
    """Where an aggregated API is."""

    ca_bundle: str | None = None
    service: dict[str, Any] | None = None


class ApiService(Bare):
    """An aggregated API, or one of the API server's own."""

    spec: ApiServiceSpec | None = None


class _Conversion(Struct, rename="camel"):
    client_config: WebhookClient | None = None


class Conversion(Struct):
    """How a custom resource gets from one version to another."""

    webhook: _Conversion | None = None


class CrdSpec(Struct):
    """Of a definition, the conversion alone: the schemas are most of it."""

    conversion: Conversion | None = None


class CustomResourceDefinition(Bare):
    """A custom resource's definition."""

    spec: CrdSpec | None = None


class TrustBundleSpec(Struct, rename="camel"):
    """Anchors, PEM."""

    trust_bundle: str = ""
    signer_name: str | None = None


class ClusterTrustBundle(Bare):
    """Anchors that a signer publishes."""

    spec: TrustBundleSpec


class SigningSpec(Struct, rename="camel"):
    """Who asked for what."""

    signer_name: str = ""
    username: str = ""
    usages: list[str] | None = None


class SigningStatus(Struct):
    """``certificate`` is base64 of PEM."""

    certificate: str | None = None


class SigningRequest(Bare):
    """A CertificateSigningRequest."""

    spec: SigningSpec
    status: SigningStatus | None = None


class PodCertificateSpec(Struct, rename="camel"):
    """Which pod asked whom."""

    signer_name: str = ""
    pod_name: str = ""
    service_account_name: str = ""
    node_name: str = ""


class PodCertificateStatus(Struct, rename="camel"):
    """``certificate_chain`` is PEM."""

    certificate_chain: str | None = None
    begin_refresh_at: str | None = None


class PodCertificateRequest(Bare):
    """What a kubelet asks for on behalf of a pod."""

    spec: PodCertificateSpec
    status: PodCertificateStatus | None = None


class IngressTls(Struct, rename="camel"):
    """Which Secret serves which hosts."""

    hosts: list[str] | None = None
    secret_name: str | None = None


class IngressSpec(Struct):
    """Of an Ingress."""

    tls: list[IngressTls] | None = None


class Ingress(Bare):
    """An Ingress."""

    spec: IngressSpec | None = None


class SecretRef(Struct):
    """A Secret, perhaps of another namespace."""

    name: str = ""
    namespace: str | None = None
    kind: str | None = None
    group: str | None = None


class ListenerTls(Struct, rename="camel"):
    """Of a listener."""

    mode: str | None = None
    certificate_refs: list[SecretRef] | None = None


class Listener(Struct):
    """Of a Gateway."""

    name: str = ""
    hostname: str | None = None
    tls: ListenerTls | None = None


class GatewaySpec(Struct):
    """Of a Gateway."""

    listeners: list[Listener] | None = None


class Gateway(Bare):
    """A Gateway of the Gateway API."""

    spec: GatewaySpec | None = None


class IssuerRef(Struct):
    """Who signs."""

    name: str = ""
    kind: str | None = None
    group: str | None = None


class CertificateSpec(Struct, rename="camel"):
    """What is wanted."""

    secret_name: str = ""
    issuer_ref: IssuerRef | None = None
    common_name: str | None = None
    dns_names: list[str] | None = None
    uris: list[str] | None = None
    ip_addresses: list[str] | None = None
    duration: str | None = None
    renew_before: str | None = None


class Condition(Struct):
    """One state."""

    type: str = ""
    status: str = ""
    reason: str | None = None


class CertificateStatus(Struct, rename="camel"):
    """What there is."""

    conditions: list[Condition] | None = None
    not_after: str | None = None
    renewal_time: str | None = None
    revision: int | None = None
    failed_issuance_attempts: int | None = None
    last_failure_time: str | None = None


class Certificate(Bare):
    """A Certificate of cert-manager."""

    spec: CertificateSpec
    status: CertificateStatus | None = None
