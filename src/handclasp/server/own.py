"""The server's own certificate: issued by its own authority, by the way of every issuance, and swapped while it serves."""

from __future__ import annotations

import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from handclasp.access.grants import server_identity
from handclasp.access.principals import ServerPrincipal
from handclasp.client.material import Credential
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.request import IssuanceRequest, IssuedCertificate, Source
from handclasp.pki import keys
from handclasp.pki.chains import to_pem
from handclasp.pki.names import in_dns_zone
from handclasp.pki.profiles import BUILT_IN
from handclasp.server.instance import Instance
from handclasp.server.tls import SwappableTls


class OwnCertificate:
    """Keeps the TLS of every listener at a certificate that is valid, and its trust at the authorities there are."""

    def __init__(self, instance: Instance, *listeners: SwappableTls) -> None:
        self._instance = instance
        self._listeners = listeners
        self._renew_at = 0
        self._anchors = b""
        self._issued: IssuedCertificate | None = None
        self._tag = ""

    async def renew_if_due(self) -> None:
        """Renew the certificate when its time has come, or swap the trust when authorities changed."""
        services = self._instance.services
        await services.authorities.refresh()
        if services.clock() >= self._renew_at or self._trusted() != self._anchors or await self._is_rotated():
            await self.renew()

    async def _is_rotated(self) -> bool:
        """Tell whether a rotation that began since wants this certificate replaced; looks only when anything has changed."""
        services = self._instance.services
        tag = await services.suggestions.tag()
        if tag == self._tag or self._issued is None:
            return False
        self._tag = tag
        return await services.rotations.concerns(self._issued.identity, self._issued.authority, self._issued.log_entry)

    async def renew(self) -> None:
        """Make a key, have it certified, and serve it from the next connection on."""
        services, settings = self._instance.services, self._instance.settings
        trust_domain = services.authorities.trust_domains[0]
        key = keys.generate("p256")
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        dns, ip = self._names()
        profile = BUILT_IN["workload"]  # an X.509-SVID, so that a bundle endpoint can be known by its SPIFFE ID, and our names besides
        request = IssuanceRequest(
            principal=ServerPrincipal(trust_domain=trust_domain, dns=dns, ip=ip),
            csr=csr.public_bytes(Encoding.DER),
            source=Source("server"),
            identity=server_identity(trust_domain),
            dns=dns,
            ip=ip,
            profile=profile.name,
            ttl=max(profile.min_lifetime, min(settings.server_cert_lifetime, profile.max_lifetime)),
        )
        issued = await services.issuance.issue(request)
        anchors = self._trusted()
        certificate = (to_pem(issued.der) + issued.chain_pem).encode()
        for tls in self._listeners:
            tls.swap(Credential(certificate, keys.to_pem(key)), anchors, issued.not_after)
        self._renew_at, self._anchors, self._issued = issued.renew_after, anchors, issued

    def _names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the DNS names and addresses to be called by: of the default names, those that the authority's zones allow."""
        dns, ip = split_names(self._instance.settings.names)
        signer = self._instance.authorities.get(trust_domain=self._instance.authorities.trust_domains[0])
        zones = signer.issuer.dns_zones
        if zones and not self._instance.settings.name:
            dns = tuple(name for name in dns if in_dns_zone(name, zones))
        if not dns and not ip:
            raise HandclaspError(Kind.BAD_SETTING, "the server has no name of its own", hint=f"set name, in a zone of {', '.join(zones)}")
        return dns, ip

    def _trusted(self) -> bytes:
        """Return what client certificates are verified against: issuing authorities (why: ``docs/decisions/roots-in-bundles.md``)."""
        return "".join(to_pem(authority.der) for authority in self._instance.authorities.issuing()).encode()


def split_names(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split names into DNS names and IP addresses."""
    dns, ip = [], []
    for name in names:
        try:
            ip.append(str(ipaddress.ip_address(name)))
        except ValueError:
            dns.append(name)
    return tuple(dns), tuple(ip)
