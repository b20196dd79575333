"""HTTP for sources: one server, its address resolved once and pinned, answers bounded, no redirect followed."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx2
import msgspec

from handclasp.access.egress import check_url
from handclasp.client.material import Credential, load_credential
from handclasp.discovery.tools import reason
from handclasp.errors import HandclaspError, Kind

if TYPE_CHECKING:
    from handclasp.discovery.tools import Tools

MAX_LINE = 16 * 1024 * 1024  # bytes: one object of a watch
WHOLE = 600.0
"""Seconds that one answer may take in all, but for a watch: a server that sends a byte now and then would keep a worker for ever."""

_REFUSALS: Mapping[int, Kind] = {401: Kind.NOT_ALLOWED, 403: Kind.NOT_ALLOWED, 404: Kind.NOT_FOUND}
_WATCH_REFUSALS: Mapping[int, Kind] = {**_REFUSALS, 410: Kind.CONFLICT}


class Answer(msgspec.Struct, frozen=True):
    """Status, headers (lower case) and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self, type_: Any) -> Any:
        """Return the body decoded as JSON into ``type_``; raise ``unavailable`` when it is not that.

        A type is always named: what it does not have is skipped at a gigabyte per second, while anything at all would be built, at a
        hundred times its size, with everything else waiting (the decoder holds the interpreter's lock, so that a thread would not help).
        """
        try:
            return msgspec.json.decode(self.body, type=type_)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:  # the last: lists in lists in lists
            raise HandclaspError(Kind.UNAVAILABLE, f"its answer is not what was expected: {error}") from error


class Http:
    """A client of one server, made by :meth:`Tools.http <handclasp.discovery.tools.Tools.http>`; an async context manager.

    Paths are relative to the base URL (``/api/v1/secrets``). Statuses are the caller's to judge, except with :meth:`json`. Every method
    raises ``unavailable`` when there is no answer, ``timeout`` when it does not come in time, ``not_allowed`` where the guard forbids the
    address, ``too_large`` when the answer is.
    """

    def __init__(
        self,
        tools: Tools,
        url: str,
        *,
        ca: bytes | None,
        ca_file: str | None,
        certificate_file: str | None,
        key_file: str | None,
        credential: Credential | None,
        token_file: str | None,
        token_is_own: bool,
        headers: Mapping[str, str],
        timeout: float,
        max_answer: int,
        plain: bool,
    ) -> None:
        parts = check_url(url, insecure=tools.scope.loopback or plain)
        if parts.scheme != "https" and token_file is not None:
            raise HandclaspError(Kind.BAD_SETTING, "a token is sent over https:// alone")
        self._tools, self._url, self._token_file, self._token_is_own = tools, url.rstrip("/"), token_file, token_is_own
        self._host, self._netloc = parts.hostname or "", parts.netloc
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._only_here = parts.scheme != "https" and not plain
        self._headers = {"accept": "application/json", "accept-encoding": "identity", **{k.lower(): v for k, v in headers.items()}}
        self._timeout, self._max_answer = timeout, max_answer
        self._context = _context(tools, ca, ca_file, certificate_file, key_file, credential)
        self._client: httpx2.AsyncClient | None = None
        self._address: str | None = None

    async def __aenter__(self) -> Self:
        self._client = httpx2.AsyncClient(verify=self._context, timeout=self._timeout, follow_redirects=False, trust_env=False)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def get(self, path: str, *, params: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Return the answer to a GET, whatever its status."""
        return await self.send("GET", path, params=params, headers=headers)

    async def post(self, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None) -> Answer:
        """Return the answer to a POST of JSON (or of ``bytes`` as they are), whatever its status."""
        content = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
        return await self.send("POST", path, content=content, headers={"content-type": "application/json", **(headers or {})})

    async def json(self, path: str, *, type_: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Return the answer to a GET that must succeed, decoded into ``type_``: any status but 200 is ``unavailable``, 404 is
        ``not_found``, 401 and 403 are ``not_allowed``, each with the path in the message.
        """
        answer = await self.get(path, params=params)
        self._check_status(answer.status, path, _REFUSALS)
        return answer.json(type_)

    async def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Return the answer to any request, at most ``max_answer`` bytes of it."""
        try:
            async with asyncio.timeout(WHOLE), self._stream(method, path, params, content, headers, self._timeout) as answer:
                received = bytearray()
                async for chunk in answer.aiter_raw():
                    received += chunk
                    if len(received) > self._max_answer:
                        raise HandclaspError(Kind.TOO_LARGE, f"{self._netloc} answers {path} with more than {self._max_answer} bytes")
                return Answer(answer.status_code, {k.lower(): v for k, v in answer.headers.items()}, bytes(received))
        except TimeoutError as error:
            raise self._slow() from error

    async def lines(self, path: str, *, params: Mapping[str, Any] | None = None, idle: float = 60.0) -> AsyncIterator[bytes]:
        """Yield the lines of an answer as they come (a watch), until the server ends it; ``timeout`` after ``idle`` seconds of silence.

        Any status but 200 is raised as by :meth:`json`, 410 (the version is too old) as ``conflict``.
        """
        async with self._stream("GET", path, params, None, None, idle) as answer:
            self._check_status(answer.status_code, path, _WATCH_REFUSALS)
            rest = b""
            async for chunk in answer.aiter_raw():
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    if line.strip():
                        yield line
                if len(rest) > MAX_LINE:
                    raise HandclaspError(Kind.TOO_LARGE, f"{self._netloc} sends a line of more than {MAX_LINE} bytes")
            if rest.strip():
                yield rest

    async def chunks(self, path: str, *, params: Mapping[str, Any] | None = None, idle: float = 60.0) -> AsyncIterator[bytes]:
        """Yield the body of an answer in pieces as they come, for what is larger than memory should be; otherwise as :meth:`lines`."""
        async with self._stream("GET", path, params, None, None, idle) as answer:
            self._check_status(answer.status_code, path, _WATCH_REFUSALS)
            deadline = time.monotonic() + WHOLE
            async for chunk in answer.aiter_raw():
                if time.monotonic() > deadline:
                    raise self._slow()
                yield chunk

    def _check_status(self, status: int, path: str, refusals: Mapping[int, Kind]) -> None:
        if status != 200:
            raise HandclaspError(refusals.get(status, Kind.UNAVAILABLE), f"{self._netloc} answers {status} for {path}")

    def _slow(self) -> HandclaspError:
        return HandclaspError(Kind.TIMEOUT, f"{self._netloc} does not come to the end of its answer within {WHOLE:g} s")

    @contextlib.asynccontextmanager
    async def _stream(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None,
        content: bytes | None,
        headers: Mapping[str, str] | None,
        timeout: float,
    ) -> AsyncIterator[httpx2.Response]:
        if self._client is None:
            raise HandclaspError(Kind.INTERNAL, "this client is not open")
        sent = {"host": self._netloc, **self._headers, **(headers or {})}
        if self._token_file is not None:
            tools, file = self._tools, self._token_file
            sent["authorization"] = f"Bearer {tools.own_token(file) if self._token_is_own else tools.token(file, self._url)}"
        url = httpx2.URL(self._url + path).copy_with(host=await self._pinned())
        try:
            async with self._client.stream(
                method, url, params=params, content=content, headers=sent, extensions={"sni_hostname": self._host}, timeout=timeout
            ) as answer:
                yield answer
        except httpx2.TimeoutException as error:
            raise HandclaspError(Kind.TIMEOUT, f"{self._netloc} does not answer within {timeout:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, ssl.SSLError) as error:
            self._address = None  # it may have moved
            raise HandclaspError(Kind.UNAVAILABLE, f"{self._netloc} cannot be reached: {reason(error)}") from error

    async def _pinned(self) -> str:
        """Return the one address that every request goes to; checked when it was resolved."""
        if self._address is None:
            address = (await self._tools.resolve(self._host, self._port))[0]
            if self._only_here and not ipaddress.ip_address(address).is_loopback:
                raise HandclaspError(Kind.NOT_ALLOWED, "http:// is for this machine alone", hint="use https://")
            self._address = address
        return self._address


def _context(
    tools: Tools, ca: bytes | None, ca_file: str | None, certificate_file: str | None, key_file: str | None, credential: Credential | None
) -> ssl.SSLContext:
    try:
        if ca is None and ca_file is not None:
            ca = tools.secret(ca_file)
        context = ssl.create_default_context(cadata=ca.decode("ascii") if ca is not None else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if ca is not None:
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # private authorities often lack what RFC 5280 asks of them
        if certificate_file is not None:
            # Without the password OpenSSL would ask for the one of an encrypted key at the terminal, and everything would wait for that.
            key = tools.file(key_file) if key_file is not None else None
            context.load_cert_chain(tools.file(certificate_file), key, password="")
        if credential is not None:
            load_credential(context, credential)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError; UnicodeDecodeError a ValueError
        raise HandclaspError(Kind.BAD_SETTING, f"the files for TLS cannot be used: {reason(error)}") from error
    return context
