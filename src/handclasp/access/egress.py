"""Where this server may connect to when someone else's words (a policy, an issuer's metadata) name the place.

A URL is checked when it is read, and each address that its name resolves to before a connection goes there: a name can resolve to
anything. The fetcher pins the address that was checked (otherwise the second resolution may differ from the first).
"""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

from handclasp.errors import HandclaspError, Kind

# Clouds hand out credentials here to whoever can ask; fe80::/10 and 169.254.0.0/16 as a whole are refused as link-local.
_METADATA = frozenset(map(ipaddress.ip_address, ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16")))
# The last 32 bits are an IPv4 address: NAT64 (RFC 6052, RFC 8215) and the old IPv4-compatible form (RFC 4291 section 2.5.5.1).
_EMBEDDING = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")))
_MAPPED, _NAT64 = b"\0" * 10 + b"\xff\xff", b"\x00\x64\xff\x9b" + b"\0" * 8
_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data"})


def check_url(url: str, *, insecure: bool = False) -> SplitResult:
    """Return the parts of a URL that may be fetched; raise ``not_allowed`` for any other.

    ``https`` only, without user and password; ``insecure`` (a setting, for development) also takes ``http`` and loopback.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise HandclaspError(Kind.NOT_ALLOWED, "this is not a URL") from error
    if parts.scheme != "https" and not (insecure and parts.scheme == "http"):
        raise HandclaspError(Kind.NOT_ALLOWED, f"only https:// is fetched, and this is {parts.scheme or 'no'}://")
    if not host or parts.username is not None or parts.password is not None or not url.isascii() or not url.isprintable():
        raise HandclaspError(Kind.NOT_ALLOWED, "a URL to fetch has a host, no user or password, and only ASCII")
    if host.rstrip(".").lower() in _METADATA_NAMES:
        raise HandclaspError(Kind.NOT_ALLOWED, f"{host} is a cloud's metadata service")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return parts
    check_address(host, insecure=insecure)
    return parts


def check_address(address: str, *, insecure: bool = False) -> None:
    """Raise ``not_allowed`` unless a connection may go to this IP address: not to metadata, link-local, multicast or (unless ``insecure``)
    loopback. Private ranges are fine: that is where mTLS lives.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError as error:
        raise HandclaspError(Kind.NOT_ALLOWED, "this is not an IP address") from error
    for each in forms_of(parsed):
        if each in _METADATA or each.is_link_local or each.is_multicast or each.is_unspecified:
            raise HandclaspError(Kind.NOT_ALLOWED, f"{address} is not an address to connect to")
        if each.is_loopback and not insecure:
            raise HandclaspError(Kind.NOT_ALLOWED, f"{address} is this machine itself")


def forms_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Return an address and the others that lead to the same host: the IPv4 addresses that an IPv6 address stands for where something on
    the way translates, and those in IPv6 with the prefixes for that. Who denies one of them denies them all.
    """
    plain: list[ipaddress.IPv4Address | None]
    if isinstance(address, ipaddress.IPv4Address):
        plain = [address]
    else:
        plain = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if any(address in network for network in _EMBEDDING):
            plain.append(ipaddress.IPv4Address(address.packed[-4:]))
    forms: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [address]
    for one in plain:
        if one is not None:
            forms += [one, *(ipaddress.IPv6Address(prefix + one.packed) for prefix in (_MAPPED, _NAT64))]
    return forms
