"""TLS of our own listeners: optional client certificates that reach the application, and certificate and trust swapped under load.

uvicorn's protocol classes are not a documented extension point, so everything that leans on them is in this file, the version is pinned,
and a contract test holds that a verified certificate arrives.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from handclasp.api.problems import to_problem
from handclasp.client.material import Credential, load_credential, load_trust
from handclasp.errors import HandclaspError, Kind

LINGER = 2.0
"""Seconds for the last answer and TLS's goodbye to arrive, before a connection that is closed for cause is cut."""
KEPT = 8_192
"""Connections of a listener, in one process, that stay open after an answer: some 75 KB each. Beyond them each serves one request, so that
any number of agents is served, and nobody is refused because of others who say nothing."""
MAX_HEAD = 65_536
"""Bytes of request line and headers together. A token has 16 KiB at most, and nothing else here needs as many."""


class OneWrite:
    """A transport that joins what is written in one turn of the event loop.

    uvicorn writes the head and the body of an answer one after the other; together they are one TLS record and one system call, which
    saves some 8 % of an issuance.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Take bytes to write; they leave before the event loop waits for anything."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)

    def close(self) -> None:
        """Write what is held, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held:
            held, self._held = b"".join(self._held), []
            self._transport.write(held)


class PeerCertificateProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with the verified client certificate in ``scope["extensions"]["tls"]``.

    ``client_sha256`` is the SHA-256 of its DER, ``client_der`` the DER, ``version`` the TLS version. Computed once a connection.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Remember who is at the other end."""
        super().connection_made(OneWrite(transport, self.loop))  # type: ignore[arg-type]
        self.reading_since: float | None = self.loop.time()
        """Since when we wait for the rest of a head, or of a body that nobody reads any more; None while the application works."""
        self._head_size = 0
        self._head_too_large = False
        self._body_open = False
        self._tls: dict[str, Any] | None = None
        ssl_object = transport.get_extra_info("ssl_object")
        if ssl_object is not None:
            der = ssl_object.getpeercert(binary_form=True)
            self._tls = {
                "version": ssl_object.version(),
                "client_der": der,
                "client_sha256": hashlib.sha256(der).digest() if der else None,
            }

    def data_received(self, data: bytes) -> None:
        """Take bytes; end the connection when the head of a request grows beyond its limit."""
        if self.reading_since is None and (self.cycle is None or self.cycle.response_complete):
            # uvicorn's own timer for idle connections ends with any byte, also with an empty line that begins no request.
            self.reading_since = self.loop.time()
        super().data_received(data)
        if self.reading_since is None or self._body_open:
            self._head_size = 0
            return
        self._head_size += len(data)
        if self._head_size > MAX_HEAD + len(data) and not self.transport.is_closing():  # this chunk may have begun with other things
            self._head_too_large = True
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """Put the connection's TLS facts into the new request's scope."""
        super().on_message_begin()
        self.reading_since = self.loop.time()
        if self._tls is not None:
            self.scope["extensions"] = {"tls": self._tls}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        """Note that the head of the request is here: from now on the application's own time limit holds."""
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD:
            self._head_too_large = True
            raise ValueError("the head is too large")  # the parser reports it, and send_400_response answers
        self.reading_since, self._body_open = None, True
        super().on_headers_complete()
        if len(self.connections) > KEPT:
            self.cycle.keep_alive = False  # uvicorn says so in the answer, and closes after it

    def on_message_complete(self) -> None:
        """Note that the request is here in full. If it was answered before that, the clock for the next one runs."""
        super().on_message_complete()
        self._body_open = False
        self.reading_since = self.loop.time() if self.cycle.response_complete else None

    def on_response_complete(self) -> None:
        """Give a client that was refused before it had sent all of its body a while to finish; without a limit it could drip for ever."""
        super().on_response_complete()
        if self._body_open and self.cycle.response_complete:
            self.reading_since = self.loop.time()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  (uvicorn's words are not shown)
        """Answer what is not HTTP, or not HTTP that we take, with a problem document too, and end the connection."""
        if self._head_too_large:
            status, error = 431, HandclaspError(Kind.TOO_LARGE, f"request line and headers have more than {MAX_HEAD} bytes")
        else:
            status, error = 400, HandclaspError(Kind.BAD_REQUEST, "this is not an HTTP request")
        problem = to_problem(error)
        problem.status = status
        body = msgspec.json.encode(problem)
        phrase = b"Request Header Fields Too Large" if status == 431 else b"Bad Request"
        head = b"HTTP/1.1 %d %s\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, phrase, len(body)) + body)
        self._end()

    def close_if_slow(self, now: float, limit: float) -> None:
        """End a connection that has been sending one request for too long, or never began (slow loris)."""
        if self.reading_since is not None and now - self.reading_since > limit and not self.transport.is_closing():
            self._end()

    def _end(self) -> None:
        """Close the connection; after a moment also where the other end does not agree and goes on sending."""
        self.transport.close()
        self.loop.call_later(LINGER, self.transport.abort)


class SwappableTls:
    """The ``ssl`` context of a listener, whose certificate and client trust can be replaced while it serves.

    New connections get the current context through the SNI callback, which OpenSSL calls also when a client sends no name. Mutating a live
    context instead would only ever add trust, never take it away.
    """

    def __init__(self, *, tls12: bool = False, alpn: str = "http/1.1") -> None:
        self._alpn = alpn
        self._minimum = ssl.TLSVersion.TLSv1_2 if tls12 else ssl.TLSVersion.TLSv1_3
        self._current: ssl.SSLContext | None = None
        self._named: dict[str, tuple[Credential, ssl.SSLContext]] = {}
        self._anchors = b""
        self.outer = self._new_context()
        self.outer.sni_callback = self._choose
        self.not_after = 0
        """When the served certificate ends, in milliseconds."""

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self._minimum
        # Verify mode and flags of the outer context count for every connection, so both contexts have them; the anchors are the inner's.
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        # A resumed session is not verified again: with tickets, a certificate whose authority was removed would still be let in.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols([self._alpn])
        return context

    def _choose(self, connection: Any, name: str | None, _context: ssl.SSLContext) -> None:
        named = self._named.get(name.lower()) if name and self._named else None
        connection.context = self._current if named is None else named[1]

    def serve_name(self, name: str, credential: Credential) -> None:
        """Serve another certificate to clients that ask for exactly this name, from the next connection on; the rest stays as it is.

        Raises as :meth:`swap`, and leaves everything as it was then.
        """
        self._named = {**self._named, name: (credential, self._make_named(credential, self._anchors))}

    def _make_named(self, credential: Credential, client_anchors: bytes) -> ssl.SSLContext:
        context = self._new_context()
        load_credential(context, credential)
        if client_anchors:
            load_trust(context, client_anchors)
        return context

    def swap(self, credential: Credential, client_anchors: bytes, not_after: int) -> None:
        """Serve this certificate and trust these anchors (PEM) for client certificates, from the next connection on.

        Raises ``bad_key`` or ``bad_certificate`` and leaves everything as it was when they cannot be used.
        """
        fresh = self._new_context()
        load_credential(fresh, credential)
        load_trust(fresh, client_anchors)
        named = {name: (own, self._make_named(own, client_anchors)) for name, (own, _) in self._named.items()}
        if self._current is None:  # the outer one needs any certificate to be able to begin a handshake
            load_credential(self.outer, credential)
        self._current, self.not_after = fresh, not_after
        self._named, self._anchors = named, client_anchors
