"""The page behind a confirmation link: plain HTML that works in any browser, without scripts, and asks for nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
from html import escape

from handclasp.wire.ownership import Confirmation, Confirmed

_STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "td,th{text-align:left;padding:.4rem .8rem .4rem 0;vertical-align:top;overflow-wrap:anywhere}fieldset{border:0;padding:0;margin:0}"
    "label{white-space:nowrap;margin-right:1rem}button{font:inherit;padding:.5rem 1.2rem;margin-top:1rem}"
)
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

PAGE_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-frame-options", b"DENY"),
    (b"x-robots-tag", b"noindex"),
    (b"cache-control", b"no-store"),
)
"""Of each of these pages. That no referrer is sent is said with every answer of the API."""


def asking_page(found: Confirmation) -> str:
    """Return the page that asks, or that says that it was answered."""
    if found.answered_at is not None:
        return _page("Answered", f"<p>This was answered at {escape(found.answered_at)}. Thank you.</p>")
    rows = "".join(_row(number, one.identity, one.tier, one.environment) for number, one in enumerate(found.identities))
    return _page(
        f"Does {found.owner} own these?",
        f"<p>Each line is an identity with certificates. Say which of them are {escape(found.owner)}'s, until "
        f"{escape(found.expires_at)}. What you leave open stays as it is.</p>"
        '<form method="post"><table><thead><tr><th scope="col">Identity</th><th scope="col">Environment</th><th scope="col">Tier</th>'
        f'<th scope="col">Yours?</th></tr></thead><tbody>{rows}</tbody></table><input type="hidden" name="answer" value="yes">'
        '<button type="submit">Send</button></form>',
    )


def _row(number: int, identity: str, tier: str | None, environment: str | None) -> str:
    name = escape(f"for:{identity}", quote=True)
    choices = "".join(
        f'<label><input type="radio" name="{name}" value="{value}"> {words}</label>'
        for value, words in (("confirm", "yes"), ("deny", "no"))
    )
    return (
        f'<tr><td id="i{number}">{escape(identity)}</td><td>{escape(environment or "")}</td><td>{escape(tier or "")}</td>'
        f'<td><fieldset aria-labelledby="i{number}">{choices}</fieldset></td></tr>'
    )


def answered_page(found: Confirmed) -> str:
    """Return the page that says thank you."""
    changed = (
        "<p>These were given to somebody else since, and nothing was done about them:</p><ul>"
        + "".join(f"<li>{escape(name)}</li>" for name in found.changed)
        + "</ul>"
        if found.changed
        else ""
    )
    return _page("Thank you", f"<p>{found.confirmed} confirmed, {found.denied} denied.</p>{changed}")


def over_page(words: str) -> str:
    """Return the page for a link that does not ask anything (any more)."""
    return _page("Nothing to answer", f"<p>{escape(words)}. Whoever sent it can make a new one.</p>")


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>"
    )
