"""What people configured: mTLS modes of PeerAuthentication and DestinationRule, the roots of each namespace, and the CA's public half."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Raw, Struct, field

from handclasp.discovery.kubernetes.around import Around
from handclasp.discovery.kubernetes.content import as_anchors, as_chain, from_base64
from handclasp.discovery.kubernetes.lanes import Resource
from handclasp.discovery.kubernetes.secrets import anchors_in
from handclasp.discovery.kubernetes.shapes import Bare, ConfigMap
from handclasp.wire.observations import Observed, Seen, SeenKey

MAX_LISTED = 100


class _Mtls(Struct):
    mode: str | None = None


class _PeerSpec(Struct, rename="camel"):
    mtls: _Mtls | None = None
    port_level_mtls: dict[str, _Mtls] | None = None
    selector: dict[str, Any] | None = None


class PeerAuthentication(Bare):
    """Whether workloads take connections without mTLS."""

    spec: _PeerSpec | None = None


class _Tls(Struct, rename="camel"):
    mode: str | None = None
    credential_name: str | None = None
    subject_alt_names: list[str] | None = None
    insecure_skip_verify: bool | None = None


class _Policy(Struct, rename="camel"):
    tls: _Tls | None = None
    port_level_settings: list[dict[str, Any]] | None = None


class _Subset(Struct, rename="camel"):
    name: str = ""
    traffic_policy: _Policy | None = None


class _RuleSpec(Struct, rename="camel"):
    host: str = ""
    traffic_policy: _Policy | None = None
    subsets: list[_Subset] | None = None


class DestinationRule(Bare):
    """How workloads connect to a host."""

    spec: _RuleSpec | None = None


class CaData(Struct):
    """Of ``cacerts`` and ``istio-ca-secret``, in both of their forms. The keys are views of the answer."""

    certificate: str | None = field(default=None, name="ca-cert.pem")
    chain: str | None = field(default=None, name="cert-chain.pem")
    root: str | None = field(default=None, name="root-cert.pem")
    tls: str | None = field(default=None, name="tls.crt")
    authority: str | None = field(default=None, name="ca.crt")
    key: Raw = field(default=Raw(b"null"), name="ca-key.pem")
    tls_key: Raw = field(default=Raw(b"null"), name="tls.key")


class CaSecret(Bare):
    """The Secret that istiod signs with."""

    data: CaData | None = None


def roots(one: ConfigMap, around: Around) -> Iterator[Observed]:
    """Observe the roots that a namespace was given; equal ones have equal ``anchors`` in the inventory."""
    yield from anchors_in(one, ("root-cert.pem",), around, kind="mesh")


def peer_authentication(one: PeerAuthentication, around: Around) -> Iterator[Observed]:
    """Observe a PeerAuthentication. Without a mode it takes that of its parent, in the end PERMISSIVE."""
    spec = one.spec or _PeerSpec()
    details: dict[str, Any] = {"mode": spec.mtls.mode if spec.mtls is not None and spec.mtls.mode else "UNSET"}
    if spec.port_level_mtls:
        details["ports"] = {port: mtls.mode or "UNSET" for port, mtls in sorted(spec.port_level_mtls.items())[:MAX_LISTED]}
    labels = (spec.selector or {}).get("matchLabels")
    if isinstance(labels, dict):
        details["selector"] = {str(name)[:300]: str(value)[:300] for name, value in sorted(labels.items())[:MAX_LISTED]}
    yield around.observed("peerauthentication", one.metadata, details=details, kind="mesh")


def destination_rule(one: DestinationRule, around: Around) -> Iterator[Observed]:
    """Observe a DestinationRule that says something about TLS."""
    spec = one.spec or _RuleSpec()
    details: dict[str, Any] = {"host": spec.host[:1000]}
    if (whole := _tls(spec.traffic_policy)) is not None:
        details |= whole
    subsets = {subset.name[:300]: tls for subset in (spec.subsets or [])[:MAX_LISTED] if (tls := _tls(subset.traffic_policy)) is not None}
    if subsets:
        details["subsets"] = subsets
    if len(details) > 1:
        yield around.observed("destinationrule", one.metadata, details=details, kind="mesh")


def _tls(policy: _Policy | None) -> dict[str, Any] | None:
    if policy is None:
        return None
    found: dict[str, Any] = {}
    if policy.tls is not None:
        found = {"mode": policy.tls.mode or "DISABLE"}
        if policy.tls.credential_name:
            found["credential"] = policy.tls.credential_name[:300]
        if policy.tls.insecure_skip_verify:
            found["insecure_skip_verify"] = True
    ports = {}
    for setting in (policy.port_level_settings or [])[:MAX_LISTED]:
        port, tls = setting.get("port"), setting.get("tls")
        if isinstance(port, dict) and isinstance(tls, dict):
            ports[str(port.get("number"))[:20]] = str(tls.get("mode") or "DISABLE")[:40]
    if ports:
        found["ports"] = ports
    return found or None


def ca_secret(one: CaSecret, around: Around) -> Iterator[Observed]:
    """Observe the public half of what istiod signs with: the authority's certificate with its chain, and the root."""
    data = one.data or CaData()
    certificate = data.certificate or data.tls
    found: list[Seen] = as_chain(from_base64((certificate or "").encode()) or b"")
    if found and data.chain and not found[0].chain:
        chain = as_chain(from_base64(data.chain.encode()) or b"")
        found[0].chain = [der for seen in chain for der in (seen.der or b"", *seen.chain) if der and der != found[0].der]
    anchors = as_anchors(from_base64((data.root or data.authority or "").encode()) or b"")
    held = any(bytes(memoryview(raw)[:2]) not in (b"nu", b'""') for raw in (data.key, data.tls_key))
    if found or anchors:
        yield around.observed(
            "secret",
            one.metadata,
            certificates=found + anchors,
            private_key=SeenKey() if held else None,
            details={"purpose": "istiod's authority"},
            kind="mesh",
        )


_SECURITY = tuple(f"/apis/security.istio.io/{version}" for version in ("v1", "v1beta1"))
_NETWORKING = tuple(f"/apis/networking.istio.io/{version}" for version in ("v1", "v1beta1", "v1alpha3"))
ROOT_CONFIG_MAPS = Resource(
    "istio-roots", ("/api/v1",), "configmaps", ConfigMap, roots, params={"fieldSelector": "metadata.name=istio-ca-root-cert"}
)
PEER_AUTHENTICATIONS = Resource(
    "peerauthentications", _SECURITY, "peerauthentications", PeerAuthentication, peer_authentication, optional=True
)
DESTINATION_RULES = Resource("destinationrules", _NETWORKING, "destinationrules", DestinationRule, destination_rule, optional=True)
CA_SECRETS = tuple(
    Resource(f"ca-{name}", ("/api/v1",), "secrets", CaSecret, ca_secret, params={"fieldSelector": f"metadata.name={name}"})
    for name in ("cacerts", "istio-ca-secret")
)
