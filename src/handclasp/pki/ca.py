"""Certificates of authorities: self-signed roots, requests of issuing authorities, and issuing certificates.

Made rarely and away from the hot path, so plainly with ``cryptography``'s builder. Every authority has its own subject and key identifier:
two authorities under one name make verifiers try each key for each signature, and some give up.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from handclasp.clock import from_datetime, to_datetime
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import chains, keys
from handclasp.pki.csr import parse_csr
from handclasp.pki.names import check_dns, check_trust_domain
from handclasp.pki.plan import Issuer

BACKDATE = 60.0  # seconds, for clocks that are behind
_MAX_ATTRIBUTE = 64  # RFC 5280 appendix A: ub-common-name, ub-organization-name

_SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def authority_name(common_name: str, public_key: keys.PublicKey, organization: str | None = None) -> x509.Name:
    """Return the subject of an authority: its common name and the first eight digits of its key identifier, so that no two share one.

    ``organization`` (a trust domain) goes first when it fits. Raises ``bad_name`` for an empty or too long common name.
    """
    full = f"{common_name.strip()} {keys.key_id(keys.spki_der(public_key)).hex()[:8]}"
    if not common_name.strip() or len(full) > _MAX_ATTRIBUTE or not full.isprintable():
        raise HandclaspError(Kind.BAD_NAME, f"{common_name[:100]!r} cannot name an authority", hint="1 to 55 printable characters")
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, full)]
    if organization and len(organization) <= _MAX_ATTRIBUTE:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: keys.PublicKey, *, serial: int, begin: int, end: int, pathlen: int | None
) -> x509.CertificateBuilder:
    if begin >= end:
        raise HandclaspError(Kind.LIFETIME_NOT_ALLOWED, "the authority would end before it begins")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(to_datetime(begin // 1000 * 1000))
        .not_valid_after(to_datetime(end // 1000 * 1000))
        .add_extension(x509.BasicConstraints(ca=True, path_length=pathlen), critical=True)
        .add_extension(_SIGNS, critical=True)
        .add_extension(x509.SubjectKeyIdentifier(keys.key_id(keys.spki_der(public_key))), critical=False)
    )


def self_signed_root(
    key: keys.PrivateKey,
    *,
    common_name: str,
    now: int,
    lifetime: float,
    serial: int,
    trust_domain: str | None = None,
    backdate: float = BACKDATE,
    pathlen: int | None = 1,
) -> bytes:
    """Return a self-signed root in DER; ``now`` in ms since the epoch, ``lifetime`` (from now) and ``backdate`` in seconds.

    Raises ``bad_name`` for names that cannot stand in a subject, ``weak_key`` for keys we would not certify.
    """
    public_key = key.public_key()
    keys.check_quality(public_key)
    name = authority_name(common_name, public_key, check_trust_domain(trust_domain) if trust_domain else None)
    begin, end = now - int(backdate * 1000), now + int(lifetime * 1000)
    builder = _builder(name, name, public_key, serial=serial, begin=begin, end=end, pathlen=pathlen)
    return builder.sign(key, keys.signing_hash(key)).public_bytes(Encoding.DER)


def ca_request(key: keys.PrivateKey, subject: str) -> bytes:
    """Return a request (DER) for an issuing certificate over ``key``, for a root key that lives on another machine."""
    name = authority_name(subject, key.public_key())
    return x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, keys.signing_hash(key)).public_bytes(Encoding.DER)


def sign_issuing(
    root_key: keys.PrivateKey,
    root_cert: bytes,
    request: bytes | keys.PublicKey,
    *,
    subject: str,
    now: int,
    lifetime: float,
    serial: int,
    trust_domain: str | None = None,
    pathlen: int = 0,
    dns_zones: Sequence[str] = (),
    uri_constraint: str | None = None,
    crl_url: str = "",
    aia: str = "",
    backdate: float = BACKDATE,
) -> bytes:
    """Return the DER certificate of an issuing authority, signed by a root and checked against it.

    ``request`` is a CSR (DER or PEM bytes, whose proof is checked) or a public key; of a CSR only the key is used. ``lifetime`` is seconds
    from now, cut to the root's end. ``dns_zones`` become critical name constraints; ``uri_constraint`` (a trust domain) too, but only where
    asked for, because some verifiers refuse every chain that carries one. Raises ``bad_key`` when the key is not the root's, ``conflict``
    when the root may not sign it, and what :func:`parse_csr` raises.
    """
    root = chains.load(root_cert)
    if keys.spki_der(root_key.public_key()) != chains.subject_and_key(root)[1]:
        raise HandclaspError(Kind.BAD_KEY, "the key is not the one of the root's certificate")
    public_key = parse_csr(request).public_key if isinstance(request, bytes) else request
    keys.check_quality(public_key)
    name = authority_name(subject, public_key, check_trust_domain(trust_domain) if trust_domain else None)
    begin = max(now - int(backdate * 1000), from_datetime(root.not_valid_before_utc))
    end = min(now + int(lifetime * 1000), from_datetime(root.not_valid_after_utc))
    builder = _builder(name, root.subject, public_key, serial=serial, begin=begin, end=end, pathlen=pathlen)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier(chains.key_id(root), None, None), critical=False)
    permitted: list[x509.GeneralName] = [x509.DNSName(check_dns(zone, wildcard=False)) for zone in dns_zones]
    if uri_constraint:
        permitted.append(x509.UniformResourceIdentifier(check_trust_domain(uri_constraint)))
    if permitted:
        builder = builder.add_extension(x509.NameConstraints(permitted, None), critical=True)
    if crl_url:
        points = [x509.DistributionPoint([x509.UniformResourceIdentifier(crl_url)], None, None, None)]
        builder = builder.add_extension(x509.CRLDistributionPoints(points), critical=False)
    if aia:
        access = x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(aia))
        builder = builder.add_extension(x509.AuthorityInformationAccess([access]), critical=False)
    issued = builder.sign(root_key, keys.signing_hash(root_key)).public_bytes(Encoding.DER)
    _check_under(issued, root, root_cert, pathlen, now)
    return issued


def _check_under(issued: bytes, root: x509.Certificate, root_cert: bytes, pathlen: int, now: int) -> None:
    """Refuse an issuing certificate that verifiers would refuse later: wrong root, or more levels than the root allows."""
    for item in root.extensions:
        if isinstance(item.value, x509.BasicConstraints) and item.value.path_length is not None and item.value.path_length <= pathlen:
            raise HandclaspError(
                Kind.CONFLICT, f"the root allows {item.value.path_length} levels below it, too few for path length {pathlen}"
            )
    try:
        chains.verify_chain(issued, [], [root_cert], now)
    except HandclaspError as error:
        raise HandclaspError(Kind.CONFLICT, f"this root cannot sign an issuing authority: {error.detail}") from error


def issuer_of(
    certificate: bytes,
    *,
    name: str,
    trust_domain: str,
    dns_zones: Sequence[str] = (),
    crl_base: str = "",
    crl_shards: int = 1,
    aia_url: str = "",
) -> Issuer:
    """Return the :class:`Issuer` of an authority's DER certificate, with its subject byte for byte as it stands there.

    Raises ``bad_certificate`` when it is not an authority's, ``bad_key`` when its key type is not one we sign with, ``bad_name`` for a bad
    trust domain or zone.
    """
    parsed = chains.load(certificate)
    if not any(isinstance(item.value, x509.BasicConstraints) and item.value.ca for item in parsed.extensions):
        raise HandclaspError(Kind.BAD_CERTIFICATE, "this is not the certificate of an authority")
    subject, spki = chains.subject_and_key(parsed)
    return Issuer(
        name=name,
        trust_domain=check_trust_domain(trust_domain),
        subject_der=subject,
        key_id=chains.key_id(parsed),
        signature_algorithm=keys.signature_algorithm(keys.public_from_spki(spki)),
        not_after=from_datetime(parsed.not_valid_after_utc),
        not_before=from_datetime(parsed.not_valid_before_utc),
        dns_zones=tuple(check_dns(zone, wildcard=False) for zone in dns_zones),
        crl_base=crl_base,
        crl_shards=crl_shards,
        aia_url=aia_url,
    )
