"""Who is on the other side of a TLS connection, by identity and not by host name.

Patterns are those of the policy: a SPIFFE ID in which ``*`` stands for exactly one segment and a last ``**`` for one or more
(``spiffe://example.org/prod/*``); the trust domain is always literal. A pattern without a
scheme is a DNS name: exact, or ``*.`` and a name.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from handclasp.errors import HandclaspError, Kind

_SEGMENT = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")


class HasPeer(Protocol):
    """An ``ssl.SSLObject`` or ``ssl.SSLSocket`` whose handshake is done."""

    def getpeercert(self) -> Any:
        """Return the decoded certificate, or {} when it was not verified."""


def peer_identity(ssl_object: HasPeer | None) -> str:
    """Return the verified identity of the peer: its SPIFFE ID, else ``dns:`` and its first DNS name.

    Raises ``not_authenticated`` when there is no certificate or it was not verified, ``bad_name`` when it carries no identity or more than
    one URI (SPIFFE X509-SVID section 2: exactly one).
    """
    names = _names(ssl_object)
    uris = [value for kind, value in names if kind == "URI"]
    if len(uris) > 1:
        raise HandclaspError(Kind.BAD_NAME, "the peer's certificate carries more than one URI")
    if uris:
        if _segments(uris[0]) is None:
            raise HandclaspError(Kind.BAD_NAME, "the URI in the peer's certificate is not a SPIFFE ID")
        return uris[0]
    dns = [value for kind, value in names if kind == "DNS"]
    if not dns:
        raise HandclaspError(Kind.BAD_NAME, "the peer's certificate carries no identity")
    return f"dns:{dns[0].lower()}"


def require_peer(patterns: Sequence[str]) -> Callable[[HasPeer | None], str]:
    """Return a function that gives the peer's identity when a pattern covers it, and raises ``not_allowed`` otherwise.

    DNS patterns look at every DNS name of a peer without a SPIFFE ID. Raises ``bad_setting`` for a pattern that could never be meant.
    """
    checked = tuple(patterns)
    if not checked:
        raise HandclaspError(Kind.BAD_SETTING, "a list of allowed peers must not be empty")
    for pattern in checked:
        _check_pattern(pattern)

    def check(ssl_object: HasPeer | None) -> str:
        identity = peer_identity(ssl_object)
        if identity.startswith("spiffe://"):
            allowed = any(matches(pattern, identity) for pattern in checked)
        else:
            dns = [value for kind, value in _names(ssl_object) if kind == "DNS"]
            allowed = any(matches(pattern, f"dns:{name.lower()}") for pattern in checked for name in dns)
        if not allowed:
            raise HandclaspError(Kind.NOT_ALLOWED, f"{identity} is not one of the peers that are allowed here")
        return identity

    return check


def matches(pattern: str, identity: str) -> bool:
    """Tell whether ``pattern`` covers ``identity`` (a SPIFFE ID, or ``dns:`` and a name)."""
    if not pattern.startswith("spiffe://"):
        name = identity.removeprefix("dns:")
        if identity == name:
            return False
        pattern = pattern.removeprefix("dns:").lower()
        if pattern.startswith("*."):
            return not name.startswith("*") and name.partition(".")[2] == pattern[2:] and bool(name.partition(".")[0])
        return name == pattern
    wanted, given = pattern.removeprefix("spiffe://").split("/"), _segments(identity)
    if given is None:
        return False
    if wanted[-1] == "**":
        wanted.pop()
        if len(given) <= len(wanted):
            return False
        given = given[: len(wanted)]
    return len(wanted) == len(given) and all(one in (other, "*") for one, other in zip(wanted, given, strict=True))


def checking_classes(check: Callable[[HasPeer | None], str]) -> tuple[type[ssl.SSLSocket], type[ssl.SSLObject]]:
    """Return socket and object classes whose handshake fails unless ``check`` accepts the peer: nobody can forget to ask."""

    def verify(ssl_object: HasPeer) -> None:
        try:
            check(ssl_object)
        except HandclaspError as error:
            failure = ssl.SSLCertVerificationError(1, error.detail)
            failure.verify_code, failure.verify_message = 1, error.detail
            raise failure from error

    class CheckedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            verify(self)

    class CheckedObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            verify(self)

    return CheckedSocket, CheckedObject


def _names(ssl_object: HasPeer | None) -> list[tuple[str, str]]:
    try:
        certificate = None if ssl_object is None else ssl_object.getpeercert()
    except ValueError as error:
        raise HandclaspError(Kind.NOT_AUTHENTICATED, "the handshake is not done") from error
    if not certificate:
        raise HandclaspError(Kind.NOT_AUTHENTICATED, "the peer showed no certificate that was verified")
    return [(str(kind), str(value)) for kind, value in certificate.get("subjectAltName", ())]


def _segments(identity: str) -> list[str] | None:
    """Trust domain and path segments of a SPIFFE ID, or None when it is not one."""
    if not identity.startswith("spiffe://"):
        return None
    segments = identity.removeprefix("spiffe://").split("/")
    if not all(segment and segment not in (".", "..") and _SEGMENT.issuperset(segment) for segment in segments):
        return None
    return segments if segments[0] == segments[0].lower() else None


def _check_pattern(pattern: str) -> None:
    problem = ""
    if not pattern.startswith("spiffe://"):
        name = pattern.removeprefix("dns:").removeprefix("*.")
        if not name or "*" in name or "/" in name or ":" in name:
            problem = "a pattern is a SPIFFE ID or a DNS name"
    else:
        domain, *path = pattern.removeprefix("spiffe://").split("/")
        if not domain or "*" in domain:
            problem = "the trust domain must be spelt out"
        elif any("*" in segment and segment not in ("*", "**") for segment in path) or "**" in path[:-1]:
            problem = "* stands for a whole segment, and ** may only be the last"
        elif _segments("spiffe://" + "/".join([domain, *(segment.replace("*", "x") for segment in path)])) is None:
            problem = "it is not a SPIFFE ID"
    if problem:
        raise HandclaspError(Kind.BAD_SETTING, f"{pattern!r} cannot be a peer: {problem}")
