"""A request that was made a moment ago already: its answer got lost, and the same one is given again instead of a second certificate."""

from __future__ import annotations

from handclasp.authority.authorities import Authorities
from handclasp.clock import Clock
from handclasp.errors import HandclaspError
from handclasp.issuance.request import IssuanceRequest, IssuedCertificate
from handclasp.pki.csr import Csr
from handclasp.pki.profiles import Profile
from handclasp.store.database import Store

WITHIN = 60_000
"""Milliseconds for which the same request gets the same certificate."""

_KEY = "SELECT identity_id FROM key WHERE spki_sha256 = ?"
_NEWEST = (
    "SELECT c.der, c.sha256, c.serial, i.name, c.authority_id, c.predecessor, c.not_before, c.not_after, c.renew_after, c.renew_before,"
    " c.log_index FROM certificate c JOIN identity i ON i.id = c.identity_id WHERE c.identity_id = ? AND c.not_after > ?"
    " AND c.spki_sha256 = ? AND c.profile = ? AND c.obtained_by = ? AND c.revoked_at IS NULL AND c.superseded_at IS NULL"
    " ORDER BY c.log_index DESC LIMIT 1"
)


async def issued_before(
    store: Store, authorities: Authorities, clock: Clock, request: IssuanceRequest, csr: Csr, identity: str, profile: Profile
) -> IssuedCertificate | None:
    """Return the certificate that this caller got for this key, identity and profile within the last minute; None where there is none.

    It is found in the database, so it does not matter which process issued it, or whether that was restarted since. The caller must be
    authenticated, and nothing is decided again: what is returned was issued, is public, and is not revoked. Raises ``unavailable``.
    """
    known = await store.point(_KEY, (csr.spki_sha256,))
    if known is None or known[0] is None:  # a new key, as nearly always
        return None
    now = clock()
    row = await store.point(_NEWEST, (known[0], now, csr.spki_sha256, profile.name, request.principal.describe()))
    if row is None:
        return None
    der, sha256, serial, name, authority_id, predecessor, not_before, not_after, renew_after, renew_before, log_index = row
    age = now - (not_before + round(profile.backdate * 1000)) - 999  # at least: certificates count whole seconds
    if name != identity or (bytes(predecessor) if predecessor else None) != request.predecessor or age > WITHIN:
        return None
    authority = next((one for one in authorities.all() if one.id == authority_id), None)
    try:
        signer = authorities.get(authority.name) if authority is not None else None
    except HandclaspError:  # retired since: its certificates should be replaced and not given out
        return None
    if signer is None:
        return None
    return IssuedCertificate(
        bytes(der), bytes(sha256), int.from_bytes(serial, "big"), name, signer.issuer.name, signer.chain_pem,
        authorities.bundle_pem(signer.issuer.trust_domain), not_before, not_after, renew_after, renew_before, log_index,
    )  # fmt: skip
