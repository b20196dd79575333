"""What Envoy proxies of a Consul mesh hold: their own certificates and the anchors that they trust."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from cryptography import x509
from msgspec import Struct

from handclasp.discovery.consul.settings import ConsulSettings, proxies_of
from handclasp.discovery.http import Answer
from handclasp.discovery.istio.dump import Dump
from handclasp.discovery.kubernetes.content import ders, from_base64
from handclasp.discovery.source import Count, Failed, Place, Reading
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import chains
from handclasp.wire.observations import Covered, Observed, Seen

MAX_DUMP = 64 * 1024 * 1024
"""Bytes of one proxy's config_dump: it has the proxy's own certificate and those it trusts, for each upstream again."""


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


async def read_proxies(settings: ConsulSettings, place: str, tools: Tools) -> AsyncIterator[Reading]:
    """Read one proxy after the other. Each is a unit of its own: what one holds is known when its dump was read to its end."""
    wanted = [(name, url) for name, url in proxies_of(settings) if name > place and tools.scope.admits(name)]
    yield Count(total=len(wanted))
    for name, url in wanted:
        unit = f"consul:proxy/{name}"
        try:
            held = await _held(name, url, unit, settings, tools)
        except HandclaspError as error:
            held = [Failed(name, error.detail)]
        for one in held:
            yield one
        if not any(isinstance(one, Failed) for one in held):
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
    # A dump may have tens of megabytes, and whoever reads it may be a server that answers requests meanwhile.
    return await asyncio.to_thread(_readings, answer, name, unit, settings, tools)


def _readings(answer: Answer, name: str, unit: str, settings: ConsulSettings, tools: Tools) -> list[Reading]:
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
