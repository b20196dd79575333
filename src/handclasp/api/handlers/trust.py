"""Authorities, bundles and CRLs: what everybody who verifies certificates needs, mostly public."""

from __future__ import annotations

import json
import re
from typing import Any

from cryptography import x509
from sqlalchemy import Row, select

from handclasp.api.routes import Call, Plain, tagged
from handclasp.clock import from_datetime, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import keys
from handclasp.pki.chains import to_pem
from handclasp.store import tables
from handclasp.wire import Authority, AuthorityList, Bundle, BundleList, Done, Published


async def list_authorities(call: Call) -> AuthorityList:
    """List authorities."""
    rows = await call.services.store.rows(select(tables.authority).order_by(tables.authority.c.id))
    return AuthorityList(items=[_to_authority(row) for row in rows])


async def show_authority(call: Call) -> Authority:
    """Show one authority."""
    row = await call.services.store.row(select(tables.authority).where(tables.authority.c.name == call.path["name"]))
    if row is None:
        raise HandclaspError(Kind.NOT_FOUND, "there is no authority of this name")
    return _to_authority(row)


def _to_authority(row: Row[Any]) -> Authority:
    certificate = x509.load_der_x509_certificate(bytes(row.der))
    public_key = certificate.public_key()
    return Authority(
        name=row.name,
        kind=row.kind,
        trust_domain=row.trust_domain,
        subject=certificate.subject.rfc4514_string(),
        sha256=bytes(row.sha256).hex(),
        not_before=rfc3339(from_datetime(certificate.not_valid_before_utc)),
        not_after=rfc3339(from_datetime(certificate.not_valid_after_utc)),
        key_type=keys.key_type_of(public_key),
        state=row.state,
        dns_zones=json.loads(row.dns_zones),
        crl_shards=row.crl_shards,
        certificate=to_pem(bytes(row.der)),
    )


async def authority_certificate(call: Call) -> Plain:
    """Serve one authority's certificate as DER, for AIA (RFC 5280 4.2.2.1)."""
    row = await call.services.store.row(select(tables.authority.c.der).where(tables.authority.c.name == call.path["name"]))
    if row is None:
        raise HandclaspError(Kind.NOT_FOUND, "there is no authority of this name")
    return tagged(bytes(row.der), "application/pkix-cert", 3600)


async def retire_authority(call: Call) -> Done:
    """Retire an authority: an issuing one signs no more, a root leaves the bundles."""
    await call.services.authorities.refresh()
    return Done(log_entry=await call.services.authorities.retire(call.path["name"], by=call.principal.to_log()))


async def publish_crl(call: Call) -> Published:
    """Publish the CRL that an offline root made."""
    await call.services.authorities.refresh()
    try:
        index = await call.services.crls.import_crl(call.path["name"], call.body.pem.encode(), by=call.principal.to_log())
    except HandclaspError as error:
        if error.kind is not Kind.VERIFY_FAILED:
            raise
        raise HandclaspError(Kind.BAD_CERTIFICATE, error.detail, hint=error.hint) from error  # the caller's mistake, not a fault of ours
    return Published(log_entry=index)


async def list_bundles(call: Call) -> BundleList:
    """List the trust domains served here, with their anchors; federated ones are not among them."""
    authorities = call.services.authorities
    await authorities.refresh()
    return BundleList(items=[Bundle(trust_domain=name, pem=authorities.bundle_pem(name)) for name in authorities.trust_domains])


async def spiffe_trust_bundle(call: Call) -> Plain:
    """Serve a trust domain's bundle in the SPIFFE format: ours, or a federated one as it was fetched."""
    bundles = call.services.bundles
    return tagged(await bundles.spiffe(call.path["trust_domain"]), "application/json", bundles.refresh_hint)


async def pem_trust_bundle(call: Call) -> Plain:
    """Serve a trust domain's anchors as PEM: ours, or a federated one's."""
    bundles = call.services.bundles
    return tagged((await bundles.pem(call.path["trust_domain"])).encode(), "application/x-pem-file", bundles.refresh_hint)


async def _check_served(call: Call) -> None:
    await call.services.authorities.refresh()
    if not call.services.authorities.anchors(call.path["trust_domain"]):
        raise HandclaspError(Kind.NOT_FOUND, "this trust domain is not served here")


async def trust_domain_crls(call: Call) -> Plain:
    """Serve every CRL of a trust domain in one PEM file, as nginx, HAProxy and others read them."""
    await _check_served(call)
    text, etag = await call.services.crls.get_bundle_pem(call.path["trust_domain"])
    return Plain(text.encode(), "application/x-pem-file", etag)


async def crl(call: Call) -> Plain:
    """Serve one shard of an authority's CRL (RFC 5280 4.2.1.13, RFC 2585)."""
    shard = call.path["shard"]
    if not re.fullmatch(r"0|[1-9][0-9]{0,5}", shard):  # as the distribution point in a certificate has it, and no other way
        raise HandclaspError(Kind.NOT_FOUND, "there is no such CRL")
    der, etag = await call.services.crls.get(call.path["authority"], int(shard))
    return Plain(der, "application/pkix-crl", etag, 60)
