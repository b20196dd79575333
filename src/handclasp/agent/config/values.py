"""Checks of single values. Each takes what YAML gave, and returns the value or raises ``ValueError`` or ``TypeError`` in a few words."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any

from handclasp.clock import parse_duration
from handclasp.pki import keys

SIGNALS = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGTERM", "SIGINT", "SIGQUIT")


def text(value: Any) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("text is expected")
    return value


def texts(check: Callable[[str], str] = str) -> Callable[[Any], tuple[str, ...]]:
    """A list of texts, each checked."""

    def read(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise TypeError("a list is expected")
        return tuple(check(text(item)) for item in value)

    return read


def one_of(*words: str) -> Callable[[Any], str]:
    """One of some words."""

    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(f"{value!r} is not one of {', '.join(words)}")
        return str(value)

    return read


def whole(low: int, high: int) -> Callable[[Any], int]:
    """A whole number from ``low`` to ``high``."""

    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high} is expected")
        return value

    return read


def argv(value: Any) -> tuple[str, ...]:
    """A command: a list of words."""
    if not isinstance(value, list) or not value:
        raise ValueError('a list of words is expected, such as ["nginx", "-t"]; there is no shell')
    return tuple(text(item) if not isinstance(item, int) or isinstance(item, bool) else str(item) for item in value)


def pairs(value: Any) -> tuple[tuple[str, str], ...]:
    """A mapping of texts to texts."""
    if not isinstance(value, Mapping):
        raise TypeError("a mapping of texts is expected")
    return tuple((text(key), text(item)) for key, item in value.items())


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise TypeError("true or false is expected")
    return value


def url(value: Any) -> str:
    """The address of a server."""
    if not text(value).startswith("https://"):
        raise ValueError("an address that begins with https:// is expected")
    return str(value).rstrip("/")


def duration(value: Any) -> float:
    """A time in seconds, between half a second and a day."""
    seconds = parse_duration(text(value))
    if not 0.5 <= seconds <= 86400:
        raise ValueError("between 500ms and 24h is expected")
    return seconds


def ttl(value: Any) -> str:
    """A lifetime; the server says which are allowed."""
    parse_duration(text(value))
    return str(value)


def key_type(value: Any) -> str:
    """A type of key."""
    return one_of(*keys.KEY_TYPES)(value)


def mode(value: Any) -> int:
    """The mode of a private key."""
    # YAML keeps 0640 as text here, so that nobody gets 640 decimal.
    word = text(str(value))
    number = int(word, 8) if word.isascii() and word.isdigit() and len(word) <= 4 and not set(word) & set("89") else -1
    if not 0o400 <= number <= 0o777 or number & 0o7:
        raise ValueError("a mode such as 0640 is expected; a private key is not for everybody")
    return number


def account(find: Callable[[str], int], what: str) -> Callable[[Any], int]:
    """A user or a group, by name or number."""

    def read(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32 - 1:
            return value
        try:
            return find(text(value))
        except KeyError:
            raise ValueError(f"there is no {what} {value} here") from None

    return read


def signal_number(value: Any) -> int:
    """A signal that reloads something."""
    name = "SIG" + text(value).upper().removeprefix("SIG")
    if name not in SIGNALS:
        raise ValueError(f"{value} is not a signal that reloads anything")
    return int(signal.Signals[name])


def address(value: Any) -> tuple[str, int]:
    """``host:port``; an IPv6 address in brackets or without."""
    host, _, port = text(value).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        raise ValueError("host:port is expected")
    return host_name(host), int(port)


def host_name(value: Any) -> str:
    """A name or an address that can be looked up, and sent as a server name."""
    name = text(value)
    try:
        name.encode("idna")
    except UnicodeError:
        raise ValueError(f"{value!r} is not the name of a host") from None
    if name.startswith(".") or len(name) > 253 or not name.isprintable() or " " in name:
        raise ValueError(f"{value!r} is not the name of a host")
    return name
