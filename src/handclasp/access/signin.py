"""Signing in to the console by an OIDC provider: authorization code with PKCE, state and nonce (OpenID Connect Core 1.0 section 3.1).

What ties the answer to the browser that asked is one random secret in a cookie of that browser: state, nonce and PKCE verifier are derived
from it, so that any process of the server can take the answer, and nothing is kept meanwhile.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus, urlencode

import msgspec

from handclasp.access.egress import check_url
from handclasp.access.jwks import json_object
from handclasp.access.oidc import MAX_DOCUMENT, Fetch, OidcVerifier
from handclasp.access.policy import OidcIssuer
from handclasp.access.principals import OidcPrincipal
from handclasp.access.sessions import derived
from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind

PostForm = Callable[[str, bytes, Mapping[str, str]], Awaitable[tuple[int, bytes]]]
"""Posts a form with further headers to a URL that passed the egress guard; returns status and body."""

METADATA_FOR = 600_000  # ms that the provider's metadata is taken for current
COOLDOWN = 5_000
"""ms after a failure in which the provider is not asked again: anybody may press the button, and each time would be a request to it."""


@dataclass(frozen=True, slots=True)
class Client:
    """What this installation is to its provider."""

    issuer: str
    client_id: str
    secret: str = ""
    """Empty for a public client, which proves itself by PKCE alone."""
    scope: tuple[str, ...] = ("openid", "profile", "email")


class OidcSignIn:
    """One provider. For one event loop; any number of calls at once."""

    def __init__(self, client: Client, fetch: Fetch, post: PostForm, clock: Clock, *, insecure: bool = False) -> None:
        """``insecure`` (a setting, for development) takes a provider over http and on loopback."""
        self._client = client
        self._fetch = fetch
        self._post = post
        self._clock = clock
        self._insecure = insecure
        issuer = OidcIssuer("console", client.issuer, client.client_id)
        self._verifier = OidcVerifier((issuer,), fetch, clock, insecure=insecure)
        self._metadata: dict[str, Any] = {}
        self._fetched_at = 0
        self._failed_at: int | None = None
        self._fetching = asyncio.Lock()

    async def begin(self, redirect_uri: str) -> tuple[str, str]:
        """Return where to send the browser, and the secret that it has to keep until it is back. Raises ``unavailable``."""
        secret = base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")
        challenge = base64.urlsafe_b64encode(hashlib.sha256(derived(secret, "verifier").encode()).digest()).decode().rstrip("=")
        query = urlencode(
            {
                "response_type": "code",
                "client_id": self._client.client_id,
                "redirect_uri": redirect_uri,
                "scope": " ".join(self._client.scope),
                "state": derived(secret, "state"),
                "nonce": derived(secret, "nonce"),
                "code_challenge": challenge,
                "code_challenge_method": "S256",
            }
        )
        address = await self._endpoint("authorization_endpoint")
        return f"{address}{'&' if '?' in address else '?'}{query}", secret

    async def finish(self, secret: str, query: Mapping[str, str], redirect_uri: str) -> OidcPrincipal:
        """Return whom the provider vouches for, once the browser is back with its answer.

        Raises ``not_authenticated`` with what is wrong with the answer, ``unavailable`` when the provider cannot be asked.
        """
        # 1 the answer belongs to what this browser asked (RFC 6749 section 10.12)
        if not secret or not hmac.compare_digest(query.get("state", "").encode(), derived(secret, "state").encode()):
            raise _not("it does not belong to a sign-in that was begun in this browser")
        # 2 it comes from the provider that was asked, where it says so (RFC 9207)
        if query.get("iss", self._client.issuer) != self._client.issuer:
            raise _not("it comes from another provider")
        if "error" in query or not query.get("code"):
            raise _not(f"the provider refused ({query.get('error', 'no code')[:100]})")
        # 3 the code, with the verifier that only this browser's secret gives (RFC 7636)
        token = await self._redeem(query["code"], derived(secret, "verifier"), redirect_uri)
        # 4 signature, issuer, audience, times
        principal = await self._verifier.verify(token)
        # 5 it was made for this very sign-in, and for us (OpenID Connect Core section 3.1.3.7)
        if not hmac.compare_digest(str(principal.claims.get("nonce", "")).encode(), derived(secret, "nonce").encode()):
            raise _not("its nonce is not ours")
        if principal.claims.get("azp", self._client.client_id) != self._client.client_id:
            raise _not("it was made for another client")
        return principal

    async def _redeem(self, code: str, verifier: str, redirect_uri: str) -> str:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "client_id": self._client.client_id,
            "code_verifier": verifier,
        }
        headers = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}
        if self._client.secret:  # RFC 6749 section 2.3.1: both parts are form-encoded before they are joined
            pair = f"{quote_plus(self._client.client_id)}:{quote_plus(self._client.secret)}"
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        status, body = await self._post(await self._endpoint("token_endpoint"), urlencode(form).encode(), headers)
        if status != 200 or len(body) > MAX_DOCUMENT:
            raise _not(f"the provider did not take the code (status {status})")
        try:
            token = msgspec.json.decode(body).get("id_token")
        except (msgspec.MsgspecError, AttributeError, RecursionError) as error:
            raise _not("the provider's answer cannot be read") from error
        if not isinstance(token, str):
            raise _not("the provider's answer has no identity token")
        return token

    async def _endpoint(self, name: str) -> str:
        if not self._metadata or not 0 <= self._clock() - self._fetched_at < METADATA_FOR:
            await self._fetch_metadata()
        address = self._metadata.get(name)
        if not isinstance(address, str):
            raise HandclaspError(Kind.UNAVAILABLE, f"the sign-in provider has no {name}")
        check_url(address, insecure=self._insecure)
        return address

    async def _fetch_metadata(self) -> None:
        """Fetch the provider's metadata, one request at a time, and none right after one that failed."""
        async with self._fetching:
            now = self._clock()
            if self._metadata and 0 <= now - self._fetched_at < METADATA_FOR:
                return  # whoever fetched before has it
            if self._failed_at is not None and 0 <= now - self._failed_at < COOLDOWN:
                raise HandclaspError(Kind.UNAVAILABLE, "the sign-in provider cannot be reached", retry_after=COOLDOWN / 1000)
            try:
                self._metadata, self._fetched_at, self._failed_at = await self._metadata_now(), now, None
            except HandclaspError:  # a visitor who goes away meanwhile is no failure of the provider
                self._failed_at = now
                raise

    async def _metadata_now(self) -> dict[str, Any]:
        url = self._client.issuer.removesuffix("/") + "/.well-known/openid-configuration"
        check_url(url, insecure=self._insecure)
        try:
            metadata = json_object(await self._fetch(url))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise HandclaspError(Kind.UNAVAILABLE, "the sign-in provider's metadata cannot be read") from error
        if metadata.get("issuer") != self._client.issuer:
            raise HandclaspError(Kind.UNAVAILABLE, "the sign-in provider's metadata is not its own", hint="see console_oidc_issuer")
        return metadata


def _not(why: str) -> HandclaspError:
    return HandclaspError(Kind.NOT_AUTHENTICATED, f"the provider's answer is refused: {why}", hint="sign in again")
