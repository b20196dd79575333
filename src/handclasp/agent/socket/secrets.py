"""Envoy's secrets (SDS) as they are at one moment: which names there are, and what each holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any as AnyMessage

from handclasp.agent.config.socket import SdsNames
from handclasp.agent.content import Content, join_pem
from handclasp.agent.socket.match import Entitled
from handclasp.pki.names import trust_domain_of
from handclasp.proto import sds_pb2 as pb

SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105  (the name of a type)
_VALIDATOR = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"


@dataclass(frozen=True, slots=True)
class Known:
    """What a caller may have. ``content`` and ``bundle`` look it up when it is asked for; ``crl`` returns a usable CRL list or nothing."""

    entitled: tuple[Entitled, ...]
    trust_domains: tuple[str, ...]
    federated: tuple[str, ...]
    content: Callable[[Entitled], Content | None]
    bundle: Callable[[str], bytes]
    crl: Callable[[str], bytes]
    names: SdsNames

    def certificate(self, name: str) -> Entitled | None:
        """Return the workload whose certificate is meant by ``name``."""
        if name == self.names.certificate:
            return self.entitled[0]
        return next((item for item in self.entitled if item.identity == name), None)

    def knows(self, name: str) -> bool:
        """Tell whether the caller may have a secret of that name."""
        special = name in (self.names.bundle, self.names.all_bundles) and (name != self.names.all_bundles or self.names.spiffe)
        return special or self.certificate(name) is not None or name in [f"spiffe://{td}" for td in (*self.trust_domains, *self.federated)]

    def all(self) -> list[str]:
        """Return the names for a request without any: every certificate and every bundle, once."""
        names = [item.identity for item in self.entitled] + [f"spiffe://{td}" for td in (*self.trust_domains, *self.federated)]
        return list(dict.fromkeys(names))

    def secret(self, name: str) -> pb.Secret | None:
        """Return a secret that :meth:`knows`, or None while what it needs is not there."""
        item = self.certificate(name)
        if item is not None:
            return self._certificate(name, item)
        if name == self.names.all_bundles:
            return self._all(name)
        trust_domain = self.trust_domains[0] if name == self.names.bundle else name.removeprefix("spiffe://")
        return self._bundle(name, trust_domain)

    def _certificate(self, name: str, item: Entitled) -> pb.Secret | None:
        content = self.content(item)
        if content is None:
            return None
        chain = join_pem(content.certificate, content.chain)
        return pb.Secret(
            name=name,
            tls_certificate=pb.TlsCertificate(
                certificate_chain=pb.DataSource(inline_bytes=chain), private_key=pb.DataSource(inline_bytes=content.key)
            ),
        )

    def _anchors(self, trust_domain: str) -> bytes:
        found = self.bundle(trust_domain)
        if not found and trust_domain in self.trust_domains:
            contents = (self.content(item) for item in self.entitled if trust_domain_of(item.identity) == trust_domain)
            found = next((content.bundle for content in contents if content is not None), b"")
        return found

    def _bundle(self, name: str, trust_domain: str) -> pb.Secret | None:
        anchors = self._anchors(trust_domain)
        if not anchors:
            return None
        context = pb.CertificateValidationContext(trusted_ca=pb.DataSource(inline_bytes=anchors))
        if crl := self.crl(trust_domain):
            context.crl.inline_bytes = crl
        return pb.Secret(name=name, validation_context=context)

    def _all(self, name: str) -> pb.Secret | None:
        """All trust domains at once, each for its own names only: Envoy's SPIFFE validator keeps them apart."""
        domains = {td: anchors for td in (*self.trust_domains, *self.federated) if (anchors := self._anchors(td))}
        if not domains:
            return None
        config = pb.SPIFFECertValidatorConfig(
            trust_domains=[
                pb.SPIFFECertValidatorConfig.TrustDomain(name=td, trust_bundle=pb.DataSource(inline_bytes=anchors))
                for td, anchors in domains.items()
            ]
        )
        validator = pb.TypedExtensionConfig(
            name="envoy.tls.cert_validator.spiffe", typed_config=AnyMessage(type_url=_VALIDATOR, value=_bytes(config))
        )
        return pb.Secret(name=name, validation_context=pb.CertificateValidationContext(custom_validator_config=validator))


def response(secrets: Iterable[pb.Secret]) -> pb.DiscoveryResponse:
    """Return the answer with these secrets. Its version is a digest of them, so it is the same for the same after a restart too."""
    resources = [AnyMessage(type_url=SECRET, value=_bytes(secret)) for secret in secrets]
    digest = hashlib.sha256(b"".join(hashlib.sha256(resource.value).digest() for resource in resources)).hexdigest()
    return pb.DiscoveryResponse(version_info=digest[:32], resources=resources, type_url=SECRET)


def _bytes(message: pb.Secret | pb.SPIFFECertValidatorConfig) -> bytes:
    return message.SerializeToString(deterministic=True)
