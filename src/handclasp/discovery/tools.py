"""What a source reads with: a clock, guarded connections, secrets from files, and the word that it is time to stop."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from handclasp.access.egress import check_address, forms_of
from handclasp.clock import Clock
from handclasp.discovery.source import Scope
from handclasp.errors import HandclaspError, Kind

if TYPE_CHECKING:
    from handclasp.client.material import Credential
    from handclasp.discovery.http import Http

CONNECT_TIMEOUT = 10.0  # seconds
MAX_SECRET = 1024 * 1024  # bytes: a kubeconfig or a CA file; a token has a few hundred


@dataclass(slots=True)
class Tools:
    """One scan's tools, for one event loop. ``stop`` is set when the reading is to end."""

    clock: Clock
    """Milliseconds since the epoch; never before ``began_at``, so a machine whose clock is slow makes nothing look gone."""
    began_at: int
    """When the scan began, by the server's clock: what :class:`~handclasp.wire.observations.Covered` takes."""
    scope: Scope = field(default_factory=Scope)
    secrets: Sequence[Path] = ()
    """Directories in which files that settings name may be; a relative name is one of the first."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is true of everything in this source (zone, environment, tags). The engine adds it to what is observed."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    known: Callable[[str], Awaitable[frozenset[str]]] | None = None
    """Returns the keys of the locations that a unit of this source has now; None where that cannot be asked (a collector far away)."""

    async def resolve(self, host: str, port: int, *, timeout: float = CONNECT_TIMEOUT) -> list[str]:
        """Return the addresses of a host, resolved once and each allowed: connect to these and to no others.

        An address is its own answer. Raises ``unavailable`` when there is none, ``not_allowed`` when one of them is a metadata service,
        link-local, loopback (unless the scope says ``loopback``) or denied by the scope: a name that also points there is up to something.
        """
        try:
            async with asyncio.timeout(timeout):
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError) as error:  # UnicodeError: a label that is too long
            raise HandclaspError(Kind.UNAVAILABLE, f"{host} does not resolve") from error
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        for address in addresses:
            self.check_address(address)
        return addresses

    def check_address(self, address: str) -> None:
        """Raise ``not_allowed`` unless a connection may go to this address."""
        check_address(address, insecure=self.scope.loopback)
        parsed = ipaddress.ip_address(address.partition("%")[0])
        denied, forms = _networks(self.scope.deny), forms_of(parsed)
        if any(form in network for network in denied for form in forms):
            raise HandclaspError(Kind.NOT_ALLOWED, f"the scope denies {address}")

    def http(
        self,
        url: str,
        *,
        ca: bytes | None = None,
        ca_file: str | None = None,
        certificate_file: str | None = None,
        key_file: str | None = None,
        credential: Credential | None = None,
        token_file: str | None = None,
        token_is_own: bool = False,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        max_answer: int = 32 * 1024 * 1024,
        plain: bool = False,
    ) -> Http:
        """Return a client of one server (``async with tools.http(url, …) as server:``); see :class:`handclasp.discovery.http.Http`.

        ``url`` is the base, ``https://``. ``http://`` works where the scope allows loopback and the address is one, and with ``plain``
        anywhere: for admin ports of proxies that speak nothing else, never with a token. ``ca`` (PEM) or ``ca_file`` is all that is
        trusted; without one, the public authorities are. ``certificate_file`` and ``key_file`` are a client certificate; ``token_file`` is
        a bearer token, read again for each request because such files are replaced, and sent where :meth:`token` allows it; anywhere with
        ``token_is_own``, for a URL that did not come from settings but from where the token came from. Files are named as for
        :meth:`secret`; what is in them is never in messages. Raises ``bad_setting`` for files that cannot be used, ``not_allowed`` for
        other URLs.
        """
        from handclasp.discovery.http import Http

        return Http(
            self,
            url,
            ca=ca,
            ca_file=ca_file,
            certificate_file=certificate_file,
            key_file=key_file,
            credential=credential,
            token_file=token_file,
            token_is_own=token_is_own,
            headers=headers or {},
            timeout=timeout,
            max_answer=max_answer,
            plain=plain,
        )

    def secret(self, path: str) -> bytes:
        """Return what is in a file that settings name, at most 1 MiB; read anew each time.

        Settings come from whoever may write sources, so that only files in the directories kept for this are read (``sources`` in the data
        directory of a server; a collector names its own). Raises ``bad_setting``.
        """
        where = self.file(path)
        try:
            with where.open("rb") as file:
                content = file.read(MAX_SECRET + 1)
        except OSError as error:
            raise HandclaspError(Kind.BAD_SETTING, f"the file {path} cannot be read: {error.strerror}") from error
        if len(content) > MAX_SECRET:
            raise HandclaspError(Kind.BAD_SETTING, f"the file {path} is larger than {MAX_SECRET} bytes")
        return content

    def token(self, path: str, url: str) -> str:
        """Return the token in a file that settings name, to be sent to the server of ``url``; read anew each time.

        Whoever may write sources names both the file and the server, and must not be able to have the one sent to a server of theirs: the
        file beside it with ``.hosts`` after its name, which the keeper of the directory writes, says where it may go (``HOST:PORT`` on each
        line; without a port 443). Without such a file it goes nowhere. Raises ``bad_setting``.
        """
        to = _server_of(url)
        if not to or to not in self._hosts(path):
            raise HandclaspError(
                Kind.BAD_SETTING,
                f"the file {path} may not be sent to {to}",
                hint=f"who keeps the directory of these files allows it: a line {to} in {path}.hosts",
            )
        return self.own_token(path)

    def own_token(self, path: str) -> str:
        """Return the token in a file, for a server that was named by whoever put the file there. Raises ``bad_setting``."""
        token = self.secret(path).strip()
        if not token or not token.isascii() or not token.decode("ascii").isprintable():
            raise HandclaspError(Kind.BAD_SETTING, f"the file {path} holds no token")
        return token.decode("ascii")

    def _hosts(self, path: str) -> set[str]:
        where = self.file(path)  # links followed: the file itself is bound, by whatever name it is called
        beside = where.with_name(f"{where.name}.hosts")
        try:
            with beside.open(encoding="ascii") as file:
                lines = file.read(MAX_SECRET).splitlines()
        except (OSError, ValueError):
            return set()
        return {_server_of(f"https://{line}") for each in lines if (line := each.partition("#")[0].strip())}

    def file(self, path: str) -> Path:
        """Return where a file or a socket that settings name is, links followed; raise ``bad_setting`` outside the directories for them."""
        if not self.secrets:
            raise HandclaspError(Kind.BAD_SETTING, f"no directory is set for files such as {path}")
        try:
            where = (self.secrets[0] / path).resolve()
            roots = [root.resolve() for root in self.secrets]
        except (OSError, ValueError, RuntimeError) as error:  # a NUL, a loop of links
            raise HandclaspError(Kind.BAD_SETTING, "this is not a file's name") from error
        if not any(where.is_relative_to(root) for root in roots):
            raise HandclaspError(
                Kind.BAD_SETTING,
                f"the file {path} is outside the directory for files of sources",
                hint=f"put it into {self.secrets[0]}, and name it relative to that",
            )
        return where

    async def pause(self, seconds: float) -> bool:
        """Wait, and return whether it is time to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self.stop.wait()
        except TimeoutError:
            return False
        return True


def reason(error: BaseException | None) -> str:
    """Say in a few words why a connection failed, without addresses of ours or anything secret."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not one that is trusted here ({cause.verify_message})"
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {(cause.reason or 'no handshake').replace('_', ' ').lower()}"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__ if error is not None else "no address"


def _server_of(url: str) -> str:
    """Return ``HOST:PORT`` of a URL; empty for what is none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
    except ValueError:
        return ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _networks(entries: Sequence[str]) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    found = []
    for entry in entries:
        try:
            found.append(ipaddress.ip_network(entry, strict=False))
        except ValueError:
            continue  # a name, and not an address
    return found
