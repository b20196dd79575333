"""Step 2 of an issuance: which profile, which names, which lifetime are wanted. Wishes only: whether they are granted is decided later."""

from __future__ import annotations

from dataclasses import dataclass

from handclasp.access.principals import ServerPrincipal, TokenPrincipal
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.request import IssuanceRequest
from handclasp.issuance.rulebook import Rules
from handclasp.pki.csr import Csr
from handclasp.pki.names import Names, make_names, trust_domain_of
from handclasp.pki.profiles import Profile


@dataclass(frozen=True, slots=True)
class Predecessor:
    """The certificate that a renewal replaces, as recorded."""

    sha256: bytes
    names: Names
    profile: str
    lifetime: float | None
    """Seconds from the beginning to the end; None when the end is its authority's, and says nothing of what was wanted."""
    not_before: int
    not_after: int
    line: bytes
    generation: int
    superseded_at: int | None
    superseded_by: bytes | None
    revoked_at: int | None
    granted_by: str
    spki_sha256: bytes


def trust_domain_for(request: IssuanceRequest, names: Names) -> str:
    """Return the trust domain whose default authority signs; empty for the installation's first."""
    if names.spiffe is not None:
        return trust_domain_of(names.spiffe)
    return request.principal.trust_domain if isinstance(request.principal, ServerPrincipal) else ""


def resolve_profile(request: IssuanceRequest, predecessor: Predecessor | None, rules: Rules) -> Profile:
    """Return the profile asked for, the predecessor's, the only one of a token, or ``workload``; raise ``unknown_profile``."""
    name = request.profile
    if predecessor is not None:
        if name not in (None, predecessor.profile):
            raise HandclaspError(Kind.PROFILE_NOT_ALLOWED, "a renewal keeps the profile of its predecessor")
        name = predecessor.profile
    elif name is None:
        granted = request.principal.grant.profiles if isinstance(request.principal, TokenPrincipal) else frozenset()
        name = next(iter(granted)) if len(granted) == 1 else "workload"
    profile = rules.profiles.get(name)
    if profile is None:
        raise HandclaspError(Kind.UNKNOWN_PROFILE, f"there is no profile {name!r}", hint="see handclasp profile list")
    return profile


def resolve_names(request: IssuanceRequest, csr: Csr, predecessor: Predecessor | None) -> Names:
    """Return the names to certify. Names that both request and CSR give must be the same: a silent choice would be a trap."""
    if predecessor is not None:
        if not csr.names.is_empty and not _within(csr.names, predecessor.names):
            raise HandclaspError(Kind.NAME_NOT_ALLOWED, "the CSR asks for names that the certificate to renew does not have")
        return predecessor.names
    if request.identity is None and not request.dns and not request.ip and not request.email:
        if not csr.names.is_empty:
            return csr.names
        return _only_names(request)
    wanted = make_names(request.identity, request.dns, request.ip, request.email)
    if csr.names.is_empty:
        return wanted
    if not _agree(wanted, csr.names):
        raise HandclaspError(Kind.BAD_NAME, "request and CSR ask for different names", hint="leave the names out of one of them")
    return Names(wanted.spiffe or csr.names.spiffe, wanted.dns or csr.names.dns, wanted.ip or csr.names.ip, wanted.email or csr.names.email)


def _only_names(request: IssuanceRequest) -> Names:
    """Return the names of a caller that can only have one identity; nothing is left to choose, so nothing need be said."""
    if isinstance(request.principal, TokenPrincipal):
        exact = request.principal.grant.only_names
        if exact is not None:
            return exact
    raise HandclaspError(
        Kind.BAD_NAME, "neither the request nor the CSR says which names are wanted", hint='add "identity" or "dns", or a SAN to the CSR'
    )


def _within(inner: Names, outer: Names) -> bool:
    return (
        inner.spiffe in (None, outer.spiffe)
        and set(inner.dns) <= set(outer.dns)
        and set(inner.ip) <= set(outer.ip)
        and set(inner.email) <= set(outer.email)
    )


def _agree(one: Names, other: Names) -> bool:
    pairs = ((one.dns, other.dns), (one.ip, other.ip), (one.email, other.email))
    same_spiffe = one.spiffe is None or other.spiffe is None or one.spiffe == other.spiffe
    return same_spiffe and all(not left or not right or set(left) == set(right) for left, right in pairs)


def wanted_lifetime(request: IssuanceRequest, predecessor: Predecessor | None, profile: Profile) -> float | None:
    """Return what was asked for; for a renewal what the predecessor had, within the profile of today; None for the profile's default."""
    if request.ttl is not None and request.or_shorter:
        return max(profile.min_lifetime, min(request.ttl, profile.max_lifetime))
    if request.ttl is not None or predecessor is None or predecessor.lifetime is None:
        return request.ttl
    return max(profile.min_lifetime, min(predecessor.lifetime - profile.backdate, profile.max_lifetime))
