"""A ``config_dump`` as ztunnel and Envoy write it: certificates by workload identity, or by the name of a secret."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Struct

from handclasp.clock import Clock
from handclasp.discovery.istio.stream import Elements, Path
from handclasp.discovery.kubernetes.content import as_anchors, as_chain, ders, from_base64
from handclasp.discovery.source import Failed, Observed
from handclasp.wire.observations import Seen

ZTUNNEL: Path = ("certificates",)
ENVOY: frozenset[Path] = frozenset(
    {("configs", "static_secrets"), ("configs", "dynamic_active_secrets"), ("configs", "dynamic_warming_secrets")}
)
WANTED = ENVOY | {ZTUNNEL, ()}
"""Also an array by itself, which is how ``istioctl ztunnel-config certificates -o json`` writes the same."""


class _Pem(Struct):
    pem: str = ""


class _Workload(Struct, rename="camel"):
    identity: str = ""
    state: Any = None
    cert_chain: list[_Pem] | None = None
    root_certs: list[_Pem] | None = None


class _Bytes(Struct):
    """Envoy's DataSource, of which files and environment variables are only named."""

    inline_bytes: str | None = None
    inline_string: str | None = None
    filename: str | None = None


class _TlsCertificate(Struct):
    certificate_chain: _Bytes | None = None


class _TrustDomain(Struct):
    name: str = ""
    trust_bundle: _Bytes | None = None


class _ValidatorConfig(Struct):
    trust_domains: list[_TrustDomain] | None = None


class _Validator(Struct):
    typed_config: _ValidatorConfig | None = None


class _Validation(Struct):
    trusted_ca: _Bytes | None = None
    custom_validator_config: _Validator | None = None


class _Inner(Struct):
    """``private_key`` is not among it."""

    tls_certificate: _TlsCertificate | None = None
    validation_context: _Validation | None = None


class _Secret(Struct):
    name: str = ""
    secret: _Inner | None = None


_WORKLOAD, _SECRET = msgspec.json.Decoder(_Workload), msgspec.json.Decoder(_Secret)


@dataclass(slots=True)
class Dump:
    """One proxy's dump, while it is read. ``proxy`` is its name in keys: a node for ztunnel, ``NAMESPACE/POD`` for Envoy."""

    cluster: str
    proxy: str
    unit: str
    clock: Clock
    host: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    namespaces: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: int = 0
    _elements: Elements = field(default_factory=lambda: Elements(WANTED))
    _roots: dict[bytes, None] = field(default_factory=dict)

    def feed(self, piece: bytes) -> Iterator[Observed | Failed]:
        """Yield what became complete with a piece. Raises ``unavailable`` for what is no dump."""
        for path, element in self._elements.feed(piece):
            try:
                found = list(self._secret(element) if path in ENVOY else self._workload(element))
            except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
                self.problems += 1
                yield Failed(f"{self.proxy}: {'.'.join(path)}", f"it does not have the shape of a config_dump: {str(error)[:200]}")
                continue
            yield from found

    def end(self) -> Iterator[Observed]:
        """Yield what is known at the end of the document. Raises ``unavailable`` when it is not at its end."""
        from handclasp.errors import HandclaspError, Kind

        if not self._elements.whole:
            raise HandclaspError(Kind.UNAVAILABLE, f"the config_dump of {self.proxy} ends in the middle")
        if self._roots:
            yield self._observed("roots", [Seen(der=der, role="anchor") for der in self._roots], {})

    def _workload(self, element: bytes) -> Iterator[Observed]:
        one = _WORKLOAD.decode(element)
        chain = [der for part in one.cert_chain or () for der in ders(_pem(part.pem))]
        for part in one.root_certs or ():
            self._roots.update(dict.fromkeys(ders(_pem(part.pem))))
        if chain and one.identity:
            state = one.state if isinstance(one.state, str) else ""
            seen = Seen(der=chain[0], role="served", chain=chain[1:33], how={"state": state[:200]} if state else {})
            yield self._observed(one.identity, [seen], self._whose(one.identity))

    def _secret(self, element: bytes) -> Iterator[Observed]:
        one = _SECRET.decode(element)
        if one.secret is None:
            return
        found: list[Seen] = []
        if one.secret.tls_certificate is not None:
            found = as_chain(_data(one.secret.tls_certificate.certificate_chain))
            for seen in found:
                seen.role = "served"
        if one.secret.validation_context is not None:
            found += as_anchors(_trusted(one.secret.validation_context))
        if found:
            yield self._observed(one.name or "-", found, {})

    def _observed(self, entry: str, certificates: list[Seen], facts: dict[str, Any]) -> Observed:
        return Observed(
            key=f"mesh:{self.cluster}/{self.proxy}#{entry}"[:4096],
            kind="mesh",
            shown=f"{self.cluster}: {self.proxy} ({entry})"[:4096],
            unit=self.unit,
            host=self.host,
            at=self.clock(),
            certificates=certificates,
            details={"mesh": "istio"},
            facts={"cluster": self.cluster, **self.facts, **facts},
        )

    def _whose(self, identity: str) -> dict[str, Any]:
        """Return the namespace and service account in an identity, ``spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT``."""
        parts = identity.split("/")
        if len(parts) != 7 or (parts[3], parts[5]) != ("ns", "sa"):
            return {}
        facts: dict[str, Any] = {"namespace": parts[4], "service_account": parts[6]}
        if parts[4] in self.namespaces:
            facts["namespace_labels"] = self.namespaces[parts[4]]
        return facts


def _pem(text: str) -> bytes:
    data = text.encode()
    return data if data.startswith(b"-----") else (from_base64(data) or b"")


def _data(source: _Bytes | None) -> bytes:
    if source is None:
        return b""
    return from_base64(source.inline_bytes.encode()) or b"" if source.inline_bytes else (source.inline_string or "").encode()


def _trusted(context: _Validation) -> bytes:
    texts = [_data(context.trusted_ca)]
    validator = context.custom_validator_config
    if validator is not None and validator.typed_config is not None:
        texts += [_data(domain.trust_bundle) for domain in validator.typed_config.trust_domains or ()]
    return b"\n".join(texts)


def name_of(url: str) -> str:
    """Return a name for a proxy that is known only by its address."""
    return url.partition("://")[2].partition("/")[0] or hashlib.sha256(url.encode()).hexdigest()[:12]
