"""PEM (RFC 7468), as it lies about: certificates mixed with keys, text in between, old labels; and one DER certificate alone."""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from handclasp.pki import der
from handclasp.pki.contents.model import Contents, PrivateKey, bounded, group, spki_of_key

_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----")
_CERTIFICATES = frozenset({b"CERTIFICATE", b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE"})
_KEYS = frozenset({b"PRIVATE KEY", b"RSA PRIVATE KEY", b"EC PRIVATE KEY", b"DSA PRIVATE KEY", b"ENCRYPTED PRIVATE KEY"})
_PKCS7 = frozenset({b"PKCS7", b"CMS", b"PKCS #7 SIGNED DATA"})
_MAX_KEYS = 100


def read_pem(data: bytes | bytearray | memoryview) -> Contents:
    """Return what a PEM text holds. What stands between the blocks, and blocks of other kinds, are passed over."""
    contents = Contents("pem")
    certificates: list[bytes] = []
    for label, begin, end in pem_blocks(data, _concerns_us):
        if label in _KEYS:
            if len(contents.keys) < _MAX_KEYS:
                contents.keys.append(_key(data[begin:end], label))
            continue
        block = _decode(data[begin:end])
        if block is None:
            contents.notes.append(f"a block {label.decode()} is not base64")
        elif label in _PKCS7:
            certificates += read_pkcs7(block, contents)
        else:
            # OpenSSL's own label: the certificate, and after it what it is trusted for.
            certificates.append(_first_element(block) if label == b"TRUSTED CERTIFICATE" else block)
    contents.entries = group(bounded(certificates, contents), with_key=bool(contents.keys))
    if contents.empty and contents.notes:
        contents.problem = contents.notes[0]
    return contents


def read_der(data: bytes) -> Contents:
    """Return one DER certificate; a problem for anything else."""
    contents = Contents("der")
    try:
        tag, _, end = der.read(data)
        parts = der.children(data[:end])
    except ValueError as error:
        contents.problem = f"this is not DER: {error}"
        return contents
    if tag != 0x30 or len(parts) != 3 or parts[0][:1] != b"\x30" or parts[2][:1] != b"\x03":
        contents.problem = "this is not a DER certificate"
        return contents
    contents.entries = group(bounded([bytes(data[:end])], contents), with_key=False)
    return contents


def read_pkcs7(data: bytes, contents: Contents) -> list[bytes]:
    """Return the certificates of a PKCS#7 (RFC 5652 SignedData) collection; note it where there are none."""
    try:
        # ContentInfo { contentType, [0] SignedData { version, digestAlgorithms, encapContentInfo, [0] certificates … } }
        signed = der.children(der.children(der.children(data)[1])[0])
        found = next(part for part in signed[3:] if part[0] == 0xA0)
        return [part for part in der.children(found) if part[0] == 0x30]
    except (ValueError, IndexError, StopIteration):
        contents.notes.append("a PKCS#7 collection cannot be read")
        return []


def _concerns_us(label: bytes) -> bool:
    return label in _CERTIFICATES or label in _KEYS or label in _PKCS7


def pem_blocks(data: bytes | bytearray | memoryview, wanted: Callable[[bytes], bool]) -> Iterator[tuple[bytes, int, int]]:
    """Yield label, begin and end of each PEM block whose label is wanted; the others are passed over as if they were text.

    One pass, whatever is there: an END is looked for only after its BEGIN, and only up to the next one.
    """
    place, text = 0, data if not isinstance(data, memoryview) else data.tobytes()
    while match := _BEGIN.search(text, place):
        label = match[1]
        if not wanted(label):
            place = match.end()
            continue
        # Only as far as the next block: a text of nothing but BEGINs would otherwise be searched to its end for each of them.
        following = text.find(b"-----BEGIN ", match.end())
        end = text.find(b"-----END " + label + b"-----", match.end(), len(text) if following < 0 else following)
        if end < 0:
            if following < 0:
                return
            place = following  # its END is missing: the next block is not to be lost for that
            continue
        yield label, match.end(), end
        place = end


def _decode(block: bytes | bytearray | memoryview) -> bytes | None:
    text = bytes(block).translate(None, b" \t\r\n")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        return None


def _first_element(block: bytes) -> bytes:
    try:
        return block[: der.read(block)[2]]
    except ValueError:
        return block


def _key(block: bytes | bytearray | memoryview, label: bytes) -> PrivateKey:
    if label == b"ENCRYPTED PRIVATE KEY" or b"ENCRYPTED" in bytes(block[:80]):  # the second: "Proc-Type: 4,ENCRYPTED" (RFC 1421)
        return PrivateKey(encrypted=True)
    whole = bytearray(b"-----BEGIN " + label + b"-----") + block + b"-----END " + label + b"-----\n"
    try:
        return PrivateKey(spki_of_key(serialization.load_pem_private_key(whole, None)))
    except (ValueError, TypeError, UnsupportedAlgorithm, Warning):
        return PrivateKey()
    finally:
        whole[:] = bytes(len(whole))
