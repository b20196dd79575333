"""How protocols that begin in plain text come to TLS: the few bytes before the handshake, and nothing more.

What comes from the other side is read with a bound on its length and on the time, byte by byte where it has no length of its own: nothing
that was sent before the handshake may be taken for something that came through it (CVE-2011-0411, CVE-2021-23222).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

_LINE = 1024
_LINES = 64
_PACKET = 4096


class NoTLS(OSError):  # noqa: N818  (it is what the service said)
    """The service does not offer TLS, or does not speak the protocol."""


class Plain:
    """A connection before its handshake; the whole exchange has ``timeout`` seconds."""

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + timeout

    def send(self, data: bytes) -> None:
        """Send bytes. Raises ``OSError``."""
        self._bound()
        self._connection.sendall(data)

    def read(self, length: int) -> bytes:
        """Return exactly so many bytes. Raises ``OSError``."""
        if length > _PACKET:
            raise NoTLS("it says more before TLS than anything needs to")
        data = b""
        while len(data) < length:
            self._bound()
            part = self._connection.recv(length - len(data))
            if not part:
                raise NoTLS("it closed the connection before TLS")
            data += part
        return data

    def line(self) -> bytes:
        """Return one line without its end. Raises ``OSError``."""
        data = b""
        while not data.endswith(b"\n"):
            if len(data) >= _LINE:
                raise NoTLS("it sends a line that is too long")
            data += self.read(1)
        return data.rstrip(b"\r\n")

    def _bound(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out before TLS")
        self._connection.settimeout(left)


def begin(protocol: str, connection: socket.socket, *, timeout: float) -> None:
    """Bring ``connection`` to the point where the TLS handshake begins. Raises ``OSError``; :class:`NoTLS` is one."""
    if protocol != "none":
        STARTTLS[protocol](Plain(connection, timeout))


def _postgresql(plain: Plain) -> None:
    # PostgreSQL, Message Formats: SSLRequest is a length of 8 and the code 1234 5679.
    plain.send(bytes.fromhex("0000000804d2162f"))
    answer = plain.read(1)
    if answer != b"S":
        raise NoTLS("it does not offer TLS (ssl is off)" if answer == b"N" else "it is no PostgreSQL")


_CLIENT_SSL = 0x800
_CLIENT_PROTOCOL_41 = 0x200
_CLIENT_SECURE_CONNECTION = 0x8000


def _mysql(plain: Plain) -> None:
    # MySQL, Connection Phase: the server speaks first (Protocol::HandshakeV10); the answer is Protocol::SSLRequest.
    header = plain.read(4)
    packet = plain.read(int.from_bytes(header[:3], "little"))
    version_end = packet.find(b"\0")
    if packet.startswith(b"\xff"):  # ERR_Packet: its number (2), and words
        words = "".join(c for c in packet[3:].decode("utf-8", "replace") if c.isprintable())[:160]
        raise NoTLS(f"it refuses the connection ({int.from_bytes(packet[1:3], 'little')}: {words})")
    if not packet.startswith(b"\x0a") or version_end < 0 or len(packet) < version_end + 16:
        raise NoTLS("it is no MySQL or MariaDB")
    # After the version: connection id (4), scramble (8), a zero (1), the lower half of what it can do (2).
    offered = int.from_bytes(packet[version_end + 14 : version_end + 16], "little")
    if not offered & _CLIENT_SSL:
        raise NoTLS("it does not offer TLS")
    wanted = _CLIENT_PROTOCOL_41 | _CLIENT_SSL | _CLIENT_SECURE_CONNECTION
    body = wanted.to_bytes(4, "little") + (1 << 24).to_bytes(4, "little") + b"\x21" + bytes(23)
    plain.send(len(body).to_bytes(3, "little") + bytes([(header[3] + 1) & 0xFF]) + body)


def _smtp(plain: Plain) -> None:
    # RFC 3207.
    _smtp_reply(plain, b"220")
    plain.send(b"EHLO localhost\r\n")
    if not any(line.upper().split(b" ")[0] == b"STARTTLS" for line in _smtp_reply(plain, b"250")):
        raise NoTLS("it does not offer STARTTLS")
    plain.send(b"STARTTLS\r\n")
    _smtp_reply(plain, b"220")


def _smtp_reply(plain: Plain, code: bytes) -> list[bytes]:
    lines = []
    for _ in range(_LINES):
        line = plain.line()
        if line[:3] != code or line[3:4] not in (b" ", b"-", b""):
            raise NoTLS(f"it answers {line[:80].decode('ascii', 'replace')!r}")
        lines.append(line[4:])
        if line[3:4] != b"-":
            return lines
    raise NoTLS("its answer does not end")


def _imap(plain: Plain) -> None:
    # RFC 9051 section 6.2.1.
    if not plain.line().upper().startswith(b"* OK"):
        raise NoTLS("it is no IMAP server")
    plain.send(b"a STARTTLS\r\n")
    for _ in range(_LINES):
        line = plain.line()
        if line.upper().startswith(b"A OK"):
            return
        if not line.startswith(b"* "):
            break
    raise NoTLS("it does not offer STARTTLS")


# RFC 4511 section 4.14: ExtendedRequest with the OID of StartTLS, message 1.
_LDAP_START = bytes.fromhex("301d02010177188016") + b"1.3.6.1.4.1.1466.20037"


def _ldap(plain: Plain) -> None:
    plain.send(_LDAP_START)
    head = plain.read(2)
    size = head[1]
    if size & 0x80:
        count = size & 0x7F
        if not 1 <= count <= 4:  # OpenLDAP's and Active Directory's encoders write four bytes
            raise NoTLS("it is no LDAP server")
        size = int.from_bytes(plain.read(count), "big")
    message = plain.read(size)
    kind, number, rest = _element(message)
    response, fields, _ = _element(rest)
    result, code, _ = _element(fields)
    # INTEGER 1, [APPLICATION 24] ExtendedResponse, ENUMERATED success.
    if head[0] != 0x30 or (kind, number, response, result) != (0x02, b"\x01", 0x78, 0x0A):
        raise NoTLS("it is no LDAP server")
    if code != b"\0":
        raise NoTLS(f"it does not offer StartTLS (result {int.from_bytes(code[:4], 'big')})")


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Return tag, content and what follows of a BER element of definite length; a tag of -1 where there is none."""
    if len(data) < 2:
        return -1, b"", b""
    size, start = data[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(data[2:start], "big")
    return data[0], data[start : start + size], data[start + size :]


STARTTLS: dict[str, Callable[[Plain], None]] = {
    "postgresql": _postgresql,
    "mysql": _mysql,
    "smtp": _smtp,
    "imap": _imap,
    "ldap": _ldap,
}
"""Protocol -> what is said before the handshake. MariaDB speaks ``mysql``."""
