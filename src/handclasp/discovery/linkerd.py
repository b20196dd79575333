"""The source ``linkerd``: roots and issuer of a mesh, what was issued (by events), and the anchors that running proxies really have."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import msgspec
from msgspec import Raw, Struct, field

from handclasp.clock import from_datetime
from handclasp.discovery.kubernetes.access import Access
from handclasp.discovery.kubernetes.api import open_api
from handclasp.discovery.kubernetes.around import Around
from handclasp.discovery.kubernetes.content import as_anchors, as_chain, from_base64
from handclasp.discovery.kubernetes.kind import DAY, admitted, check_namespaces, chunks, lanes_of, read_lanes
from handclasp.discovery.kubernetes.lanes import Resource
from handclasp.discovery.kubernetes.owners import namespace_labels
from handclasp.discovery.kubernetes.part import check_watch
from handclasp.discovery.kubernetes.secrets import anchors_in
from handclasp.discovery.kubernetes.shapes import Bare, ConfigMap, Metadata
from handclasp.discovery.meshmetrics import check_urls, metrics_of
from handclasp.discovery.source import Observed, Part, Reading, Runs, Scope
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind
from handclasp.wire.observations import Seen, SeenKey

METRICS = frozenset(
    {
        # Proxies until 2-edge, and since: linkerd/app registers them under control_identity.
        "identity_cert_expiration_timestamp_seconds",
        "identity_cert_refresh_count",
        "control_identity_cert_expiration_timestamp_seconds",
        "control_identity_cert_refresh_timestamp_seconds",
        "control_identity_cert_refreshes_total",
        "issuer_cert_ttl_seconds",
    }
)
ANCHORS = "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS"
_COMBINED = "(combined from similar events): "  # what the event recorder puts before a message that comes often
_ISSUED = re.compile(
    r"issued certificate for (?P<identity>[A-Za-z0-9][A-Za-z0-9._-]{0,252}|spiffe://[\x21-\x7e]{1,2000})"
    r" until (?P<day>\d{4}-\d{2}-\d{2})[ T](?P<time>\d{2}:\d{2}:\d{2})(?:\.\d{1,9})?(?: \+0000 UTC|Z): (?P<sha256>[0-9a-f]{64})",
    re.ASCII,
)


def parse_issued(message: str) -> tuple[str, int, bytes]:
    """Return identity, end (ms) and fingerprint in the message of an ``IssuedLeafCertificate`` event; raise ``bad_request`` for another."""
    found = _ISSUED.fullmatch(message.removeprefix(_COMBINED)) if len(message) <= 4096 else None
    try:
        if found is None:
            raise ValueError
        ends = from_datetime(datetime.fromisoformat(f"{found['day']}T{found['time']}").replace(tzinfo=UTC))
    except ValueError as error:
        raise HandclaspError(Kind.BAD_REQUEST, "the event does not say which certificate was issued") from error
    name = found["identity"]
    return name if name.startswith("spiffe://") else f"dns:{name.lower()}", ends, bytes.fromhex(found["sha256"])


# --- objects ------------------------------------------------------------------------------------------------------------------------------


class _Involved(Struct):
    kind: str = ""
    name: str = ""
    namespace: str = ""


class _Component(Struct):
    component: str = ""


class Event(Bare):
    """An event on a ServiceAccount."""

    message: str = ""
    reason: str = ""
    source: _Component | None = None
    involved: _Involved | None = field(default=None, name="involvedObject")


class _IssuerData(Struct):
    certificate: str | None = field(default=None, name="tls.crt")
    older: str | None = field(default=None, name="crt.pem")
    key: Raw = field(default=Raw(b"null"), name="tls.key")
    older_key: Raw = field(default=Raw(b"null"), name="key.pem")


class Issuer(Bare):
    """The Secret that Linkerd signs with."""

    data: _IssuerData | None = None


class _Env(Struct):
    name: str = ""
    value: str | None = None


class _Container(Struct):
    name: str = ""
    env: list[_Env] | None = None


class _PodSpec(Struct, rename="camel"):
    containers: list[_Container] | None = None
    init_containers: list[_Container] | None = None
    node_name: str | None = None


class Pod(Bare):
    """A pod with a proxy in it."""

    spec: _PodSpec | None = None


def issued(one: Event, around: Around) -> Iterator[Observed]:
    """Observe what was issued. The event goes within the hour and the certificate stays, so its location is who it is for."""
    if one.reason != "IssuedLeafCertificate" or one.source is None or one.source.component != "linkerd-identity":
        return
    identity, ends, sha256 = parse_issued(one.message)
    involved = one.involved or _Involved()
    who = Metadata(name=identity.removeprefix("dns:"), namespace=involved.namespace or one.metadata.namespace)
    seen = Seen(sha256=sha256, role="listed", identity=identity, not_after=ends, how={"event": one.metadata.name[:300]})
    yield around.observed(
        "issued", who, certificates=[seen], kind="ca", details={"mesh": "linkerd"}, facts={"service_account": involved.name}
    )


def roots(one: ConfigMap, around: Around) -> Iterator[Observed]:
    """Observe what the mesh is told to trust."""
    yield from anchors_in(one, ("ca-bundle.crt",), around, kind="mesh")


def issuer(one: Issuer, around: Around) -> Iterator[Observed]:
    """Observe the public half of what Linkerd signs with."""
    data = one.data or _IssuerData()
    found = as_chain(from_base64((data.certificate or data.older or "").encode()) or b"")
    held = any(bytes(memoryview(raw)[:2]) not in (b"nu", b'""') for raw in (data.key, data.older_key))
    if found:
        details = {"mesh": "linkerd", "purpose": "the issuer"}
        yield around.observed(
            "secret", one.metadata, certificates=found, private_key=SeenKey() if held else None, details=details, kind="mesh"
        )


def pod_anchors(one: Pod, around: Around) -> Iterator[Observed]:
    """Observe the anchors that a proxy was started with; they stay the same until its pod is made anew."""
    spec = one.spec or _PodSpec()
    for container in (*(spec.containers or ()), *(spec.init_containers or ())):
        for env in container.env or ():
            if env.name == ANCHORS and env.value:
                observed = around.observed("pod", one.metadata, "anchors", certificates=as_anchors(env.value.encode()), kind="mesh")
                observed.host = spec.node_name
                observed.details = {"mesh": "linkerd", "container": container.name[:300]}
                yield observed
                return


def _named(name: str) -> dict[str, str]:
    return {"fieldSelector": f"metadata.name={name}"}


_CORE = ("/api/v1",)
ROOTS = Resource("linkerd-roots", _CORE, "configmaps", ConfigMap, roots, params=_named("linkerd-identity-trust-roots"))
ISSUER = Resource("linkerd-issuer", _CORE, "secrets", Issuer, issuer, params=_named("linkerd-identity-issuer"))
EVENTS = Resource(
    "linkerd-events",
    _CORE,
    "events",
    Event,
    issued,
    params={"fieldSelector": "reason=IssuedLeafCertificate"},
    vanishes=True,
    keeps=30 * DAY,
)
PODS = Resource("linkerd-pods", _CORE, "pods", Pod, pod_anchors, params={"labelSelector": "linkerd.io/control-plane-ns"}, limit=50)
RESOURCES = {one.name: one for one in (ROOTS, ISSUER, EVENTS, PODS)}


class LinkerdSettings(Access, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Of a source of the kind ``linkerd``."""

    control_namespace: str = "linkerd"
    """Where the control plane is."""
    namespaces: list[str] = msgspec.field(default_factory=lambda: ["*"])
    """Whose events and pods are read; ``*``: of all at once."""
    events: bool = True
    """Whether events tell what was issued: fingerprint, identity and end, without the certificate."""
    pods: bool = True
    """Whether the anchors that proxies were started with are read from their pods."""
    issuer: bool = False
    """Whether the public half of the issuer is read from its Secret. Whoever may read that may read the issuer's key."""
    metrics: list[str] = msgspec.field(default_factory=list)
    """Addresses of metrics, such as ``http://HOST:4191/metrics`` of a proxy."""
    watch: str = ""
    """How long to watch after everything was listed, such as ``1h``; events last about an hour. Empty: only list."""


class Linkerd:
    """Reads the mesh of one cluster."""

    name = "linkerd"
    summary = "roots, issuer, issued certificates and proxies' anchors of a Linkerd mesh; the scope's entries are namespaces"
    privilege = (
        "The ClusterRole handclasp-collector-linkerd and the Role of the same name in the control plane's namespace "
        "(packaging/kubernetes/collector/linkerd.yaml): list on namespaces, list and watch on events and pods, and on the ConfigMap "
        "linkerd-identity-trust-roots by its name. issuer needs list and watch on the Secret linkerd-identity-issuer by its name, which "
        "holds the issuer's private key; it is skipped while the answer is parsed. Events can be made by whoever may create events in a "
        "namespace: what they tell is a hint, and never makes a certificate count as issued."
    )
    Settings = LinkerdSettings
    runs: Runs = "collector"

    def check(self, settings: LinkerdSettings, scope: Scope) -> None:
        """Raise ``bad_setting``."""
        check_watch(settings, settings.watch)
        check_namespaces(settings.namespaces, [settings.control_namespace])
        check_urls(settings.metrics)
        if not any(self._lanes(settings, scope)) and not settings.metrics:
            raise HandclaspError(Kind.BAD_SETTING, "nothing is to be read", hint="name namespaces that the scope admits")

    async def plan(self, settings: LinkerdSettings, scope: Scope, tools: Tools) -> AsyncIterator[Part]:  # noqa: ARG002
        """Yield the lanes in a few parts, and the metrics."""
        for names in chunks(self._lanes(settings, scope), bool(settings.watch)):
            yield Part({"lanes": names})
        if settings.metrics:
            yield Part({"metrics": True})

    def _lanes(self, settings: LinkerdSettings, scope: Scope) -> Iterator[list[str]]:
        if scope.admits(settings.control_namespace):
            yield [f"{settings.control_namespace}/{one.name}" for one in (ROOTS, *((ISSUER,) if settings.issuer else ()))]
        wanted = [*((EVENTS,) if settings.events else ()), *((PODS,) if settings.pods else ())]
        for namespace in admitted(settings.namespaces, scope) if wanted else ():
            yield [f"{namespace}/{one.name}" for one in wanted]

    async def read(self, settings: LinkerdSettings, part: Part, place: str, tools: Tools) -> AsyncIterator[Reading]:
        """List and watch the lanes of a part, or read metrics."""
        if "metrics" in part.spec:
            async for one in metrics_of(settings.metrics, METRICS, settings.cluster, tools, mesh="linkerd"):
                yield one
            return
        async with open_api(settings, tools) as api:
            lanes = lanes_of(part.spec["lanes"], RESOURCES, settings.cluster, tools)
            labels = await namespace_labels(api)
            for lane in lanes:
                lane.around.namespaces = labels
            async for each in read_lanes(api, lanes, check_watch(settings, settings.watch), place, tools):
                yield each


LINKERD = Linkerd()
