"""Kept-alive TLS connections to one server: ``http.client`` made safe for several threads, bounded, and mindful of changed files."""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Protocol, TypeAlias
from urllib.parse import urlsplit

from handclasp.client.material import Credential, file_signature, load_credential, load_trust
from handclasp.errors import HandclaspError, Kind


class Followed(Protocol):
    """A credential that changes while it is used, however it is kept: ``signature`` is cheap; another one means another credential."""

    def signature(self) -> object: ...  # noqa: D102
    def read(self) -> Credential: ...  # noqa: D102


CredentialSource: TypeAlias = "Credential | Followed | tuple[str | PathLike[str], str | PathLike[str]]"
MAX_ANSWER = 256 * 1024 * 1024
"""Bytes of one answer (a CRL bundle of a large installation is the largest): a broken server must not fill our memory."""
_IDLE = 8
_OTHER_NAME = frozenset({62, 64})
"""OpenSSL's codes (X509_V_ERR) for a certificate that is good, and for another host name or address."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def unverified_context() -> ssl.SSLContext:
    """Return a context that verifies nothing, for first contact and for looking at what a service serves: never for sending a secret."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Connections:
    """A small pool. :meth:`exchange` may be called from several threads at once."""

    def __init__(
        self,
        url: str,
        *,
        ca: str | None,
        credential: CredentialSource | None,
        timeout: float,
        context: ssl.SSLContext | None = None,
        find_bundle: Callable[[str], str] | None = None,
    ) -> None:
        """``find_bundle`` turns the ``sha256:`` fingerprint of a root, where ``ca`` is one, into the server's trust bundle (PEM)."""
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
            raise HandclaspError(Kind.BAD_SETTING, f"{url!r} is not a server's address", hint="write it like https://ca.example.org:8443")
        try:
            self._port = parts.port or 443
        except ValueError as error:
            raise HandclaspError(Kind.BAD_SETTING, f"{url!r} has no usable port") from error
        self._url, self._host = url, parts.hostname
        self._ca, self._credential, self._timeout = ca, credential, timeout
        self._given, self._find_bundle = context, find_bundle
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPSConnection] = []
        self._context: ssl.SSLContext | None = None
        self._signature: tuple[object, ...] | None = None
        self._pinned = ""

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def rest(self) -> None:
        """Close idle connections but the one that was used last: a burst of work is over."""
        with self._lock:
            idle, self._idle = self._idle[:-1], self._idle[-1:]
        for connection in idle:
            connection.close()

    def exchange(self, method: str, target: str, data: bytes | None, headers: dict[str, str]) -> Reply:
        """Send one request and read its answer. Raises ``unavailable``, ``timeout``, ``verify_failed``, ``not_authenticated``."""
        context = self._current_context()
        connection = self._take(context)
        try:
            connection.request(method, target, body=data, headers=headers)
            response = connection.getresponse()
            body = self._read(response)
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise self._explain(error) from error
        except BaseException:
            connection.close()
            raise
        reply = Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, body)
        if response.will_close:
            connection.close()
        else:
            self._give_back(connection, context)
        return reply

    def pieces(self, target: str, headers: dict[str, str]) -> Iterator[Reply]:
        """Send one GET and yield its answer piece by piece, each with the status and headers: for answers of any size.

        Raises as :meth:`exchange`, also in the middle: an answer that breaks off is never taken for a whole one.
        """
        context = self._current_context()
        connection = self._take(context)
        try:
            connection.request("GET", target, headers=headers)
            response = connection.getresponse()
            told = {name.lower(): value for name, value in response.getheaders()}
            while chunk := response.read1(262144):
                yield Reply(response.status, told, chunk)
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._explain(error) from error
        finally:
            connection.close()

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        deadline = time.monotonic() + 20 * self._timeout  # each wait is bounded by the timeout; this bounds a server that drips
        chunks, size = [], 0
        while chunk := response.read1(262144):
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_ANSWER:
                raise http.client.HTTPException(f"an answer of more than {MAX_ANSWER} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError("the answer did not end")
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        response.close()  # read1 does not notice the end by itself, and the connection would count as busy
        return b"".join(chunks)

    def _take(self, context: ssl.SSLContext) -> http.client.HTTPSConnection:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=context)
            # A request that cannot be repeated must not go down a connection that the server has closed meanwhile.
            if connection.sock is not None and not _is_readable(connection.sock):
                return connection
            connection.close()

    def _give_back(self, connection: http.client.HTTPSConnection, context: ssl.SSLContext) -> None:
        with self._lock:
            if len(self._idle) < _IDLE and (self._given is not None or context is self._context):
                self._idle.append(connection)
                return
        connection.close()

    # --- trust and credential ---------------------------------------------------------------------------------------------------------

    def _current_context(self) -> ssl.SSLContext:
        if self._given is not None:
            return self._given
        files: list[str] = []
        if self._ca and not self._ca.startswith(("sha256:", "-----BEGIN")):
            files.append(self._ca)
        if isinstance(self._credential, tuple):
            files += [fspath(path) for path in self._credential]
        signature: tuple[object, ...] = file_signature(files)
        if self._credential is not None and not isinstance(self._credential, (tuple, Credential)):
            signature += (self._credential.signature(),)
        with self._lock:
            if self._context is not None and signature == self._signature:
                return self._context
        try:
            context = self._make_context()
        except HandclaspError:
            if self._context is None:
                raise
            return self._context  # files that are being written: what worked a moment ago still does
        with self._lock:
            self._context, self._signature = context, signature
        self.close()
        return context

    def _make_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._ca is None:
            context.load_default_certs()
        else:
            load_trust(context, self._trust_text(self._ca))
        if isinstance(self._credential, tuple):
            load_credential(context, Credential.read(*self._credential))
        elif isinstance(self._credential, Credential):
            load_credential(context, self._credential)
        elif self._credential is not None:
            load_credential(context, self._credential.read())
        return context

    def _trust_text(self, ca: str) -> bytes:
        if ca.startswith("sha256:") and self._find_bundle is not None:
            if not self._pinned:
                self._pinned = self._find_bundle(ca)
            return self._pinned.encode()
        if ca.startswith("-----BEGIN"):
            return ca.encode()
        try:
            return Path(ca).read_bytes()
        except OSError as error:
            raise HandclaspError(Kind.BAD_SETTING, f"cannot read the trust bundle {ca}: {error.strerror}") from error

    def _explain(self, error: Exception) -> HandclaspError:
        where = f"the server at {self._url}"
        if isinstance(error, ssl.SSLCertVerificationError):
            reason = (error.verify_message or str(error)).rstrip(".")
            hint = "set HANDCLASP_CA to its bundle file or to the sha256: fingerprint of its root"
            if error.verify_code in _OTHER_NAME:
                hint = "say a name in HANDCLASP_URL that its certificate has; the server's setting `name` lists them"
            return HandclaspError(Kind.VERIFY_FAILED, f"{where} is not one that we trust: {reason}", hint=hint)
        if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
            return HandclaspError(
                Kind.NOT_AUTHENTICATED,
                f"{where} refused our certificate: {(error.reason or '').lower().replace('_', ' ')}",
                hint="the certificate may have expired, or its authority is not known there",
            )
        if isinstance(error, TimeoutError):
            return HandclaspError(
                Kind.TIMEOUT, f"{where} did not answer in {self._timeout:g} s", hint="is it overloaded, or the network slow?"
            )
        if isinstance(error, socket.gaierror):
            return HandclaspError(Kind.UNAVAILABLE, f"the name {self._host} is not known", hint="check HANDCLASP_URL and the resolver")
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if self._credential is not None and isinstance(error, ssl.SSLEOFError | ConnectionResetError | BrokenPipeError):
            # In TLS 1.3 the server looks at our certificate when our handshake is done; its refusal may be lost with the connection.
            hint = "it may have ended, or it refused our certificate: has that expired, or is its authority not known there?"
            return HandclaspError(Kind.UNAVAILABLE, f"{where} cannot be reached: {reason}", hint=hint)
        return HandclaspError(Kind.UNAVAILABLE, f"{where} cannot be reached: {reason}", hint="is it running, and is HANDCLASP_URL right?")


def _is_readable(sock: socket.socket) -> bool:
    """Tell whether an idle connection has something to say: then it is the end of it."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
