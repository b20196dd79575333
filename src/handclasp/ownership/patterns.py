"""Patterns in rules of ownership: what they cover, and the parts that they cut out by name.

===========  =========================================================================================================================
text         ``team-{team}``, ``pay*``: labels, namespaces, tags, host groups. ``*`` is any text without ``/``, ``{name}`` the same, kept.
             At most two of them, so that no value can make a match slow.
SPIFFE       ``spiffe://example.org/ns/{team}/**``: one of them in each segment, ``**`` for all the rest at the end, ``*`` also for the
             trust domain.
zone         ``{team}.example.org``: that name and everything below it.
===========  =========================================================================================================================

Pure. What was cut out is only ever compared with names of owners or checked as one: a value cannot widen anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from handclasp.errors import HandclaspError, Kind

MAX_PATTERN = 512
MAX_VALUE = 512
"""Characters of a value that is looked at: a Kubernetes label has 63, a cloud tag 256."""

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_PIECE = re.compile(r"(\*|\{[^{}]*\})")


class Pattern:
    """One compiled pattern. Raises ``bad_policy`` for a text that is none."""

    __slots__ = ("names", "regex", "text")

    def __init__(self, text: str, regex: str, names: Iterable[str]) -> None:
        self.text = text
        self.names = tuple(names)
        """What it cuts out."""
        self.regex = re.compile(regex, re.DOTALL)

    def match(self, value: str) -> dict[str, str] | None:
        """Return what it cuts out of ``value``, or None when it does not cover it."""
        if len(value) > MAX_VALUE:
            return None
        found = self.regex.fullmatch(value)
        return None if found is None else found.groupdict()


def text_pattern(text: str) -> Pattern:
    """Return a pattern over any text."""
    names = _names(text)
    if len(_PIECE.findall(text)) > 2:
        raise _bad(text, "at most two of * and {name} in one pattern")
    return Pattern(text, _compiled(text, r"[^/]*", r"[^/]+"), names)


def spiffe_pattern(text: str) -> Pattern:
    """Return a pattern over SPIFFE IDs."""
    names = _names(text)
    if not text.startswith("spiffe://") or "/" not in text[9:]:
        raise _bad(text, "write it as spiffe://TRUST-DOMAIN/PATH")
    trust_domain, *segments = text[9:].split("/")
    if trust_domain != "*" and _PIECE.search(trust_domain):
        raise _bad(text, "the trust domain is literal, or * for any")
    parts = ["[^/]+" if trust_domain == "*" else re.escape(trust_domain)]
    for place, segment in enumerate(segments):
        if segment == "**" and place == len(segments) - 1:
            parts.append("[^/]+(?:/[^/]+)*")
            continue
        if not segment or len(_PIECE.findall(segment)) > 1:
            raise _bad(text, "no empty segment, one * or {name} in each, ** only at the end")
        parts.append(_compiled(segment, "[^/]+", "[^/]+"))
    return Pattern(text, "spiffe://" + "/".join(parts), names)


def zone_pattern(text: str) -> Pattern:
    """Return a pattern over DNS names (lower case): a zone with everything in it."""
    names = _names(text)
    labels = text.lower().split(".") if text == text.lower() else []
    if not labels or any(not label or len(_PIECE.findall(label)) > 1 for label in labels):
        raise _bad(text, "a zone in lower case, such as payments.example.org or {team}.example.org")
    if _PIECE.search(labels[-1]):
        raise _bad(text, "the last label is literal")
    # The labels below the zone come first and hold no dot each, so there is one way only to match.
    return Pattern(text, r"(?:[^.]+\.)*?" + r"\.".join(_compiled(label, "[^.]+", "[^.]+") for label in labels), names)


class Template:
    """A text with ``{name}`` to be filled from what a pattern cut out."""

    __slots__ = ("names", "text")

    def __init__(self, text: str, known: Iterable[str]) -> None:
        self.text = text
        self.names = tuple(_names(text))
        missing = sorted(set(self.names) - set(known))
        if missing:
            raise _bad(
                text, f"nothing gives {{{missing[0]}}} here; there is {', '.join(f'{{{name}}}' for name in sorted(known)) or 'none'}"
            )

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the text with everything in its place."""
        return _PLACEHOLDER.sub(lambda found: values[found[1]], self.text) if self.names else self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


def _names(text: str) -> list[str]:
    if not text or len(text) > MAX_PATTERN or not text.isprintable():
        raise HandclaspError(Kind.BAD_POLICY, f"a pattern is a printable text of 1 to {MAX_PATTERN} characters")
    names = _PLACEHOLDER.findall(text)
    rest = _PLACEHOLDER.sub("", text)
    if "{" in rest or "}" in rest:
        raise _bad(text, "a placeholder is written {name}")
    for name in names:
        if _NAME.fullmatch(name) is None:
            raise _bad(text, f"{{{name}}} is not a name: lower-case letters, digits and _")
    if len(set(names)) != len(names):
        raise _bad(text, "a placeholder is there twice")
    return names


def _compiled(text: str, any_: str, kept: str) -> str:
    parts = []
    for piece in _PIECE.split(text):
        if piece == "*":
            parts.append(any_)
        elif piece.startswith("{"):
            parts.append(f"(?P<{piece[1:-1]}>{kept})")
        else:
            parts.append(re.escape(piece))
    return "".join(parts)


def _bad(text: str, why: str) -> HandclaspError:
    shown = text if len(text) <= 200 else text[:200] + "…"
    return HandclaspError(Kind.BAD_POLICY, f"{shown!r} is not a pattern: {why}")
