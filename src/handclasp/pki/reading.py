"""What a certificate that somebody else made says of itself, read with patience.

Our own certificates are checked hard before they are signed; what is found in the world is kept as it is. So nothing here refuses: whatever
can be read is told, and ``problem`` says in words what could not be. The elements are walked by :mod:`handclasp.pki.der` and not by
``cryptography``, which reads all extensions or none, refuses negative serial numbers, and takes longer than an inventory has.
"""

from __future__ import annotations

import calendar
import hashlib
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from handclasp.errors import HandclaspError
from handclasp.pki import der
from handclasp.pki.names import check_dns, check_email, check_ip, check_spiffe_id

MAX_TEXT = 2048
"""Characters of one name that are kept: a longer one is nobody's, and would not fit into an index."""
MAX_NAMES = 1000
"""Names of one certificate that are kept."""

_ATTRIBUTES = {
    "2.5.4.3": "CN", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST", "2.5.4.9": "STREET", "2.5.4.10": "O", "2.5.4.11": "OU",
    "0.9.2342.19200300.100.1.25": "DC", "0.9.2342.19200300.100.1.1": "UID",
}  # fmt: skip
"""Short names of RFC 4514 section 3; every other attribute is shown as its number."""
_SIGNATURES = {
    "1.2.840.10045.4.1": "ecdsa-sha1", "1.2.840.10045.4.3.1": "ecdsa-sha224", "1.2.840.10045.4.3.2": "ecdsa-sha256",
    "1.2.840.10045.4.3.3": "ecdsa-sha384", "1.2.840.10045.4.3.4": "ecdsa-sha512", "1.2.840.113549.1.1.2": "rsa-md2",
    "1.2.840.113549.1.1.4": "rsa-md5", "1.2.840.113549.1.1.5": "rsa-sha1", "1.2.840.113549.1.1.10": "rsa-pss",
    "1.2.840.113549.1.1.11": "rsa-sha256", "1.2.840.113549.1.1.12": "rsa-sha384", "1.2.840.113549.1.1.13": "rsa-sha512",
    "1.2.840.113549.1.1.14": "rsa-sha224", "1.3.101.112": "ed25519", "1.3.101.113": "ed448", "1.2.840.10040.4.3": "dsa-sha1",
    "2.16.840.1.101.3.4.3.2": "dsa-sha256", "2.16.840.1.101.3.4.3.17": "ml-dsa-44", "2.16.840.1.101.3.4.3.18": "ml-dsa-65",
    "2.16.840.1.101.3.4.3.19": "ml-dsa-87",
}  # fmt: skip
_CURVES = {"1.2.840.10045.3.1.7": "p256", "1.3.132.0.34": "p384", "1.3.132.0.35": "p521", "1.3.132.0.33": "p224", "1.3.132.0.10": "k256"}
_KEYS = {
    "1.3.101.112": "ed25519", "1.3.101.113": "ed448", "1.2.840.10040.4.1": "dsa", "2.16.840.1.101.3.4.3.17": "ml-dsa-44",
    "2.16.840.1.101.3.4.3.18": "ml-dsa-65", "2.16.840.1.101.3.4.3.19": "ml-dsa-87",
}  # fmt: skip
_USAGES = {
    "1.3.6.1.5.5.7.3.1": "server_auth", "1.3.6.1.5.5.7.3.2": "client_auth", "1.3.6.1.5.5.7.3.3": "code_signing",
    "1.3.6.1.5.5.7.3.4": "email_protection", "1.3.6.1.5.5.7.3.8": "time_stamping", "1.3.6.1.5.5.7.3.9": "ocsp_signing",
    "2.5.29.37.0": "any",
}  # fmt: skip
_RSA, _RSA_PSS, _EC = "1.2.840.113549.1.1.1", "1.2.840.113549.1.1.10", "1.2.840.10045.2.1"
_STRINGS = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii", 0x14: "latin-1", 0x1E: "utf-16-be", 0x1C: "utf-32-be", 0x12: "ascii"}
_BASIC, _SAN, _AKI, _EKU = der.oid("2.5.29.19"), der.oid("2.5.29.17"), der.oid("2.5.29.35"), der.oid("2.5.29.37")
_CN = der.oid("2.5.4.3")

NOT_ONE = "this is not a certificate that can be read"


@dataclass(slots=True)
class Reading:
    """What one certificate says. Times are ms since the epoch; what is not there or cannot be read is empty, 0 or False."""

    sha256: bytes
    serial: bytes = b""
    """The content of the INTEGER as it stands, also a negative one."""
    issuer: str = ""
    """RFC 4514."""
    issuer_der: bytes = b""
    subject: str = ""
    authority_key_id: bytes = b""
    uris: list[str] = field(default_factory=list)
    dns: list[str] = field(default_factory=list)
    ips: list[str] = field(default_factory=list)
    emails: list[str] = field(default_factory=list)
    spki_sha256: bytes | None = None
    key_type: str = ""
    signature: str = ""
    usages: list[str] = field(default_factory=list)
    is_ca: bool = False
    not_before: int = 0
    not_after: int = 0
    common_name: str = ""
    problem: str | None = None
    """What could not be read, in words; None when everything could."""

    @property
    def names(self) -> dict[str, list[str]]:
        """Its names by kind, without the kinds of which it has none."""
        kinds = (("uri", self.uris), ("dns", self.dns), ("ip", self.ips), ("email", self.emails))
        return {kind: values for kind, values in kinds if values}

    @property
    def identity(self) -> str:
        """Whose certificate it is, named as issuance would: its only SPIFFE ID, else the first DNS name, address or mailbox.

        A common name counts where there is no other name and it can be a host's. Empty for an authority, and for one that names nobody.
        """
        if self.is_ca:
            return ""
        if len(self.uris) == 1 and (found := _checked(check_spiffe_id, self.uris)):
            return found
        for kind, values, check in (("dns", self.dns, check_dns), ("ip", self.ips, check_ip), ("email", self.emails, check_email)):
            if found := _checked(check, values):
                return f"{kind}:{found}"
        if (
            not self.names
            and ("." in self.common_name or self.common_name.islower())
            and (found := _checked(check_dns, [self.common_name]))
        ):
            return f"dns:{found}"
        return ""


def read_certificate(data: bytes) -> Reading:
    """Return what the certificate ``data`` says, as far as it can be read. Never raises, whatever the bytes are."""
    reading = Reading(hashlib.sha256(data).digest())
    problems: list[str] = []
    try:
        body, algorithm, _ = der.children(data)
        parts = der.children(body)
        first = 1 if parts[0][0] == 0xA0 else 0
        serial, _, issuer, validity, subject, spki = parts[first : first + 6]
    except (ValueError, IndexError):
        reading.problem = NOT_ONE
        return reading
    reading.serial, reading.issuer_der = serial[der.read(serial)[1] :], issuer
    reading.spki_sha256 = hashlib.sha256(spki).digest()
    try:
        reading.issuer = name_text(issuer)
    except ValueError:
        problems.append("its issuer's name")
    try:
        reading.subject = name_text(subject)
        reading.common_name = _common_name(subject)
    except ValueError:
        problems.append("its subject")
    try:
        reading.not_before, reading.not_after = (_time(one) for one in der.children(validity))
    except ValueError:
        problems.append("its dates")
    try:
        reading.key_type, reading.signature = _key_type(spki), _signature(algorithm)
    except (ValueError, IndexError):
        problems.append("its key")
    if first == 0:  # version 1: nothing says what it is for, and those that signed themselves are old roots
        reading.is_ca = issuer == subject
    for part in parts[first + 6 :]:
        if part[0] == 0xA3:
            _read_extensions(part, reading, problems)
    if problems:
        reading.problem = f"{', '.join(problems)} cannot be read"
    return reading


def plain(text: str) -> str:
    """Return ``text`` as it can be stored and shown anywhere: at most 2,048 characters, and what does not print (a NUL, say) is escaped.

    A NUL in a name is an old trick (CVE-2009-2408), and PostgreSQL stores none.
    """
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT]
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode("ascii") for one in text)


def name_text(name: bytes) -> str:
    """Return a DER Name in the form of RFC 4514, last attribute first; raises ``ValueError`` for what is no Name."""
    return _name_text(name) if len(name) <= MAX_TEXT else _name_text.__wrapped__(name)  # a huge one is not worth remembering


# --- parts ------------------------------------------------------------------------------------------------------------------------------


def _checked(check: Callable[[str], str], values: list[str]) -> str:
    """Return the first of ``values`` that is one, in its canonical form; empty where none is."""
    for value in values[:20]:
        try:
            return check(value)
        except HandclaspError:
            continue
    return ""


@lru_cache(maxsize=4096)
def _name_text(name: bytes) -> str:
    sets = []
    for attributes in der.children(name):
        parts = []
        for attribute in der.children(attributes):
            kind, value = der.children(attribute)
            dotted = _dotted(kind)
            parts.append(f"{_ATTRIBUTES.get(dotted, dotted)}={_escaped(_string(value))}")
        sets.append("+".join(parts))
    return plain(",".join(reversed(sets)))


def _escaped(text: str) -> str:
    """Escape what RFC 4514 section 2.4 says."""
    if text.isalnum():
        return text
    for character in '\\",+;<>':
        if character in text:
            text = text.replace(character, "\\" + character)
    if text.startswith((" ", "#")):
        text = "\\" + text
    return text[:-1] + "\\ " if text.endswith(" ") and len(text) > 1 else text


def _string(element: bytes) -> str:
    tag, start, _ = der.read(element)
    encoding = _STRINGS.get(tag)
    return "#" + element.hex() if encoding is None else element[start:].decode(encoding, "backslashreplace")


def _common_name(subject: bytes) -> str:
    if _CN not in subject:
        return ""
    for attributes in der.children(subject):
        for attribute in der.children(attributes):
            kind, value = der.children(attribute)
            if kind == _CN:
                return plain(_string(value))
    return ""


@lru_cache(maxsize=1024)
def _dotted(oid: bytes) -> str:
    """Return an encoded OBJECT IDENTIFIER in dotted form; raises ``ValueError`` for anything else."""
    tag, start, end = der.read(oid)
    if tag != 0x06 or start == end or oid[-1] & 0x80 or end - start > 64:
        raise ValueError("not an object identifier")
    arcs, value = [], 0
    for byte in oid[start:end]:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            arcs.append(value)
            value = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))


@lru_cache(maxsize=4096)
def _time(element: bytes) -> int:
    """Return a UTCTime or GeneralizedTime (RFC 5280 4.1.2.5) as ms; raises ``ValueError`` for anything else."""
    tag, start, end = der.read(element)
    text = element[start:end].decode("ascii", "replace")
    if tag == 0x17 and len(text) == 13:
        text = ("19" if text >= "50" else "20") + text
    if tag not in (0x17, 0x18) or len(text) != 15 or text[-1] != "Z" or not (text[:-1].isascii() and text[:-1].isdigit()):
        raise ValueError("not a time")
    year, month, day, hour, minute, second = int(text[:4]), *(int(text[at : at + 2]) for at in range(4, 14, 2))
    if not (year and 1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60):
        raise ValueError("not a time")
    return calendar.timegm((year, month, day, hour, minute, second)) * 1000


def _key_type(spki: bytes) -> str:
    algorithm, bits = der.children(spki)
    known = _algorithm_key(algorithm)
    if known != "rsa":
        return known
    _, start, _ = der.read(bits)
    modulus = der.children(bits[start + 1 :])[0]
    return f"rsa{int.from_bytes(modulus[der.read(modulus)[1] :], 'big').bit_length()}"


@lru_cache(maxsize=256)
def _algorithm_key(algorithm: bytes) -> str:
    kind, *parameters = der.children(algorithm)
    dotted = _dotted(kind)
    if dotted in (_RSA, _RSA_PSS):
        return "rsa"
    if dotted != _EC:
        return _KEYS.get(dotted, dotted)
    if not parameters or parameters[0][0] != 0x06:
        return "ec-explicit"  # a curve that the certificate itself describes (CVE-2020-0601)
    curve = _dotted(parameters[0])
    return _CURVES.get(curve, curve)


@lru_cache(maxsize=256)
def _signature(algorithm: bytes) -> str:
    dotted = _dotted(der.children(algorithm)[0])
    return _SIGNATURES.get(dotted, dotted)


def _read_extensions(block: bytes, reading: Reading, problems: list[str]) -> None:
    """Read the extensions that an inventory needs. Each is read by itself: a broken one takes no other with it."""
    try:
        extensions = der.children(der.children(block)[0])
    except (ValueError, IndexError):
        problems.append("its extensions")
        return
    for extension in extensions:
        try:
            kind, *_, value = der.children(extension)
            reader = _READERS.get(kind)
            if reader is not None:
                tag, start, end = der.read(value)
                if tag != 0x04:
                    raise ValueError("not an octet string")
                reader[1](value[start:end], reading)
        except (ValueError, IndexError):
            problems.append(next((what for oid, (what, _) in _READERS.items() if oid in extension[:16]), "an extension"))


def _read_basic(value: bytes, reading: Reading) -> None:
    reading.is_ca = any(part[0] == 0x01 and part[2:] != b"\x00" for part in der.children(value))


def _read_authority_key(value: bytes, reading: Reading) -> None:
    for part in der.children(value):
        if part[0] == 0x80:
            reading.authority_key_id = part[der.read(part)[1] :]


def _read_usages(value: bytes, reading: Reading) -> None:
    reading.usages = list(_usages(value))


@lru_cache(maxsize=256)
def _usages(value: bytes) -> tuple[str, ...]:
    return tuple(_USAGES.get(one, one) for one in map(_dotted, der.children(value)))


def _read_names(value: bytes, reading: Reading) -> None:
    names = der.children(value)
    for name in names[:MAX_NAMES]:
        tag, start, _ = der.read(name)
        if tag == 0x87:
            reading.ips.append(_address(name[start:]))
            continue
        values = reading.dns if tag == 0x82 else reading.uris if tag == 0x86 else reading.emails if tag == 0x81 else None
        if values is not None:
            values.append(plain(name[start:].decode("utf-8", "backslashreplace")))
    if len(names) > MAX_NAMES:
        raise ValueError("too many names")


def _address(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed)) if len(packed) in (4, 16) else packed.hex()


_READERS: dict[bytes, tuple[str, Callable[[bytes, Reading], None]]] = {
    _BASIC: ("its basic constraints", _read_basic),
    _SAN: ("its names", _read_names),
    _AKI: ("its authority's key identifier", _read_authority_key),
    _EKU: ("its usages", _read_usages),
}
