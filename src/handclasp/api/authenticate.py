"""Who is calling: a bearer token of ours, an OIDC token, or the client certificate that the handshake proved."""

from __future__ import annotations

import json
from collections.abc import Mapping

from handclasp.access.grants import AGENT_PROFILE
from handclasp.access.principals import CertificatePrincipal, Principal
from handclasp.api.services import Services
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.names import make_names

_CERTIFICATE = (
    "SELECT i.name, c.names, c.profile, c.line, c.generation, c.granted_by, c.revoked_at, c.not_before, c.not_after,"
    " c.superseded_at FROM certificate c JOIN identity i ON i.id = c.identity_id WHERE c.sha256 = ?"
)


async def authenticate(services: Services, headers: Mapping[bytes, bytes], client_certificate: bytes | None) -> Principal | None:
    """Return the proven caller, or None when the request claims nothing.

    A bearer token goes before a client certificate: who sends one means to use it. A credential that is claimed but not good raises
    (``token_*``, ``not_authenticated``, ``revoked``): it never becomes "nobody".
    """
    authorization = headers.get(b"authorization")
    if authorization is not None:
        return await _bearer(services, authorization)
    if client_certificate is not None:
        return await _certificate(services, client_certificate)
    return None


async def _bearer(services: Services, authorization: bytes) -> Principal:
    scheme, _, value = authorization.decode("latin-1").partition(" ")
    value = value.strip()
    if scheme.lower() != "bearer" or not value:
        raise HandclaspError(Kind.NOT_AUTHENTICATED, "the Authorization header must be: Bearer TOKEN")
    if value.startswith("hct_"):
        return await services.tokens.authenticate(value)
    if value.count(".") == 2:
        services.oidc.use((await services.rulebook.current()).policy)
        return await services.oidc.verify(value)
    raise HandclaspError(Kind.TOKEN_UNKNOWN, "this is not a token of this server", hint="tokens begin with hct_")


async def _certificate(services: Services, sha256: bytes) -> CertificatePrincipal:
    """Return the holder of one of our certificates, by the hash of all of it, with its state as it is at this moment."""
    row = await services.store.point(_CERTIFICATE, (sha256,))
    if row is None:
        raise HandclaspError(Kind.NOT_AUTHENTICATED, "this client certificate was not issued by this server")
    identity, names, profile, line, generation, granted_by, revoked_at, not_before, not_after, superseded_at = row
    if revoked_at is not None:
        raise HandclaspError(Kind.REVOKED, "this client certificate is revoked", hint="ask for a new token")
    if not_after <= services.clock():
        raise HandclaspError(Kind.NOT_AUTHENTICATED, "this client certificate has expired", hint="ask for a new token")
    others = json.loads(names)
    spiffe = identity if identity.startswith("spiffe://") else None
    return CertificatePrincipal(
        sha256=sha256,
        identity=identity,
        names=make_names(spiffe, others.get("dns", ()), others.get("ip", ()), others.get("email", ())),
        profile=profile,
        line=bytes(line),
        generation=generation,
        granted_by=granted_by,
        labels=await services.tokens.labels_of(granted_by) if profile == AGENT_PROFILE else {},
        is_agent=profile == AGENT_PROFILE,
        superseded_at=superseded_at,
        grace_is_over=superseded_at is not None and services.issuance.grace_is_over(superseded_at, not_before, not_after),
    )
