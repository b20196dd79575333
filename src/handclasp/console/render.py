"""Templates, and how values look in them. Everything is escaped; a misspelt name in a template is an error and not an empty place."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from handclasp.clock import parse_rfc3339
from handclasp.errors import HandclaspError

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"

TONES: Mapping[str, str] = {
    **dict.fromkeys(("valid", "active", "ok", "done", "seen", "read", "claimed", "confirmed", "running", "verified"), "good"),
    **dict.fromkeys(
        ("attention", "overdue", "late", "planned", "waiting", "renewing", "old_served", "unseen", "stale", "silent", "planning",
         "investigate", "paused", "gone", "expiring", "pending", "leased", "guess", "disputed", "contested"),
        "warn",
    ),
    **dict.fromkeys(
        ("revoked", "failed", "unissued", "revoked_served", "expired_served", "alarm", "ended", "refused", "unreadable"),
        "bad",
    ),
}  # fmt: skip
"""How a state looks; any other is neutral. The word itself is always there: colour alone says nothing."""

WORDS: Mapping[str, str] = {
    "unissued": "never issued here",
    "revoked_served": "revoked, still served",
    "expired_served": "expired, still served",
    "old_served": "replaced, still served",
    "foreign": "foreign issuer",
    "gone": "disappeared",
    "seen": "issued and seen",
    "unseen": "never seen",
}
"""What a state is called, where its name alone does not say it."""

_UNITS = (("y", 31_536_000), ("d", 86_400), ("h", 3600), ("min", 60))


def relative(at: int, now: int) -> str:
    """Return a time as people say it: ``in 3 d``, ``2 h ago``."""
    seconds = abs(at - now) // 1000
    if seconds < 5:
        return "now"
    number, unit = next(((seconds // size, unit) for unit, size in _UNITS if seconds >= size * (2 if unit == "y" else 1)), (seconds, "s"))
    return f"in {number} {unit}" if at > now else f"{number} {unit} ago"


def exact(text: str) -> str:
    """Return an RFC 3339 time to the second, for people."""
    return f"{text[:10]} {text[11:19]} UTC"


def grouped(number: float) -> str:
    """Return a number with thin spaces between thousands."""
    return f"{number:,}".replace(",", "\u202f")


def link(path: str, query: Mapping[str, Any] | None = None, **more: Any) -> str:
    """Return an address with a query; empty values are left out."""
    given = {name: value for name, value in {**(query or {}), **more}.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


def identity_link(identity: str) -> str:
    """Return the address of the page of an identity."""
    return link("/console/identity", name=identity)


def from_api(address: str) -> str:
    """Return the page of the console for a list of the API."""
    return address.replace("/v1/log/entries", "/console/log").replace("/v1/", "/console/")


LEVELS: Mapping[str, str] = {"alarm": "bad", "attention": "warn", "fine": "plain"}
"""How urgent something looks."""


def chart_data(value: Any) -> str:
    """Return what a picture shows, as JSON for an attribute."""
    return json.dumps(value, separators=(",", ":"))


@cache
def environment() -> Environment:
    """Return the templates, ready to render. Made when the first page is asked for."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    loader = FileSystemLoader(TEMPLATES)
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, auto_reload=False)

    def when(text: str | None, now: int, exactly: bool = False) -> Any:
        if not text:
            return Markup('<span class="none">never</span>')
        try:
            at = parse_rfc3339(text)
        except HandclaspError:
            return escape(text)
        shown = (exact(text), relative(at, now)) if exactly else (relative(at, now), exact(text))
        return Markup('<time datetime="{}" title="{}">{}</time>').format(text, shown[1], shown[0])

    def breakable(text: str) -> Any:
        """Let a long name break after its separators, and nowhere else."""
        return Markup("").join(Markup("{}<wbr>").format(one) if one in "/.:@" else escape(one) for one in text)

    def past(text: str, now: int) -> bool:
        return parse_rfc3339(text) < now

    made.filters |= {
        "when": when,
        "past": past,
        "quoted": shlex.quote,
        "breakable": breakable,
        "grouped": grouped,
        "exact": exact,
        "chart": chart_data,
    }
    made.globals |= {
        "tone": lambda state: TONES.get(str(state), "plain"),
        "word": lambda state: WORDS.get(str(state), str(state).replace("_", " ")),
        "link": link,
        "identity_link": identity_link,
        "from_api": from_api,
        "level": lambda level: LEVELS.get(level, "plain"),
    }
    return made
