"""What is written in the log: one canonical JSON document for each state change and each refusal.

An entry is the exact bytes that are hashed. It says who did what, why, and from where; personal data is in it only as a salted hash, and
salt and value are kept beside the log, so that erasing that row erases the person while the tree still verifies.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from handclasp.clock import rfc3339
from handclasp.errors import HandclaspError, Kind

VERSION = 1
"""The schema version, ``v`` in each entry. A reader that meets a higher one shows the entry and does not interpret it."""

MAX_ENTRY = 65_535
"""Bytes: an entry bundle gives the length 16 bits (C2SP tlog-tiles, "Log entries")."""

MAX_INTEGER = 2**53 - 1
"""RFC 8785 numbers are IEEE 754 doubles; beyond this two readers may see two numbers. Bigger ones (serials) are written as hex text."""

MAX_DEPTH = 16

ENTRY_TYPES: Mapping[str, str] = {
    "certificate.issued": "A certificate was issued.",
    "certificate.renewed": "A certificate was issued in the place of its predecessor.",
    "certificate.revoked": "A certificate was revoked.",
    "issuance.refused": "A certificate was asked for and refused.",
    "renewal.refused": "A renewal was asked for and refused.",
    "revocation.refused": "A revocation was asked for and refused.",
    "access.refused": "A request was refused before it was known what it asked for, or on anything but a certificate.",
    "key.blocked": "A key was blocked: it is never certified again, for anyone.",
    "token.created": "A token was created.",
    "token.revoked": "A token was revoked.",
    "policy.compared": "A policy was compared with the one in force.",
    "policy.applied": "A policy was put in force.",
    "profiles.compared": "Profiles were compared with those in force.",
    "profiles.applied": "Profiles were put in force.",
    "authority.created": "An authority was made or imported.",
    "authority.expiring": "An authority ends so soon that certificates will be cut short or cannot be issued.",
    "authority.retired": "An authority was retired: it signs no more certificates.",
    "crl.imported": "A revocation list that an offline root made was published.",
    "agent.enrolled": "An agent made itself known for the first time.",
    "agent.refused": "An agent's evidence was refused.",
    "rotation.started": "Certificates were told to be replaced before their time.",
    "jwt.issued": "A JWT-SVID was issued.",
    "jwt.refused": "A JWT-SVID was asked for and refused.",
    "jwt_key.created": "A key that signs JWT-SVIDs was made; it is published ahead of its use.",
    "jwt_key.retired": "A key that signed JWT-SVIDs left the bundle.",
    "federation.added": "Another trust domain's bundle is trusted from now on.",
    "federation.removed": "Another trust domain's bundle is trusted no more.",
    "federation.changed": "A federated bundle has other keys than before.",
    "log.personal_erased": "The personal data behind the salted hashes of an entry was erased.",
    "certificate.triaged": "What becomes of a certificate that was found was decided: claimed, dismissed or to be investigated.",
    "certificate.unissued": "A certificate was seen that an authority of ours signed and that was never issued here.",
    "source.added": "A source was added: discovery reads it from now on.",
    "source.changed": "What discovery reads of a source, or how often, was changed.",
    "source.removed": "A source was removed, with its locations and sightings.",
    "scan.started": "Somebody asked for a scan of a source.",
    "scan.stopped": "Somebody stopped a scan.",
    "owner.changed": "Owners were imported, added, changed or removed.",
    "ownership.applied": "Rules of ownership were put in force.",
    "identity.assigned": "Somebody said who owns an identity, or its tier or environment.",
    "identity.confirmed": "An owner confirmed, or denied, that an identity is theirs.",
    "identity.asked": "A link was made by which an owner confirms, or denies, what it owns.",
    "console.signed_in": "Somebody signed in to the console.",
    "console.refused": "Somebody was refused at the console's door.",
    "console.signed_out": "Somebody signed out of the console, or was.",
    "server.started": "A server process started.",
    "sightings.limited": "An agent or a source saw more that was new than its quota lets it bring into the inventory.",
}
"""Every type an entry can have, and what it means. Append-only: a type that was ever written keeps its meaning."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, ready to be committed."""

    data: bytes
    """Canonical JSON (RFC 8785), the exact bytes that are hashed; at most 65,535."""
    personal: tuple[tuple[str, bytes, str], ...]
    """``(field, salt of 16 bytes, value)`` for each salted hash in ``data``; to be kept where it can be erased."""
    subjects: tuple[str, ...]
    """What the entry is about, for the index: ``token:ID``, ``agent:NAME``, ``certificate:SHA256``."""


def make_entry(
    type_: str,
    *,
    at: int,
    who: Mapping[str, str],
    what: Mapping[str, Any],
    why: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    personal: Mapping[str, str] | None = None,
    subjects: Sequence[str] = (),
    random: Callable[[int], bytes] = os.urandom,
) -> Entry:
    """Return the entry of type ``type_`` (one of ENTRY_TYPES) that happened at ``at`` (milliseconds since the epoch).

    ``who``, ``what``, ``why`` and ``source`` hold text, integers up to 2**53 - 1, booleans, None, and lists and maps of these; ``why``,
    ``source`` (``from`` in the entry) and ``personal`` are left out when empty. A value of ``personal`` is in the entry only as
    ``{"salted": hex sha256(salt || value)}`` with a fresh salt of 16 bytes from ``random``. So is, as ``who.id`` or ``who.subject``, an
    address by which a provider of sign-ins calls somebody.

    Raises ``too_large`` above 65,535 bytes, ``bad_request`` for text that is not Unicode, ``internal`` for an unknown type or a value of
    another kind.
    """
    if type_ not in ENTRY_TYPES:
        raise HandclaspError(Kind.INTERNAL, f"{type_!r} is not a type of log entry")
    who, personal = _without_addresses(who, personal or {})
    document: dict[str, Any] = {"at": rfc3339(at)}
    if source:
        document["from"] = _canonical(source, 1)
    kept: list[tuple[str, bytes, str]] = []
    if personal:
        kept = [(name, random(16), value) for name, value in personal.items()]
        document["personal"] = _canonical({name: {"salted": salted_hash(salt, value)} for name, salt, value in kept}, 1)
    document["type"] = type_
    document["v"] = VERSION
    document["what"] = _canonical(what, 1)
    document["who"] = _canonical(who, 1)
    if why:
        document["why"] = _canonical(why, 1)
    data = _encode(document)
    if len(data) > MAX_ENTRY:
        raise HandclaspError(Kind.TOO_LARGE, f"a log entry of {len(data)} bytes is over the limit of {MAX_ENTRY}")
    return Entry(data, tuple(kept), tuple(subjects))


def _without_addresses(who: Mapping[str, str], personal: Mapping[str, str]) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return ``who`` without the subjects that are addresses (of an OIDC token, of somebody signed in by one), and these as personal."""
    if who.get("kind") not in ("oidc", "console"):
        return who, personal
    found = {name: value for name in ("id", "subject") if isinstance(value := who.get(name), str) and "@" in value}
    if not found:
        return who, personal
    kept = {name: value.partition(":")[0] if name in found else value for name, value in who.items() if name not in found or ":" in value}
    return kept, {**personal, **{f"who.{name}": value for name, value in found.items()}}


def salted_hash(salt: bytes, value: str) -> str:
    """Return what stands in an entry for a personal value: hex SHA-256 over the salt (16 bytes) and the value in UTF-8."""
    return hashlib.sha256(salt + _utf8(value)).hexdigest()


def parse_entry(data: bytes) -> dict[str, Any]:
    """Return an entry's document; raise ``tampered`` for bytes that :func:`make_entry` cannot have made."""
    try:
        document = msgspec.json.decode(data, type=dict[str, Any])
        if _encode(_canonical(document, 0)) != data:
            raise HandclaspError(Kind.TAMPERED, "a log entry is not canonical JSON")
    except HandclaspError as error:
        raise HandclaspError(Kind.TAMPERED, f"a log entry cannot be one: {error.detail}") from error
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise HandclaspError(Kind.TAMPERED, "a log entry is not a JSON document") from error
    return document


def _canonical(value: Any, depth: int) -> Any:
    """Return ``value`` with its keys in RFC 8785 order, having refused what has no one canonical form."""
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return value
    if kind is int:
        if -MAX_INTEGER <= value <= MAX_INTEGER:
            return value
        raise HandclaspError(Kind.INTERNAL, "a log entry holds no integer beyond 2**53 - 1", hint="write it as text")
    if depth > MAX_DEPTH:
        raise HandclaspError(Kind.INTERNAL, f"a log entry is nested deeper than {MAX_DEPTH}")
    if isinstance(value, Mapping):
        return _canonical_map(value, depth)
    if kind is list or kind is tuple:
        return [item if type(item) is str else _canonical(item, depth + 1) for item in value]
    if isinstance(value, str):  # an enumeration's member: its value is what is meant
        return str.__str__(value)
    raise HandclaspError(Kind.INTERNAL, f"a log entry cannot hold a {kind.__name__}")


def _canonical_map(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    try:
        plain = "".join(value).isascii()
    except TypeError as error:
        raise HandclaspError(Kind.INTERNAL, "a map in a log entry has a key that is not text") from error
    # RFC 8785 section 3.2.3 orders keys by UTF-16 code units, which is not Python's order above U+FFFF.
    names = sorted(value) if plain else sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
    return {name: item if type(item := value[name]) is str else _canonical(item, depth + 1) for name in names}


def _encode(document: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError as error:
        raise HandclaspError(Kind.BAD_REQUEST, "the text holds a lone surrogate, which is not Unicode") from error


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise HandclaspError(Kind.BAD_REQUEST, "the text holds a lone surrogate, which is not Unicode") from error
