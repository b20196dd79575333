"""Who is signed in to the console: sessions begun, found, ended.

A session is 256 random bits in a cookie; only their SHA-256 is stored. It lives as long as what it was begun with: a token that is revoked,
or a certificate that is, ends every session that it began, at the next request; so does a role that is taken out of the rules.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
from sqlalchemy import delete, insert, update

from handclasp.access.principals import CertificatePrincipal, ConsoleUser, OidcPrincipal, TokenPrincipal
from handclasp.access.roles import ROLES, Role, Roles
from handclasp.access.tokens import Tokens
from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind
from handclasp.log.entries import make_entry
from handclasp.store.database import Store
from handclasp.store.tables import session as table
from handclasp.store.writes import Change, Write

__all__ = ["ROLES", "ConsoleUser", "Session", "Sessions"]

_FIND = "SELECT principal, expires_at, used_at FROM session WHERE secret_sha256 = ?"
_CERTIFICATE = "SELECT revoked_at, not_after FROM certificate WHERE sha256 = ?"
_TOUCH = 60_000
"""ms between two notes that a session is used: not every page is a write."""


class _Kept(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A session's row. Stored: fields are only ever added, with a default that means what their absence meant."""

    v: int
    means: str
    """``token``, ``certificate`` or ``oidc``."""
    key: str
    """The token's id, the certificate's SHA-256, the issuer's subject."""
    name: str
    held: tuple[tuple[str, str], ...] = ()
    """What the issuer said of them that rules asked for then, as (claim, value)."""


@dataclass(frozen=True, slots=True)
class Session:
    """One person at one browser."""

    user: ConsoleUser
    secret: str
    expires_at: int

    @property
    def csrf(self) -> str:
        """What each form of this session carries, so that no other site can send one."""
        return derived(self.secret, "csrf")


def derived(secret: str, purpose: str) -> str:
    """Return a value that only who has ``secret`` can make, and from which nobody gets it back."""
    return base64.urlsafe_b64encode(hmac.digest(secret.encode(), purpose.encode(), "sha256")).decode().rstrip("=")


class Sessions:
    """The sessions of one store. For one event loop; any number of calls at once."""

    def __init__(
        self,
        store: Store,
        tokens: Tokens,
        roles: Roles,
        clock: Clock,
        *,
        idle: float,
        lifetime: float,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """``idle`` and ``lifetime`` in seconds: a session ends after the first without a request, and after the second in any case."""
        self._store = store
        self._tokens = tokens
        self._roles = roles
        self._clock = clock
        self._idle = round(idle * 1000)
        self._lifetime = round(lifetime * 1000)
        self._random = random

    async def begin(self, principal: TokenPrincipal | CertificatePrincipal | OidcPrincipal, source: Mapping[str, str]) -> Session:
        """Sign a proven caller in; durable and logged on return. Raises ``not_allowed`` for who has no role here."""
        now = self._clock()
        kept, ends = self._kept(principal)
        user = await self._user(kept, source.get("address"))
        if user is None:
            raise _no_role(principal, source.get("address"))
        secret = base64.urlsafe_b64encode(self._random(32)).decode().rstrip("=")
        expires_at = min(now + self._lifetime, ends) if ends else now + self._lifetime
        row = {
            "secret_sha256": _hash(secret),
            "principal": msgspec.json.encode(kept, order="deterministic").decode(),
            "created_at": now,
            "expires_at": expires_at,
            "used_at": now,
        }
        what = {"means": kept.means, "role": user.role}
        entry = make_entry("console.signed_in", at=now, who=user.to_log(), what=what, source=source, random=self._random)
        await self._store.ledger.commit(Write([entry], [Change(insert(table).values(row), expect=1)]))
        return Session(user, secret, expires_at)

    async def find(self, secret: str, *, address: str | None = None, active: bool = True) -> Session | None:
        """Return the session of a cookie, as it is now; None when there is none any more.

        A token that names networks opens no session from elsewhere, and none is gone on with from elsewhere: ``address`` is the caller's.
        ``active`` is off for what a page asks by itself: a page that is left open must not keep its session open.
        """
        if not 32 <= len(secret) <= 64 or not secret.isascii():
            return None
        row = await self._store.point(_FIND, (_hash(secret),))
        if row is None:
            return None
        principal, expires_at, used_at = row
        now = self._clock()
        if now >= expires_at or now - used_at >= self._idle:
            return None
        kept = msgspec.json.decode(principal, type=_Kept)
        user = await self._user(kept, address) if kept.v == 1 else None
        if user is None:
            return None
        if active and now - used_at >= min(_TOUCH, self._idle // 4):
            await self._store.ledger.commit(
                Write([], [Change(update(table).where(table.c.secret_sha256 == _hash(secret)).values(used_at=now))])
            )
        return Session(user, secret, expires_at)

    async def end(self, session: Session, source: Mapping[str, str]) -> None:
        """Sign out; durable and logged on return."""
        entry = make_entry("console.signed_out", at=self._clock(), who=session.user.to_log(), what={}, source=source, random=self._random)
        change = Change(delete(table).where(table.c.secret_sha256 == _hash(session.secret)))
        await self._store.ledger.commit(Write([entry], [change]))

    async def sweep(self) -> None:
        """Forget the sessions that have ended."""
        now = self._clock()
        over = (table.c.expires_at <= now) | (table.c.used_at <= now - self._idle)
        await self._store.ledger.commit(Write([], [Change(delete(table).where(over))]))

    # --- who that is ----------------------------------------------------------------------------------------------------------------

    def _kept(self, principal: TokenPrincipal | CertificatePrincipal | OidcPrincipal) -> tuple[_Kept, int]:
        """Return what is kept of a caller, and when their proof ends in ms (0: it does not)."""
        if isinstance(principal, TokenPrincipal):
            return _Kept(v=1, means="token", key=principal.id, name=principal.name), principal.expires_at
        if isinstance(principal, CertificatePrincipal):
            name = f"{principal.sha256.hex()}/{principal.identity}"
            return _Kept(v=1, means="certificate", key=name, name=principal.identity), 0
        shown = str(principal.claims.get("email") or principal.claims.get("preferred_username") or principal.subject)[:200]
        return _Kept(v=1, means="oidc", key=principal.subject, name=shown, held=self._roles.held(principal.claims)), 0

    async def _user(self, kept: _Kept, address: str | None) -> ConsoleUser | None:
        """Return the person as they are now: by the token or the certificate as it is, and the roles as they are set."""
        if kept.means == "token":
            token = await self._tokens.principal_of(kept.key)
            if token is None or not token.scopes or not token.may_come_from(address):
                return None
            return ConsoleUser(f"token:{token.id}", token.name, _role_of_scopes(token.scopes), token.scopes)
        role: Role | None
        if kept.means == "certificate":
            sha256, _, identity = kept.key.partition("/")
            row = await self._store.point(_CERTIFICATE, (bytes.fromhex(sha256),))
            if row is None or row[0] is not None or row[1] <= self._clock():
                return None
            role, shown = self._roles.of_identity(identity), f"certificate:{identity}"
        else:
            role = self._roles.of_held(kept.held)
            shown = f"oidc:{kept.key}"
        return None if role is None else ConsoleUser(shown, kept.name, role.name, role.scopes, role.teams)


def _role_of_scopes(scopes: frozenset[str]) -> str:
    """Return the word for what a token may do; its scopes are what counts."""
    if "admin" in scopes:
        return "admin"
    return "auditor" if all(scope.endswith(":read") for scope in scopes) else "operator"


def _no_role(principal: TokenPrincipal | CertificatePrincipal | OidcPrincipal, address: str | None) -> HandclaspError:
    if isinstance(principal, TokenPrincipal) and not principal.may_come_from(address):
        return HandclaspError(Kind.NOT_ALLOWED, f"this token is not to be used from {address or 'an unknown address'}")
    if isinstance(principal, TokenPrincipal):
        hint = "make one that does: handclasp token create --name NAME --scope certificates:read --scope inventory:read"
        return HandclaspError(Kind.NOT_ALLOWED, "this token obtains certificates and does not use the API", hint=hint)
    return HandclaspError(Kind.NOT_ALLOWED, "you are known, and have no role here", hint="who runs the server adds you to console_roles")


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
