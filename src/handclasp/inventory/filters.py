"""What a list is asked for, parsed once: the same filters from the API's query, the command line, the console's address and saved views.

Every filter narrows the list; those of one list are all met. Times are UTC: an RFC 3339 time, a date, or a duration counted from now
(``7d`` is in seven days, ``-7d`` seven days ago), which is counted again each time a saved view is shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from handclasp.clock import from_datetime, parse_duration, parse_rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.inventory.states import ALL_STATES

STATES = ("valid", "superseded", "expired", "revoked")
IDENTITY_STATES = ("ok", "overdue", "expired", "none")
ORIGINS = ("issued", "found")
TRIAGE = ("unmanaged", "claimed", "dismissed", "investigate")
LOCATION_KINDS = ("endpoint", "file", "keystore", "kubernetes", "mesh", "cloud", "ca", "ct", "import")
LOCATION_STATES = ("read", "failed", "gone")
SORTS = ("-expires", "expires")
IDENTITY_SORTS = ("name", "expires", "-expires")

NOBODY = "none"
"""As an owner: those that have none."""

MAX_TEXT = 2048
MIN_FINGERPRINT = 4
"""Hexadecimal digits: fewer say too little for a look-up."""


@dataclass(frozen=True, slots=True)
class NamePattern:
    """Names, in lower case: exactly this one, all that end so (``*.example.org``), or all that hold it."""

    kind: str
    """``exact``, ``suffix`` or ``part``."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What the items of a list have in common. None filters nothing; times are in ms, fingerprints raw."""

    identity: str | None = None
    name: NamePattern | None = None
    spiffe: str | None = None
    """A SPIFFE ID: it, and everything below its path."""
    issuer: str | None = None
    owner: str | None = None
    """:data:`NOBODY` for those without an owner."""
    tier: str | None = None
    environment: str | None = None
    state: str | None = None
    standing: str | None = None
    origin: str | None = None
    source: str | None = None
    key_type: str | None = None
    key: bytes | None = None
    serial: bytes | None = None
    """Big-endian, as rows have it."""
    sha256: tuple[bytes, bytes] | None = None
    """The first and the last fingerprint with the digits given."""
    profile: str | None = None
    authority: str | None = None
    expires_after: int | None = None
    expires_before: int | None = None
    ca: bool | None = None
    triage: str | None = None
    q: str | None = None
    """In lower case."""
    kind: str | None = None
    host: str | None = None
    sort: str = ""
    """Empty: as the list is sorted when nothing is said."""
    given: Mapping[str, str] = field(default_factory=dict, compare=False)
    """What it was parsed from."""

    @property
    def names(self) -> frozenset[str]:
        """The filters that are set."""
        return frozenset(name for name in self.__slots__ if name != "given" and getattr(self, name) is not None)


ANY = Filters()
"""What filters nothing."""

Reader = Callable[[str, str, int], Any]
"""(parameter, text, now) -> value; raises ``bad_request`` that names the parameter."""


def _bad(parameter: str, why: str, hint: str = "") -> HandclaspError:
    return HandclaspError(Kind.BAD_REQUEST, f"{parameter}: {why}", hint=hint)


def _text(parameter: str, text: str, _now: int) -> str:
    if not text or "\0" in text or len(text) > MAX_TEXT:
        raise _bad(parameter, "it is empty, too long, or has a NUL in it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _bad(parameter, "it is not Unicode") from error
    return text


def _lower(parameter: str, text: str, now: int) -> str:
    return _text(parameter, text, now).lower()


def _one_of(*choices: str) -> Reader:
    def read(parameter: str, text: str, _now: int) -> str:
        if text not in choices:
            raise _bad(parameter, f"{text[:100]!r} is not one", hint=f"one of {', '.join(choices)}")
        return text

    return read


def _name(parameter: str, text: str, now: int) -> NamePattern:
    wanted = _text(parameter, text, now).lower()
    if wanted.startswith("*.") and "*" not in wanted[1:]:
        return NamePattern("suffix", wanted[1:])
    if len(wanted) > 2 and wanted.startswith("*") and wanted.endswith("*") and "*" not in wanted[1:-1]:
        return NamePattern("part", wanted[1:-1])
    if "*" in wanted:
        raise _bad(parameter, f"{text[:100]!r} is not a pattern of names", hint="NAME, *.example.org for all that end so, or *PART*")
    return NamePattern("exact", wanted)


def _spiffe(parameter: str, text: str, now: int) -> str:
    wanted = _text(parameter, text, now)
    wanted = wanted if wanted.startswith("spiffe://") else f"spiffe://{wanted}"
    wanted = wanted.removesuffix("/**").removesuffix("/*").rstrip("/")
    if wanted in ("spiffe:", "spiffe://") or "*" in wanted or wanted.startswith("spiffe:///"):
        raise _bad(parameter, f"{text[:100]!r} is not the beginning of a SPIFFE ID", hint="spiffe://example.org/prod, and all below it")
    return wanted


def _hex(parameter: str, text: str) -> str:
    wanted = text.replace(":", "").lower()
    if re.fullmatch(r"[0-9a-f]{1,64}", wanted) is None:
        raise _bad(parameter, "it is written in hexadecimal digits")
    return wanted


def _key(parameter: str, text: str, _now: int) -> bytes:
    wanted = _hex(parameter, text)
    if len(wanted) != 64:
        raise _bad(parameter, "the fingerprint of a key is the SHA-256 of its SPKI: 64 hexadecimal digits")
    return bytes.fromhex(wanted)


def _serial(parameter: str, text: str, _now: int) -> bytes:
    value = int(_hex(parameter, text), 16)
    if not 0 < value < 1 << 160:
        raise _bad(parameter, "a serial number has at most 160 bits, and is not 0")
    return serial_bytes(value)


def serial_bytes(value: int) -> bytes:
    """Return a serial as rows have it: big-endian, with a leading zero byte when the top bit is set, as in DER."""
    return value.to_bytes((value.bit_length() + 8) // 8, "big")


def _fingerprint(parameter: str, text: str, _now: int) -> tuple[bytes, bytes]:
    wanted = _hex(parameter, text)
    if len(wanted) < MIN_FINGERPRINT:
        raise _bad(parameter, f"at least {MIN_FINGERPRINT} digits of a fingerprint are needed")
    return fingerprint_range(wanted)


def fingerprint_range(digits: str) -> tuple[bytes, bytes]:
    """Return the first and the last fingerprint that begin with these hexadecimal digits."""
    return bytes.fromhex(digits.ljust(64, "0")), bytes.fromhex(digits.ljust(64, "f"))


def _truth(parameter: str, text: str, _now: int) -> bool:
    if text not in ("true", "false"):
        raise _bad(parameter, "it is true or false")
    return text == "true"


def read_moment(parameter: str, text: str, now: int) -> int:
    """Return a time, a date (its beginning, UTC), or a duration from now, in ms. Raises ``bad_request`` that names the parameter."""
    wanted = text.strip()
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", wanted):
            day = date.fromisoformat(wanted)
            return from_datetime(datetime(day.year, day.month, day.day, tzinfo=UTC))
        if re.match(r"\d{4}-", wanted):
            return parse_rfc3339(wanted.replace(" ", "+"))
        ago = wanted.startswith("-")
        distance = round(parse_duration(wanted.lstrip("+-")) * 1000)
        return now - distance if ago else now + distance
    except (HandclaspError, ValueError, OverflowError) as error:
        raise _bad(
            parameter, f"{text[:100]!r} is not a time", hint="2026-01-31, 2026-01-31T12:00:00Z, 7d (from now) or -7d (ago)"
        ) from error


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter: how it is written, and what it does, for documents and for forms."""

    name: str
    description: str
    read: Reader
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


def _choice(name: str, description: str, *choices: str) -> Filter:
    return Filter(name, description, _one_of(*choices), {"type": "string", "enum": list(choices)})


_IDENTITY = Filter("identity", "Exact identity: a SPIFFE ID, or `dns:NAME`, `ip:ADDRESS`, `email:ADDRESS`.", _text)
_NAMES = (
    _IDENTITY,
    Filter("name", "Exact name, `*.example.org` for all names that end so, or `*PART*` for all that hold it.", _name),
    Filter("spiffe", "SPIFFE ID, and everything below its path.", _spiffe),
)
_WHOSE = (
    Filter("owner", "Exact owner; `none` for those without one.", _text),
    Filter("tier", "Exact tier.", _text),
    Filter("environment", "Exact environment.", _text),
)
_WHEN = (
    Filter("expires_after", "Ends then or later: a time, a date, or a duration from now (`7d`, `-1h`).", read_moment),
    Filter("expires_before", "Ends before then: a time, a date, or a duration from now (`7d`, `-1h`).", read_moment),
)
_Q = Filter("q", "Part of a name, subject, issuer or owner; or the beginning (8 digits) of a fingerprint or serial number.", _lower)
_STANDING = _choice("standing", "Where it stands: what was issued, compared with what is seen.", *ALL_STATES)
_SOURCE = Filter("source", "Seen now at a place that this source reads.", _text)

CERTIFICATES: tuple[Filter, ...] = (
    *_NAMES,
    Filter("issuer", "An authority's name, the issuer's distinguished name, or part of it.", _lower),
    *_WHOSE,
    _choice("state", "Current state.", *STATES),
    _STANDING,
    _choice("origin", "Issued here, or found and never issued here.", *ORIGINS),
    _SOURCE,
    Filter("key_type", "Exact type of key: `p256`, `rsa2048` …", _text),
    Filter("key", "SHA-256 of the public key (SPKI), hexadecimal.", _key),
    Filter("serial", "Serial number, hexadecimal.", _serial),
    Filter("sha256", f"Fingerprint, or its beginning ({MIN_FINGERPRINT} digits or more).", _fingerprint),
    Filter("profile", "Exact profile.", _text),
    Filter("authority", "Exact name of an authority of ours that signed it.", _text),
    *_WHEN,
    Filter("ca", "CA certificates (`true`), or others (`false`).", _truth, {"type": "boolean"}),
    _choice("triage", "What was decided about a found one.", *TRIAGE),
    _Q,
    _choice("sort", "Those that end last first (`-expires`, as without it), or soonest first.", *SORTS),
)

IDENTITIES: tuple[Filter, ...] = (
    *_NAMES,
    *_WHOSE,
    _choice("state", "Of its newest certificate; `none` when it has none.", *IDENTITY_STATES),
    _choice("standing", "Has a certificate that stands so.", *ALL_STATES),
    _choice("origin", "Its newest certificate was issued here, or found.", *ORIGINS),
    *_WHEN,
    _Q,
    _choice("sort", "By name (as without it), or by the end of the newest certificate.", *IDENTITY_SORTS),
)

LOCATIONS: tuple[Filter, ...] = (
    Filter("source", "Exact name of the source that reads it.", _text),
    _choice("kind", "What it is.", *LOCATION_KINDS),
    Filter("host", "Exact host, node or agent.", _text),
    _choice("state", "Read, not readable the last time, or gone.", *LOCATION_STATES),
    Filter("key", "SHA-256 of the public key whose private half lies there.", _key),
    Filter("q", "Part of what it is called.", _lower),
)

LISTS: Mapping[str, tuple[Filter, ...]] = {"certificates": CERTIFICATES, "identities": IDENTITIES, "locations": LOCATIONS}


def parse(which: str, query: Mapping[str, str], now: int) -> Filters:
    """Return the filters in a query of the list ``which``; parameters that are no filters (``limit``, ``cursor``) are left alone.

    Raises ``bad_request`` that names the parameter. ``now`` is what durations are counted from.
    """
    values: dict[str, Any] = {}
    given: dict[str, str] = {}
    for one in LISTS[which]:
        text = query.get(one.name)
        if text is not None:
            values[one.name] = one.read(one.name, text, now)
            given[one.name] = text
    if "expires_after" in values and "expires_before" in values and values["expires_after"] >= values["expires_before"]:
        raise _bad("expires_before", "it is not after expires_after")
    return Filters(**values, given=given)


def parse_all(which: str, query: Mapping[str, str], now: int) -> Filters:
    """As :func:`parse`, and refuse what is no filter of that list: for saved views and exports."""
    names = {one.name for one in LISTS[which]}
    for name in query:
        if name not in names:
            raise _bad(name[:100], f"{which} have no such filter", hint=f"they have {', '.join(sorted(names))}")
    return parse(which, query, now)
