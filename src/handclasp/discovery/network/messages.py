"""The handshake messages that a look at a server needs, as OpenSSL hands them over: whole, and decrypted. Pure.

RFC 5246 sections 7.4.2 and 7.4.4 (TLS 1.2), RFC 8446 sections 4.3.2 and 4.4.2 (TLS 1.3).
"""

from __future__ import annotations

from handclasp.errors import HandclaspError, Kind

TLS12, TLS13 = 0x0303, 0x0304
CERTIFICATE, CERTIFICATE_REQUEST = 11, 13
_CERTIFICATE_AUTHORITIES = 47
MAX_CHAIN = 32
"""Certificates that are kept of a chain; a server that sends more has something else wrong with it, and this many to show it."""
MAX_AUTHORITIES = 1000


def read_chain(message: bytes, version: int) -> list[bytes]:
    """Return the certificates (DER, unread) of a Certificate message with its header, in their order, at most 32.

    Raises ``bad_certificate`` when it is not such a message.
    """
    body = _Reader(_body(message, CERTIFICATE))
    if version >= TLS13:
        body.vector(1)  # certificate_request_context
    entries = _Reader(body.vector(3))
    body.end()
    chain = []
    while entries.left:
        der = entries.vector(3)
        if version >= TLS13:
            entries.vector(2)  # extensions
        chain.append(der)
    return chain[:MAX_CHAIN]


def read_authorities(message: bytes, version: int) -> list[bytes]:
    """Return the names (DER) of the authorities that a CertificateRequest says it takes; empty when it does not say.

    Raises ``bad_certificate`` when it is not such a message.
    """
    body = _Reader(_body(message, CERTIFICATE_REQUEST))
    names = b""
    if version >= TLS13:
        body.vector(1)  # certificate_request_context
        extensions = _Reader(body.vector(2))
        while extensions.left:
            kind, content = extensions.number(2), extensions.vector(2)
            if kind == _CERTIFICATE_AUTHORITIES:
                list_ = _Reader(content)
                names = list_.vector(2)
                list_.end()
    else:
        body.vector(1)  # certificate_types
        body.vector(2)  # supported_signature_algorithms
        names = body.vector(2)
    body.end()
    found, rest = [], _Reader(names)
    while rest.left:
        found.append(rest.vector(2))
    return found[:MAX_AUTHORITIES]


def _body(message: bytes, kind: int) -> bytes:
    if len(message) < 4 or message[0] != kind or int.from_bytes(message[1:4], "big") != len(message) - 4:
        raise _bad()
    return message[4:]


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def vector(self, size: int) -> bytes:
        """Return what follows its length of ``size`` bytes."""
        return self._take(self.number(size))

    def end(self) -> None:
        if self.left:
            raise _bad()

    def _take(self, count: int) -> bytes:
        if count > self.left:
            raise _bad()
        self._at += count
        return self._data[self._at - count : self._at]


def _bad() -> HandclaspError:
    return HandclaspError(Kind.BAD_CERTIFICATE, "this handshake message is not what TLS says")
