"""Signing in and out: by a token with scopes, by the client certificate that the browser showed, by an OIDC provider."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

from handclasp.access.limits import Limiter, network_key
from handclasp.access.principals import CertificatePrincipal, OidcPrincipal, TokenPrincipal
from handclasp.access.roles import Roles
from handclasp.access.sessions import Sessions
from handclasp.access.signin import OidcSignIn
from handclasp.access.tokens import Tokens
from handclasp.console.app import NO_COOKIE, ROOT, STRICT, THEME, THEMES, TIMES, Console, Page, session_cookie
from handclasp.console.visit import Answer, Go, Shown, Visit
from handclasp.errors import HandclaspError, Kind

HolderOf = Callable[[bytes], Awaitable[CertificatePrincipal]]
"""Returns the holder of a certificate by its fingerprint (see :func:`handclasp.issuance.holders.holder_of`)."""

PENDING = "__Host-handclasp-signin"
"""Cookie of a sign-in on its way to the provider and back. Lax, for the way back begins at another site; by itself it opens nothing."""
CALLBACK = ROOT + "sign-in/oidc/callback"
_NEXT = re.compile(r"/console/[A-Za-z0-9._~%!$'()*+,;=:@/?&-]*")


class Doors:
    """The ways into the console."""

    def __init__(
        self, sessions: Sessions, tokens: Tokens, holder_of: HolderOf, roles: Roles, limit: Limiter, oidc: OidcSignIn | None, oidc_name: str
    ) -> None:
        """``limit`` is over attempts that failed, by network address."""
        self._sessions = sessions
        self._tokens = tokens
        self._holder_of = holder_of
        self._roles = roles
        self._limit = limit
        self._oidc = oidc
        self._oidc_name = oidc_name
        self._console: Console | None = None

    def attach(self, console: Console) -> None:
        """Take the console, whose log of refusals is used."""
        self._console = console

    def pages(self) -> list[Page]:
        """Return the pages."""
        return [
            Page("GET", "sign-in", self.show, public=True),
            Page("POST", "sign-in/token", self.by_token, public=True),
            Page("POST", "sign-in/certificate", self.by_certificate, public=True),
            Page("GET", "sign-in/oidc", self.to_provider, public=True),
            Page("GET", "sign-in/oidc/callback", self.from_provider, public=True),
            Page("POST", "sign-out", self.out),
            Page("POST", "theme", self.theme, public=True),
            Page("POST", "times", self.times),
        ]

    async def show(self, visit: Visit, error: HandclaspError | None = None, status: int = 200) -> Shown | Go:
        """Show the ways in that there are."""
        if visit.session is not None and error is None:
            return Go(ROOT)
        holder: CertificatePrincipal | None = None
        if visit.certificate is not None:
            try:
                holder = await self._holder_of(visit.certificate)
            except HandclaspError:
                holder = None
        context: dict[str, Any] = {
            "next": _next(visit),
            "holder": holder,
            "holder_role": self._roles.of_identity(holder.identity) if holder is not None else None,
            "takes_certificates": self._roles.takes_certificates,
            "oidc": self._oidc_name if self._oidc is not None else "",
            "error": error,
        }
        return Shown("sign_in.html", context, status)

    async def by_token(self, visit: Visit) -> Answer:
        """Sign in with a token with scopes. It is in the form and never in an address."""
        return await self._enter(visit, lambda: self._tokens.authenticate(visit.form.get("token", "").strip()), "token")

    async def by_certificate(self, visit: Visit) -> Answer:
        """Sign in with the client certificate of this connection."""

        async def proven() -> CertificatePrincipal:
            if visit.certificate is None:
                raise HandclaspError(Kind.NOT_AUTHENTICATED, "your browser showed no certificate", hint="import it; restart the browser")
            holder = await self._holder_of(visit.certificate)
            if holder.superseded_at is not None and holder.grace_is_over:
                raise HandclaspError(Kind.SUPERSEDED, "this certificate was replaced by a newer one", hint="import that one")
            if holder.is_agent:  # whoever has a host has its agent's certificate, whatever pattern of console_roles it fits
                raise HandclaspError(Kind.NOT_ALLOWED, "this is the certificate of an agent, and not of a person", hint="import your own")
            return holder

        return await self._enter(visit, proven, "certificate")

    async def to_provider(self, visit: Visit) -> Answer:
        """Go to the provider."""
        if self._oidc is None:
            raise HandclaspError(Kind.NOT_FOUND, "there is no such page")
        where, secret = await self._oidc.begin(_redirect_uri(visit))
        return Go(where, cookies=(f"{PENDING}={secret}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=600",))

    async def from_provider(self, visit: Visit) -> Answer:
        """Come back from the provider.

        This request was begun by another site, so a browser would not send the new session's cookie along with a redirect of ours. It gets
        a page instead, which goes on by itself: that step is begun by us.
        """
        oidc = self._oidc
        if oidc is None:
            raise HandclaspError(Kind.NOT_FOUND, "there is no such page")
        answer = await self._enter(visit, lambda: oidc.finish(visit.cookies.get(PENDING, ""), visit.query, _redirect_uri(visit)), "oidc")
        over = f"{PENDING}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0"
        if isinstance(answer, Go):
            return Shown("entering.html", {"to": answer.to}, cookies=(*answer.cookies, over))
        return Shown(answer.template, answer.context, answer.status, (over,))

    async def out(self, visit: Visit) -> Answer:
        """Sign out."""
        assert visit.session is not None
        await self._sessions.end(visit.session, visit.source.to_log())
        return Go(ROOT + "sign-in", "You are signed out.", cookies=(NO_COOKIE,))

    async def theme(self, visit: Visit) -> Answer:
        """Keep light or dark in a cookie."""
        wanted = visit.form.get("theme", "")
        if wanted not in THEMES:
            raise HandclaspError(Kind.BAD_REQUEST, f"a theme is one of {', '.join(THEMES)}")
        return Go(_ours(visit.came_from) or _next(visit) or ROOT, cookies=(f"{THEME}={wanted}; Max-Age=31536000{STRICT}",))

    async def times(self, visit: Visit) -> Answer:
        """Keep in a cookie how times are shown."""
        wanted = "exact" if visit.form.get("times") == "exact" else "relative"
        return Go(_ours(visit.came_from) or _next(visit) or ROOT, cookies=(f"{TIMES}={wanted}; Max-Age=31536000{STRICT}",))

    async def _enter(
        self, visit: Visit, prove: Callable[[], Awaitable[TokenPrincipal | CertificatePrincipal | OidcPrincipal]], means: str
    ) -> Shown | Go:
        """Begin a session for who is proven; show the door again, with the reason, to anybody else."""
        key = network_key(visit.source.address or "")
        self._limit.settle(key)
        try:
            session = await self._sessions.begin(await prove(), visit.source.to_log())
        except HandclaspError as error:
            if error.kind in (Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.INTERNAL):
                raise
            self._limit.owe(key)
            assert self._console is not None
            await self._console.note_refusal(visit, error, means)
            return await self.show(visit, error, 403)
        return Go(_next(visit) or ROOT, cookies=(session_cookie(session),))


def _next(visit: Visit) -> str:
    """Return the page that was wanted before signing in; only one of ours."""
    return _ours(visit.form.get("next") or visit.query.get("next", ""))


def _ours(wanted: str) -> str:
    """Return an address if it is one of the console's own pages, and none else."""
    inside = _NEXT.fullmatch(wanted) is not None and "//" not in unquote(wanted.partition("?")[0]) and "/sign-" not in wanted
    return wanted if inside else ""


def _redirect_uri(visit: Visit) -> str:
    return f"https://{visit.headers.get(b'host', b'').decode('latin-1')}{CALLBACK}"
