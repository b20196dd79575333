"""The source ``istio``: the mesh of one cluster, sidecars or ambient."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping

import msgspec

from handclasp.discovery.istio.config import CA_SECRETS, DESTINATION_RULES, PEER_AUTHENTICATIONS, ROOT_CONFIG_MAPS
from handclasp.discovery.istio.dump import Dump
from handclasp.discovery.istio.proxies import Proxy, dumped, given_proxies, pods
from handclasp.discovery.kubernetes.access import Access
from handclasp.discovery.kubernetes.api import Api, MissingError, StoppedError, open_api
from handclasp.discovery.kubernetes.kind import admitted, check_namespaces, chunks, lanes_of, read_lanes
from handclasp.discovery.kubernetes.owners import namespace_labels
from handclasp.discovery.kubernetes.part import check_watch
from handclasp.discovery.meshmetrics import check_urls, metrics_of
from handclasp.discovery.source import Count, Covered, Failed, Part, Place, Reading, Runs, Scope
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind

METRICS = frozenset(
    {
        "istio_agent_cert_expiry_seconds",
        "citadel_server_root_cert_expiry_timestamp",
        "citadel_server_root_cert_expiry_seconds",
        "citadel_server_cert_chain_expiry_timestamp",
        "citadel_server_cert_chain_expiry_seconds",
        "citadel_server_csr_count",
        "citadel_server_authentication_failure_count",
        "citadel_server_csr_sign_err_count",
        "citadel_server_success_cert_issuance_count",
        "envoy_server_days_until_first_cert_expiring",
    }
)
RESOURCES = {one.name: one for one in (ROOT_CONFIG_MAPS, PEER_AUTHENTICATIONS, DESTINATION_RULES, *CA_SECRETS)}
SIDECARS = "security.istio.io/tlsMode=istio"
"""The label that the injector gives to pods with a proxy."""


class IstioSettings(Access, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Of a source of the kind ``istio``."""

    namespaces: list[str] = msgspec.field(default_factory=lambda: ["*"])
    """Whose root ConfigMaps, PeerAuthentications and DestinationRules are read; ``*``: of all at once. Empty: none, and the API is asked
    for nothing but what the other settings want."""
    root_namespace: str = "istio-system"
    """Where istiod and ztunnel are."""
    cacerts: bool = False
    """Whether the public half of istiod's authority is read from the Secrets cacerts and istio-ca-secret. Whoever may read these may read
    the authority's key."""
    urls: list[str] = msgspec.field(default_factory=list)
    """Addresses of proxies' admin ports that the collector reaches, ``http://HOST:15000/config_dump``; ``NODE=URL`` names the node."""
    dumps: list[str] = msgspec.field(default_factory=list)
    """Files with a config_dump that somebody writes regularly; one that is older than an hour is not read."""
    ztunnels: bool = False
    """Whether each ztunnel is asked through the API server's proxy to pods."""
    sidecars: list[str] = msgspec.field(default_factory=list)
    """Namespaces whose sidecars are asked through the API server's proxy to pods."""
    metrics: list[str] = msgspec.field(default_factory=list)
    """Addresses of metrics, such as ``http://istiod.istio-system:15014/metrics``."""
    watch: str = ""
    """How long to watch the configuration after it was listed, such as ``1h``. Empty: only list."""


class Istio:
    """Reads the mesh of one cluster."""

    name = "istio"
    summary = "workload certificates and roots of an Istio mesh, and its mTLS modes; the scope's entries are namespaces"
    privilege = (
        "The ClusterRole handclasp-collector-istio (packaging/kubernetes/collector/istio.yaml): list and watch on PeerAuthentications, "
        "DestinationRules and the ConfigMap istio-ca-root-cert by its name, and list on namespaces. Workload certificates are in the "
        "proxies' memory: with urls or dumps they cost no right in the cluster, because somebody beside the proxy hands them over. "
        "ztunnels and sidecars need list on pods and get on pods/proxy, which is more than reading: it allows any GET to any port of these "
        "pods, so grant it in the namespaces concerned alone; and it reaches an admin port only where that listens on the pod's address. "
        "cacerts needs list on two Secrets by name, which hold the authority's private key; it is skipped while the answer is parsed."
    )
    Settings = IstioSettings
    runs: Runs = "collector"

    def check(self, settings: IstioSettings, scope: Scope) -> None:
        """Raise ``bad_setting``."""
        check_watch(settings, settings.watch)
        check_namespaces(settings.namespaces, settings.sidecars, [settings.root_namespace])
        check_urls([proxy.url for proxy in given_proxies(settings.urls, [])] + settings.metrics)
        names = [proxy.name for proxy in given_proxies(settings.urls, settings.dumps)]
        if len(names) != len(set(names)):
            raise HandclaspError(Kind.BAD_SETTING, "two of urls and dumps have the same name", hint="write NODE=URL")
        if not any(True for _ in self._parts(settings, scope)):
            raise HandclaspError(Kind.BAD_SETTING, "nothing is to be read", hint="set namespaces, urls, dumps, ztunnels or sidecars")

    async def plan(self, settings: IstioSettings, scope: Scope, tools: Tools) -> AsyncIterator[Part]:  # noqa: ARG002
        """Yield the parts: configuration, the proxies that are named, all ztunnels, the sidecars of each namespace, metrics."""
        for part in self._parts(settings, scope):
            yield part

    def _parts(self, settings: IstioSettings, scope: Scope) -> Iterator[Part]:
        for names in chunks(self._lanes(settings, scope), bool(settings.watch)):
            yield Part({"lanes": names})
        if settings.urls or settings.dumps:
            yield Part({"proxies": "given"})
        if settings.ztunnels:
            yield Part({"proxies": "ztunnels"})
        for namespace in dict.fromkeys(settings.sidecars):
            if namespace == "*" or scope.admits(namespace):
                yield Part({"proxies": "sidecars", "namespace": namespace})
        if settings.metrics:
            yield Part({"metrics": True})

    def _lanes(self, settings: IstioSettings, scope: Scope) -> Iterator[list[str]]:
        for namespace in admitted(settings.namespaces, scope):
            yield [f"{namespace}/{one.name}" for one in (ROOT_CONFIG_MAPS, PEER_AUTHENTICATIONS, DESTINATION_RULES)]
        if settings.cacerts and scope.admits(settings.root_namespace):
            yield [f"{settings.root_namespace}/{one.name}" for one in CA_SECRETS]

    async def read(self, settings: IstioSettings, part: Part, place: str, tools: Tools) -> AsyncIterator[Reading]:
        """Read one part."""
        if "metrics" in part.spec:
            async for one in metrics_of(settings.metrics, METRICS, settings.cluster, tools, mesh="istio"):
                yield one
        elif part.spec.get("proxies") == "given":
            found = given_proxies(settings.urls, settings.dumps)
            async for each in read_proxies(found, "given", settings, place, {}, tools):
                yield each
        else:
            async with open_api(settings, tools) as api:
                async for each in self._from_api(settings, part, place, api, tools):
                    yield each

    async def _from_api(self, settings: IstioSettings, part: Part, place: str, api: Api, tools: Tools) -> AsyncIterator[Reading]:
        labels = await namespace_labels(api)
        if "lanes" in part.spec:
            lanes = lanes_of(part.spec["lanes"], RESOURCES, settings.cluster, tools)
            for lane in lanes:
                lane.around.namespaces = labels
            async for one in read_lanes(api, lanes, check_watch(settings, settings.watch), place, tools):
                yield one
            return
        by_node = part.spec["proxies"] == "ztunnels"
        namespace = settings.root_namespace if by_node else "" if part.spec["namespace"] == "*" else part.spec["namespace"]
        unit = "ztunnel" if by_node else f"sidecars/{part.spec['namespace']}" + ("" if namespace else tools.scope.mark)
        try:
            found = [one async for one in pods(api, namespace, "app=ztunnel" if by_node else SIDECARS, by_node=by_node)]
        except MissingError as error:
            yield Failed(unit, error.detail)
            return
        found = [one for one in found if by_node or tools.scope.admits(one.name.partition("/")[0])]
        async for each in read_proxies(found, unit, settings, place, labels, tools):
            yield each


async def read_proxies(
    proxies: list[Proxy], unit: str, settings: Access, place: str, labels: Mapping[str, dict[str, str]], tools: Tools
) -> AsyncIterator[Reading]:
    """Read one proxy after the other. Their unit is covered when every one of them was read to its end, before a restart or after."""
    unit = f"{settings.cluster}/{unit}"
    after, complete = _progress(place)
    for proxy in sorted(proxies, key=lambda one: one.name):
        if proxy.name <= after:
            continue
        dump = Dump(settings.cluster, proxy.name, unit, tools.clock, proxy.host, proxy.facts, dict(labels))
        count = 0
        try:
            if proxy.problem:
                raise HandclaspError(Kind.UNAVAILABLE, proxy.problem)
            async for one in dumped(proxy, dump, settings, tools):
                count += 1
                yield one
        except StoppedError:
            return
        except HandclaspError as error:
            dump.problems += 1
            yield Failed(proxy.name, error.detail)
        if tools.stop.is_set():
            return
        complete = complete and not dump.problems
        yield Count(total=count)
        yield Place(msgspec.json.encode([proxy.name, complete]).decode())
    if complete:
        yield Covered(unit=unit, began_at=tools.began_at)


def _progress(place: str) -> tuple[str, bool]:
    """Return the proxy that was read last, and whether all until then were read to their end."""
    try:
        return msgspec.json.decode(place, type=tuple[str, bool]) if place else ("", True)
    except msgspec.MsgspecError:
        return "", True


ISTIO = Istio()
