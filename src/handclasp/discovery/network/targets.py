"""What a scope and a list of ports come to: networks and names to read, and how each port is spoken to. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from handclasp.access.egress import check_address, forms_of
from handclasp.client.starttls import STARTTLS
from handclasp.discovery.source import Scope
from handclasp.errors import HandclaspError, Kind

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

PART_BITS = 8
"""Of an address: a part has at most 256 of them."""
MAX_PORTS = 2_000
MAX_ADDRESSES = 1 << 24
"""A /8. An IPv6 range larger than that is no list of hosts, and nobody could read it."""
WELL_KNOWN = {25: "smtp", 587: "smtp", 143: "imap", 389: "ldap", 5432: "postgresql", 3306: "mysql"}
"""Ports where TLS begins with a few words in plain text, unless the setting says otherwise."""
PROTOCOLS = ("tls", *STARTTLS)
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?")


@dataclass(frozen=True, slots=True)
class Port:
    """A port, and what is spoken there until TLS begins (``tls``: nothing)."""

    number: int
    protocol: str


@dataclass(frozen=True, slots=True)
class Targets:
    """Everything that a source reads, and what it leaves out."""

    networks: tuple[Network, ...]
    hosts: tuple[str, ...]
    denied_networks: tuple[Network, ...]
    denied_hosts: frozenset[str]
    loopback: bool

    def admits(self, address: Address) -> bool:
        """Tell whether an address may be read: not denied (as itself, or as another one that leads to the same host), no metadata service,
        and nothing of this machine's own unless that was allowed.
        """
        try:
            check_address(str(address), insecure=self.loopback)
        except HandclaspError:
            return False
        return not any(form in network for form in forms_of(address) for network in self.denied_networks)


def parse_ports(entries: Sequence[str]) -> list[Port]:
    """Return the ports that ``443``, ``8000-8010``, ``2525/smtp`` and the like name, each once, in order; raise ``bad_setting``."""
    found: dict[int, Port] = {}
    for entry in entries:
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?(?:/([a-z]+))?", entry.strip().lower(), re.ASCII)
        if match is None:
            raise _bad(f"{entry!r} is not a port", "write it like 443, 8000-8010 or 2525/smtp")
        first, last, protocol = int(match[1]), int(match[2] or match[1]), match[3]
        if not 1 <= first <= last <= 65_535:
            raise _bad(f"{entry!r} is not a range of ports", "ports are from 1 to 65535")
        if protocol is not None and protocol not in PROTOCOLS:
            raise _bad(f"{protocol!r} is not a protocol", f"one of {', '.join(PROTOCOLS)}")
        for number in range(first, last + 1):
            found[number] = Port(number, protocol or WELL_KNOWN.get(number, "tls"))
        if len(found) > MAX_PORTS:
            raise _bad(f"these are more than {MAX_PORTS} ports", "make several sources of it")
    if not found:
        raise _bad("there is no port to look at", "443 is usual")
    return [found[number] for number in sorted(found)]


def parse_scope(scope: Scope) -> Targets:
    """Return what a scope means for a network; raise ``bad_setting`` for one that means nothing, or too much.

    Loopback is read where the scope says ``loopback``, or names addresses of it and nothing wider; a range that only contains it leaves
    it out.
    """
    if not scope.allow:
        raise _bad("the scope allows nothing", "allow addresses, networks such as 10.0.0.0/24, or host names")
    networks, hosts = _parse(scope.allow)
    denied_networks, denied_hosts = _parse(scope.deny)
    for network in networks:
        try:
            check_address(str(network[0]), insecure=True)
        except HandclaspError as error:
            raise _bad(f"{network} is never read: {error.detail}") from error
    size = sum(network.num_addresses for network in networks)
    if size > MAX_ADDRESSES:
        raise _bad(f"the scope allows {size} addresses, and {MAX_ADDRESSES} is the most", "name the networks that are used")
    local = scope.loopback or any(network.is_loopback for network in networks) or "localhost" in hosts
    return Targets(tuple(networks), tuple(hosts), tuple(denied_networks), frozenset(denied_hosts), local)


def parse_name(text: str) -> str:
    """Return a host name in lower case, without a dot at its end; raise ``bad_setting`` for what is none."""
    try:
        name = text.strip().encode("idna").decode("ascii").lower().rstrip(".") if not text.isascii() else text.strip().lower().rstrip(".")
    except UnicodeError as error:
        raise _bad(f"{text!r} is not a host name") from error
    if not _HOST.fullmatch(name):
        raise _bad(f"{text!r} is neither an address, a network nor a host name")
    return name


def parts_of(network: Network, denied: Sequence[Network]) -> Iterator[tuple[Network, int]]:
    """Yield a network in pieces of at most 256 addresses, each with how many of them are not denied; none of which all are.

    ``denied`` does not overlap in itself, as :func:`parse_scope` returns it.
    """
    near = [other for other in denied if other.version == network.version and network.overlaps(other)]
    whole = network.max_prefixlen - PART_BITS
    pieces = network.subnets(new_prefix=whole) if network.prefixlen < whole else iter((network,))
    for piece in pieces:
        left = piece.num_addresses
        for other in near:
            if piece.overlaps(other):
                left -= min(piece.num_addresses, other.num_addresses)  # of two networks that overlap, one is in the other
        if left:
            yield piece, left


def _parse(entries: Sequence[str]) -> tuple[list[Network], list[str]]:
    networks: dict[int, list[Network]] = {4: [], 6: []}
    hosts: dict[str, None] = {}
    for entry in entries:
        text = entry.strip()
        try:
            network = ipaddress.ip_network(text.strip("[]"), strict=False)
        except ValueError:
            if re.fullmatch(r"[0-9.]+(/.*)?", text) or "/" in text or ":" in text:  # a slip in an address is not a name
                raise _bad(f"{entry!r} is not an address or a network") from None
            hosts[parse_name(text)] = None
        else:
            networks[network.version].append(network)
    collapsed: list[Network] = [*ipaddress.collapse_addresses(_v4(networks[4])), *ipaddress.collapse_addresses(_v6(networks[6]))]
    return collapsed, list(hosts)


def _v4(networks: Sequence[Network]) -> list[ipaddress.IPv4Network]:
    return [network for network in networks if isinstance(network, ipaddress.IPv4Network)]


def _v6(networks: Sequence[Network]) -> list[ipaddress.IPv6Network]:
    return [network for network in networks if isinstance(network, ipaddress.IPv6Network)]


def _bad(sentence: str, hint: str = "") -> HandclaspError:
    return HandclaspError(Kind.BAD_SETTING, sentence, hint=hint)
