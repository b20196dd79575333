"""Who is calling: a bearer token of ours, an OIDC token, or the client certificate that the handshake proved."""

from __future__ import annotations

from collections.abc import Mapping

from handclasp.access.principals import Principal
from handclasp.api.services import Services
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.holders import holder_of


async def authenticate(services: Services, headers: Mapping[bytes, bytes], client_certificate: bytes | None) -> Principal | None:
    """Return the proven caller, or None when the request claims nothing.

    A bearer token goes before a client certificate: who sends one means to use it. A credential that is claimed but not good raises
    (``token_*``, ``not_authenticated``, ``revoked``): it never becomes "nobody".
    """
    authorization = headers.get(b"authorization")
    if authorization is not None:
        return await _bearer(services, authorization)
    if client_certificate is not None:
        return await holder_of(services, client_certificate)
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
