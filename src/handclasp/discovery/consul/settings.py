"""What a source of the kind ``consul`` is told."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

from handclasp.discovery.istio.dump import name_of

Name = Annotated[str, Meta(max_length=256)]


class ConsulSettings(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where, as whom, and what."""

    url: Annotated[str, Meta(max_length=2048)] = ""
    """Address of a server or agent, https://consul.example.org:8501; empty to read proxies alone."""
    token_file: str = ""
    """File with the ACL token, and beside it FILE.hosts with the servers that it may go to; read again for each scan."""
    namespace: Name = ""
    """Namespace of intentions and proxies, in editions that have namespaces."""
    partition: Name = ""
    """Admin partition, in editions that have partitions."""
    datacenter: Name = ""
    """Data centre to ask about; without it that of the server."""
    ca_file: str = ""
    """CA certificates to trust for this server, PEM; without it the public ones."""
    certificate_file: str = ""
    """Client certificate, where the server asks for one (verify_incoming), PEM."""
    key_file: str = ""
    """Its private key, PEM."""
    intentions: bool = False
    """Also read who may talk to whom."""
    envoys: Annotated[list[Annotated[str, Meta(min_length=1, max_length=2048)]], Meta(max_length=5000)] = field(default_factory=list)
    """Admin addresses of Envoy proxies, NAME=http://HOST:19000; the path is /config_dump unless one is given."""


def proxies_of(settings: ConsulSettings) -> list[tuple[str, str]]:
    """Return name and address of each proxy, by name."""
    found = []
    for entry in settings.envoys:
        name, equals, url = entry.partition("=")
        named = bool(equals) and "://" not in name
        found.append((name, url) if named else (name_of(entry), entry))
    return sorted(found)
