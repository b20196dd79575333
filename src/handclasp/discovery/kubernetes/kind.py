"""The source ``kubernetes``: one cluster each."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

import msgspec

from handclasp.discovery.kubernetes import bundles, edges, requests, secrets, shapes
from handclasp.discovery.kubernetes.access import Access
from handclasp.discovery.kubernetes.api import Api, open_api
from handclasp.discovery.kubernetes.around import Around, Users
from handclasp.discovery.kubernetes.lanes import Lane, Resource
from handclasp.discovery.kubernetes.owners import namespace_labels, secret_users
from handclasp.discovery.kubernetes.part import Reader, check_watch
from handclasp.discovery.source import Part, Reading, Runs, Scope
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind

LANES = 50  # in a part: each is a connection while it is watched
DAY = 86_400_000
_NAMESPACE = re.compile(r"\*|[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_CORE, _ADMISSION, _SIGNING = "/api/v1", "/apis/admissionregistration.k8s.io/v1", "/apis/certificates.k8s.io/"

_INGRESSES = Resource("ingresses", ("/apis/networking.k8s.io/v1",), "ingresses", shapes.Ingress, edges.ingress)
_GATEWAYS = Resource(
    "gateways",
    ("/apis/gateway.networking.k8s.io/v1", "/apis/gateway.networking.k8s.io/v1beta1"),
    "gateways",
    shapes.Gateway,
    edges.gateway,
    optional=True,
)
_CERTIFICATES = Resource(
    "certificates", ("/apis/cert-manager.io/v1",), "certificates", shapes.Certificate, edges.certificate, optional=True
)
_POD_CERTIFICATES = Resource(
    "podcertificaterequests",
    (f"{_SIGNING}v1", f"{_SIGNING}v1beta1", f"{_SIGNING}v1alpha1"),
    "podcertificaterequests",
    shapes.PodCertificateRequest,
    requests.pod_certificate,
    vanishes=True,
    keeps=92 * DAY,  # the API allows 91
    optional=True,
)
CLUSTER = (
    Resource(
        "mutatingwebhooks", (_ADMISSION,), "mutatingwebhookconfigurations", shapes.WebhookConfiguration, bundles.mutating, namespaced=False
    ),
    Resource(
        "validatingwebhooks",
        (_ADMISSION,),
        "validatingwebhookconfigurations",
        shapes.WebhookConfiguration,
        bundles.validating,
        namespaced=False,
    ),
    Resource("apiservices", ("/apis/apiregistration.k8s.io/v1",), "apiservices", shapes.ApiService, bundles.api_service, namespaced=False),
    Resource(
        "crds",
        ("/apis/apiextensions.k8s.io/v1",),
        "customresourcedefinitions",
        shapes.CustomResourceDefinition,
        bundles.definition,
        namespaced=False,
        limit=10,  # schemas: one has up to 1 MB
    ),
    Resource(
        "clustertrustbundles",
        (f"{_SIGNING}v1", f"{_SIGNING}v1beta1", f"{_SIGNING}v1alpha1"),
        "clustertrustbundles",
        shapes.ClusterTrustBundle,
        bundles.trust_bundle,
        namespaced=False,
        optional=True,
    ),
    Resource(
        "signingrequests",
        (f"{_SIGNING}v1",),
        "certificatesigningrequests",
        shapes.SigningRequest,
        requests.signing_request,
        namespaced=False,
        vanishes=True,
        keeps=400 * DAY,  # kube-controller-manager signs for a year unless it is told otherwise
    ),
)
"""Without a namespace."""
ROOTS = tuple(
    Resource(
        f"roots-{name}",
        (_CORE,),
        "configmaps",
        shapes.ConfigMap,
        secrets.root_config_map,
        params={"fieldSelector": f"metadata.name={name}"},
    )
    for name in secrets.ROOTS
)
NAMESPACED = (_INGRESSES, _GATEWAYS, _CERTIFICATES, _POD_CERTIFICATES, ROOTS[0])
"""Of every namespace that is read."""
TLS_SECRETS = Resource(
    "tls-secrets", (_CORE,), "secrets", shapes.TlsSecret, secrets.tls_secret, params={"fieldSelector": "type=kubernetes.io/tls"}
)
OPAQUE_SECRETS = Resource(
    "opaque-secrets", (_CORE,), "secrets", shapes.OpaqueSecret, secrets.opaque_secret, params={"fieldSelector": "type=Opaque"}
)
CONFIG_MAPS = Resource("configmaps", (_CORE,), "configmaps", shapes.ConfigMap, secrets.config_map)
RESOURCES = {one.name: one for one in (*CLUSTER, *ROOTS, *NAMESPACED, TLS_SECRETS, OPAQUE_SECRETS, CONFIG_MAPS)}
_REFERRING = ((_INGRESSES, edges.ingress_edges), (_GATEWAYS, edges.gateway_edges), (_CERTIFICATES, edges.certificate_edges))


class KubernetesSettings(Access, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Of a source of the kind ``kubernetes``."""

    namespaces: list[str] = msgspec.field(default_factory=lambda: ["*"])
    """Whose Ingresses, Gateways, cert-manager Certificates, pod certificates and root ConfigMaps are read; ``*``: of all at once."""
    tls_secrets: list[str] = msgspec.field(default_factory=list)
    """Namespaces whose Secrets of the type kubernetes.io/tls are read; ``*``: of all at once. Kubernetes has no right to a certificate
    without its key: whoever may list Secrets may read keys. The keys are skipped by the reader."""
    opaque_secrets: list[str] = msgspec.field(default_factory=list)
    """Namespaces whose Opaque Secrets are searched for PEM certificates."""
    config_maps: list[str] = msgspec.field(default_factory=list)
    """Namespaces whose ConfigMaps are searched for PEM certificates."""
    cluster_objects: bool = True
    """Whether objects without a namespace are read: webhooks, APIServices, custom resources, trust bundles, signing requests."""
    watch: str = ""
    """How long to watch after everything was listed, such as ``1h``. Empty: only list."""


class Kubernetes:
    """Reads one cluster through its API server."""

    name = "kubernetes"
    summary = "certificates and trust bundles in the objects of a Kubernetes cluster; the scope's entries are namespaces"
    privilege = (
        "A service account with the ClusterRole handclasp-collector (packaging/kubernetes/collector): list and watch on webhook "
        "configurations, APIServices, CRDs, ClusterTrustBundles, CertificateSigningRequests, PodCertificateRequests, Ingresses, Gateways, "
        "cert-manager Certificates and namespaces, and on ConfigMaps by the names of Kubernetes' own root bundles. Secrets and other "
        "ConfigMaps are opt-in for each namespace, with a RoleBinding there: list and watch on Secrets allows reading keys, because "
        "Kubernetes cannot grant less; keys are skipped while the answer is parsed. Nothing is written."
    )
    Settings = KubernetesSettings
    runs: Runs = "collector"

    def check(self, settings: KubernetesSettings, scope: Scope) -> None:
        """Raise ``bad_setting``."""
        check_watch(settings, settings.watch)
        check_namespaces(settings.namespaces, settings.tls_secrets, settings.opaque_secrets, settings.config_maps)
        if not any(self._lanes(settings, scope)):
            raise HandclaspError(Kind.BAD_SETTING, "nothing is to be read", hint="name namespaces that the scope admits")

    async def plan(self, settings: KubernetesSettings, scope: Scope, tools: Tools) -> AsyncIterator[Part]:  # noqa: ARG002
        """Yield lanes, some in each part: what is watched is watched all at once."""
        for names in chunks(self._lanes(settings, scope), bool(settings.watch)):
            yield Part({"lanes": names})

    def _lanes(self, settings: KubernetesSettings, scope: Scope) -> Iterator[list[str]]:
        """Yield names of lanes, those that are read for the same purpose together."""
        if settings.cluster_objects:
            yield [f"*/{resource.name}" for resource in CLUSTER] + ["kube-system/" + ROOTS[1].name]
        for names, resources in (
            (settings.namespaces, NAMESPACED),
            (settings.tls_secrets, (TLS_SECRETS,)),
            (settings.opaque_secrets, (OPAQUE_SECRETS,)),
            (settings.config_maps, (CONFIG_MAPS,)),
        ):
            for namespace in admitted(names, scope):
                yield [f"{namespace}/{resource.name}" for resource in resources]

    async def read(self, settings: KubernetesSettings, part: Part, place: str, tools: Tools) -> AsyncIterator[Reading]:
        """List and watch the lanes of a part."""
        async with open_api(settings, tools) as api:
            lanes = lanes_of(part.spec["lanes"], RESOURCES, settings.cluster, tools)
            labels = await namespace_labels(api) if any(lane.resource.namespaced for lane in lanes) else {}
            users: Mapping[tuple[str, str], Users] = {}
            for lane in lanes:
                if lane.resource.plural == "secrets":
                    users = await secret_users(api, _REFERRING, lane.namespace)
                lane.around.namespaces, lane.around.users = labels, users
            async for one in read_lanes(api, lanes, check_watch(settings, settings.watch), place, tools):
                yield one


def admitted(names: Iterable[str], scope: Scope) -> list[str]:
    """Return the namespaces of a setting that the scope admits, each once; ``*``, which stands for all, is by itself."""
    wanted = list(dict.fromkeys(names))
    return ["*"] if "*" in wanted else [name for name in wanted if scope.admits(name)]


async def read_lanes(api: Api, lanes: list[Lane], watch: float, place: str, tools: Tools) -> AsyncIterator[Reading]:
    """List some lanes, then watch them for ``watch`` seconds; all of it from ``place`` on."""
    reader = Reader(api, tools, lanes, watch)
    reader.resume(place)
    async for one in reader.read():
        yield one


def check_namespaces(*lists: list[str]) -> None:
    """Raise ``bad_setting`` for what is no name of a namespace."""
    for names in lists:
        for name in names:
            if not _NAMESPACE.fullmatch(name):
                raise HandclaspError(Kind.BAD_SETTING, f"{name!r} is not a namespace", hint="name one, or write * for all")


def chunks(groups: Iterator[list[str]], together: bool) -> Iterator[list[str]]:
    """Yield lists of at most 50 names; groups by themselves, or as many as fit ``together``."""
    held: list[str] = []
    for group in groups:
        if held and (not together or len(held) + len(group) > LANES):
            yield held
            held = []
        held += group
    if held:
        yield held


def lanes_of(names: list[str], resources: Mapping[str, Resource], cluster: str, tools: Tools) -> list[Lane]:
    """Return the lanes that a part names."""
    found = []
    for name in names:
        namespace, _, kind = name.partition("/")
        if kind not in resources:
            raise HandclaspError(
                Kind.BAD_SETTING, f"this part reads {kind}, which is not known here", hint="is the collector older than the server?"
            )
        everywhere = namespace == "*"
        unit = f"{cluster}/{name}" if not everywhere else f"{cluster}/*{tools.scope.mark}/{kind}"
        found.append(Lane(resources[kind], "" if everywhere else namespace, Around(cluster, unit, tools.clock), tools.scope.admits))
    return found


KUBERNETES = Kubernetes()
