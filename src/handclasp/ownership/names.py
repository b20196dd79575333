"""Names of owners, and the few values that an identity has besides: tier and environment."""

from __future__ import annotations

import re

from handclasp.errors import HandclaspError, Kind

KINDS = ("team", "person", "service")
TIERS = ("0", "1", "2", "3")
"""How much hangs on an identity: 0 is what everything else stands on."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")
_ENVIRONMENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def plain_owner(text: str) -> str:
    """Return what a directory calls an owner as we do: ``group:default/payments`` and ``@acme/payments`` are both ``payments``.

    The name of a Backstage entity is kept with its namespace unless that is ``default``. Empty where there is no name in it.
    """
    name = text.strip()
    if name.startswith("@"):
        name = name[1:].rpartition("/")[2]
    else:
        kind, colon, rest = name.partition(":")
        if colon and kind.lower() in ("group", "user", "component", "system"):
            name = rest
        namespace, slash, last = name.partition("/")
        if slash:
            name = last if namespace.lower() == "default" else f"{namespace}.{last}"
    return name if _NAME.fullmatch(name) else ""


def is_owner(text: str) -> bool:
    """Tell whether a text can be an owner's name."""
    return _NAME.fullmatch(text) is not None


def check_owner(text: str) -> str:
    """Return an owner's name unchanged; raise ``bad_request`` for what cannot be one."""
    if not is_owner(text):
        raise HandclaspError(
            Kind.BAD_REQUEST, f"{text[:200]!r} is not the name of an owner", hint="letters, digits and . _ @ + -, at most 128 of them"
        )
    return text


def check_tier(text: str) -> str:
    """Return a tier unchanged; raise ``bad_request`` for another than 0 to 3."""
    if text not in TIERS:
        raise HandclaspError(Kind.BAD_REQUEST, f"{text[:50]!r} is not a tier", hint="tiers are 0, 1, 2 and 3; 0 is the most important")
    return text


def check_environment(text: str) -> str:
    """Return an environment unchanged; raise ``bad_request`` for what cannot be one."""
    if _ENVIRONMENT.fullmatch(text) is None:
        raise HandclaspError(Kind.BAD_REQUEST, f"{text[:200]!r} is not an environment", hint="write it like prod, staging or dev-eu")
    return text


def is_environment(text: str) -> bool:
    """Tell whether a text can be an environment."""
    return _ENVIRONMENT.fullmatch(text) is not None
