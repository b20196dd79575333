"""Patterns over names, as grants and deny rules write them. They are compared with checked names (:mod:`handclasp.pki.names`) only.

=============  =======================================================================================================================
identity       ``spiffe://td/prod/*/web``: ``*`` is exactly one whole path segment; ``**`` is one or more, and only at the end. The trust
               domain is always literal.
DNS            ``web.example.org``, or ``*.example.org``: exactly one label. The certificate name ``*.example.org`` is covered only by a
               pattern that is that very text.
IP             an address or a CIDR range; IPv4 and IPv6 never match each other.
e-mail         ``who@example.org``, or ``*@example.org``.
claim value    as identity, with the separators ``/`` and ``:``: ``repo:acme/*:ref:refs/heads/main``.
=============  =======================================================================================================================

``{claim}`` in an identity, DNS or e-mail pattern stands for the caller's own claim or label of that name. The value is never pasted into
anything: the text at that place of the name is cut out and **compared** with it, and that text can hold letters, digits and ``. _ -``
only. So a value with ``*``, ``/``, ``+``, ``,`` or braces matches nothing (GHSA-59w7-v8rr-pr4p: such values widened another product's
templated policies). One placeholder for each segment or label at most: ``{ns}-{sa}`` would give ``a-b``/``c`` and ``a``/``b-c`` one name.
"""

from __future__ import annotations

import ipaddress
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from handclasp.errors import HandclaspError, Kind
from handclasp.pki import names

Claims = Mapping[str, Any]
"""An OIDC token's claims or an agent's labels."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_PATTERN = 2048
"""Characters: no SPIFFE ID is longer (SPIFFE-ID section 2.3), so a longer pattern is a mistake."""

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_HOLE = "\0"
_CLAIM_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")
# SPIFFE-ID section 2.2: the characters of a path segment, which is never "." or "..".
_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+"
_LABEL = r"[a-z0-9-]+"
_LOCAL = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"


class AnyValue(Mapping[str, Any]):
    """Stands for claims that are no longer known: every placeholder then takes any one value.

    Only for a renewal, whose names are checked against those of the certificate that it replaces, claims and all, when that was issued.
    """

    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


ANY_VALUE = AnyValue()
NO_CLAIMS: Claims = {}


def claim_value(claims: Claims, path: str) -> Any:
    """Return the claim at ``path``, or None. Dots also lead into nested claims: ``kubernetes.io.namespace``.

    A path that leads to two places (a claim of that very name beside the nested one) leads nowhere: which one the issuer vouches for, and
    which one a user could set, cannot be told.
    """
    found = list(_claim_values(claims, path))
    return found[0] if len(found) == 1 else None


def _claim_values(claims: Any, path: str) -> Iterable[Any]:
    if not isinstance(claims, Mapping):
        return
    if path in claims:
        yield claims[path]
    for position in (index for index, letter in enumerate(path) if letter == "."):
        if path[:position] in claims:
            yield from _claim_values(claims[path[:position]], path[position + 1 :])


class _Template:
    """One pattern with placeholders: a regular expression with a group for each, and the claims that the groups must equal."""

    __slots__ = ("claims", "regex")

    def __init__(self, regex: str, claims: list[str]) -> None:
        self.regex = re.compile(regex)
        self.claims = tuple(claims)

    def covers(self, name: str, claims: Claims) -> bool:
        match = self.regex.fullmatch(name)
        if match is None:
            return False
        if claims is ANY_VALUE:
            return True
        return all(
            isinstance(value := claim_value(claims, path), str) and value == text
            for path, text in zip(self.claims, match.groups(), strict=True)
        )


class Patterns(ABC):
    """A set of compiled patterns of one kind; equal when their texts are. An empty set covers nothing.

    Raises ``bad_policy`` for a text that is not a pattern of this kind.
    """

    __slots__ = ("_exact", "_regex", "_templates", "texts")

    what = "name"

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts: tuple[str, ...] = tuple(dict.fromkeys(texts))
        exact: set[str] = set()
        regexes: list[str] = []
        templates: list[_Template] = []
        for text in self.texts:
            skeleton, claims = _skeleton(text, self.what)
            literal, regex = self._compile(skeleton, text)
            if claims:
                templates.append(_Template(regex, claims))
                continue
            if literal:
                exact.add(literal)
            if regex:
                regexes.append(regex)
        self._exact = frozenset(exact)
        self._regex = re.compile("|".join(f"(?:{regex})" for regex in regexes)) if regexes else None
        self._templates = tuple(templates)

    @abstractmethod
    def _compile(self, skeleton: str, text: str) -> tuple[str, str]:
        """Return the one name it covers literally and the regular expression of the others, "" where there is none.

        ``skeleton`` is the pattern with NUL in the place of each placeholder; ``text`` is for error messages.
        """

    def covers(self, name: str, claims: Claims = NO_CLAIMS) -> bool:
        """Return whether one of the patterns covers the checked name."""
        if name in self._exact:
            return True
        if self._regex is not None and self._regex.fullmatch(name) is not None:
            return True
        return bool(self._templates) and any(template.covers(name, claims) for template in self._templates)

    @property
    def has_placeholders(self) -> bool:
        """Whether any pattern needs claims."""
        return bool(self._templates)

    @property
    def placeholders(self) -> frozenset[str]:
        """The claims that the patterns need."""
        return frozenset(claim for template in self._templates for claim in template.claims)

    def __bool__(self) -> bool:
        return bool(self.texts)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, Patterns) and set(other.texts) == set(self.texts)

    def __hash__(self) -> int:
        return hash(frozenset(self.texts))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.texts)!r})"


class IdentityPatterns(Patterns):
    """Patterns over SPIFFE IDs."""

    __slots__ = ("agents", "trust_domains")

    what = "identity"

    def __init__(self, texts: Iterable[str] = ()) -> None:
        super().__init__(texts)
        split = [text.removeprefix("spiffe://").partition("/") for text in self.texts]
        self.trust_domains = frozenset(trust_domain for trust_domain, _, _ in split)
        """The trust domains that the patterns name."""
        self.agents = any(path.partition("/")[0] == "agent" for _, _, path in split)
        """Whether a pattern speaks of agents' own identities, ``spiffe://td/agent/…``."""

    def _compile(self, skeleton: str, text: str) -> tuple[str, str]:
        trust_domain, *segments = skeleton.removeprefix("spiffe://").split("/")
        if not skeleton.startswith("spiffe://") or not segments:
            raise _bad(text, self.what, "write it as spiffe://TRUST-DOMAIN/PATH")
        if "*" in trust_domain or _HOLE in trust_domain:
            raise _bad(text, self.what, "the trust domain is always literal")
        parts = [_part(segment, _SEGMENT, text, self.what) for segment in segments[:-1]]
        rest = segments[-1] == "**"
        parts.append(f"{_SEGMENT}(?:/{_SEGMENT})*" if rest else _part(segments[-1], _SEGMENT, text, self.what))
        _check_sample(skeleton, text, self.what, names.check_spiffe_id)
        if "*" not in skeleton and _HOLE not in skeleton:
            return text, ""
        return "", "/".join([re.escape(f"spiffe://{trust_domain}"), *parts])


class DnsPatterns(Patterns):
    """Patterns over DNS names (lower case)."""

    __slots__ = ()

    what = "DNS name"

    def _compile(self, skeleton: str, text: str) -> tuple[str, str]:
        first, *rest = skeleton.lower().split(".")
        last = rest[-1] if rest else first
        if "*" in last or _HOLE in last:
            raise _bad(text, self.what, "the last label is always literal")
        parts = [_LABEL if first == "*" else _part(first, _LABEL, text, self.what, wildcard=False)]
        parts += [_part(label, _LABEL, text, self.what, wildcard=False) for label in rest]
        checked = _check_sample(skeleton, text, self.what, names.check_dns)
        if first == "*":
            # A certificate name with "*" is taken by no expression: only the pattern with that very text covers it.
            return f"*.{checked.partition('.')[2]}", r"\.".join(parts)
        return (checked, "") if _HOLE not in skeleton else ("", r"\.".join(parts))

    def touches(self, name: str) -> bool:
        """Return whether the certificate name ``name`` would serve for any name covered here: what a deny rule must ask.

        The name ``*.example.org`` serves for a denied ``admin.example.org``, which no pattern match would find.
        """
        if self.covers(name):
            return True
        if not name.startswith("*."):
            return False
        zone = name[2:]
        return any(exact.partition(".")[2] == zone for exact in self._exact)


class EmailPatterns(Patterns):
    """Patterns over e-mail addresses."""

    __slots__ = ()

    what = "e-mail address"

    def _compile(self, skeleton: str, text: str) -> tuple[str, str]:
        local, _, domain = skeleton.rpartition("@")
        if "*" in domain or _HOLE in domain:
            raise _bad(text, self.what, "the domain is always literal")
        part = r"[^@]+" if local == "*" else _part(local, _LOCAL, text, self.what, wildcard=False)
        checked = _check_sample(skeleton, text, self.what, names.check_email)
        if local != "*" and _HOLE not in skeleton:
            return checked, ""
        return "", f"{part}@{re.escape(checked.rpartition('@')[2])}"


class Networks:
    """A set of IP ranges; equal when their texts are. An empty set covers nothing. Raises ``bad_policy`` for what is no range."""

    __slots__ = ("_networks", "texts")

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts: tuple[str, ...] = tuple(dict.fromkeys(texts))
        self._networks = tuple(_network(text) for text in self.texts)

    def covers(self, address: str) -> bool:
        """Return whether the address is in one of the ranges; what is not an address is not."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed.version == network.version and parsed in network for network in self._networks)

    def covers_source(self, address: str) -> bool:
        """As :meth:`covers`, for the peer of a connection: a dual-stack socket shows IPv4 peers as ``::ffff:10.0.0.1``."""
        return self.covers(address.removeprefix("::ffff:") if "." in address else address)

    def __bool__(self) -> bool:
        return bool(self.texts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Networks) and set(other.texts) == set(self.texts)

    def __hash__(self) -> int:
        return hash(frozenset(self.texts))

    def __repr__(self) -> str:
        return f"Networks({list(self.texts)!r})"


class ClaimPattern:
    """What one claim must be: a text (with ``*`` and ``**`` between ``/`` and ``:``), a number, true or false, or a list of which one fits.

    A claim that is itself a list (groups) fits when one of its items does. Types are exact: ``"true"`` is not ``true``, 1 is not ``true``.
    """

    __slots__ = ("_regexes", "_values", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        items = value if isinstance(value, list) else [value]
        if not items or any(not isinstance(item, str | bool | int) or item == "" for item in items):
            raise HandclaspError(Kind.BAD_POLICY, "a claim is compared with a text, a whole number, true, false, or a list of these")
        texts = [item for item in items if isinstance(item, str) and "*" in item]
        self._regexes = tuple(re.compile(_claim_regex(text)) for text in texts)
        self._values = frozenset((type(item), item) for item in items if item not in texts or not isinstance(item, str))

    def matches(self, claim: Any) -> bool:
        """Return whether the claim's value fits."""
        items = claim if isinstance(claim, list) else [claim]
        return any(self._matches_one(item) for item in items)

    def _matches_one(self, item: Any) -> bool:
        if not isinstance(item, str | bool | int):
            return False
        if (type(item), item) in self._values:
            return True
        return isinstance(item, str) and any(regex.fullmatch(item) is not None for regex in self._regexes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClaimPattern) and other._values == self._values and set(other._regexes) == set(self._regexes)

    def __hash__(self) -> int:
        return hash((self._values, self._regexes))

    def __repr__(self) -> str:
        return f"ClaimPattern({self.value!r})"


def _claim_regex(text: str) -> str:
    pieces = re.split(r"([/:])", text)
    last = len(pieces) - 1
    out = []
    for index, piece in enumerate(pieces):
        if piece == "*":
            out.append(r"[^/:\x00-\x1f\x7f]+")
        elif piece == "**" and index == last:
            out.append(r"[^\x00-\x1f\x7f]+")
        elif "*" in piece:
            raise _bad(text, "claim", "* stands for all that is between two of / and :, and ** for all the rest, at the end")
        else:
            out.append(re.escape(piece))
    return "".join(out)


def _part(part: str, charset: str, text: str, what: str, *, wildcard: bool = True) -> str:
    """Return the expression of one segment, label or local part; its placeholder becomes the one group."""
    if part == "*" and wildcard:
        return charset
    if "*" in part:
        raise _bad(text, what, "* stands for one whole segment, ** for the rest at the end; in a DNS name * is the first label")
    if part.count(_HOLE) > 1:
        raise _bad(text, what, "one placeholder in one segment: two could be cut in more than one way")
    return re.escape(part).replace(re.escape(_HOLE), f"({charset})")


def _skeleton(text: str, what: str) -> tuple[str, list[str]]:
    """Return the pattern with NUL for each placeholder, and the claims that they name."""
    if not isinstance(text, str) or not text or len(text) > MAX_PATTERN or not text.isprintable():
        raise HandclaspError(Kind.BAD_POLICY, f"a pattern ({what}) is a printable text of 1 to {MAX_PATTERN} characters")
    claims = _PLACEHOLDER.findall(text)
    skeleton = _PLACEHOLDER.sub(_HOLE, text)
    if "{" in skeleton or "}" in skeleton:
        raise _bad(text, what, "a placeholder is written {claim}")
    for name in claims:
        if _CLAIM_NAME.fullmatch(name) is None:
            raise _bad(text, what, f"{name!r} is not the name of a claim")
    return skeleton, claims


def _check_sample(skeleton: str, text: str, what: str, check: Callable[[str], str]) -> str:
    """Check one name that the pattern could cover: a pattern that can never match anything is an error and not a silence."""
    try:
        return check(skeleton.replace(_HOLE, "x").replace("**", "x").replace("*", "x"))
    except HandclaspError as error:
        raise _bad(text, what, error.detail) from error


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except (ValueError, TypeError) as error:
        raise HandclaspError(Kind.BAD_POLICY, f"{text!r} is not an address or range: {error}", hint="write it like 10.0.0.0/8") from error


def _bad(text: str, what: str, why: str) -> HandclaspError:
    shown = text if len(text) <= 200 else text[:200] + "…"
    return HandclaspError(Kind.BAD_POLICY, f"{shown!r} is not a pattern ({what}): {why}")
