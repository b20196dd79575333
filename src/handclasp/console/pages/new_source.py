"""Adding a source: a form for the kinds that most people begin with, and for each the command that does the same."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from handclasp.console.app import Page
from handclasp.console.visit import Answer, Go, Shown, Visit
from handclasp.errors import HandclaspError, Kind

_SPLIT = re.compile(r"[\s,]+")


@dataclass(frozen=True, slots=True)
class Entry:
    """One field of the form that takes several values, one a line."""

    name: str
    label: str
    note: str
    example: str
    flag: str
    """The option of the command, once for each value."""
    scope: bool = False
    """Whether it is of the source's scope, and not of its settings."""
    required: bool = False


FORMS: Mapping[str, tuple[str, tuple[Entry, ...]]] = {
    "network": (
        "TLS servers of a network",
        (
            Entry("allow", "May be read", "addresses, networks, host names", "10.0.0.0/24", "--allow", scope=True, required=True),
            Entry("deny", "Never read", "wins over what may be read", "10.0.0.7", "--deny", scope=True),
            Entry("ports", "Ports", "443 without any; 25/smtp for STARTTLS", "443", "--port"),
            Entry("sni", "Names to ask for", "at each address", "web.example.org", "--sni"),
        ),
    ),
    "files": (
        "Files of hosts with an agent",
        (
            Entry("paths", "Directories or files", "absolute; the usual ones without any", "/etc", "--path"),
            Entry("excludes", "Passed over", "names, or whole paths with *", "*.bak", "--exclude"),
            Entry("agents", "Only agents with the labels", "all of them", "role=web", "--agent"),
            Entry("allow", "Only the agents", "by name; every one without any", "web-1", "--allow", scope=True),
        ),
    ),
}
"""Kinds with a form: what each is for, and its fields. Any other kind is added by a command."""


async def new(visit: Visit) -> Answer:
    """Show the form."""
    return _shown({"every": "1h"} | visit.query)


def _shown(given: Mapping[str, str], error: HandclaspError | None = None, status: int = 200) -> Shown:
    kind = given.get("kind", "network")
    kind = kind if kind in FORMS else "network"
    context = {
        "kind": kind,
        "kinds": {name: title for name, (title, _) in FORMS.items()},
        "entries": FORMS[kind][1],
        "given": given,
        "error": error,
        "command": command(request(kind, given)),
    }
    return Shown("source_new.html", context, status)


async def add(visit: Visit) -> Answer:
    """Add the source; or show the form again with the command, where that button was pressed."""
    if "preview" in visit.form:
        return _shown(visit.form)
    wanted = request(visit.form.get("kind", ""), visit.form)
    try:
        made = await visit.send("POST", "/v1/sources", wanted)
    except HandclaspError as error:
        if error.kind not in (Kind.BAD_REQUEST, Kind.BAD_SETTING, Kind.CONFLICT):
            raise
        return _shown(visit.form, error, visit.api.status(error))  # nothing of what was typed is lost
    said = "Added. Its first scan begins now." if made.every else "Added. Run it when you like; a dry run records nothing."
    return Go(f"/console/sources/{quote(made.name, safe='')}", said)


def request(kind: str, given: Mapping[str, str]) -> dict[str, Any]:
    """Return the request that a form makes; what is empty is left out, so that the API's defaults hold."""
    made: dict[str, Any] = {"name": given.get("name", "").strip(), "kind": kind, "settings": {}, "scope": {}}
    for one in FORMS[kind][1] if kind in FORMS else ():
        values = [value for value in _SPLIT.split(given.get(one.name, "")) if value]
        if values:
            made["scope" if one.scope else "settings"][one.name] = values
    if given.get("every", "").strip():
        made["every"] = given["every"].strip()
    if kind == "network" and given.get("loopback"):
        made["scope"]["loopback"] = True
    return made


def command(wanted: Mapping[str, Any]) -> str:
    """Return the command that adds the same source."""
    words = ["handclasp", "source", "add", wanted["kind"], wanted["name"] or "NAME"]
    for one in FORMS[wanted["kind"]][1]:
        for value in wanted["scope" if one.scope else "settings"].get(one.name, ()):
            words += [one.flag, value]
    if wanted["scope"].get("loopback"):
        words.append("--loopback")
    if "every" in wanted:
        words += ["--every", wanted["every"]]
    return shlex.join(words)


PAGES = (Page("GET", "sources/new", new), Page("POST", "sources", add))
