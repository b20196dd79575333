"""TLS of our own listeners: optional client certificates that reach the application, and certificate and trust swapped under load.

uvicorn's protocol classes are not a documented extension point, so everything that leans on them is in this file, the version is pinned,
and a contract test holds that a verified certificate arrives.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from handclasp.client.material import Credential, load_credential, load_trust


class PeerCertificateProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with the verified client certificate in ``scope["extensions"]["tls"]``.

    ``client_sha256`` is the SHA-256 of its DER, ``client_der`` the DER, ``version`` the TLS version. Computed once a connection.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Remember who is at the other end."""
        super().connection_made(transport)
        self.reading_since: float | None = self.loop.time()
        self._tls: dict[str, Any] | None = None
        ssl_object = transport.get_extra_info("ssl_object")
        if ssl_object is not None:
            der = ssl_object.getpeercert(binary_form=True)
            self._tls = {
                "version": ssl_object.version(),
                "client_der": der,
                "client_sha256": hashlib.sha256(der).digest() if der else None,
            }

    def on_message_begin(self) -> None:
        """Put the connection's TLS facts into the new request's scope."""
        super().on_message_begin()
        self.reading_since = self.loop.time()
        if self._tls is not None:
            self.scope["extensions"] = {"tls": self._tls}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        """Note that the head of the request is here: from now on the application's own time limit holds."""
        self.reading_since = None
        super().on_headers_complete()

    def close_if_slow(self, now: float, limit: float) -> None:
        """End a connection that has been sending the head of one request for too long, or never began (slow loris)."""
        if self.reading_since is not None and now - self.reading_since > limit and self.transport is not None:
            self.transport.close()


class SwappableTls:
    """The ``ssl`` context of a listener, whose certificate and client trust can be replaced while it serves.

    New connections get the current context through the SNI callback, which OpenSSL calls also when a client sends no name. Mutating a live
    context instead would only ever add trust, never take it away.
    """

    def __init__(self, *, tls12: bool = False) -> None:
        self._minimum = ssl.TLSVersion.TLSv1_2 if tls12 else ssl.TLSVersion.TLSv1_3
        self._current: ssl.SSLContext | None = None
        self.outer = self._new_context()
        self.outer.sni_callback = self._choose
        self.not_after = 0
        """When the served certificate ends, in milliseconds."""

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self._minimum
        # Verify mode and flags of the outer context count for every connection, so both contexts must have them; the anchors are the inner's.
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        # A resumed session is not verified again: with tickets, a certificate whose authority was removed would still be let in.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        return context

    def _choose(self, connection: Any, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current

    def swap(self, credential: Credential, client_anchors: bytes, not_after: int) -> None:
        """Serve this certificate and trust these anchors (PEM) for client certificates, from the next connection on.

        Raises ``bad_key`` or ``bad_certificate`` and leaves everything as it was when they cannot be used.
        """
        fresh = self._new_context()
        load_credential(fresh, credential)
        load_trust(fresh, client_anchors)
        if self._current is None:  # the outer one needs any certificate to be able to begin a handshake
            load_credential(self.outer, credential)
        self._current, self.not_after = fresh, not_after
