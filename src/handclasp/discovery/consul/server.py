"""What a Consul server or agent says of its authority and of who may talk to whom."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from msgspec import Struct

from handclasp.discovery.consul.settings import ConsulSettings
from handclasp.discovery.http import Http
from handclasp.discovery.kubernetes.content import as_anchors, ders
from handclasp.discovery.source import Failed, Reading
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError
from handclasp.wire.observations import Covered, Observed, Seen

ROOTS = "/v1/connect/ca/roots"
AGENT_ROOTS = "/v1/agent/connect/ca/roots"
CONFIGURATION = "/v1/connect/ca/configuration"
INTENTIONS = "/v1/connect/intentions"
MAX_INTENTIONS = 1000


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


class Server:
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
            headers["X-Consul-Token"] = self._tools.token(settings.token_file, settings.url)
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
