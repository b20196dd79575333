"""What a token allows: as it is stored, and as somebody asks for it."""

from __future__ import annotations

import msgspec

from handclasp import wire
from handclasp.access.grants import AGENT_PROFILE, Grant
from handclasp.access.patterns import DnsPatterns, EmailPatterns, IdentityPatterns, Networks
from handclasp.access.principals import SCOPES, Principal
from handclasp.clock import parse_duration
from handclasp.errors import HandclaspError, Kind

MAX_LABELS = 50


class TokenGrant(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a token allows, as its row keeps it. Stored: fields are only ever added, with a default that means what their absence meant."""

    v: int
    """1. A row with a higher number was written by a newer server, and allows nothing here."""
    allow: tuple[str, ...] = ()
    allow_dns: tuple[str, ...] = ()
    allow_ip: tuple[str, ...] = ()
    allow_email: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    max_ttl_ms: int | None = None
    cidr: tuple[str, ...] = ()
    csr_hash: str | None = None
    renew: bool = False
    agent: bool = False
    labels: dict[str, str] = {}
    scopes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the one form in which it is stored."""
        return msgspec.json.encode(self, order="deterministic").decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> TokenGrant:
        """Return what :meth:`to_json` wrote; raise ``internal`` for what this version did not write."""
        try:
            found = msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise HandclaspError(Kind.INTERNAL, "a stored token cannot be read") from error
        if found.v != 1:
            raise HandclaspError(Kind.INTERNAL, "a stored token was written by a newer version")
        return found

    def to_grant(self, token_id: str) -> Grant:
        """Return it compiled, as the grant ``token:ID``. Raises ``bad_policy`` for a bad pattern."""
        return Grant(
            name=f"token:{token_id}",
            identities=IdentityPatterns(self.allow),
            dns=DnsPatterns(self.allow_dns),
            ip=Networks(self.allow_ip),
            email=EmailPatterns(self.allow_email),
            profiles=frozenset(self.profiles),
            max_ttl=None if self.max_ttl_ms is None else self.max_ttl_ms / 1000,
            sources=Networks(self.cidr),
            renew=self.renew,
            agent=self.agent,
        )


def requested_grant(request: wire.TokenRequest, token_id: str, created_by: Principal | str) -> TokenGrant:
    """Return what a request asks for. Raises ``bad_request`` where that makes no sense, ``not_allowed`` for scopes its maker has not.

    See :func:`handclasp.access.tokens.new_token`.
    """
    grant = _token_grant(request)
    _check_scopes(request, created_by)
    try:
        compiled = grant.to_grant(token_id)
    except HandclaspError as error:
        raise HandclaspError(Kind.BAD_REQUEST, error.detail, hint=error.hint) from error
    _check_grant(request, compiled)
    return grant


def _token_grant(request: wire.TokenRequest) -> TokenGrant:
    max_ttl = None if request.max_ttl is None else round(parse_duration(request.max_ttl) * 1000)
    if max_ttl == 0:
        raise bad_request("a certificate lives longer than nothing")
    return TokenGrant(
        v=1,
        allow=tuple(request.allow),
        allow_dns=tuple(request.allow_dns),
        allow_ip=tuple(request.allow_ip),
        allow_email=tuple(request.allow_email),
        profiles=tuple(request.profiles),
        max_ttl_ms=max_ttl,
        cidr=tuple(request.cidr),
        csr_hash=request.csr_hash,
        renew=request.renew,
        agent=request.agent,
        labels=dict(request.labels),
        scopes=tuple(sorted(set(request.scopes))),
    )


def _check_grant(request: wire.TokenRequest, grant: Grant) -> None:
    if grant.identities.has_placeholders or grant.dns.has_placeholders or grant.email.has_placeholders:
        raise bad_request("a token has no claims to fill placeholders with; write the name, or a policy grant")
    issues = grant.has_names or request.agent or bool(request.profiles)
    if request.scopes and issues:
        raise bad_request("a token either issues certificates or uses the API: make two")
    if request.scopes and request.uses > 1:
        raise bad_request("uses are of tokens that obtain certificates: one with scopes is good until it expires", "leave --uses out")
    if grant.has_names and not request.profiles:
        raise bad_request("a token that names identities also names the profiles they may have", "add --profile workload")
    if AGENT_PROFILE in request.profiles and not request.agent:
        raise bad_request("only an enrolment token issues agents' certificates", "add --agent")
    if request.labels and not request.agent:
        raise bad_request("labels are an agent's: only an enrolment token has them", "add --agent")
    if len(request.labels) > MAX_LABELS or any(not key or len(key) + len(value) > 512 for key, value in request.labels.items()):
        raise bad_request(f"at most {MAX_LABELS} labels, each with a name, of 512 characters together")


def _check_scopes(request: wire.TokenRequest, created_by: Principal | str) -> None:
    for scope in request.scopes:
        if scope not in SCOPES:
            raise bad_request(f"{scope!r} is not a scope", f"known are {', '.join(SCOPES)}")
        if isinstance(created_by, str) or scope in created_by.scopes or "admin" in created_by.scopes:
            continue
        raise HandclaspError(Kind.NOT_ALLOWED, f"nobody gives away a scope that they do not hold: {scope}")


def bad_request(detail: str, hint: str = "") -> HandclaspError:
    """Return the error for a request that makes no sense."""
    return HandclaspError(Kind.BAD_REQUEST, detail, hint=hint)
