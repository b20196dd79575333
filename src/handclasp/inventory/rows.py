"""From what a source saw to rows: one certificate's row, and what one location holds. Pure.

Whatever comes in can be stored: texts are made printable (PostgreSQL keeps no NUL), and what stands in an index is kept short enough for
one (a third of a page of PostgreSQL's), with a hash in the place of what was cut.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import msgspec

from handclasp.errors import HandclaspError, Kind
from handclasp.pki.names import check_dns, check_email, check_ip, check_spiffe_id
from handclasp.pki.reading import Reading, plain, read_certificate
from handclasp.store.counters import LAST_TIME
from handclasp.wire.observations import LOCATION_KINDS, Observed, Seen

SERVED, STORED, LISTED, CHAIN, ANCHOR = "served", "stored", "listed", "chain", "anchor"
USE_ROLES = frozenset({SERVED, STORED})
"""What counts as being in use: a certificate that only came along with another, or is only trusted, stands for nobody."""
STANDING_ROLES = USE_ROLES | {LISTED}
"""What gives a found certificate a standing. One that is only listed exists, and is used nowhere that anybody looked at."""

MAX_INDEXED = 1000
"""Bytes of a text in an index. PostgreSQL refuses an index row above 2,704."""
MAX_SERIAL = 64
MAX_NAMES = 200
"""Names of one certificate that are searched by."""

_EVERY = msgspec.msgpack.Encoder(order="deterministic")
_JSON = msgspec.json.Encoder(order="deterministic")
_CHECKS = {"dns": check_dns, "ip": check_ip, "email": check_email}


@dataclass(frozen=True, slots=True)
class FoundRow:
    """One certificate that was found, ready to be stored. ``values`` are columns of ``found`` but its references."""

    sha256: bytes
    values: dict[str, Any]
    issuer: tuple[str, bytes] | None
    """Name and key identifier; None where not known."""
    identity: str
    """Empty for one that has none."""
    names: tuple[str, ...]
    """What it is searched by."""
    reading: Reading | None
    """None where only its fingerprint is known."""

    @property
    def is_ca(self) -> bool:
        """Whether it is an authority's."""
        return bool(self.values["is_ca"])


@dataclass(slots=True)
class Look:
    """What one location holds, as rows."""

    observed: Observed
    key: str
    at: int
    content: bytes
    sightings: dict[tuple[bytes, str], tuple[str, str]] = field(default_factory=dict)
    """By fingerprint and role: chain and how, as JSON."""
    ders: dict[bytes, bytes | None] = field(default_factory=dict)
    """Every certificate here, with its bytes where they came."""
    told: dict[bytes, Seen] = field(default_factory=dict)
    """What the source says of those whose bytes did not come."""
    anchors: bytes | None = None
    count: int = 0


def found_row(data: bytes, first_seen_at: int) -> FoundRow:
    """Return the row of a certificate from its bytes, readable or not. Never raises."""
    reading = read_certificate(data)
    serial = reading.serial if len(reading.serial) <= MAX_SERIAL else hashlib.sha256(reading.serial).digest()
    key_id = reading.authority_key_id
    values = {
        "sha256": reading.sha256,
        "der": data,
        "serial": serial,
        "subject": reading.subject,
        "names": json_text(reading.names),
        "spki_sha256": reading.spki_sha256,
        "key_type": reading.key_type,
        "signature": reading.signature,
        "usages": json_text(reading.usages),
        "is_ca": int(reading.is_ca),
        "not_before": reading.not_before,
        "not_after": reading.not_after,
        "first_seen_at": first_seen_at,
        "problem": reading.problem,
        "authority_id": None,
    }
    issuer = (bounded(reading.issuer), key_id if len(key_id) <= MAX_SERIAL else hashlib.sha256(key_id).digest())
    names = (*reading.uris, *reading.dns, *reading.ips, *reading.emails, *([reading.subject] if reading.subject else ()))
    return FoundRow(reading.sha256, values, issuer if reading.issuer_der else None, reading.identity, names[:MAX_NAMES], reading)


def told_row(sha256: bytes, seen: Seen, first_seen_at: int) -> FoundRow:
    """Return the row of a certificate of which a source tells only the fingerprint, and perhaps whose it is and until when."""
    identity = _canonical(seen.identity or "")
    values = {
        "sha256": sha256, "der": None, "serial": b"", "subject": "", "names": "{}", "spki_sha256": None, "key_type": "", "signature": "",
        "usages": "[]", "is_ca": 0, "not_before": _moment(seen.not_before), "not_after": _moment(seen.not_after),
        "first_seen_at": first_seen_at, "problem": None, "authority_id": None,
    }  # fmt: skip
    return FoundRow(sha256, values, None, identity, (), None)


def _moment(at: int | None) -> int:
    return at if at is not None and 0 < at <= LAST_TIME else 0


def _canonical(identity: str) -> str:
    """Return an identity that a source names in the form of ours; empty for what is none."""
    kind, _, value = identity.partition(":")
    try:
        if kind == "spiffe":
            return check_spiffe_id(identity)
        return f"{kind}:{_CHECKS[kind](value)}" if kind in _CHECKS else f"dns:{check_dns(identity)}" if identity else ""
    except HandclaspError:
        return ""


def json_text(value: Any) -> str:
    """Return ``value`` as JSON text with its keys in order."""
    try:
        return _JSON.encode(value).decode()
    except UnicodeEncodeError:  # a lone surrogate: no source of ours makes one
        return json.dumps(value, sort_keys=True)


def bounded(text: str, limit: int = MAX_INDEXED) -> str:
    """Return ``text`` printable and at most ``limit`` bytes long, with a hash in the place of what was cut, so what differs stays so."""
    shown = text if text.isprintable() else plain(text) if len(text) <= 2 * limit else plain(text[:limit]) + _hash(text)
    if len(shown) * 4 <= limit:
        return shown
    data = shown.encode("utf-8", "backslashreplace")
    if len(data) <= limit:
        return data.decode()
    return data[: limit - 65].decode("utf-8", "ignore") + "#" + _hash(text)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def check_observed(observed: Observed) -> None:
    """Raise ``bad_request`` for an observation that no source may make."""
    if observed.kind not in LOCATION_KINDS:
        raise HandclaspError(
            Kind.BAD_REQUEST, f"{observed.kind[:100]!r} is not a kind of location", hint=f"one of {', '.join(LOCATION_KINDS)}"
        )
    if not 0 <= observed.at < 1 << 62:
        raise HandclaspError(Kind.BAD_REQUEST, f"{observed.at} is not a time in milliseconds")
    for seen in observed.certificates:
        if seen.role not in (SERVED, STORED, LISTED, ANCHOR):
            raise HandclaspError(Kind.BAD_REQUEST, f"{seen.role[:100]!r} is not a role", hint="served, stored, listed or anchor")
        if seen.der is None and (seen.sha256 is None or len(seen.sha256) != 32):
            raise HandclaspError(Kind.BAD_REQUEST, "a certificate without its bytes needs its SHA-256")


def digest(observed: Observed) -> bytes:
    """Return what is equal for equal content: SHA-256 over everything seen, and neither when nor that it once could not be read."""
    certificates: list[Any] = list(observed.certificates)
    what = (
        observed.kind, observed.unit, observed.shown, observed.host, certificates, observed.private_key, observed.details, observed.facts,
    )  # fmt: skip
    try:
        if len(certificates) > 1:  # proxies and keystores tell what they hold in any order
            certificates.sort(key=_EVERY.encode)
        return hashlib.sha256(_EVERY.encode(what)).digest()
    except UnicodeEncodeError:
        certificates.sort(key=repr)
        return hashlib.sha256(repr(what).encode("utf-8", "backslashreplace")).digest()


def look_of(observed: Observed, key: str, at: int, content: bytes) -> Look:
    """Return what a location holds, with every certificate that came: also those of chains."""
    look = Look(observed, key, at, content, count=len(observed.certificates))
    anchors = set()
    for seen in observed.certificates:
        sha256 = _add(look, seen.der, seen)
        chain = [_add(look, der, None) for der in seen.chain]
        look.sightings.setdefault((sha256, seen.role), (json_text([one.hex() for one in chain]), json_text(seen.how)))
        for one in chain:
            look.sightings.setdefault((one, CHAIN), ("[]", "{}"))
        if seen.role == ANCHOR:
            anchors.add(sha256)
    if anchors:
        look.anchors = hashlib.sha256(b"".join(sorted(anchors))).digest()
    return look


def _add(look: Look, data: bytes | None, seen: Seen | None) -> bytes:
    if data is None:
        assert seen is not None
        assert seen.sha256 is not None
        if seen.sha256 not in look.ders:
            look.ders[seen.sha256] = None
            look.told[seen.sha256] = seen
        return seen.sha256
    sha256 = hashlib.sha256(data).digest()
    look.ders[sha256] = data
    look.told.pop(sha256, None)
    return sha256


def location_values(look: Look) -> dict[str, Any]:
    """Return the columns of a location that follow from what it holds."""
    observed, key = look.observed, look.observed.private_key
    details = observed.details if key is None else {**observed.details, "private_key": {"encrypted": key.encrypted}}
    spki = key.spki_sha256 if key is not None and key.spki_sha256 is not None and len(key.spki_sha256) == 32 else None
    return {
        **place_values(observed),
        "details": json_text(details),
        "facts": json_text(observed.facts),
        "content": look.content,
        "key_sha256": spki,
        "anchors": look.anchors,
        "at": look.at,
    }


def place_values(observed: Observed) -> dict[str, Any]:
    """Return the columns that say what and where a location is."""
    return {
        "kind": observed.kind,
        "unit": bounded(observed.unit),
        "shown": plain(observed.shown),
        "host": None if observed.host is None else bounded(observed.host),
    }


def problem_text(problem: str) -> str:
    """Return the reason why a location could not be read, as it is kept."""
    return plain(problem)[:1000]
