"""Names that a certificate may carry: SPIFFE IDs, DNS names, IP addresses and e-mail addresses, each in one canonical form.

A name that passes here can be compared byte for byte everywhere else: policy, rows, logs, certificates. Sources: SPIFFE-ID specification
section 2, X.509-SVID section 2, RFC 1035 and RFC 5890 (LDH and A-labels), RFC 5280 4.2.1.6, RFC 5321 (e-mail).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509

from handclasp.errors import HandclaspError, Kind
from handclasp.pki import der

MAX_NAMES = 100  # in one certificate: beyond it handshakes and logs suffer, and somebody is likely to be probing
NAME_KINDS = ("spiffe", "dns", "ip", "email")

_TRUST_DOMAIN = re.compile(r"(?=[._-]*[a-z0-9])[a-z0-9._-]{1,255}")
_SPIFFE = re.compile(r"spiffe://((?=[._-]*[a-z0-9])[a-z0-9._-]{1,255})((?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+)*)")
_LABEL = r"(?!-)[a-z0-9-]{1,63}(?<!-)"
_DNS = re.compile(rf"(?:{_LABEL}\.)*(?!\d+\Z){_LABEL}")
_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")


def _bad(what: str, text: str, hint: str = "") -> HandclaspError:
    return HandclaspError(Kind.BAD_NAME, f"{text[:300]!r} is not {what}", hint=hint)


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one certificate, checked and canonical; order is the order in the certificate."""

    spiffe: str | None = None
    dns: tuple[str, ...] = ()
    ip: tuple[str, ...] = ()
    email: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """The name that a certificate is counted under: the SPIFFE ID, else ``dns:``, ``ip:`` or ``email:`` and the first of that kind,
        else empty."""
        if self.spiffe is not None:
            return self.spiffe
        for kind, values in (("dns", self.dns), ("ip", self.ip), ("email", self.email)):
            if values:
                return f"{kind}:{values[0]}"
        return ""

    @property
    def is_empty(self) -> bool:
        """Whether there is no name at all."""
        return self.spiffe is None and not self.dns and not self.ip and not self.email

    @property
    def kinds(self) -> frozenset[str]:
        """Which of :data:`NAME_KINDS` are present."""
        present = (self.spiffe is not None, self.dns, self.ip, self.email)
        return frozenset(kind for kind, there in zip(NAME_KINDS, present, strict=True) if there)


def check_trust_domain(text: str) -> str:
    """Return a trust domain name unchanged; raise ``bad_name`` unless it is 1 to 255 of ``a-z 0-9 . _ -`` with at least one letter or
    digit.

    (The last is ours: ``..`` would be legal, and is a path traversal wherever a trust domain becomes part of a URL or file name.)
    """
    if not _TRUST_DOMAIN.fullmatch(text):
        raise _bad("a trust domain", text, "lower-case letters, digits, dots, dashes and underscores, without spiffe:// and without a path")
    return text


def check_spiffe_id(text: str, *, path_required: bool = True) -> str:
    """Return a SPIFFE ID unchanged; raise ``bad_name`` unless it follows the specification exactly.

    A workload's ID has a path (X.509-SVID 2: the leaf's must); ``path_required=False`` also takes the ID of a trust domain itself.
    """
    match = _SPIFFE.fullmatch(text)
    if match is None or len(text) > 2048 or (path_required and not match[2]):
        raise _bad(
            "a SPIFFE ID", text, "write it like spiffe://example.org/prod/web: lower-case trust domain, no empty, '.' or '..' segment"
        )
    return text


def trust_domain_of(spiffe_id: str) -> str:
    """Return the trust domain of a SPIFFE ID that was checked before."""
    return spiffe_id[9:].partition("/")[0]


def check_dns(text: str, wildcard: bool = True) -> str:
    """Return a DNS name in lower case; raise ``bad_name`` unless it is one that a certificate may carry.

    Letters, digits and dashes only (so international names must come as A-labels), labels to 63 and the whole to 253 bytes, no trailing
    dot, last label not all digits (it would be an IP address to some readers). ``*`` only as the whole first label, over at least two
    others.
    """
    name = text.lower() if text.isascii() else text
    host = name[2:] if wildcard and name.startswith("*.") else name
    if len(name) > 253 or not _DNS.fullmatch(host) or (host is not name and "." not in host):
        raise _bad("a DNS name", text, "letters, digits and dashes; international names as xn--…; '*.' only in front of two or more labels")
    if "xn--" in host:
        _check_a_labels(host, text)
    return name


def _check_a_labels(host: str, text: str) -> None:
    for label in host.split("."):
        if label.startswith("xn--"):
            try:
                decoded = label[4:].encode().decode("punycode")
                fine = not decoded.isascii() and decoded.encode("punycode").decode() == label[4:]
            except (UnicodeError, ValueError, OverflowError):
                fine = False
            if not fine:
                raise _bad("a DNS name", text, f"{label} is not an A-label")


def check_ip(text: str) -> str:
    """Return an IP address in canonical form; raise ``bad_name`` for anything else, and for addresses that name no single host.

    IPv4 inside IPv6 is refused: the same host would have two names, and a rule about one would miss the other.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise _bad("an IP address", text) from error
    if isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped is not None or address.scope_id is not None):
        raise _bad("an IP address for a certificate", text, "write an IPv4 address as such, and an IPv6 address without a zone")
    if address.is_unspecified or address.is_multicast:
        raise _bad("the address of one host", text)
    return str(address)


def check_email(text: str) -> str:
    """Return an e-mail address with its domain in lower case; raise ``bad_name`` unless it is a plain ASCII mailbox (RFC 5280 4.2.1.6)."""
    local, at, domain = text.rpartition("@")
    if not at or len(local) > 64 or not _LOCAL.fullmatch(local):
        raise _bad("an e-mail address", text)
    try:
        return f"{local}@{check_dns(domain, wildcard=False)}"
    except HandclaspError as error:
        raise _bad("an e-mail address", text) from error


def make_names(
    spiffe: str | None = None, dns: Iterable[str] = (), ip: Iterable[str] = (), email: Iterable[str] = (), *, limit: int = MAX_NAMES
) -> Names:
    """Return checked names without duplicates, in the order given; raise ``bad_name`` for the first that cannot be used or for too many."""
    names = Names(
        check_spiffe_id(spiffe) if spiffe is not None else None,
        tuple(dict.fromkeys(map(check_dns, dns))),
        tuple(dict.fromkeys(map(check_ip, ip))),
        tuple(dict.fromkeys(map(check_email, email))),
    )
    if len(names.dns) + len(names.ip) + len(names.email) > limit:
        raise HandclaspError(Kind.BAD_NAME, f"more than {limit} names for one certificate")
    return names


def names_from_san(san: x509.SubjectAlternativeName) -> Names:
    """Return the names of a subjectAltName; raise ``bad_name`` for other kinds of name, a second URI, or a URI that is no SPIFFE ID."""
    spiffe: str | None = None
    dns: list[str] = []
    ip: list[str] = []
    email: list[str] = []
    for name in san:
        if isinstance(name, x509.UniformResourceIdentifier):
            if spiffe is not None:
                raise HandclaspError(Kind.BAD_NAME, "more than one URI in the subjectAltName", hint="a certificate has one SPIFFE ID")
            spiffe = name.value
        elif isinstance(name, x509.DNSName):
            dns.append(name.value)
        elif isinstance(name, x509.IPAddress):
            ip.append(str(name.value))
        elif isinstance(name, x509.RFC822Name):
            email.append(name.value)
        else:
            raise HandclaspError(Kind.BAD_NAME, f"a {type(name).__name__} in the subjectAltName is not supported")
    return make_names(spiffe, dns, ip, email)


def in_dns_zone(name: str, zones: Iterable[str]) -> bool:
    """Say whether a checked DNS name (or wildcard) is one of the zones or below one."""
    return any(name == zone or name.endswith("." + zone) for zone in zones)


_STRINGS = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii", 0x14: "latin-1", 0x1E: "utf-16-be", 0x1C: "utf-32-be"}
_COMMON_NAME = der.oid("2.5.4.3")


def common_name(name: bytes) -> str | None:
    """Return the first common name in a DER Name, or None when it has none that can be shown (printable, 64 characters at most).

    For showing only. Names are compared as bytes: ``x509.Name`` would warn about foreign ones that are too long.
    """
    try:
        for attributes in der.children(name):
            for attribute in der.children(attributes):
                kind, value = der.children(attribute)
                if kind == _COMMON_NAME:
                    tag, start, _ = der.read(value)
                    text = value[start:].decode(_STRINGS[tag])
                    return text if len(text) <= 64 and text.isprintable() else None
    except (ValueError, KeyError):
        pass
    return None
