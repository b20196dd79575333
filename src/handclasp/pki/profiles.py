"""Profiles: what each kind of certificate looks like. Some are built in; others are read from YAML, validated whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from handclasp.clock import format_duration, parse_duration
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import der
from handclasp.pki.keys import KEY_TYPES
from handclasp.pki.names import NAME_KINDS
from handclasp.pki.yamlfile import Document, Path, Problems, read_yaml

# RFC 5280 4.2.1.3. Certificate and CRL signing (bits 5, 6) are missing on purpose: no profile makes an authority.
KEY_USAGE_BITS = {"digital_signature": 0, "content_commitment": 1, "key_encipherment": 2, "data_encipherment": 3, "key_agreement": 4}
EXTENDED_KEY_USAGES = {"client_auth": "1.3.6.1.5.5.7.3.2", "server_auth": "1.3.6.1.5.5.7.3.1"}
_ONLY_RSA = frozenset({"key_encipherment", "data_encipherment"})  # RFC 8813, RFC 9295, RFC 9881: not with other keys
_ONLY_EC = frozenset({"key_agreement"})

SHORTEST = 1.0  # seconds; certificates count whole ones
LONGEST = 366 * 86400.0  # what lives longer than a year is not renewed by anyone who remembers how
LONGEST_BACKDATE = 3600.0

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Profile:
    """What a kind of certificate looks like. Lifetimes and backdating are seconds."""

    name: str
    description: str = ""
    authority: str = ""
    """Name of the issuing authority; empty: the installation's default."""
    key_types: frozenset[str] = frozenset(KEY_TYPES)
    lifetime: float = 3600.0
    min_lifetime: float = 10.0
    max_lifetime: float = 86400.0
    backdate: float = 60.0
    """How far before now ``not_before`` lies, for clocks that are behind."""
    key_usage: frozenset[str] = frozenset({"digital_signature"})
    extended_key_usage: tuple[str, ...] = ("client_auth", "server_auth")
    names: frozenset[str] = frozenset(NAME_KINDS)
    """Kinds of name (``spiffe``, ``dns``, ``ip``, ``email``) that a certificate may carry."""
    require: frozenset[str] = frozenset()
    """Kinds of name that must be there."""
    renew_same_key: bool = False
    """Whether a renewal may keep the key; new keys each time are the default, so that a stolen key ages out."""
    built_in: bool = False
    extensions_der: bytes = field(init=False, repr=False, compare=False, default=b"")
    """The extensions that are the same in every certificate of the profile, encoded once: keyUsage, extendedKeyUsage, basicConstraints."""

    def __post_init__(self) -> None:
        key_usage = der.named_bits(*(KEY_USAGE_BITS[usage] for usage in self.key_usage))
        extended = der.sequence(*(der.oid(EXTENDED_KEY_USAGES[usage]) for usage in self.extended_key_usage))
        encoded = (
            der.extension("2.5.29.15", key_usage, critical=True)
            + der.extension("2.5.29.37", extended)
            + der.extension("2.5.29.19", der.EMPTY_SEQUENCE, critical=True)  # cA is false by being left out (DER leaves defaults out)
        )
        object.__setattr__(self, "extensions_der", encoded)


_WEEK = 7 * 86400.0
BUILT_IN: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            "workload",
            "a workload's identity in mutual TLS, as client and server: a SPIFFE X.509-SVID",
            names=frozenset({"spiffe", "dns", "ip"}),
            require=frozenset({"spiffe"}),
            built_in=True,
        ),
        Profile(
            "server",
            "a TLS server known by host name or address",
            max_lifetime=_WEEK,
            extended_key_usage=("server_auth",),
            names=frozenset({"spiffe", "dns", "ip"}),
            built_in=True,
        ),
        Profile(
            "client",
            "a TLS client: a person, a job or a device",
            extended_key_usage=("client_auth",),
            names=frozenset({"spiffe", "dns", "email"}),
            built_in=True,
        ),
        Profile(
            "agent",
            "a Handclasp agent, which obtains certificates for the workloads of its host",
            lifetime=86400.0,
            max_lifetime=_WEEK,
            names=frozenset({"spiffe"}),
            require=frozenset({"spiffe"}),
            built_in=True,
        ),
        Profile(
            "mesh",
            "a workload of a service mesh, by its SPIFFE ID alone, for as long as proxies ask",
            lifetime=86400.0,
            backdate=120.0,
            names=frozenset({"spiffe"}),
            require=frozenset({"spiffe"}),
            built_in=True,
        ),
        Profile(
            "probe",
            "a short-lived client that checks what an endpoint accepts",
            lifetime=300.0,
            max_lifetime=600.0,
            extended_key_usage=("client_auth",),
            names=frozenset({"spiffe"}),
            require=frozenset({"spiffe"}),
            built_in=True,
        ),
    )
}
"""The profiles that every installation has."""


def all_profiles(custom: Mapping[str, Profile]) -> dict[str, Profile]:
    """Return the built-in profiles and the installation's own in one mapping."""
    return {**BUILT_IN, **custom}


def load_profiles(text: str, source: str = "profiles.yaml") -> dict[str, Profile]:
    """Read an installation's profiles: ``version: 1`` and ``profiles: {name: {...}}``, each maybe with ``extend:`` naming a built-in one.

    Raises one ``bad_profile`` error that names everything wrong with the file as ``source:line: message``; a file is taken whole or not at
    all.
    """
    document = read_yaml(text, source, Kind.BAD_PROFILE)
    problems = Problems(source, Kind.BAD_PROFILE)
    for key in document.value:
        if key not in ("version", "profiles"):
            problems.add(document.line((key,)), f"unknown key {key!r}; known here: version, profiles")
    if document.value.get("version") != 1 or isinstance(document.value.get("version"), bool):
        problems.add(document.line(("version",)), "'version: 1' is needed")
    entries = document.value.get("profiles")
    if entries is None:
        entries = {}
    if not isinstance(entries, dict):
        problems.add(document.line(("profiles",)), "'profiles' must be a mapping of names to profiles")
        entries = {}
    profiles = {name: _ProfileReader(document, problems, name).read(entry) for name, entry in entries.items()}
    problems.raise_if_any()
    return profiles


class _ProfileReader:
    """Reads one entry of the file; notes problems instead of raising, so that all are found."""

    def __init__(self, document: Document, problems: Problems, name: str) -> None:
        self.document = document
        self.problems = problems
        self.name = name
        self.path: Path = ("profiles", name)

    def problem(self, key: str, message: str) -> None:
        self.problems.add(self.document.line((*self.path, key)), f"profile {self.name!r}: {message}")

    def read(self, entry: Any) -> Profile:
        base = Profile(self.name)
        if not _NAME.fullmatch(self.name):
            self.problem("", "a profile's name is lower-case letters, digits, dots, dashes and underscores")
        if self.name in BUILT_IN:
            self.problem("", "is built in and cannot be changed; give yours another name and 'extend' it")
        if not isinstance(entry, dict):
            self.problem("", "must be a mapping")
            return base
        parent = entry.get("extend")
        if parent is not None:
            if isinstance(parent, str) and parent in BUILT_IN:
                base = replace(BUILT_IN[parent], name=self.name, built_in=False)
            else:
                self.problem("extend", f"extends {parent!r}, which is not a built-in profile; one of {', '.join(BUILT_IN)}")
        changes: dict[str, Any] = {}
        for key, value in entry.items():
            if key != "extend":
                self._read_field(key, value, changes)
        profile = replace(base, **changes)
        self._check(profile, changes)
        return profile

    def _read_field(self, key: str, value: Any, changes: dict[str, Any]) -> None:
        if key in ("description", "authority"):
            if not isinstance(value, str):
                self.problem(key, f"{key} must be text")
                return
            changes[key] = value
        elif key in ("lifetime", "min_lifetime", "max_lifetime", "backdate"):
            self._read_duration(key, value, changes)
        elif key == "renew_same_key":
            if not isinstance(value, bool):
                self.problem(key, "renew_same_key must be true or false")
                return
            changes[key] = value
        elif key in _CHOICES:
            values = self._read_choices(key, value, _CHOICES[key])
            if values is not None:
                changes[key] = tuple(values) if key == "extended_key_usage" else frozenset(values)
        else:
            self.problem(key, f"unknown key {key!r}; known here: {', '.join(_FIELDS)}")

    def _read_duration(self, key: str, value: Any, changes: dict[str, Any]) -> None:
        try:
            changes[key] = parse_duration(value if isinstance(value, str) else str(value))
        except HandclaspError as error:
            self.problem(key, f"{key}: {error.detail}; {error.hint}")

    def _read_choices(self, key: str, value: Any, known: Iterable[str]) -> list[str] | None:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.problem(key, f"{key} must be a list, like [{', '.join(list(known)[:2])}]")
            return None
        fine = True
        for item in value:
            if item not in known:
                self.problem(key, f"{key}: {item!r} is not one of {', '.join(known)}")
                fine = False
        if len(set(value)) != len(value):
            self.problem(key, f"{key} names something twice")
            fine = False
        return value if fine else None

    def _check(self, profile: Profile, changes: dict[str, Any]) -> None:
        """Check what is true of a profile as a whole, with the line of the value that was written here."""
        line = next((key for key in ("max_lifetime", "min_lifetime", "lifetime") if key in changes), "")
        if not SHORTEST <= profile.min_lifetime <= profile.lifetime <= profile.max_lifetime <= LONGEST:
            self.problem(
                line,
                f"min_lifetime {format_duration(profile.min_lifetime)} <= lifetime {format_duration(profile.lifetime)} <= max_lifetime "
                f"{format_duration(profile.max_lifetime)} must hold, within {format_duration(SHORTEST)} and {format_duration(LONGEST)}",
            )
        if profile.backdate > LONGEST_BACKDATE:
            self.problem("backdate", f"backdate may be at most {format_duration(LONGEST_BACKDATE)}")
        for key in ("key_types", "extended_key_usage", "names"):
            if not getattr(profile, key):
                self.problem(key, f"{key} must not be empty")
        if not profile.require <= profile.names:
            self.problem("require", f"requires {', '.join(sorted(profile.require - profile.names))}, which 'names' does not allow")
        if "digital_signature" not in profile.key_usage:
            self.problem("key_usage", "key_usage needs digital_signature: TLS 1.3 uses nothing else")
        if profile.key_usage & _ONLY_RSA and not all(kind.startswith("rsa") for kind in profile.key_types):
            self.problem("key_usage", "key_encipherment and data_encipherment need key_types of RSA only")
        if profile.key_usage & _ONLY_EC and not profile.key_types <= {"p256", "p384"}:
            self.problem("key_usage", "key_agreement needs key_types p256 and p384 only")


_CHOICES: dict[str, tuple[str, ...]] = {
    "key_types": KEY_TYPES,
    "key_usage": tuple(KEY_USAGE_BITS),
    "extended_key_usage": tuple(EXTENDED_KEY_USAGES),
    "names": NAME_KINDS,
    "require": NAME_KINDS,
}
_FIELDS = ("extend", "description", "authority", *_CHOICES, "lifetime", "min_lifetime", "max_lifetime", "backdate", "renew_same_key")
