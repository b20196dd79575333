"""A small DER encoder (X.690), and just enough of a reader to walk over elements.

Each function returns complete, encoded bytes, so values nest by concatenation: ``sequence(integer(1), boolean(True))``. The encoder is for
values we made ourselves; the reader checks what it reads and raises ``ValueError``, because it also sees bytes from outside.
"""

from __future__ import annotations

import time
from functools import lru_cache

TRUE = b"\x01\x01\xff"
NULL = b"\x05\x00"
EMPTY_SEQUENCE = b"\x30\x00"


def tlv(tag: int, content: bytes) -> bytes:
    """Return one element: a one-byte tag, the definite length in its shortest form, the content."""
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    if length < 0x100:
        return bytes((tag, 0x81, length)) + content
    if length < 0x10000:
        return bytes((tag, 0x82, length >> 8, length & 0xFF)) + content
    size = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | size)) + length.to_bytes(size, "big") + content


def sequence(*parts: bytes) -> bytes:
    """Return a SEQUENCE of encoded parts."""
    return tlv(0x30, b"".join(parts))


def set_(*parts: bytes) -> bytes:
    """Return a SET OF encoded parts, in the order DER demands (X.690 11.6)."""
    return tlv(0x31, b"".join(sorted(parts)))


def integer(value: int) -> bytes:
    """Return an INTEGER, two's complement in its shortest form."""
    magnitude = value if value >= 0 else ~value
    return tlv(0x02, value.to_bytes(magnitude.bit_length() // 8 + 1, "big", signed=True))


def boolean(value: bool) -> bytes:
    """Return a BOOLEAN."""
    return TRUE if value else b"\x01\x01\x00"


def octet_string(content: bytes) -> bytes:
    """Return an OCTET STRING."""
    return tlv(0x04, content)


def bit_string(content: bytes, unused: int = 0) -> bytes:
    """Return a BIT STRING whose last byte has ``unused`` padding bits."""
    return tlv(0x03, bytes((unused,)) + content)


def named_bits(*bits: int) -> bytes:
    """Return a BIT STRING with the numbered bits set (bit 0 is the most significant), without trailing zero bits (X.690 11.2.2)."""
    if not bits:
        return b"\x03\x01\x00"
    width = max(bits) + 1
    size = (width + 7) // 8
    value = 0
    for bit in bits:
        value |= 1 << (size * 8 - 1 - bit)
    return bit_string(value.to_bytes(size, "big"), size * 8 - width)


@lru_cache(maxsize=256)
def oid(dotted: str) -> bytes:
    """Return an OBJECT IDENTIFIER from its dotted form."""
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    content = bytearray()
    for arc in (first * 40 + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | (arc & 0x7F))
        content += bytes(reversed(groups))
    return tlv(0x06, bytes(content))


def explicit(number: int, content: bytes) -> bytes:
    """Return ``content`` (one or more encoded elements) inside a constructed context tag: ``[n] EXPLICIT``, or ``[n] IMPLICIT
    SEQUENCE``."""
    return tlv(0xA0 | number, content)


def implicit(number: int, content: bytes) -> bytes:
    """Return raw ``content`` under a primitive context tag: ``[n] IMPLICIT`` of a string type."""
    return tlv(0x80 | number, content)


def utf8_string(text: str) -> bytes:
    """Return a UTF8String."""
    return tlv(0x0C, text.encode())


@lru_cache(maxsize=1024)
def time_(at: int) -> bytes:
    """Return a time, given in ms since the epoch and cut to whole seconds, as RFC 5280 4.1.2.5 wants it: UTCTime through 2049, then
    GeneralizedTime."""
    moment = time.gmtime(at // 1000)
    if moment.tm_year < 2050:
        return tlv(0x17, time.strftime("%y%m%d%H%M%SZ", moment).encode())
    return tlv(0x18, time.strftime("%Y%m%d%H%M%SZ", moment).encode())


def extension(dotted: str, value: bytes, *, critical: bool = False) -> bytes:
    """Return one X.509 Extension whose value is the encoded ``value``."""
    return sequence(oid(dotted), TRUE if critical else b"", octet_string(value))


def read(data: bytes, offset: int = 0) -> tuple[int, int, int]:
    """Return (tag, start of content, end of content) of the element at ``offset``; raise ``ValueError`` unless it is whole, definite and
    shortest."""
    try:
        tag, length = data[offset], data[offset + 1]
    except IndexError:
        raise ValueError("truncated DER") from None
    start = offset + 2
    if tag & 0x1F == 0x1F:
        raise ValueError("multi-byte tag")
    if length >= 0x80:
        size = length & 0x7F
        start += size
        if not 1 <= size <= 4 or start > len(data):
            raise ValueError("bad DER length")
        length = int.from_bytes(data[start - size : start], "big")
        if length < 0x80 or length >> (8 * (size - 1)) == 0:
            raise ValueError("DER length not in its shortest form")
    end = start + length
    if end > len(data):
        raise ValueError("truncated DER")
    return tag, start, end


def elements(data: bytes, start: int = 0, end: int | None = None) -> list[bytes]:
    """Return the encoded elements that fill ``data[start:end]`` exactly; raise ``ValueError`` for anything else."""
    stop = len(data) if end is None else end
    found = []
    while start < stop:
        # Most elements are short: their length is one byte, and reading it here costs a third of a call.
        after = start + 2 + data[start + 1] if start + 1 < stop and data[start + 1] < 0x80 and data[start] & 0x1F != 0x1F else 0
        if not after:
            _, _, after = read(data, start)
        if after > stop:
            raise ValueError("element crosses its container")
        found.append(data[start:after])
        start = after
    return found


def children(element: bytes) -> list[bytes]:
    """Return the encoded elements inside one constructed element that fills ``element`` exactly."""
    tag, start, end = read(element)
    if end != len(element) or not tag & 0x20:
        raise ValueError("not one constructed element")
    return elements(element, start, end)
