"""Tokens, policy, profiles."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping
from typing import Any

from handclasp.access.principals import SCOPES
from handclasp.console.app import Page
from handclasp.console.fields import fields_of, list_query
from handclasp.console.turns import turns
from handclasp.console.visit import Answer, Go, Shown, Visit
from handclasp.errors import HandclaspError, Kind

_SPLIT = re.compile(r"[\s,]+")


async def tokens(visit: Visit) -> Answer:
    """List tokens."""
    path = "/v1/tokens"
    listed = await visit.get(path, list_query(visit, path))
    shown = {"listed": listed, "turns": turns(visit, listed.next_cursor, len(listed.items), 50)}
    return Shown("tokens.html", shown | {"fields": fields_of(visit.api.parameters(path))})


async def token(visit: Visit) -> Answer:
    """Show one token, and what it did."""
    one = await visit.get(f"/v1/tokens/{visit.params['id']}")
    entries = await visit.find("log:read", "/v1/log/entries", {"subject": f"token:{one.id}", "limit": "20"})
    return Shown("token.html", {"one": one, "entries": entries.items if entries is not None else []})


async def new_token(visit: Visit) -> Answer:
    """Show the form for a new token, with the command that does the same."""
    return Shown("token_new.html", await _token_form(visit, visit.query, {name: [value] for name, value in visit.query.items()}))


async def _token_form(visit: Visit, given: Mapping[str, str], lists: Mapping[str, list[str]]) -> dict[str, Any]:
    profiles = await visit.find("policy:read", "/v1/profiles")
    held = [scope for scope in SCOPES if visit.can(scope)]
    return {
        "error": None,
        "given": given,
        "ticked": {name: set(lists.get(name, ())) for name in ("profiles", "scopes")},
        "profiles": [one.name for one in profiles.items] if profiles is not None else [],
        "scopes": [(scope, SCOPES[scope]) for scope in held],
        "command": token_command(_token_request(given, lists)),
    }


async def create_token(visit: Visit) -> Answer:
    """Make a token, and show it once; or show the form again with the command, where that button was pressed."""
    if "preview" in visit.form:
        return Shown("token_new.html", await _token_form(visit, visit.form, visit.lists))
    try:
        request = _token_request(visit.form, visit.lists)
        made = await visit.send("POST", "/v1/tokens", request)
    except HandclaspError as error:
        if error.kind is not Kind.BAD_REQUEST:
            raise
        form = {**visit.form, **({} if visit.form.get("uses", "").isdigit() else {"uses": ""})}  # nothing else of what was typed is lost
        return Shown("token_new.html", await _token_form(visit, form, visit.lists) | {"error": error}, visit.api.status(error))
    return Shown("token_made.html", {"made": made, "command": token_command(request), "agent": bool(request.get("agent"))})


async def revoke_token(visit: Visit) -> Answer:
    """Revoke a token."""
    done = await visit.send("POST", f"/v1/tokens/{visit.params['id']}:revoke")
    return Go(f"/console/tokens/{visit.params['id']}", f"Revoked. Log entry {done.log_entry}.")


def _token_request(given: Mapping[str, str], lists: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return the request that a form makes; what is empty is left out, so that the API's defaults hold."""
    request: dict[str, Any] = {"name": given.get("name", "").strip()}
    for name in ("owner", "max_ttl", "expires"):
        if given.get(name, "").strip():
            request[name] = given[name].strip()
    for name in ("allow", "allow_dns", "cidr"):
        found = [one for one in _SPLIT.split(given.get(name, "")) if one]
        if found:
            request[name] = found
    uses = given.get("uses", "").strip()
    if uses:
        if not (uses.isascii() and uses.isdigit() and len(uses) < 11):
            raise HandclaspError(Kind.BAD_REQUEST, "uses is a number; 0 is without limit")
        request["uses"] = int(uses)
    for name in ("profiles", "scopes"):
        found = [one for one in lists.get(name, ()) if one]
        if found:
            request[name] = found
    if given.get("agent"):
        request["agent"] = True
        labels = [one.partition("=") for one in _SPLIT.split(given.get("labels", "")) if one]
        if labels:
            request["labels"] = {key: value for key, _, value in labels}
    if given.get("no_renew"):
        request["renew"] = False
    return request


def token_command(request: Mapping[str, Any]) -> str:
    """Return the command that makes the same token."""
    words = ["handclasp", "token", "create", request.get("name") or "NAME"]
    several = {"allow": "--allow", "allow_dns": "--allow-dns", "profiles": "--profile", "scopes": "--scope", "cidr": "--cidr"}
    for name, flag in several.items():
        for value in request.get(name, ()):
            words += [flag, value]
    for name, flag in (("max_ttl", "--max-ttl"), ("uses", "--uses"), ("expires", "--expires"), ("owner", "--owner")):
        if name in request:
            words += [flag, str(request[name])]
    if request.get("agent"):
        words.append("--agent")
    for key, value in request.get("labels", {}).items():
        words += ["--label", f"{key}={value}"]
    if request.get("renew") is False:
        words.append("--no-renew")
    return shlex.join(words)


# --- policy and profiles ----------------------------------------------------------------------------------------------------------------


async def policy(visit: Visit) -> Answer:
    """Show the policy in force."""
    one = await visit.get("/v1/policy")
    entries = await visit.find("log:read", "/v1/log/entries", {"type": "policy.applied", "limit": "10"})
    shown = {"one": one, "entries": entries.items if entries is not None else [], "text": one.text, "diff": None, "error": None}
    return Shown("policy.html", shown)


async def change_policy(visit: Visit) -> Answer:
    """Compare a policy with the one in force, or put it in force."""
    text = visit.form.get("text", "")
    try:
        if "apply" in visit.form:
            done = await visit.send("PUT", "/v1/policy", {"text": text})
            said = f"In force; log entry {done.log_entry}." if done.log_entry is not None else "Nothing changed."
            return Go("/console/policy", said)
        diff = await visit.send("POST", "/v1/policy:diff", {"text": text})
    except HandclaspError as error:
        if visit.api.status(error) not in (400, 409, 422):
            raise
        shown = {"one": await visit.get("/v1/policy"), "entries": [], "text": text, "diff": None, "error": error}
        return Shown("policy.html", shown, visit.api.status(error))  # nothing of what was typed is lost
    one = await visit.get("/v1/policy")
    lines = list(difflib.unified_diff(one.text.splitlines(), text.splitlines(), "in force", "proposed", lineterm="", n=2))
    return Shown("policy.html", {"one": one, "entries": [], "text": text, "diff": diff, "lines": lines, "error": None})


async def profiles(visit: Visit) -> Answer:
    """List the profiles."""
    return Shown("profiles.html", {"listed": await visit.get("/v1/profiles")})


async def profile(visit: Visit) -> Answer:
    """Show one profile."""
    return Shown("profile.html", {"one": await visit.get(f"/v1/profiles/{visit.params['name']}")})


PAGES = (
    Page("GET", "tokens", tokens),
    Page("GET", "tokens/new", new_token),
    Page("POST", "tokens", create_token),
    Page("GET", "tokens/{id}", token),
    Page("POST", "tokens/{id}/revoke", revoke_token),
    Page("GET", "policy", policy),
    Page("POST", "policy", change_policy),
    Page("GET", "profiles", profiles),
    Page("GET", "profiles/{name}", profile),
)
