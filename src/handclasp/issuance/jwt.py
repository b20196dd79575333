"""The way of a JWT-SVID, in numbered steps: as short as that of a certificate is long, with the same order of things."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from handclasp.access.authorize import Refused
from handclasp.access.authorize_jwt import DEFAULT_LIFETIME, JwtAsked, authorize_jwt
from handclasp.access.masking import masked
from handclasp.access.principals import Principal
from handclasp.authority.authorities import Authorities
from handclasp.authority.jwtkeys import MAX_LIFETIME, JwtKeys
from handclasp.clock import Clock, format_duration, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.issue import NOT_DECISIONS, decision_hint
from handclasp.issuance.request import Source
from handclasp.issuance.rulebook import Rulebook
from handclasp.log.entries import Entry, make_entry
from handclasp.pki.jwt_svid import sign_jwt_svid
from handclasp.pki.names import check_spiffe_id, trust_domain_of
from handclasp.store.database import Store
from handclasp.store.writes import Write

MIN_LIFETIME = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class JwtRequest:
    """Who asks for which JWT-SVID."""

    principal: Principal
    identity: str
    audience: Sequence[str]
    ttl: float | None
    """Seconds; None is the default."""
    source: Source


@dataclass(frozen=True, slots=True)
class IssuedJwt:
    """A JWT-SVID whose log entry is durable."""

    token: str
    identity: str
    expires_at: int
    log_entry: int


class JwtIssuance:
    """Issues JWT-SVIDs. One object a process; may run concurrently."""

    def __init__(
        self,
        store: Store,
        authorities: Authorities,
        jwt_keys: JwtKeys,
        rulebook: Rulebook,
        clock: Clock,
        *,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._store = store
        self._authorities = authorities
        self._jwt_keys = jwt_keys
        self._rulebook = rulebook
        self._clock = clock
        self._random = random

    async def issue(self, request: JwtRequest) -> IssuedJwt:
        """Issue a JWT-SVID, or raise the reason why not.

        On return its log entry (with its ``jti``, never the token) is durable; a refusal is a log entry too. Raises ``bad_name``,
        ``bad_request``, ``lifetime_not_allowed``, ``name_not_allowed``, ``not_allowed``, ``superseded``, ``unavailable``.
        """
        try:
            return await self._issue(request)
        except HandclaspError as refusal:
            if refusal.kind not in NOT_DECISIONS:
                await self._store.ledger.commit(Write([_refusal_entry(request, refusal, self._clock())]))
            raise

    async def _issue(self, request: JwtRequest) -> IssuedJwt:
        # 1 Check what is asked for.
        identity = check_spiffe_id(request.identity)
        audience = list(dict.fromkeys(request.audience))
        if not audience or not all(one and one.isprintable() for one in audience):
            raise HandclaspError(Kind.BAD_REQUEST, "a JWT-SVID is for at least one audience, written in printable characters")
        lifetime = DEFAULT_LIFETIME if request.ttl is None else request.ttl
        if not MIN_LIFETIME <= lifetime <= MAX_LIFETIME:
            between = f"{format_duration(MIN_LIFETIME)} to {format_duration(MAX_LIFETIME)}"
            raise HandclaspError(Kind.LIFETIME_NOT_ALLOWED, f"a JWT-SVID lives {between}, and not {format_duration(lifetime)}")
        # 2 Authorize: the one place that decides.
        grant, lifetime = await self._authorized(request, identity, lifetime)
        # 3 Sign, with the key of its own trust domain.
        trust_domain = trust_domain_of(identity)
        await self._authorities.refresh()
        if trust_domain not in self._authorities.trust_domains:
            raise HandclaspError(Kind.NAME_NOT_ALLOWED, f"trust domain {trust_domain} is not served here")
        kid, key = await self._jwt_keys.signer(trust_domain)
        now = self._clock()
        issued_at = now // 1000
        expires_at = issued_at + int(lifetime)
        jti = self._random(16).hex()
        token = sign_jwt_svid(key, kid, identity=identity, audience=audience, issued_at=issued_at, expires_at=expires_at, jti=jti)
        # 4 Commit the entry. Nothing has left before this line.
        what = {
            "identity": identity,
            "audience": [masked(one) for one in audience],
            "jti": jti,
            "kid": kid,
            "not_after": rfc3339(expires_at * 1000),
        }
        entry = make_entry(
            "jwt.issued", at=now, who=request.principal.to_log(), what=what, why={"grant": grant},
            source=request.source.to_log(), subjects=[f"identity:{identity}"], random=self._random,
        )  # fmt: skip
        index = await self._store.ledger.commit(Write([entry]))
        return IssuedJwt(token, identity, expires_at * 1000, index)

    async def _authorized(self, request: JwtRequest, identity: str, lifetime: float) -> tuple[str, float]:
        """Return the grant that allows it, and the lifetime: shorter than the default where nobody wished for one and the grant is so."""
        rules = await self._rulebook.current()
        decision = authorize_jwt(request.principal, JwtAsked(identity, lifetime, request.source.address), rules.policy)
        if isinstance(decision, Refused) and decision.longest is not None and request.ttl is None and decision.longest >= MIN_LIFETIME:
            lifetime = decision.longest
            decision = authorize_jwt(request.principal, JwtAsked(identity, lifetime, request.source.address), rules.policy)
        if isinstance(decision, Refused):
            raise HandclaspError(decision.kind, decision.reason, hint=decision_hint(decision.kind))
        return decision.grant, lifetime


def _refusal_entry(request: JwtRequest, refusal: HandclaspError, now: int) -> Entry:
    detail = masked(refusal.detail)[:500]
    about_people = "@" in detail or "@" in request.identity
    what: dict[str, Any] = {} if about_people else {"identity": masked(request.identity)[:2048]}
    why = {"kind": refusal.kind.value} if about_people else {"kind": refusal.kind.value, "reason": detail}
    return make_entry(
        "jwt.refused", at=now, who=request.principal.to_log(), what=what, why=why, source=request.source.to_log(),
        personal={"reason": detail} if about_people else None,
    )  # fmt: skip
