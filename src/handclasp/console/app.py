"""The console as an ASGI application: find the page, know the person, look where a form comes from, call the page, send it.

What holds for every page is here and nowhere else: the session, the check that a form is ours, the headers.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from handclasp import __version__
from handclasp.access.limits import Limiter, network_key
from handclasp.access.sessions import Session, Sessions
from handclasp.clock import Clock
from handclasp.console.assets import PREFIX, Assets
from handclasp.console.nav import nav_for, section_of, title_of
from handclasp.console.render import environment
from handclasp.console.visit import MAX_FORM, Answer, Api, Go, Raw, Shown, Visit, read_cookies, read_form, read_query
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.request import Source
from handclasp.log.entries import make_entry
from handclasp.log.notes import VerifierKey
from handclasp.store.database import Store
from handclasp.store.writes import Write

ROOT = "/console/"
COOKIE = "__Host-handclasp"
FLASH = "__Host-handclasp-said"
THEME = "__Host-handclasp-theme"
TIMES = "__Host-handclasp-times"
"""Cookie: whether times are shown exactly, and not as people say them."""
FORM_WITHIN = 30.0
"""Seconds that whoever sends a form may take over it: anybody may send one to the door."""
AUTO = b"x-handclasp-auto"
"""Header of what a page asks by itself, every so often."""
THEMES = ("auto", "light", "dark")
STRICT = "; Path=/; Secure; HttpOnly; SameSite=Strict"

_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self';"
        b" frame-ancestors 'none'; base-uri 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"strict-transport-security", b"max-age=31536000"),
    # Not no-referrer: with it, browsers send "Origin: null" with our own forms (Fetch section 3.2), which then look like anybody's.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
_log = logging.getLogger("handclasp.console")

Handler = Callable[[Visit], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Page:
    """One address of the console."""

    method: str
    path: str
    handler: Handler
    public: bool = False
    """Whether it is for people who are not signed in."""


class Console:
    """The pages of one process."""

    def __init__(
        self,
        pages: Sequence[Page],
        api: Api,
        sessions: Sessions,
        store: Store,
        clock: Clock,
        refused: Limiter,
        log_key: VerifierKey,
        *,
        assets: Assets | None = None,
    ) -> None:
        """``refused`` limits refusals by network address: each is an entry of the log."""
        self.assets = assets or Assets()
        self.sessions = sessions
        self._api = api
        self._store = store
        self._clock = clock
        self._refused = refused
        self._log_key = log_key
        self._pages = [(*compile_path(ROOT + page.path), page) for page in sorted(pages, key=lambda page: "{" in page.path)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["path"].startswith(PREFIX):
            await self._send_asset(scope, send)
            return
        visit = self._visit(scope)
        try:
            answer = await self._answer(visit, scope, receive)
            if isinstance(answer, Raw):
                await self._download(answer, scope, receive, send)
                return
        except HandclaspError as error:
            answer = self._problem(error, visit)
        except Exception:  # the last line of defence: a bug in one page must not show its inside
            _log.exception("unexpected error in %s %s", scope["method"], scope["path"][:200])
            answer = self._problem(HandclaspError(Kind.INTERNAL, "unexpected error"), visit)
        try:
            status, headers, body = self._render(answer, visit)
        except Exception:  # a mistake in a template is answered as one in a page, and not with a connection that ends
            _log.exception("a page cannot be rendered: %s", scope["path"][:200])
            status, headers, body = self._render(self._problem(HandclaspError(Kind.INTERNAL, "unexpected error"), visit), visit)
        await _send(send, status, headers, b"" if scope["method"] == "HEAD" else body, len(body))

    def _visit(self, scope: Scope) -> Visit:
        headers = dict(scope["headers"])
        return Visit(
            method="GET" if scope["method"] == "HEAD" else scope["method"],
            path=scope["path"],
            query={},
            headers=headers,
            cookies=read_cookies(headers),
            source=Source("console", scope["client"][0] if scope.get("client") else None),
            api=self._api,
            now=self._clock(),
            log_key=self._log_key,
            certificate=scope.get("extensions", {}).get("tls", {}).get("client_sha256"),
        )

    async def _answer(self, visit: Visit, scope: Scope, receive: Receive) -> Answer:
        visit.query = read_query(scope["query_string"])
        cookie, is_active = visit.cookies.get(COOKIE, ""), AUTO not in visit.headers
        visit.session = await self.sessions.find(cookie, address=visit.source.address, active=is_active)
        page = self._find(visit)
        if visit.session is None and (page is None or not page.public):
            return self._to_door(visit, scope)
        if page is None:
            raise HandclaspError(Kind.NOT_FOUND, "there is no such page", hint="begin at the overview")
        if visit.method == "POST":
            try:
                async with asyncio.timeout(FORM_WITHIN):
                    body = await _read_body(receive)
            except TimeoutError as error:
                raise HandclaspError(Kind.TIMEOUT, "the form did not come in time", hint="send it again") from error
            visit.form, visit.lists = read_form(body)
            await self._check_form(visit)
        return await page.handler(visit)

    def _find(self, visit: Visit) -> Page | None:
        for regex, _, convertors, page in self._pages:
            match = regex.match(visit.path) if page.method == visit.method else None
            if match is not None:
                visit.params = {name: str(convertors[name].convert(value)) for name, value in match.groupdict().items()}
                return page
        return None

    def _to_door(self, visit: Visit, scope: Scope) -> Answer:
        wanted = visit.path + ("?" + scope["query_string"].decode("latin-1") if scope["query_string"] else "")
        if visit.method != "GET":
            wanted = visit.came_from  # a form cannot be kept; its page can
        to = ROOT + "sign-in" + ("?" + urlencode({"next": wanted}) if wanted not in ("", ROOT) else "")
        lost = "" if visit.method == "GET" else " Nothing was changed."
        return Go(to, "" if COOKIE not in visit.cookies else f"Your session has ended.{lost} Sign in again.", bad=True)

    # --- where a form comes from ----------------------------------------------------------------------------------------------------

    async def _check_form(self, visit: Visit) -> None:
        """Raise ``not_allowed`` unless the form is of a page of ours: by what the browser says, and by the session's own mark."""
        host = visit.headers.get(b"host", b"").decode("latin-1")
        origin = visit.headers.get(b"origin", b"").decode("latin-1")
        site = visit.headers.get(b"sec-fetch-site", b"").decode("latin-1")
        reason = ""
        if origin != f"https://{host}":
            reason = "origin"  # every browser sends it with a form (Fetch section 3.2)
        elif site not in ("", "same-origin"):
            reason = "site"
        elif visit.session is not None:
            given = visit.headers.get(b"x-csrf-token", b"").decode("latin-1") or visit.form.get("csrf", "")
            if not _equal(given, visit.session.csrf):
                reason = "csrf"
        if not reason:
            return
        error = HandclaspError(Kind.NOT_ALLOWED, "this form is not of this page, or is too old", hint="load the page again, and repeat")
        await self.note_refusal(visit, error, reason)
        raise error

    async def note_refusal(self, visit: Visit, error: HandclaspError, reason: str) -> None:
        """Log a refusal at the console's own door. Raises ``rate_limited`` for who is refused all the time."""
        if visit.source.address is not None:
            self._refused.check(network_key(visit.source.address))
        entry = make_entry(
            "console.refused",
            at=self._clock(),
            who=visit.session.user.to_log() if visit.session is not None else {"kind": "unknown"},
            what={"method": visit.method, "path": visit.path[:200]},
            why={"kind": error.kind.value, "reason": reason},
            source=visit.source.to_log(),
        )
        await self._store.ledger.commit(Write([entry]))

    # --- answers --------------------------------------------------------------------------------------------------------------------

    def _problem(self, error: HandclaspError, visit: Visit) -> Shown:
        status = self._api.status(error)
        detail = "something is wrong inside the server; its log says what" if error.kind is Kind.INTERNAL else error.detail
        back = visit.came_from if visit.method == "POST" else ""
        return Shown(
            "problem.html", {"detail": detail, "hint": error.hint, "kind": error.kind.value, "status": status, "back": back}, status
        )

    def _render(self, answer: Shown | Go, visit: Visit) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        headers = [*_HEADERS, (b"cache-control", b"no-store")]
        headers += [(b"set-cookie", cookie.encode()) for cookie in answer.cookies]
        if isinstance(answer, Go):
            return self._go(answer, visit, headers)
        said = self._said(visit)
        if said and not visit.partial:
            headers.append((b"set-cookie", f"{FLASH}=; Max-Age=0{STRICT}".encode()))
        context = self._frame(visit, said if not visit.partial else {}) | dict(answer.context)
        body = environment().get_template(answer.template).render(context).encode()
        headers.append((b"content-type", b"text/html; charset=utf-8"))
        headers.append((b"vary", b"HX-Request"))
        return answer.status, headers, body

    def _go(self, answer: Go, visit: Visit, headers: list[tuple[bytes, bytes]]) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        if answer.message:
            said = base64.urlsafe_b64encode(f"{'!' if answer.bad else '.'}{answer.message[:600]}".encode()).decode()
            headers.append((b"set-cookie", f"{FLASH}={said}; Max-Age=60{STRICT}".encode()))
        to = quote(answer.to, safe="/:?&=%#+,;@[]!$'()*~").encode()
        if visit.partial:  # htmx would follow a redirect and put the page where the part was
            return 200, [*headers, (b"hx-redirect", to)], b""
        return 303, [*headers, (b"location", to)], b""

    @staticmethod
    def _said(visit: Visit) -> dict[str, Any]:
        """Return what the page before wanted to say here."""
        try:
            text = base64.urlsafe_b64decode(visit.cookies.get(FLASH, "")).decode()
        except ValueError:
            return {}
        return {"text": text[1:], "bad": text[0] == "!"} if text else {}

    def _frame(self, visit: Visit, said: Mapping[str, Any]) -> dict[str, Any]:
        """Return what every page has around it."""
        theme = visit.cookies.get(THEME, "auto")
        return {
            "visit": visit,
            "session": visit.session,
            "user": visit.session.user if visit.session is not None else None,
            "now": visit.now,
            "asset": self.assets.address,
            "theme": theme if theme in THEMES else "auto",
            "said": said,
            "partial": visit.partial,
            "version": __version__,
            "frame": "partial.html" if visit.partial else "base.html",
            "nav": nav_for(visit.can) if visit.session is not None else [],
            "section": section_of(visit.path),
            "section_title": title_of(section_of(visit.path)),
            "exactly": visit.cookies.get(TIMES) == "exact",
            "domain": visit.log_key.name.partition("/")[0],
        }

    async def _download(self, answer: Raw, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a download. What is raised here is raised before anything is sent."""
        headers = [*_HEADERS, (b"cache-control", b"no-store"), (b"content-type", answer.media_type.encode())]
        headers.append((b"content-disposition", f'attachment; filename="{answer.file_name}"'.encode()))
        await self._api.send_parts(answer.parts, headers, receive, send, head=scope["method"] == "HEAD")

    async def _send_asset(self, scope: Scope, send: Send) -> None:
        asset = self.assets.find(scope["path"])
        headers = list(_HEADERS)
        if asset is None or scope["method"] not in ("GET", "HEAD"):
            await _send(send, 404, [*headers, (b"content-type", b"text/plain")], b"", 0)
            return
        packed = any(name == b"accept-encoding" and b"gzip" in value for name, value in scope["headers"])
        body = asset.packed if packed else asset.data
        headers += [
            (b"content-type", asset.media_type.encode()),
            (b"cache-control", b"public, max-age=31536000, immutable"),
            (b"vary", b"accept-encoding"),
            *([(b"content-encoding", b"gzip")] if packed else []),
        ]
        await _send(send, 200, headers, b"" if scope["method"] == "HEAD" else body, len(body))


def session_cookie(session: Session) -> str:
    """Return the cookie of a new session."""
    return f"{COOKIE}={session.secret}{STRICT}"


NO_COOKIE = f"{COOKIE}=; Max-Age=0{STRICT}"
"""Takes the session's cookie away."""


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


async def _read_body(receive: Receive) -> bytes:
    received = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HandclaspError(Kind.BAD_REQUEST, "the connection ended before the form did")
        part: bytes = message.get("body", b"")
        received += part
        if len(received) > MAX_FORM:
            raise HandclaspError(Kind.TOO_LARGE, f"a form has at most {MAX_FORM} bytes")
        if not message.get("more_body", False):
            return received


async def _send(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes, length: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"content-length", str(length).encode())]})
    await send({"type": "http.response.body", "body": body})
