"""Signed messages (CMS, RFC 5652; PKCS#7, RFC 2315), as far as a cloud signs its identity documents with them.

One signer, RSA with SHA-2, over plain data. The certificates in the message are not looked at: the caller names those that it trusts. What
a Java service writes is BER with indefinite lengths, so everything is first brought into DER, which the rest then reads.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from handclasp.access.evidence.proven import refused
from handclasp.pki import der
from handclasp.pki.chains import UNREADABLE

MAX_BYTES = 12_288
MAX_DEPTH = 24

_SIGNED_DATA = der.oid("1.2.840.113549.1.7.2")
_DATA = der.oid("1.2.840.113549.1.7.1")
_CONTENT_TYPE = der.oid("1.2.840.113549.1.9.3")
_MESSAGE_DIGEST = der.oid("1.2.840.113549.1.9.4")
_DIGESTS = {
    der.oid("2.16.840.1.101.3.4.2.1"): "sha256",
    der.oid("2.16.840.1.101.3.4.2.2"): "sha384",
    der.oid("2.16.840.1.101.3.4.2.3"): "sha512",
}
_RSA = der.oid("1.2.840.113549.1.1.1")
_RSA_WITH = {
    der.oid("1.2.840.113549.1.1.11"): "sha256",
    der.oid("1.2.840.113549.1.1.12"): "sha384",
    der.oid("1.2.840.113549.1.1.13"): "sha512",
}
_HASHES = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}


def is_signed_data(data: bytes) -> bool:
    """Return whether bytes begin like a signed message; a bare signature that does so by chance has less than one in 2**80."""
    return data[:1] == b"\x30" and _SIGNED_DATA in data[:24]


def verify(data: bytes, signers: tuple[bytes, ...], detached: bytes | None) -> tuple[bytes, bytes]:
    """Return the signed content and the certificate (DER) of ``signers`` that signed it.

    ``detached`` is the content where the message has none; where it has, both must be the same. Raises ``not_authenticated`` for anything
    that is not exactly one good signature by one of ``signers``.
    """
    try:
        message = _read(to_der(data))
    except ValueError as error:
        raise refused(f"its signed message cannot be read: {error}") from error
    content = message.content if message.content is not None else detached
    if content is None:
        raise refused("its signed message is without the document")
    if detached is not None and content != detached:
        raise refused("the signed document is another one than the one shown")
    _check_digest(message, content)
    signed = message.attributes if message.attributes is not None else content
    for signer in signers:
        if _signed_by(message, signed, signer):
            return content, signer
    raise refused("its signature is not by a certificate of the rule", "take the certificates of the instance's region")


@dataclass(frozen=True, slots=True)
class _Message:
    """What a message with one signer says."""

    content: bytes | None
    issuer_and_serial: bytes
    digest: str
    attributes: bytes | None
    """The signed attributes as they are signed: a DER SET."""
    message_digest: bytes
    signature: bytes


def _check_digest(message: _Message, content: bytes) -> None:
    if message.attributes is not None and not hmac.compare_digest(hashlib.new(message.digest, content).digest(), message.message_digest):
        raise refused("the signature is over another document")


def _signed_by(message: _Message, signed: bytes, signer: bytes) -> bool:
    try:
        certificate = x509.load_der_x509_certificate(signer)
        key = certificate.public_key()
        parts = der.children(certificate.tbs_certificate_bytes)
        at = 1 if parts[0][0] == 0xA0 else 0  # version 1 has no version field
        if der.sequence(parts[at + 2], parts[at]) != message.issuer_and_serial or not isinstance(key, rsa.RSAPublicKey):
            return False
        key.verify(message.signature, signed, padding.PKCS1v15(), _HASHES[message.digest])
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


# --- reading ----------------------------------------------------------------------------------------------------------------------------


def _read(data: bytes) -> _Message:
    """Return the parts of a ContentInfo with SignedData (RFC 5652 sections 3 and 5); raise ``ValueError`` for what is not one."""
    outer = der.children(data)
    if len(outer) != 2 or outer[0] != _SIGNED_DATA or outer[1][0] != 0xA0:
        raise ValueError("it is not signed data")
    fields = der.children(_only(outer[1]))
    if len(fields) < 4 or fields[0][0] != 0x02 or fields[1][0] != 0x31 or fields[2][0] != 0x30:
        raise ValueError("its fields are not those of signed data")
    content = _content(fields[2])
    rest = fields[3:]
    while rest and rest[0][0] in (0xA0, 0xA1):  # certificates and revocation lists: whom we trust is not for the message to say
        rest = rest[1:]
    if len(rest) != 1 or rest[0][0] != 0x31:
        raise ValueError("it has no signers")
    return _signer(_only(rest[0]), content)


def _content(element: bytes) -> bytes | None:
    parts = der.children(element)
    if not parts or len(parts) > 2 or parts[0] != _DATA:
        raise ValueError("its content is not plain data")
    if len(parts) == 1:
        return None
    if parts[1][0] != 0xA0:
        raise ValueError("its content is not plain data")
    return _value(_only(parts[1]), 0x04)


def _signer(element: bytes, content: bytes | None) -> _Message:
    parts = der.children(element)
    attributes, digest_of_content = None, b""
    if len(parts) > 3 and parts[3][0] == 0xA0:
        attributes, digest_of_content = _attributes(parts.pop(3))
    if len(parts) == 6 and parts[5][0] == 0xA1:  # what is not signed says nothing
        parts.pop()
    if len(parts) != 5 or parts[0][0] != 0x02 or parts[1][0] != 0x30:
        raise ValueError("its signer is not named by issuer and serial")
    digest = _DIGESTS.get(_algorithm(parts[2]))
    algorithm = _algorithm(parts[3])
    if digest is None or (algorithm != _RSA and _RSA_WITH.get(algorithm) != digest):
        raise ValueError("its signature is not RSA with SHA-256 or better")
    return _Message(content, parts[1], digest, attributes, digest_of_content, _value(parts[4], 0x04))


def _attributes(element: bytes) -> tuple[bytes, bytes]:
    """Return the signed attributes as a DER SET (section 5.4) and the digest in them; content type and digest must be there, once each."""
    listed = der.children(element)
    found: dict[bytes, bytes] = {}
    for attribute in listed:
        parts = der.children(attribute)
        if len(parts) != 2 or parts[1][0] != 0x31 or parts[0] in found:
            raise ValueError("its signed attributes are not in order")
        found[parts[0]] = parts[1]
    if _CONTENT_TYPE not in found or _MESSAGE_DIGEST not in found or _only(found[_CONTENT_TYPE]) != _DATA:
        raise ValueError("its signed attributes lack the content's type or digest")
    return der.set_(*listed), _value(_only(found[_MESSAGE_DIGEST]), 0x04)


def _algorithm(element: bytes) -> bytes:
    parts = der.children(element)
    if not 1 <= len(parts) <= 2 or (len(parts) == 2 and parts[1] != der.NULL):
        raise ValueError("it has an algorithm with parameters that are not known")
    return parts[0]


def _only(element: bytes) -> bytes:
    parts = der.children(element)
    if len(parts) != 1:
        raise ValueError("there is not exactly one of what there must be one of")
    return parts[0]


def _value(element: bytes, tag: int) -> bytes:
    found, start, end = der.read(element)
    if found != tag or end != len(element):
        raise ValueError("an element is of another type")
    return element[start:end]


# --- BER to DER -------------------------------------------------------------------------------------------------------------------------


def to_der(data: bytes) -> bytes:
    """Return one BER element with definite lengths and its OCTET STRINGs in one piece; raise ``ValueError`` for anything else.

    DER comes out as it went in.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    element, end = _element(data, 0, 0)
    if end != len(data):
        raise ValueError("something follows it")
    return element


def _element(data: bytes, at: int, depth: int) -> tuple[bytes, int]:
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    tag, length, start = _head(data, at)
    constructed = bool(tag & 0x20)
    if length is None and not constructed:
        raise ValueError("an element without an end")
    end = len(data) if length is None else start + length
    if end > len(data):
        raise ValueError("it is cut short")
    if not constructed:
        return der.tlv(tag, data[start:end]), end
    parts, at = [], start
    while length is None or at < end:
        if length is None and data[at : at + 2] == b"\0\0":
            end = at + 2
            break
        part, at = _element(data[:end], at, depth + 1)
        parts.append(part)
    if tag == 0x24:  # an OCTET STRING in pieces
        return der.tlv(0x04, b"".join(_value(part, 0x04) for part in parts)), end
    if tag & 0xC0 == 0 and tag not in (0x30, 0x31):
        raise ValueError("a string in pieces")
    return der.tlv(tag, b"".join(parts)), end


def _head(data: bytes, at: int) -> tuple[int, int | None, int]:
    """Return tag, length (None: indefinite) and where the content starts."""
    if at + 2 > len(data):
        raise ValueError("it is cut short")
    tag, first = data[at], data[at + 1]
    if tag & 0x1F == 0x1F or tag == 0:
        raise ValueError("a tag that is not used here")
    if first < 0x80:
        return tag, first, at + 2
    if first == 0x80:
        return tag, None, at + 2
    size = first & 0x7F
    if size > 4 or at + 2 + size > len(data):
        raise ValueError("a length that is not used here")
    return tag, int.from_bytes(data[at + 2 : at + 2 + size], "big"), at + 2 + size
