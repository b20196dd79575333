"""The one way in which the server fetches URLs that others name: through the egress guard, resolved once, pinned to the address checked."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from handclasp.access.egress import check_address, check_url
from handclasp.errors import HandclaspError, Kind

if TYPE_CHECKING:
    import httpx2

MAX_ANSWER = 262_144  # bytes; a JWKS or a cosignature has a few thousand
TIMEOUT = 10.0


class Fetcher:
    """Fetches what others name, and posts to witnesses, which whoever runs the server names; for one event loop."""

    def __init__(self, *, insecure: bool = False, trust: ssl.SSLContext | None = None) -> None:
        """``insecure`` is for development (see :func:`check_url`); without ``trust``, the public authorities are trusted."""
        self._insecure = insecure
        self._trust = trust
        self._client: httpx2.AsyncClient | None = None

    async def get(self, url: str) -> bytes:
        """Return the body of a GET. Raises ``unavailable`` unless the answer is 200, ``not_allowed`` where the guard forbids it."""
        status, body = await self._send("GET", url, None, insecure=self._insecure)
        if status != 200:
            raise HandclaspError(Kind.UNAVAILABLE, f"{_host(url)} answered with status {status}")
        return body

    async def get_from(
        self, url: str, trust: ssl.SSLContext, check: Callable[[bytes], None] | None = None, *, local: bool = False
    ) -> bytes:
        """As :meth:`get`, over ``https`` alone, with a trust of its own: of the context, and of ``check``, which is given the DER of the
        server's certificate before anything of the answer is read, and raises when it is not the one that is meant. ``local`` also allows
        loopback.
        """
        import httpx2

        if check_url(url, insecure=local).scheme != "https":
            raise HandclaspError(Kind.NOT_ALLOWED, "only https:// is fetched")
        async with httpx2.AsyncClient(verify=trust, timeout=TIMEOUT, follow_redirects=False, trust_env=False) as client:
            status, body = await self._send("GET", url, None, insecure=local, client=client, check=check)
        if 300 <= status < 400:
            raise HandclaspError(Kind.UNAVAILABLE, f"{_host(url)} sent us elsewhere (status {status}), and no redirect is followed")
        if status != 200:
            raise HandclaspError(Kind.UNAVAILABLE, f"{_host(url)} answered with status {status}")
        return body

    async def post(self, url: str, body: bytes) -> tuple[int, bytes]:
        """Return status and body of a POST to a witness, which may be on plain ``http`` and on this machine.

        The operator names it in the settings, and what it answers is signed with a key named beside it, so TLS would add nothing that is
        relied on. Metadata services and link-local addresses stay forbidden.

        Raises ``unavailable`` when there is no answer, ``not_allowed`` where the guard forbids it.
        """
        return await self._send("POST", url, body, insecure=True)

    async def post_form(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Return status and body of a POST to the provider by which people sign in to the console, under the same guard as :meth:`get`.

        Raises ``unavailable`` when there is no answer, ``not_allowed`` where the guard forbids it.
        """
        return await self._send("POST", url, body, insecure=self._insecure, more=headers)

    async def _send(
        self,
        method: str,
        url: str,
        body: bytes | None,
        *,
        more: Mapping[str, str] | None = None,
        insecure: bool,
        client: httpx2.AsyncClient | None = None,
        check: Callable[[bytes], None] | None = None,
    ) -> tuple[int, bytes]:
        import httpx2

        parts = check_url(url, insecure=insecure)
        assert parts.hostname is not None
        address = await self._resolve(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), insecure=insecure)
        if client is None and self._client is None:
            # No connection is kept for the next request: idle ones are known by address, and a later request for another name on the same
            # address would go over one whose certificate was verified for the first.
            alone = httpx2.Limits(max_keepalive_connections=0)
            self._client = httpx2.AsyncClient(
                verify=self._trust or True, timeout=TIMEOUT, follow_redirects=False, trust_env=False, limits=alone
            )
        # The connection goes to the very address that was checked; name and certificate stay those of the URL.
        pinned = httpx2.URL(url).copy_with(host=address)
        headers = {"host": parts.netloc, "accept-encoding": "identity"}  # what is counted is what arrives: no room for a bomb
        headers |= more or {}
        try:
            async with (client or cast("httpx2.AsyncClient", self._client)).stream(
                method, pinned, content=body, headers=headers, extensions={"sni_hostname": parts.hostname}
            ) as answer:
                if check is not None:
                    check(_peer_certificate(answer))
                received = b""
                async for chunk in answer.aiter_raw():
                    received += chunk
                    if len(received) > MAX_ANSWER:
                        raise HandclaspError(Kind.UNAVAILABLE, f"{_host(url)} answered with more than {MAX_ANSWER} bytes")
                return answer.status_code, received
        except httpx2.HTTPError as error:
            raise HandclaspError(Kind.UNAVAILABLE, f"{_host(url)} cannot be reached: {_reason(error)}") from error

    async def _resolve(self, host: str, port: int, *, insecure: bool) -> str:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise HandclaspError(Kind.UNAVAILABLE, f"{host} does not resolve") from error
        addresses = [str(info[4][0]) for info in found]
        for address in addresses:  # all of them: a name that also points inside is up to something
            check_address(address, insecure=insecure)
        return addresses[0]

    async def close(self) -> None:
        """Let go of the client."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _peer_certificate(answer: httpx2.Response) -> bytes:
    """Return the DER of the certificate of the connection's other end."""
    ssl_object = answer.extensions["network_stream"].get_extra_info("ssl_object")
    der: bytes | None = ssl_object.getpeercert(binary_form=True) if ssl_object is not None else None
    if der is None:
        raise HandclaspError(Kind.VERIFY_FAILED, "the server showed no certificate")
    return der


def _reason(error: BaseException) -> str:
    """Say why a certificate was not trusted, where that is what is under it; else the kind of error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not one that we trust ({cause.verify_message})"
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


def _host(url: str) -> str:
    return url.split("/")[2] if url.count("/") >= 2 else url
