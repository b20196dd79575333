"""OIDC workload tokens: Kubernetes service accounts, CI jobs, any issuer that the policy names.

Every check is written out in :meth:`OidcVerifier.verify`, in order, and each has a test that fails without it. What a token says of its own
key (``jku``, ``x5u``, ``jwk``) is never read, and its ``kid`` is only ever compared with those in the issuer's key set.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from joserfc import jws
from joserfc.errors import JoseError

from handclasp.access.egress import check_url
from handclasp.access.jwks import ALGORITHMS, json_object, read_keys
from handclasp.access.policy import OidcIssuer, Policy
from handclasp.access.principals import OidcPrincipal
from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind

Fetch = Callable[[str], Awaitable[bytes]]
"""Gets a URL: one that passed :func:`handclasp.access.egress.check_url`. It must check and pin the resolved address, follow no redirect,
verify TLS and read at most :data:`MAX_DOCUMENT` bytes."""

MAX_TOKEN = 16 * 1024
MAX_DOCUMENT = 256 * 1024  # bytes: the largest public key set known to us is 20 KB
LEEWAY = 30  # seconds between clocks
REFRESH = 600  # seconds a key set is taken for current
COOLDOWN = 30  # seconds between two fetches, so that tokens with made-up key ids cannot be turned into a flood upon the issuer
STALE = 3600  # seconds a key set may be used while its issuer cannot be reached
FETCH_TIMEOUT = 10  # seconds for both documents together

_PART = re.compile(r"[A-Za-z0-9_-]+")


class _Registry(jws.JWSRegistry):
    """joserfc's algorithms, by our own allow-list."""

    max_header_length = 4096

    def get_alg(self, name: str) -> Any:
        """Return the algorithm, if it is the one that was agreed on."""
        if name not in ALGORITHMS or self.allowed is None or name not in self.allowed:
            raise JoseError("algorithm not allowed")
        return self.algorithms[name]


@dataclass(slots=True)
class _KeySet:
    """What is known of one issuer's keys. Times in ms; 0 is never, and so is what is to come: the clock was set back."""

    keys: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """By ``kid``: (kind of key, the key)."""
    fetched_at: int = 0
    tried_at: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class OidcVerifier:
    """Verifies tokens of the issuers in a policy. For one event loop; any number of calls at once."""

    def __init__(self, issuers: tuple[OidcIssuer, ...], fetch: Fetch, clock: Clock, *, insecure: bool = False) -> None:
        """``insecure`` (a setting, for development) takes issuers over http and on loopback."""
        self._fetch = fetch
        self._clock = clock
        self._insecure = insecure
        self._issuers: dict[str, OidcIssuer] = {}
        self._sets: dict[tuple[str, str | None, str | None], _KeySet] = {}
        self.use(issuers)

    def use(self, issuers: tuple[OidcIssuer, ...] | Policy) -> None:
        """Take the issuers of a new policy; the keys of those that stay are kept."""
        listed = issuers.oidc if isinstance(issuers, Policy) else issuers
        self._issuers = {issuer.issuer: issuer for issuer in listed}
        wanted = {(issuer.issuer, issuer.jwks_url, issuer.jwks) for issuer in listed}
        self._sets = {key: self._sets.get(key) or _KeySet() for key in wanted}

    async def verify(self, token: str, *, audiences: tuple[str, ...] | None = None) -> OidcPrincipal:
        """Return the workload that the token proves; ``audiences`` are taken in the place of the issuer's in the policy.

        Raises ``not_authenticated`` with what is wrong with it, ``too_large``, ``unavailable`` when the issuer's keys cannot be had.
        Whether it was used before is for the ledger to say (``Write.spend_jwt``).
        """
        # 1 size and form
        if len(token) > MAX_TOKEN:
            raise HandclaspError(Kind.TOO_LARGE, f"an identity token has at most {MAX_TOKEN} bytes")
        header, unverified = _decode(token)
        # 2 the algorithm is one of ours
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            raise _not("it is not signed with an algorithm that is taken here")
        if "crit" in header:  # RFC 7515 section 4.1.11: what must be understood and is not
            raise _not("its header has extensions that are not known here")
        # 3 the issuer is one of the policy's, exactly
        named = unverified.get("iss")
        issuer = self._issuers.get(named) if isinstance(named, str) else None
        if issuer is None:
            raise _not("its issuer is not in the policy")
        # 4 the key is one of that issuer's, and goes with the algorithm
        key = await self._key(issuer, header.get("kid"), algorithm)
        # 5 the signature
        claims = _verified(token, key, algorithm)
        # 6 the claims
        return _principal(issuer, audiences or (issuer.audience,), claims, self._clock())

    async def _key(self, issuer: OidcIssuer, kid: Any, algorithm: str) -> Any:
        if not isinstance(kid, str) or not kid or len(kid) > 512:
            raise _not("it does not name its key (kid)")
        known = self._sets.setdefault((issuer.issuer, issuer.jwks_url, issuer.jwks), _KeySet())
        if issuer.jwks is not None:  # written down in the policy, where it was read already: there is nothing to fetch
            known.keys = known.keys or read_keys(issuer.jwks.encode())
        elif not 0 <= self._clock() - known.fetched_at < REFRESH * 1000 or kid not in known.keys:
            await self._refresh(issuer, known, kid)
        found = known.keys.get(kid)
        if found is None:
            raise _not("its issuer has no such key")
        if found[0] != ALGORITHMS[algorithm]:
            raise _not("its algorithm does not go with its key")
        return found[1]

    async def _refresh(self, issuer: OidcIssuer, known: _KeySet, kid: str) -> None:
        """Fetch the keys again, one fetch at a time and not more often than the cooldown allows."""
        async with known.lock:
            now = self._clock()
            current = 0 <= now - known.fetched_at < REFRESH * 1000
            if current and kid in known.keys:
                return  # whoever had the lock before fetched it
            if known.tried_at and 0 <= now - known.tried_at < COOLDOWN * 1000:
                self._make_do(issuer, known, now)
                return
            known.tried_at = now
            try:
                async with asyncio.timeout(FETCH_TIMEOUT):
                    known.keys = read_keys(await self._get(await self._jwks_url(issuer)))
                known.fetched_at = now
            except Exception:  # whatever a fetcher raises, it means one thing: the keys are not to be had
                self._make_do(issuer, known, now)

    @staticmethod
    def _make_do(issuer: OidcIssuer, known: _KeySet, now: int) -> None:
        """Go on with the keys there are, unless they are too old."""
        if not known.fetched_at or not 0 <= now - known.fetched_at <= STALE * 1000:
            raise HandclaspError(
                Kind.UNAVAILABLE, f"the keys of the issuer {issuer.name} cannot be had", hint="see the server's log", retry_after=COOLDOWN
            )

    async def _jwks_url(self, issuer: OidcIssuer) -> str:
        if issuer.jwks_url is not None:
            return issuer.jwks_url
        # OpenID Connect Discovery 1.0 section 4: a slash at the issuer's end is taken off first, and the issuer in the answer is equal.
        metadata = json_object(await self._get(issuer.issuer.removesuffix("/") + "/.well-known/openid-configuration"))
        url = metadata.get("jwks_uri")
        if metadata.get("issuer") != issuer.issuer or not isinstance(url, str):
            raise HandclaspError(Kind.UNAVAILABLE, "the issuer's metadata is not its own")
        return url

    async def _get(self, url: str) -> bytes:
        check_url(url, insecure=self._insecure)
        data = await self._fetch(url)
        if len(data) > MAX_DOCUMENT:
            raise HandclaspError(Kind.UNAVAILABLE, f"the issuer's answer has more than {MAX_DOCUMENT} bytes")
        return data


# --- pure parts -------------------------------------------------------------------------------------------------------------------------


def _not(why: str) -> HandclaspError:
    return HandclaspError(Kind.NOT_AUTHENTICATED, f"the identity token is refused: {why}")


def _decode(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims of a token in compact form, both unverified."""
    parts = token.split(".")
    if len(parts) != 3 or not all(_PART.fullmatch(part) for part in parts):
        raise _not("it is not a signed JWT")
    try:
        return _json_part(parts[0]), _json_part(parts[1])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _not("it is not a signed JWT") from error


def _json_part(part: str) -> dict[str, Any]:
    """Return one base64url part that holds a JSON object; raise ValueError or a msgspec error for anything else."""
    found = msgspec.json.decode(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def _verified(token: str, key: Any, algorithm: str) -> dict[str, Any]:
    """Return the claims that the signature covers."""
    registry = _Registry(algorithms=[algorithm], strict_check_header=False)
    try:
        signed = jws.deserialize_compact(token, key, registry=registry)
        claims = msgspec.json.decode(signed.payload)
    except (JoseError, msgspec.MsgspecError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _not("its signature is wrong") from error
    if not isinstance(claims, dict):
        raise _not("it is not a signed JWT")
    return claims


def _principal(issuer: OidcIssuer, accepted: tuple[str, ...], claims: dict[str, Any], now: int) -> OidcPrincipal:
    # iss: the verified one, exactly
    if claims.get("iss") != issuer.issuer:
        raise _not("its issuer is not in the policy")
    # aud: one text, or a list of which one is ours; nothing that merely contains it
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if not any(isinstance(one, str) and one in accepted for one in audiences):
        raise _not("it is for another audience")
    # exp and iat: there, and right
    expires, issued = _time(claims, "exp"), _time(claims, "iat")
    if expires is None or issued is None:
        raise _not("it does not say when it was issued and when it expires")
    if now >= (expires + LEEWAY) * 1000:
        raise _not("it has expired")
    if now < (issued - LEEWAY) * 1000:
        raise _not("it was issued in the future")
    # nbf: where there is one
    if "nbf" in claims:
        begins = _time(claims, "nbf")
        if begins is None or now < (begins - LEEWAY) * 1000:
            raise _not("it is not valid yet")
    # sub: a text that can be shown
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= 1024 or not subject.isprintable():
        raise _not("it does not say who it is for (sub)")
    # jti: a text where there is one
    jti = claims.get("jti")
    if jti is not None and (not isinstance(jti, str) or not 0 < len(jti) <= 512 or not jti.isprintable()):
        raise _not("its jti is not a text")
    if jti is None and issuer.single_use:
        raise _not("each token of this issuer serves once, and this one has no jti to tell it by")
    return OidcPrincipal(issuer.issuer, subject, claims, jti, round((expires + LEEWAY) * 1000))


def _time(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 40:
        return None
    return value
