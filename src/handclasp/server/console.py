"""The console on the HTTPS listener: its sessions, its ways in, and the API in process."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from handclasp.access.limits import Limiter
from handclasp.access.roles import Roles
from handclasp.access.sessions import Sessions
from handclasp.access.signin import Client, OidcSignIn
from handclasp.api.internal import InternalApi
from handclasp.api.table import API
from handclasp.console.app import ROOT, Console
from handclasp.console.doors import Doors
from handclasp.console.table import PAGES
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.holders import holder_of
from handclasp.server.instance import Instance
from handclasp.server.settings import Settings

ATTEMPTS_PER_SECOND = 0.2
ATTEMPTS_AT_ONCE = 20
"""Sign-ins from one address that may fail: people mistype, and nobody guesses 256 bits, but each failure is an entry of the log."""


def make_sessions(instance: Instance) -> Sessions:
    """Return the sessions of an installation."""
    settings = instance.settings
    roles = Roles(settings.console_roles)
    return Sessions(
        instance.store,
        instance.services.tokens,
        roles,
        instance.clock,
        idle=settings.console_idle,
        lifetime=settings.console_lifetime,
    )


def with_console(instance: Instance, app: ASGIApp) -> ASGIApp:
    """Return the application of the HTTPS listener with the console in it; a browser that asks for ``/`` is led there."""
    console = make_console(instance)

    async def choose(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.startswith(ROOT):
            await console(scope, receive, send)
        elif path in ("/", ROOT[:-1]) and scope["method"] in ("GET", "HEAD") and (path != "/" or _is_browser(scope)):
            headers = [(b"location", ROOT.encode()), (b"content-length", b"0"), (b"vary", b"accept")]
            await send({"type": "http.response.start", "status": 303, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
        else:
            await app(scope, receive, send)

    return choose


def make_console(instance: Instance) -> Console:
    """Return the console of an installation."""
    settings, services, clock = instance.settings, instance.services, instance.clock
    sessions = make_sessions(instance)
    doors = Doors(
        sessions,
        services.tokens,
        lambda sha256: holder_of(services, sha256),
        Roles(settings.console_roles),
        Limiter(ATTEMPTS_PER_SECOND, ATTEMPTS_AT_ONCE, clock),
        _oidc(instance),
        urlsplit(settings.console_oidc_issuer).hostname or "",
    )
    api = InternalApi(API, services, report=instance.health.report)
    console = Console([*PAGES, *doors.pages()], api, sessions, instance.store, clock, services.refused_limit, instance.log_signer.vkey)
    doors.attach(console)
    return console


def _oidc(instance: Instance) -> OidcSignIn | None:
    settings = instance.settings
    if not settings.console_oidc_issuer:
        return None
    client = Client(settings.console_oidc_issuer, settings.console_oidc_client_id, _secret(settings), settings.console_oidc_scope)
    fetcher = instance.fetcher
    return OidcSignIn(client, fetcher.get, fetcher.post_form, instance.clock, insecure=settings.oidc_allow_http)


def _secret(settings: Settings) -> str:
    if settings.console_oidc_secret_file is None:
        return ""
    try:
        return settings.console_oidc_secret_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise HandclaspError(Kind.BAD_SETTING, f"console_oidc_secret_file: {settings.console_oidc_secret_file} cannot be read") from error


def _is_browser(scope: Scope) -> bool:
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])
