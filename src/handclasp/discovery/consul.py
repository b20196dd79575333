"""Source kind ``consul``: the roots of a Consul service mesh, its CA's configuration, and what its proxies hold.

Consul's agents have an address that gives a service its certificate together with its private key, and makes one where there is none. It is
never asked: certificates of services are read where they are used, from the admin ports of their Envoy proxies, which leave keys out.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import msgspec
from cryptography import x509
from msgspec import Meta, Struct, field

from handclasp.discovery.http import Http
from handclasp.discovery.istio.dump import Dump, name_of
from handclasp.discovery.kubernetes.content import as_anchors, ders, from_base64
from handclasp.discovery.source import Count, Failed, Part, Place, Reading, Runs, Scope
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import chains
from handclasp.wire.observations import Covered, Observed, Seen

ROOTS = "/v1/connect/ca/roots"
AGENT_ROOTS = "/v1/agent/connect/ca/roots"
CONFIGURATION = "/v1/connect/ca/configuration"
INTENTIONS = "/v1/connect/intentions"
MAX_DUMP = 64 * 1024 * 1024
"""Bytes of one proxy's config_dump: it has the proxy's own certificate and those it trusts, for each upstream again."""
MAX_INTENTIONS = 1000

Name = Annotated[str, Meta(max_length=256)]


class ConsulSettings(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where, as whom, and what."""

    url: Annotated[str, Meta(max_length=2048)] = ""
    """Address of a server or agent, https://consul.example.org:8501; empty to read proxies alone."""
    token_file: str = ""
    """File with the ACL token; it is read again for each scan."""
    namespace: Name = ""
    """Namespace of intentions and proxies, in editions that have namespaces."""
    partition: Name = ""
    """Admin partition, in editions that have partitions."""
    datacenter: Name = ""
    """Data centre to ask about; without it that of the server."""
    ca_file: str = ""
    """CA certificates to trust for this server, PEM; without it the public ones."""
    certificate_file: str = ""
    """Client certificate, where the server asks for one (verify_incoming), PEM."""
    key_file: str = ""
    """Its private key, PEM."""
    intentions: bool = False
    """Also read who may talk to whom."""
    envoys: Annotated[list[Annotated[str, Meta(min_length=1, max_length=2048)]], Meta(max_length=5000)] = field(default_factory=list)
    """Admin addresses of Envoy proxies, NAME=http://HOST:19000; the path is /config_dump unless one is given."""


# --- what is read of answers: what is not named here is passed over while they are parsed -----------------------------------------------


class _Root(Struct, rename="pascal"):
    id: str = msgspec.field(default="", name="ID")
    name: str = ""
    root_cert: str = ""
    intermediate_certs: list[str] | None = None
    active: bool = False
    external_trust_domain: str = ""
    rotated_out_at: str | None = None


class _Roots(Struct, rename="pascal"):
    trust_domain: str = ""
    roots: list[_Root] | None = None


class _Config(Struct, rename="pascal"):
    """Of the provider's settings only these: others are tokens and keys."""

    leaf_cert_ttl: Any = msgspec.field(default=None, name="LeafCertTTL")
    intermediate_cert_ttl: Any = msgspec.field(default=None, name="IntermediateCertTTL")
    root_cert_ttl: Any = msgspec.field(default=None, name="RootCertTTL")
    rotation_period: Any = None
    private_key_type: Any = None
    private_key_bits: Any = None
    csr_max_per_second: Any = msgspec.field(default=None, name="CSRMaxPerSecond")
    csr_max_concurrent: Any = msgspec.field(default=None, name="CSRMaxConcurrent")


class _Configuration(Struct, rename="pascal"):
    provider: str = ""
    config: _Config = msgspec.field(default_factory=_Config)
    force_without_cross_signing: bool = False


class _Intention(Struct, rename="pascal"):
    source_ns: str = msgspec.field(default="", name="SourceNS")
    source_name: str = ""
    destination_ns: str = msgspec.field(default="", name="DestinationNS")
    destination_name: str = ""
    action: str = ""


class _Bytes(Struct):
    inline_string: str = ""
    inline_bytes: str = ""


class _Certificate(Struct):
    """``private_key`` is not among it."""

    certificate_chain: _Bytes | None = None


class _Validation(Struct):
    trusted_ca: _Bytes | None = None


class _Tls(Struct):
    tls_certificates: list[_Certificate] | None = None
    validation_context: _Validation | None = None


class _Typed(Struct):
    common_tls_context: _Tls | None = None


class _Socket(Struct):
    typed_config: _Typed | None = None


class _Chain(Struct):
    transport_socket: _Socket | None = None


class _Match(Struct):
    transport_socket: _Socket | None = None


class _Listener(Struct):
    filter_chains: list[_Chain] | None = None


class _Cluster(Struct):
    transport_socket: _Socket | None = None
    transport_socket_matches: list[_Match] | None = None


class _State(Struct):
    listener: _Listener | None = None


class _Listed(Struct):
    active_state: _State | None = None
    listener: _Listener | None = None
    cluster: _Cluster | None = None


class _Section(Struct):
    dynamic_listeners: list[_Listed] | None = None
    static_listeners: list[_Listed] | None = None
    dynamic_active_clusters: list[_Listed] | None = None
    static_clusters: list[_Listed] | None = None


class _Dump(Struct):
    configs: list[_Section] | None = None


class Consul:
    """The kind."""

    name = "consul"
    summary = "roots of a Consul mesh, and what its Envoy proxies hold; the scope's entries are names of proxies"
    privilege = (
        'Nothing for the roots, which are open to everybody who reaches the server; a token with operator = "read" for the settings of the '
        'CA, and with service_prefix "" { policy = "read" intentions = "read" } for intentions; without it these are said to fail. Envoys '
        "are read at their admin address, which has to be reachable from where this runs (admin_bind, on a network for this alone): it is "
        "not protected by itself. The address that gives certificates of services with their keys is never asked."
    )
    Settings: type[Struct] = ConsulSettings
    runs: Runs = "server"

    def check(self, settings: ConsulSettings, scope: Scope) -> None:
        """Raise ``bad_setting``."""
        if not settings.url and not settings.envoys:
            raise HandclaspError(Kind.BAD_SETTING, "consul: nothing is to be read", hint="set url, envoys or both")
        if settings.url and not settings.url.startswith(("https://", "http://")):
            raise HandclaspError(Kind.BAD_SETTING, "consul: url is written https://HOST:8501")
        if settings.token_file and not settings.url.startswith("https://") and not scope.loopback:
            raise HandclaspError(Kind.BAD_SETTING, "consul: a token is sent over https:// alone")
        if bool(settings.certificate_file) != bool(settings.key_file):
            raise HandclaspError(Kind.BAD_SETTING, "consul: certificate_file and key_file belong together")
        names = [name for name, _ in _proxies(settings)]
        if len(set(names)) != len(names):
            raise HandclaspError(Kind.BAD_SETTING, "consul: two proxies have the same name", hint="write NAME=URL")
        if any(not url.startswith(("https://", "http://")) for _, url in _proxies(settings)):
            raise HandclaspError(Kind.BAD_SETTING, "consul: a proxy is written NAME=http://HOST:19000")

    async def plan(self, settings: ConsulSettings, scope: Scope, tools: Tools) -> AsyncIterator[Part]:  # noqa: ARG002
        """Yield the server, and the proxies."""
        if settings.url:
            yield Part({"read": "server"})
        if settings.envoys:
            yield Part({"read": "proxies"})

    async def read(self, settings: ConsulSettings, part: Part, place: str, tools: Tools) -> AsyncIterator[Reading]:
        """Read the server, which is a handful of requests; or the proxies after the one that ``place`` names."""
        if part.spec["read"] == "server":
            async for one in _Server(settings, tools).read():
                yield one
            return
        async for one in _read_proxies(settings, place, tools):
            yield one


CONSUL = Consul()


class _Server:
    """One server, while it is read."""

    def __init__(self, settings: ConsulSettings, tools: Tools) -> None:
        self._settings, self._tools = settings, tools
        where = [settings.url.partition("://")[2].rstrip("/"), settings.datacenter, settings.partition, settings.namespace]
        self._prefix = "consul:" + "/".join(part for part in where if part) + "/"
        self._params = {"dc": settings.datacenter} if settings.datacenter else {}

    async def read(self) -> AsyncIterator[Reading]:
        """Yield roots, the agent's roots, configuration and intentions; each that cannot be read is said, and the others are read."""
        settings = self._settings
        headers = {}
        if settings.token_file:
            headers["X-Consul-Token"] = _token(self._tools, settings.token_file)
        server = self._tools.http(
            settings.url,
            ca_file=settings.ca_file or None,
            certificate_file=settings.certificate_file or None,
            key_file=settings.key_file or None,
            headers=headers,
        )
        async with server:
            steps = [self._roots, self._agent_roots, self._configuration, *((self._intentions,) if settings.intentions else ())]
            for step in steps:
                unit = self._prefix + step.__name__.strip("_")
                try:
                    async for one in step(server, unit):
                        yield one
                except HandclaspError as error:
                    yield Failed(f"{step.__name__.strip('_').replace('_', ' ')} of {settings.url}", error.detail)
                    continue
                yield Covered(unit=unit, began_at=self._tools.began_at)

    async def _roots(self, server: Http, unit: str) -> AsyncIterator[Reading]:
        answer: _Roots = await server.json(ROOTS, params=self._params, type_=_Roots)
        for root in answer.roots or ():
            anchors = as_anchors(root.root_cert.encode("utf-8", "replace"))
            known = {seen.der for seen in anchors}
            between = [der for text in root.intermediate_certs or () for der in ders(text.encode("utf-8", "replace"))]
            found = anchors + [Seen(der=der) for der in dict.fromkeys(between) if der not in known]
            details = {"active": root.active, "trust_domain": answer.trust_domain, "name": root.name, "rotated_out_at": root.rotated_out_at}
            name = f"root/{root.id or hashlib.sha256(root.root_cert.encode('utf-8', 'replace')).hexdigest()[:16]}"
            problem = None if anchors else "its root is not a certificate"
            yield self._observed(name, unit, found, {key: value for key, value in details.items() if value not in (None, "")}, problem)

    async def _agent_roots(self, server: Http, unit: str) -> AsyncIterator[Reading]:
        answer: _Roots = await server.json(AGENT_ROOTS, type_=_Roots)
        texts = "\n".join(root.root_cert for root in answer.roots or ())
        yield self._observed("agent-roots", unit, as_anchors(texts.encode("utf-8", "replace")), {"trust_domain": answer.trust_domain})

    async def _configuration(self, server: Http, unit: str) -> AsyncIterator[Reading]:
        answer: _Configuration = await server.json(CONFIGURATION, params=self._params, type_=_Configuration)
        config = {name: str(value)[:100] for name, value in msgspec.structs.asdict(answer.config).items() if value not in (None, "")}
        yield self._observed("configuration", unit, [], {"provider": answer.provider[:100], **config})

    async def _intentions(self, server: Http, unit: str) -> AsyncIterator[Reading]:
        params = {**self._params, "ns": self._settings.namespace, "partition": self._settings.partition}
        given = {name: value for name, value in params.items() if value}
        answer: list[_Intention] | None = await server.json(INTENTIONS, params=given, type_=list[_Intention] | None)
        found = [
            f"{one.source_ns}/{one.source_name} -> {one.destination_ns}/{one.destination_name}: {one.action or 'by request'}"[:500]
            for one in answer or ()
        ]
        yield self._observed("intentions", unit, [], {"intentions": sorted(found)[:MAX_INTENTIONS], "count": len(found)})

    def _observed(self, name: str, unit: str, certificates: list[Seen], details: dict[str, Any], problem: str | None = None) -> Observed:
        return Observed(
            key=f"{self._prefix}{name}"[:4096], kind="ca", shown=f"consul {name}"[:4096], unit=unit, at=self._tools.clock(),
            certificates=certificates, details={"mesh": "consul", **details}, problem=problem,
        )  # fmt: skip


def _token(tools: Tools, path: str) -> str:
    token = tools.secret(path).strip()
    if not token or not token.isascii() or not token.decode("ascii").isprintable():
        raise HandclaspError(Kind.BAD_SETTING, f"the file {path} holds no token")
    return token.decode("ascii")


# --- proxies ----------------------------------------------------------------------------------------------------------------------------


def _proxies(settings: ConsulSettings) -> list[tuple[str, str]]:
    """Return name and address of each proxy, by name."""
    found = []
    for entry in settings.envoys:
        name, equals, url = entry.partition("=")
        named = bool(equals) and "://" not in name
        found.append((name, url) if named else (name_of(entry), entry))
    return sorted(found)


async def _read_proxies(settings: ConsulSettings, place: str, tools: Tools) -> AsyncIterator[Reading]:
    """Read one proxy after the other. Each is a unit of its own: what one holds is known when its dump was read to its end."""
    wanted = [(name, url) for name, url in _proxies(settings) if name > place and tools.scope.admits(name)]
    yield Count(total=len(wanted))
    for name, url in wanted:
        unit = f"consul:proxy/{name}"
        try:
            for one in await _held(name, url, unit, settings, tools):
                yield one
        except HandclaspError as error:
            yield Failed(name, error.detail)
        else:
            yield Covered(unit=unit, began_at=tools.began_at)
        yield Place(name)
        if tools.stop.is_set():
            return


async def _held(name: str, url: str, unit: str, settings: ConsulSettings, tools: Tools) -> list[Reading]:
    scheme, _, rest = url.partition("://")
    netloc, slash, path = rest.partition("/")
    async with tools.http(f"{scheme}://{netloc}", plain=True, max_answer=MAX_DUMP) as proxy:
        answer = await proxy.get(f"/{path}" if slash and path else "/config_dump")
    if answer.status != 200:
        raise HandclaspError(Kind.UNAVAILABLE, f"{netloc} answers {answer.status}")
    found = list(_inline(answer.json(_Dump)))
    # Gateways have certificates as secrets besides, in the same form as in any other Envoy.
    dump = Dump("consul", name, unit, tools.clock, name)
    readings: list[Reading] = [*dump.feed(answer.body), *dump.end()]
    for one in readings:
        if isinstance(one, Observed):
            one.details = {"mesh": "consul"}
            one.facts = _facts(one.certificates, settings)
    if found:
        readings.append(
            Observed(
                key=f"mesh:consul/{name}#own", kind="mesh", shown=f"consul: {name}", unit=unit, host=name, at=tools.clock(),
                certificates=found, details={"mesh": "consul"}, facts=_facts(found, settings),
            )
        )  # fmt: skip
    return readings


def _inline(dump: _Dump) -> Iterator[Seen]:
    """Yield the certificates that listeners and clusters show and the anchors that they trust, each once."""
    known: set[tuple[str, bytes]] = set()
    for tls in _contexts(dump):
        for certificate in tls.tls_certificates or ():
            chain = ders(_pem(certificate.certificate_chain))
            if chain and ("served", chain[0]) not in known:
                known.add(("served", chain[0]))
                yield Seen(der=chain[0], role="served", chain=chain[1:33])
        for der in ders(_pem(tls.validation_context.trusted_ca)) if tls.validation_context is not None else ():
            if ("anchor", der) not in known:
                known.add(("anchor", der))
                yield Seen(der=der, role="anchor")


def _contexts(dump: _Dump) -> Iterator[_Tls]:
    for section in dump.configs or ():
        for listed in (*(section.dynamic_listeners or ()), *(section.static_listeners or ())):
            listener = listed.active_state.listener if listed.active_state is not None else listed.listener
            for chain in (listener.filter_chains or ()) if listener is not None else ():
                yield from _of_socket(chain.transport_socket)
        for listed in (*(section.dynamic_active_clusters or ()), *(section.static_clusters or ())):
            if listed.cluster is not None:
                yield from _of_socket(listed.cluster.transport_socket)
                for match in listed.cluster.transport_socket_matches or ():
                    yield from _of_socket(match.transport_socket)


def _of_socket(socket: _Socket | None) -> Iterator[_Tls]:
    if socket is not None and socket.typed_config is not None and socket.typed_config.common_tls_context is not None:
        yield socket.typed_config.common_tls_context


def _pem(data: _Bytes | None) -> bytes:
    if data is None:
        return b""
    return (from_base64(data.inline_bytes.encode()) or b"") if data.inline_bytes else data.inline_string.encode("utf-8", "replace")


def _facts(certificates: list[Seen], settings: ConsulSettings) -> dict[str, Any]:
    """Return whose proxy it is: the SPIFFE ID of a service is ``spiffe://ID.consul/ns/NAMESPACE/dc/CENTRE/svc/SERVICE``."""
    for seen in certificates:
        parts = _spiffe_id(seen.der).split("/") if seen.role == "served" and seen.der is not None else []
        named = dict(zip(parts[3::2], parts[4::2], strict=False))
        if "svc" in named:
            facts = {"namespace": named.get("ns"), "workload": named["svc"], "datacenter": named.get("dc"), "partition": named.get("ap")}
            return {key: value for key, value in facts.items() if value}
    return {"partition": settings.partition} if settings.partition else {}


def _spiffe_id(der: bytes) -> str:
    try:
        names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return next(iter(names.get_values_for_type(x509.UniformResourceIdentifier)), "")
    except x509.ExtensionNotFound:
        return ""
    except chains.UNREADABLE:
        return ""
