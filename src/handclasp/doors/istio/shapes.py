"""What goes in and out of Istio's ``CreateCertificate``, as text: which certificate requests ask for no more than they may, identities, and
the form of a chain. Pure.
"""

from __future__ import annotations

import re

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from handclasp.access.clusterrules import KUBE_NAME
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import der
from handclasp.pki.csr import Csr
from handclasp.pki.names import Names

_ORGANIZATION = der.oid("2.5.4.10")
_USAGES = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\n[^-]+-----END CERTIFICATE-----\n")


def identity_of(trust_domain: str, namespace: str, service_account: str) -> str:
    """Return the SPIFFE ID by which Istio knows a service account."""
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"


def account_of(identity: str, trust_domain: str) -> tuple[str, str] | None:
    """Return namespace and service account of such a SPIFFE ID; None for anything else, and for another trust domain."""
    head, ns, namespace, sa, account = [*identity.rsplit("/", 4), "", "", "", "", ""][:5]
    fine = (
        head == f"spiffe://{trust_domain}" and ns == "ns" and sa == "sa" and KUBE_NAME.fullmatch(namespace) and KUBE_NAME.fullmatch(account)
    )
    return (namespace, account) if fine else None


def check_asks_only_for(csr: Csr, identity: str) -> None:
    """Raise unless the request asks for this identity or for nothing: ``name_not_allowed`` for other names, ``bad_csr`` for other things.

    Taken are the forms of Istio's own clients: no subject, or one that is a single empty organisation; the SPIFFE ID as subjectAltName, or
    none; and the usages that every certificate of a mesh has anyway.
    """
    if csr.names not in (Names(), Names(spiffe=identity)):
        others = [name for name in (csr.names.spiffe, *csr.names.dns, *csr.names.ip, *csr.names.email) if name not in (None, identity)]
        raise HandclaspError(
            Kind.NAME_NOT_ALLOWED,
            f"the request asks for {others[0]}, and its sender is {identity}",
            hint="the trust domain of the mesh must be that of the cluster in the policy",
        )
    if not _is_empty(csr.subject):
        raise HandclaspError(Kind.BAD_CSR, "the request has a subject, and a certificate of a mesh has none")
    for extension in csr.extensions:
        if extension.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME or _is_usual(extension.value):
            continue
        raise HandclaspError(Kind.BAD_CSR, f"the request asks for the extension {extension.oid.dotted_string}")


def _is_empty(subject: bytes) -> bool:
    """Tell whether a Name says nothing: it is empty, or has one organisation without a letter, as pilot-agent writes it."""
    if subject == der.EMPTY_SEQUENCE:
        return True
    attributes = [attribute for group in der.children(subject) for attribute in der.children(group)]
    if len(attributes) != 1:
        return False
    parts = der.children(attributes[0])
    return len(parts) == 2 and parts[0] == _ORGANIZATION and parts[1][1:] == b"\x00"


def _is_usual(value: x509.ExtensionType) -> bool:
    if isinstance(value, x509.KeyUsage):
        unusual = (value.content_commitment, value.data_encipherment, value.key_cert_sign, value.crl_sign)
        return not any(unusual)
    return isinstance(value, x509.ExtendedKeyUsage) and set(value) <= _USAGES


def chain_of(leaf: str, chain: str, bundle: str) -> list[str]:
    """Return the chain as both clients need it, from PEM texts.

    The leaf, then each intermediate by itself (ztunnel reads one certificate of each element), then all roots together: the last element
    is what pilot-agent takes as the mesh's trust.
    """
    return [leaf, *_CERTIFICATE.findall(chain), bundle]
