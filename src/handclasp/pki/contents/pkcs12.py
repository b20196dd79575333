"""PKCS#12 (RFC 7292), as others wrote it: opened without a password, or with one of those that are known.

A file says itself how often a password is to be hashed, and it can say so inside what is encrypted. What would take minutes by what can be
seen is refused before anything is tried; the rest only a process that may be killed can bear. So a server takes :func:`read_open_pkcs12`,
which derives no key at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import pkcs12

from handclasp.pki import der
from handclasp.pki.contents.model import MAX_CERTIFICATES, MAX_CHAIN, Contents, Entry, PrivateKey, bounded, group, is_ca, spki_of_key

MAX_ITERATIONS = 2_000_000
"""Ours has 20,000, Java's 10,000, OpenSSL's 2,048; OWASP asks for 600,000."""
_MAX_DEPTH = 32
_MAX_ELEMENTS = 50_000
_DATA = der.oid("1.2.840.113549.1.7.1")
_KEY_BAG, _SHROUDED_BAG, _CERTIFICATE_BAG = (der.oid(f"1.2.840.113549.1.12.10.1.{number}") for number in (1, 2, 3))
_X509, _FRIENDLY_NAME = der.oid("1.2.840.113549.1.9.22.1"), der.oid("1.2.840.113549.1.9.20")
_FAILS = (ValueError, TypeError, UnsupportedAlgorithm, OverflowError, Warning)


def looks_like_pkcs12(data: bytes | bytearray) -> bool:
    """Tell whether this is a PFX: a sequence that begins with version 3. BER's indefinite lengths are taken too: old Java writes them."""
    return data[:1] == b"\x30" and b"\x02\x01\x03\x30" in bytes(data[1:10])


def read_pkcs12(data: bytes | bytearray, passwords: Sequence[str] = ()) -> Contents:
    """Return what a PKCS#12 file holds, opened without a password or with the first of ``passwords`` that fits; else it is locked."""
    contents = Contents("pkcs12")
    try:
        most = sum(max(0, number) for number in _iterations(bytes(data)))
    except ValueError:
        most = 0  # not DER, so what it says cannot be told: BER goes on below, its length bounded by the file's own
        if data[1:2] != b"\x80":
            contents.problem = "this is not a PKCS#12 file that can be read"
            return contents
    if most > MAX_ITERATIONS:
        contents.locked = True
        contents.notes.append(f"it is not tried: it wants passwords hashed {most} times")
        return contents
    opened = _open(bytes(data), passwords)
    if opened is None:
        contents.locked = True
        return contents
    _fill(contents, *opened)
    return contents


def read_open_pkcs12(data: bytes | bytearray) -> Contents:
    """Return what lies in a PKCS#12 file without any encryption: certificates in most truststores, seldom more; the rest is locked.

    No password is tried, not even the empty one, and no MAC is checked: nothing in the file decides how long this takes.
    """
    contents = Contents("pkcs12")
    found: list[tuple[str, bytes]] = []
    try:
        for bag, value, alias in _open_bags(bytes(data), contents):
            if bag == _CERTIFICATE_BAG:
                kind, wrapped = der.children(value)
                if kind == _X509:
                    found.append((alias, _octets(der.children(wrapped)[0])))
            elif bag in (_KEY_BAG, _SHROUDED_BAG):
                contents.keys.append(PrivateKey(None, bag == _SHROUDED_BAG, alias))
            if len(found) + len(contents.keys) > MAX_CERTIFICATES:
                contents.notes.append(f"only the first {MAX_CERTIFICATES} entries are taken")
                break
    except (ValueError, IndexError):
        if not found:
            contents.locked = bytes(data[1:2]) == b"\x80"  # BER, which is for those who may take their time
            contents.problem = "" if contents.locked else "this is not a PKCS#12 file that can be read"
            return contents
        contents.notes.append("a part of it cannot be read")
    kept = set(bounded((certificate for _, certificate in found), contents))
    if contents.keys:
        contents.entries = group([one for _, one in found if one in kept], with_key=True)
    else:
        contents.entries = [Entry(one, alias=alias, anchor=is_ca(one)) for alias, one in dict.fromkeys(found) if one in kept]
    return contents


def _open_bags(data: bytes, contents: Contents) -> Iterator[tuple[bytes, bytes, str]]:
    """Yield kind, value and name of each bag (RFC 7292 section 4) that is not encrypted. Raises ``ValueError``, ``IndexError``."""
    safe = der.children(der.children(data)[1])
    for info in der.children(_octets(der.children(safe[1])[0])):
        kind, *content = der.children(info)
        if kind != _DATA:
            contents.locked = True
            continue
        for bag in der.children(_octets(der.children(content[0])[0])):
            which, value, *attributes = der.children(bag)
            yield which, der.children(value)[0], _friendly(attributes)


def _octets(element: bytes) -> bytes:
    tag, start, end = der.read(element)
    if tag != 0x04:
        raise ValueError("not an OCTET STRING")
    return element[start:end]


def _friendly(attributes: Sequence[bytes]) -> str:
    for attribute in der.children(attributes[0]) if attributes else ():
        kind, *values = der.children(attribute)
        if kind == _FRIENDLY_NAME and values and (texts := der.children(values[0])):
            _, start, end = der.read(texts[0])
            return texts[0][start:end].decode("utf-16-be", "replace")[:255]
    return ""


def _open(data: bytes, passwords: Sequence[str]) -> tuple[pkcs12.PKCS12KeyAndCertificates, bool] | None:
    """Return what is in it, and whether a password was needed for that; None where none of them fits."""
    for password in (None, b"", *(word.encode() for word in passwords)):
        try:
            return pkcs12.load_pkcs12(data, password), bool(password)
        except _FAILS:
            continue
    return None


def _fill(contents: Contents, opened: pkcs12.PKCS12KeyAndCertificates, encrypted: bool) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    def encoded(one: pkcs12.PKCS12Certificate) -> bytes:
        return one.certificate.public_bytes(Encoding.DER)

    others = [(_name(one.friendly_name), encoded(one)) for one in opened.additional_certs]
    kept = set(bounded([certificate for _, certificate in others], contents))
    others = [(alias, certificate) for alias, certificate in others if certificate in kept]
    if opened.key is not None:
        alias = _name(opened.cert.friendly_name) if opened.cert is not None else ""
        contents.keys.append(PrivateKey(spki_of_key(opened.key), encrypted, alias))
    if opened.cert is not None:
        leaf = encoded(opened.cert)
        above = tuple(certificate for _, certificate in others if is_ca(certificate))[:MAX_CHAIN]
        contents.entries.append(Entry(leaf, above, _name(opened.cert.friendly_name)))
        others = [(alias, certificate) for alias, certificate in others if certificate not in above]
    if opened.cert is None and not all(is_ca(certificate) for _, certificate in others):
        contents.entries += group([certificate for _, certificate in others], with_key=False)
        return
    contents.entries += [Entry(certificate, alias=alias, anchor=is_ca(certificate)) for alias, certificate in others]


def _name(friendly: bytes | None) -> str:
    return (friendly or b"").decode("utf-8", "replace")[:255]


def _iterations(data: bytes) -> Iterator[int]:
    """Yield every number that follows a salt: of PBKDF2, the old PBE schemes and the MAC, all of them written so. Raises ``ValueError``."""
    waiting, seen = [(data, 0, False)], 0
    while waiting:
        inside, depth, opaque = waiting.pop()
        try:
            parts = der.elements(inside)
        except ValueError:
            if opaque:
                continue
            raise
        seen += len(parts)
        if seen > _MAX_ELEMENTS or depth > _MAX_DEPTH:
            raise ValueError("too much in it")
        for before, part in zip((b"", *parts), parts, strict=False):
            tag, start, end = der.read(part)
            if tag == 0x02 and before[:1] == b"\x04":
                yield int.from_bytes(part[start:end], "big", signed=True)
            elif tag & 0x20 or (tag == 0x04 and part[start : start + 1] == b"\x30"):
                # OCTET STRINGs hold the safes; others hold what is encrypted, and may begin in the same way by chance.
                waiting.append((part[start:end], depth + 1, opaque or tag == 0x04))
