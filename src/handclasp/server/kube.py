"""The connection to a cluster's API server, as the policy's ``clusters:`` name it.

The address is one that a person wrote into the policy, with the authority that vouches for it: so it may be private, and on this machine.
Metadata services and link-local addresses stay forbidden, TLS is verified by that authority and by no other, and the bearer token comes
from a file in one directory of the server's own, so that a policy cannot have any other file sent anywhere.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from handclasp.access.clusterrules import Review
from handclasp.access.egress import check_address, check_url
from handclasp.errors import HandclaspError, Kind

if TYPE_CHECKING:
    import httpx2

MAX_ANSWER = 16 * 1024 * 1024  # bytes: a page of pods, of which one has up to some 40 KB
MAX_TOKEN = 16 * 1024
TIMEOUT = 5.0  # seconds; whoever waits for the answer has a time limit of its own


class ApiConnection:
    """One API server. Its client is its own, so that connections can be kept: they all go to the same name."""

    def __init__(self, review: Review, tokens: Path) -> None:
        """``tokens`` is the directory in which the token files are. Raises ``bad_setting`` for an authority that cannot be used."""
        self._url = review.url
        parts = check_url(review.url, insecure=True)
        self._host, self._port, self._netloc = parts.hostname or "", parts.port or 443, parts.netloc
        self._token_file = tokens / review.token_file
        self._trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._trust.minimum_version = ssl.TLSVersion.TLSv1_2
        self._trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            self._trust.load_verify_locations(cadata=review.ca)
        except (ssl.SSLError, ValueError) as error:
            raise HandclaspError(Kind.BAD_SETTING, "its ca cannot be used for TLS") from error
        self._client: httpx2.AsyncClient | None = None

    async def send(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Return status and body of the answer; see :class:`handclasp.access.kubeapi.ApiServer`."""
        import httpx2

        headers = {"host": self._netloc, "accept": "application/json", "accept-encoding": "identity", "authorization": self._bearer()}
        if body is not None:
            headers["content-type"] = "application/json"
        if self._client is None:
            self._client = httpx2.AsyncClient(verify=self._trust, timeout=TIMEOUT, follow_redirects=False, trust_env=False)
        problem = "no address"
        try:
            async with asyncio.timeout(TIMEOUT):
                for address in await self._resolve():
                    try:
                        return await self._exchange(self._client, method, address, path, body, headers)
                    except httpx2.ConnectError as error:  # nothing was sent: the next of its addresses may do
                        problem = type(error).__name__
        except (httpx2.HTTPError, TimeoutError) as error:
            problem = type(error).__name__
        raise HandclaspError(Kind.UNAVAILABLE, f"{self._netloc} cannot be reached: {problem}")

    async def _exchange(
        self, client: httpx2.AsyncClient, method: str, address: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        host = f"[{address}]" if ":" in address else address
        url, extensions = f"https://{host}:{self._port}{path}", {"sni_hostname": self._host}
        async with client.stream(method, url, content=body, headers=headers, extensions=extensions) as answer:
            received = bytearray()
            async for chunk in answer.aiter_raw():
                received += chunk
                if len(received) > MAX_ANSWER:
                    raise HandclaspError(Kind.UNAVAILABLE, f"{self._netloc} answered with more than {MAX_ANSWER} bytes")
            return answer.status_code, bytes(received)

    def _bearer(self) -> str:
        """Return the header with the token as it is now: a projected one is another every hour."""
        try:
            with self._token_file.open("rb") as file:
                token = file.read(MAX_TOKEN + 1).strip()
        except OSError as error:
            raise HandclaspError(
                Kind.UNAVAILABLE, f"the token file {self._token_file.name} cannot be read: {error.strerror}", hint="see docs/istio.md"
            ) from error
        text = token.decode("ascii", "replace")
        if not text or len(token) > MAX_TOKEN or not all("!" <= letter <= "~" for letter in text):
            raise HandclaspError(Kind.UNAVAILABLE, f"the token file {self._token_file.name} holds no token")
        return f"Bearer {text}"

    async def _resolve(self) -> list[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise HandclaspError(Kind.UNAVAILABLE, f"{self._host} does not resolve") from error
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        for address in addresses:
            check_address(address, insecure=True)
        return addresses

    async def close(self) -> None:
        """Let go of every connection."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None
