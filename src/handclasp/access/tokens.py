"""Access tokens: made, stored as hashes, recognised, listed, revoked.

A token is ``hct_ID_SECRET``: 80 random bits to look it up by, 256 random bits that prove it. Only the SHA-256 of the secret is stored; a
fast hash is right for a secret that nobody can guess. Its uses are counted by the ledger, in the transaction of the certificate.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Row, and_, insert, or_, select, update

from handclasp import wire
from handclasp.access.grants import Grant
from handclasp.access.principals import Principal, TokenPrincipal
from handclasp.access.tokengrant import TokenGrant, bad_request, requested_grant
from handclasp.clock import Clock, format_duration, parse_duration, rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.log.entries import make_entry
from handclasp.store.database import Store
from handclasp.store.tables import token as table
from handclasp.store.writes import Change, Write

MAX_CACHED = 10_000
MAX_LIFETIME = 366 * 86400.0  # seconds; a token that should live longer should be a policy
STATES = ("active", "spent", "expired", "revoked")

_TOKEN = re.compile(r"hct_([a-z2-7]{16})_([A-Za-z0-9_-]{43})")
_ID = re.compile(r"[a-z2-7]{16}")

# --- making one -------------------------------------------------------------------------------------------------------------------------


def new_token(
    request: wire.TokenRequest, *, now: int, random: Callable[[int], bytes], created_by: Principal | str
) -> tuple[dict[str, Any], str]:
    """Return the row for ``store.tables.token`` and the token itself, which exists nowhere else.

    ``random`` must be a secure source. ``created_by`` is a principal, which cannot give away scopes that it does not hold, or the words
    for someone who is on the machine itself (``local:up``). Raises ``bad_request`` for a request that makes no sense, ``not_allowed``.
    """
    lifetime = parse_duration(request.expires)
    if not 0 < lifetime <= MAX_LIFETIME:
        raise bad_request(f"a token expires after more than nothing and at most {format_duration(MAX_LIFETIME)}")
    token_id = base64.b32encode(random(10)).decode().lower()
    secret = base64.urlsafe_b64encode(random(32)).decode().rstrip("=")
    grant = requested_grant(request, token_id, created_by)
    row = {
        "id": token_id,
        "name": request.name,
        "secret_sha256": hashlib.sha256(secret.encode()).digest(),
        "owner": request.owner,
        "grant": grant.to_json(),
        "uses": 0 if request.scopes else request.uses,  # what uses the API obtains nothing, so there is nothing to count
        "used": 0,
        "created_at": now,
        "expires_at": now + round(lifetime * 1000),
    }
    return row, f"hct_{token_id}_{secret}"


# --- the store's tokens -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Known:
    """A token as it was at one generation of the store."""

    generation: int
    secret_sha256: bytes
    expires_at: int
    revoked: bool
    principal: TokenPrincipal


class Tokens:
    """The tokens of one store. For one event loop; any number of calls at once."""

    def __init__(self, store: Store, clock: Clock, random: Callable[[int], bytes] = os.urandom) -> None:
        self._store = store
        self._clock = clock
        self._random = random
        self._cache: dict[str, _Known] = {}

    async def authenticate(self, text: str) -> TokenPrincipal:
        """Return who presents the token. Nothing is spent.

        Raises ``token_unknown`` (also for a wrong secret, which is looked at first, so that only who has the token learns its state),
        ``token_revoked``, ``token_expired``, ``unavailable``. A revocation is seen at once in this process and within a second in others;
        the ledger looks again, in the transaction, when a use is spent.
        """
        match = _TOKEN.fullmatch(text)
        if match is None:
            raise HandclaspError(Kind.TOKEN_UNKNOWN, "this is not a token, or not all of it", hint="a token is hct_ID_SECRET")
        token_id, secret = match.groups()
        known = self._cache.get(token_id)
        if known is None or known.generation != self._store.generation:
            known = await self._load(token_id)
        digest = hashlib.sha256(secret.encode()).digest()
        if known is None or not hmac.compare_digest(digest, known.secret_sha256):
            raise HandclaspError(Kind.TOKEN_UNKNOWN, "no such token")
        if known.revoked:
            raise HandclaspError(Kind.TOKEN_REVOKED, f"the token {token_id} was revoked")
        if known.expires_at <= self._clock():
            raise HandclaspError(Kind.TOKEN_EXPIRED, f"the token {token_id} has expired", hint="ask its owner for a new one")
        return known.principal

    async def principal_of(self, token_id: str) -> TokenPrincipal | None:
        """Return the bearer of a token that was presented earlier, as it is now; None when it is gone, revoked or has expired."""
        known = await self._known(f"token:{token_id}")
        return None if known is None or known.expires_at <= self._clock() else known.principal

    async def grant_of(self, name: str) -> Grant | None:
        """Return the grant ``token:ID`` as it is today: None when the token is not there or was revoked.

        That a token is spent or has expired ends what can be obtained with it, not the renewal of what was obtained.
        """
        known = await self._known(name)
        return None if known is None else known.principal.grant

    async def labels_of(self, name: str) -> Mapping[str, str]:
        """Return the labels of the agents that the grant ``token:ID`` enrols; none when the token is not there or was revoked.

        An agent's labels are those of the token that its own certificate's line began with: enrolling the same name by another token
        must not add to what an earlier certificate may do.
        """
        known = await self._known(name)
        return {} if known is None or not known.principal.agent else known.principal.labels

    async def _known(self, name: str) -> _Known | None:
        kind, _, token_id = name.partition(":")
        if kind != "token" or _ID.fullmatch(token_id) is None:
            return None
        known = self._cache.get(token_id)
        if known is None or known.generation != self._store.generation:
            known = await self._load(token_id)
        return None if known is None or known.revoked else known

    async def create(self, request: wire.TokenRequest, by: Principal | str) -> wire.TokenCreated:
        """Make a token; durable and logged on return. Only the answer ever holds its secret. Raises as :func:`new_token`."""
        now = self._clock()
        row, text = new_token(request, now=now, random=self._random, created_by=by)
        token_id, grant = row["id"], msgspec.json.decode(row["grant"])
        personal = {"owner": request.owner} if request.owner else {}
        if grant.pop("allow_email", None):  # addresses are people's: salted, so that they can be erased
            personal["allow_email"] = ",".join(request.allow_email)
        entry = make_entry(
            "token.created",
            at=now,
            who=_who(by),
            what={"token": token_id, "name": row["name"], "uses": row["uses"], "expires_at": rfc3339(row["expires_at"]), "grant": grant},
            personal=personal,
            subjects=[f"token:{token_id}"],
            random=self._random,
        )
        # No generation is raised: nothing is remembered of a token that was not there.
        index = await self._store.ledger.commit(Write(entries=[entry], changes=[Change(insert(table).values(row), expect=1)]))
        return wire.TokenCreated(
            id=token_id, name=row["name"], token=text, expires_at=rfc3339(row["expires_at"]), uses=row["uses"], log_entry=index
        )

    async def revoke(self, token_id: str, by: Principal | str) -> int:
        """Revoke a token and return the place of the log entry. Durable on return; a commit that spends it later is refused.

        Raises ``not_found``, ``not_allowed`` when it has a scope that the caller has not, ``conflict`` when it is revoked already.
        """
        scopes = (await self.show(token_id)).scopes
        if not isinstance(by, str) and "admin" not in by.scopes and (beyond := sorted({*scopes} - by.scopes)):
            raise HandclaspError(Kind.NOT_ALLOWED, f"nobody revokes a token with a scope that they do not hold: {beyond[0]}")
        now = self._clock()
        subjects = [f"token:{token_id}"]
        entry = make_entry("token.revoked", at=now, who=_who(by), what={"token": token_id}, subjects=subjects, random=self._random)
        change = Change(
            update(table).where(table.c.id == token_id, table.c.revoked_at.is_(None)).values(revoked_at=now),
            expect=1,
            conflict=HandclaspError(Kind.CONFLICT, f"the token {token_id} is revoked already"),
        )
        index = await self._store.ledger.commit(Write(entries=[entry], changes=[change], bump=True))
        self._cache.pop(token_id, None)
        return index

    async def show(self, token_id: str) -> wire.Token:
        """Return one token, without its secret. Raises ``not_found``."""
        row = await self._store.row(select(table).where(table.c.id == token_id)) if _ID.fullmatch(token_id) else None
        if row is None:
            raise HandclaspError(Kind.NOT_FOUND, "no such token")
        return _to_wire(row, self._clock())

    async def list(self, limit: int = 100, cursor: str | None = None, filters: Mapping[str, str] | None = None) -> wire.TokenList:
        """Return one page, newest first. ``filters``: ``name``, ``owner``, ``state`` (one of :data:`STATES`).

        Raises ``bad_request`` for an unknown filter or state, a limit outside 1 to 1000, or a cursor that is not from here.
        """
        if not 1 <= limit <= 1000:
            raise bad_request("a limit is 1 to 1000")
        now = self._clock()
        query = select(table).order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit + 1)
        for key, value in (filters or {}).items():
            query = query.where(_condition(key, value, now))
        if cursor is not None:
            at, token_id = _read_cursor(cursor)
            query = query.where(or_(table.c.created_at < at, and_(table.c.created_at == at, table.c.id < token_id)))
        rows = await self._store.rows(query)
        after = _cursor(rows[limit - 1]) if len(rows) > limit else None
        return wire.TokenList(items=[_to_wire(row, now) for row in rows[:limit]], next_cursor=after)

    async def _load(self, token_id: str) -> _Known | None:
        generation = self._store.generation  # before the row is read: what changes meanwhile makes this entry stale, and not fresh
        row = await self._store.row(select(table).where(table.c.id == token_id))
        if row is None:
            return None
        stored = TokenGrant.from_json(row.grant)
        principal = TokenPrincipal(
            id=row.id,
            name=row.name,
            owner=row.owner,
            grant=stored.to_grant(row.id),
            scopes=frozenset(stored.scopes),
            agent=stored.agent,
            labels=stored.labels,
            csr_sha256=None if stored.csr_hash is None else bytes.fromhex(stored.csr_hash),
            uses=row.uses,
            expires_at=row.expires_at,
        )
        known = _Known(generation, bytes(row.secret_sha256), row.expires_at, row.revoked_at is not None, principal)
        if len(self._cache) >= MAX_CACHED:
            self._cache.clear()
        self._cache[token_id] = known
        return known


def _who(by: Principal | str) -> dict[str, str]:
    return {"kind": "local", "id": by} if isinstance(by, str) else by.to_log()


# --- rows to answers --------------------------------------------------------------------------------------------------------------------


def _state(row: Row[Any], now: int) -> str:
    if row.revoked_at is not None:
        return "revoked"
    if row.expires_at <= now:
        return "expired"
    return "spent" if row.uses and row.used >= row.uses else "active"


def _condition(key: str, value: str, now: int) -> Any:
    if key in ("name", "owner"):
        return table.c[key] == value
    if key != "state" or value not in STATES:
        raise bad_request(f"{key}={value} is not a filter for tokens", f"name, owner, or state with one of {', '.join(STATES)}")
    if value == "revoked":
        return table.c.revoked_at.is_not(None)
    alive = and_(table.c.revoked_at.is_(None), table.c.expires_at > now)
    spent = and_(table.c.uses > 0, table.c.used >= table.c.uses)
    if value == "expired":
        return and_(table.c.revoked_at.is_(None), table.c.expires_at <= now)
    return and_(alive, spent) if value == "spent" else and_(alive, ~spent)


def _cursor(row: Row[Any]) -> str:
    return base64.urlsafe_b64encode(f"{row.created_at}:{row.id}".encode()).decode().rstrip("=")


def _read_cursor(text: str) -> tuple[int, str]:
    try:
        at, _, token_id = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode("ascii").partition(":")
        if _ID.fullmatch(token_id) and re.fullmatch(r"[0-9]{1,15}", at):
            return int(at), token_id
    except (binascii.Error, ValueError):
        pass
    raise bad_request("this cursor is not from here")


def _to_wire(row: Row[Any], now: int) -> wire.Token:
    grant = TokenGrant.from_json(row.grant)
    return wire.Token(
        id=row.id,
        name=row.name,
        owner=row.owner,
        allow=[*grant.allow],
        allow_dns=[*grant.allow_dns],
        allow_ip=[*grant.allow_ip],
        allow_email=[*grant.allow_email],
        profiles=[*grant.profiles],
        max_ttl=None if grant.max_ttl_ms is None else format_duration(grant.max_ttl_ms / 1000),
        uses=row.uses,
        used=row.used,
        created_at=rfc3339(row.created_at),
        expires_at=rfc3339(row.expires_at),
        last_used_at=None if row.last_used_at is None else rfc3339(row.last_used_at),
        revoked_at=None if row.revoked_at is None else rfc3339(row.revoked_at),
        cidr=[*grant.cidr],
        csr_hash=grant.csr_hash,
        renew=grant.renew,
        agent=grant.agent,
        labels=grant.labels,
        scopes=[*grant.scopes],
        state=_state(row, now),
    )
