"""What discovery saw: the one form in which every source, agent and collector hands it in.

Times are milliseconds since the Unix epoch, certificates DER (base64 in JSON), fingerprints raw SHA-256 (base64 in JSON). A private key is
never in here: only that one is there, whose it is (SPKI) and who could read it.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from handclasp.wire.base import Request, Response

LOCATION_KINDS = ("endpoint", "file", "keystore", "kubernetes", "mesh", "cloud", "ca", "ct", "import")

Text = Annotated[str, Meta(max_length=4096)]
Der = Annotated[bytes, Meta(max_length=262_144)]
Facts = Annotated[dict[str, Any], Meta(max_length=200)]


class Seen(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One certificate at a location, as it came."""

    der: Der | None = None
    """Its bytes, readable or not; None where the source tells only the fingerprint, and then the fields below say what it knows."""
    role: str = "stored"
    """``served`` (shown in a handshake, or used by a proxy), ``stored``, ``listed``, or ``anchor``: a CA certificate that is trusted there.

    ``listed`` says that the certificate exists (a CA's list of what it issued, a log, an imported table), and not that anybody uses it."""
    chain: Annotated[list[Der], Meta(max_length=32)] = field(default_factory=list)
    """What came with it, in its order, without the certificate itself; also a wrong or a missing one is kept as it is."""
    how: Facts = field(default_factory=dict)
    """TLS version, SNI, signature algorithm asked for, alias in a keystore: JSON."""
    sha256: Annotated[bytes, Meta(max_length=32)] | None = None
    identity: Text | None = None
    not_before: int | None = None
    not_after: int | None = None


class SeenKey(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A private key that lies at a location. It was not read beyond what this says."""

    spki_sha256: Annotated[bytes, Meta(max_length=32)] | None = None
    """None where it cannot be told without a passphrase."""
    encrypted: bool = False


class Observed(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One location, read or not. Equal content at the same key is the normal case, and costs one timestamp."""

    key: Text
    """What the location is called in its source, always the same for the same place; ``tls:HOST:PORT/SNI``, ``file:AGENT:PATH``."""
    kind: str
    """One of :data:`LOCATION_KINDS`."""
    shown: Text
    """The same for people: ``web-1:443``, ``/etc/nginx/tls.pem``, ``payments/api-tls``."""
    unit: Text = ""
    """What lists it: a directory tree, a namespace's Secrets, an address range. See :class:`Covered`."""
    host: Text | None = None
    """Host, node or agent that it is on."""
    at: int
    """When it was read."""
    certificates: Annotated[list[Seen], Meta(max_length=10_000)] = field(default_factory=list)
    """Everything that is there now; empty with no ``problem`` says that nothing is there any more."""
    private_key: SeenKey | None = None
    details: Facts = field(default_factory=dict)
    """Of the kind's own shape: protocol, permissions, owner of a file, acceptable CA names, whether a client certificate is asked for."""
    facts: Facts = field(default_factory=dict)
    """Evidence of ownership: ``namespace``, ``namespace_labels``, ``workload``, ``workload_labels``, ``tags``, ``host_group``."""
    problem: Text | None = None
    """Why it could not be read. That is no absence: what was seen there before stays open."""


def unit_mark(limits: str) -> str:
    """Return what to add to the name of a unit that is read with limits: ``~`` and eight digits; nothing without any.

    With other limits it is another unit (:class:`Covered`), so that nothing seems gone that is merely no longer looked at.
    """
    return f"~{hashlib.sha256(limits.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}" if limits else ""


class Covered(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A unit was listed whole: whatever of it was not observed since ``began_at`` is gone."""

    unit: Text
    began_at: int


class Sightings(Request, kw_only=True):
    """What a collector or an agent read since its last word. The answer comes when all of it is durable."""

    observed: Annotated[list[Observed], Meta(max_length=1000)] = field(default_factory=list)
    covered: Annotated[list[Covered], Meta(max_length=1000)] = field(default_factory=list)


class Recorded(Response, kw_only=True):
    """What came of it, in numbers."""

    locations: int
    """Locations that were read."""
    changed: int
    """Locations that hold something else than before, or are new."""
    failed: int
    """Locations that could not be read."""
    certificates: int
    """Certificates seen, each as often as it was."""
    fresh: int
    """Certificates that nobody had seen before, but for those of chains."""
    gone: int
    """Sightings that ended."""
    unreadable: int = 0
    """Certificates among them that cannot be parsed; each is kept, with the reason."""
    refused: int = 0
    """Locations that were not recorded, or not what is in them: whoever saw them has a quota, and it is used up."""
    refusal: str = ""
    """Which quota that is."""
