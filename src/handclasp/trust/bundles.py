"""Which bundle is whose: our own trust domains', made from authorities and JWT keys, and the federated ones', as they were fetched."""

from __future__ import annotations

from handclasp.authority.authorities import Authorities
from handclasp.authority.jwtkeys import JwtKeys
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.bundles import parse_spiffe_bundle, pem_bundle, spiffe_bundle
from handclasp.pki.names import check_trust_domain
from handclasp.store.database import Store

_STORED = "SELECT bundle FROM federation WHERE trust_domain = ?"


class Bundles:
    """Every bundle that may be handed out. For one event loop."""

    def __init__(self, store: Store, authorities: Authorities, jwt_keys: JwtKeys, *, refresh_hint: float = 300.0) -> None:
        """``refresh_hint``: after how many seconds who has a bundle should ask again."""
        self._store = store
        self._authorities = authorities
        self._jwt_keys = jwt_keys
        self.refresh_hint = max(1, round(refresh_hint))
        self._read: dict[str, tuple[bytes, str]] = {}

    async def own(self, trust_domain: str) -> bytes:
        """Return the SPIFFE bundle of a trust domain that is served here. Raises ``not_found`` for any other.

        Its sequence is a sum over rows that are never deleted, each of which counts one more when it leaves the bundle: it rises with each
        change, and is the same in every process and after every restart.
        """
        await self._authorities.refresh()
        await self._jwt_keys.refresh()
        anchors = self._authorities.anchors(trust_domain)
        sequence = self._authorities.bundle_sequence(trust_domain) + self._jwt_keys.sequence(trust_domain)
        return spiffe_bundle(anchors, sequence, self.refresh_hint, self._jwt_keys.published(trust_domain))

    async def spiffe(self, trust_domain: str) -> bytes:
        """Return the SPIFFE bundle of a trust domain, ours or a federated one as it was stored. Raises ``not_found``."""
        if await self._is_own(trust_domain):
            return await self.own(trust_domain)
        return await self._stored(trust_domain)

    async def pem(self, trust_domain: str) -> str:
        """Return the anchors of a trust domain as PEM, ours or a federated one's. Raises ``not_found``."""
        if await self._is_own(trust_domain):
            return pem_bundle(self._authorities.anchors(trust_domain))
        stored = await self._stored(trust_domain)
        known = self._read.get(trust_domain)
        if known is None or known[0] != stored:
            # Everybody may ask, and reading the largest bundle that a publisher can make takes as long as thirty issuances.
            known = self._read[trust_domain] = stored, pem_bundle(parse_spiffe_bundle(stored, trust_domain).authorities)
        return known[1]

    async def _is_own(self, trust_domain: str) -> bool:
        await self._authorities.refresh()
        return trust_domain in self._authorities.trust_domains

    async def _stored(self, trust_domain: str) -> bytes:
        try:
            check_trust_domain(trust_domain)
        except HandclaspError as error:
            raise HandclaspError(Kind.NOT_FOUND, "this is not a trust domain") from error
        row = await self._store.point(_STORED, (trust_domain,))
        if row is None:
            raise HandclaspError(Kind.NOT_FOUND, "this trust domain is neither served nor federated here")
        if not row[0]:
            raise HandclaspError(Kind.NOT_FOUND, f"the bundle of {trust_domain} has not been fetched yet", hint="handclasp federation show")
        return str(row[0]).encode()
