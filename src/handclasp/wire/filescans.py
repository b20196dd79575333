"""Scans of files, as the server gives them to agents, and what agents answer.

An agent says of itself what it found, and of nobody else: each key begins with ``file:`` and the agent's identity, each unit with
``files:`` and the same, and the server holds that against the certificate that the agent shows.
"""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta, Struct, field

from handclasp.wire.base import Request, Response
from handclasp.wire.observations import Observed, Recorded, Text, unit_mark

_AGENTS = re.compile(r"(?:file|agent):(spiffe://[^:]+):")
_MARK = re.compile(r"~[0-9a-f]{8}\Z")


def host_of(identity: str) -> str:
    """Return the name of the host that an agent's identity speaks of: what follows ``/agent/`` in it."""
    return identity.rpartition("/agent/")[2] or identity


def key_of(identity: str, path: str) -> str:
    """Return the key of the location that a file on an agent's host is."""
    return f"file:{identity}:{path}"


def agent_of(key: str) -> str:
    """Return the identity of the agent that a location's key names as the one that sees it; empty for other keys."""
    found = _AGENTS.match(key)
    return found[1] if found is not None else ""


def unit_of(identity: str, pattern: str, limits: str = "") -> str:
    """Return the unit that lists what lies under one path (or glob) of a source's settings, on one agent's host.

    ``limits`` stands for what is left out of it (empty: nothing).
    """
    return f"files:{identity}:{pattern}{unit_mark(limits)}"


def whole_unit(unit: str) -> str:
    """Return the unit that leaves nothing out, of which this one is a part."""
    return _MARK.sub("", unit)


class FileScan(Response, kw_only=True):
    """One scan of files that is due for the agent that asks."""

    scan: str
    source: str
    paths: list[str]
    """Absolute directories, files or globs of such; what the agent's own rules forbid is left out there."""
    excludes: list[str] = field(default_factory=list)
    """Globs: of whole paths where there is a slash in them, else of names."""
    max_depth: int = 16
    max_size: int = 4 * 1024 * 1024
    """Bytes of a file that is read; larger ones are passed over."""
    max_files: int = 500_000
    """Files that are looked at; beyond this the scan is not whole."""


class FileScanList(Response, kw_only=True):
    """What is due."""

    items: list[FileScan]


class Unchanged(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A location that still is as it was last told: what was seen there is there."""

    key: Text
    digest: Annotated[str, Meta(max_length=64)]
    """As it stood in its ``details`` then."""


class Unread(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A directory that cannot be listed: nothing is known of what lies in it, and nothing in it is gone."""

    path: Text
    problem: Text


class FileSightings(Request, kw_only=True):
    """What an agent found since its last word on one scan. The answer comes when all of it is durable."""

    scan: Annotated[str, Meta(max_length=64)]
    observed: Annotated[list[Observed], Meta(max_length=1000)] = field(default_factory=list)
    unchanged: Annotated[list[Unchanged], Meta(max_length=5000)] = field(default_factory=list)
    unread: Annotated[list[Unread], Meta(max_length=1000)] = field(default_factory=list)
    covered: Annotated[list[Text], Meta(max_length=1000)] = field(default_factory=list)
    """Units (:func:`unit_of`) of which everything has been told now, but for what is in ``unread``."""
    place: Text = ""
    """How far it is, for people; the agent itself keeps it."""
    read: int = 0
    """Files looked at since the last word that hold nothing of interest."""
    done: bool = False
    """It was the last word on this scan."""
    problem: Text | None = None
    """With ``done``: why not everything that was asked for was read."""
    skipped: Text | None = None
    """With ``done``: what was asked for and is never looked at. Nothing is missing for that."""


class FileRecorded(Response, kw_only=True):
    """What came of it."""

    recorded: Recorded
    unknown: list[str] = field(default_factory=list)
    """Keys of ``unchanged`` that are not known so here: to be told whole."""
    over: bool = False
    """The scan was stopped, or has ended without this agent: nothing more is wanted."""
