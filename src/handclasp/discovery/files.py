"""Source kind ``files``: certificates, keystores and private keys in the files of hosts, found there by their agents."""

from __future__ import annotations

import fnmatch
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from handclasp.clock import parse_duration
from handclasp.discovery.source import Part, Reading, Runs, Scope
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind
from handclasp.wire.filescans import FileScan, host_of

NEVER = ("/proc", "/sys", "/dev")
USUAL = ("/etc", "/opt", "/srv", "/usr/local", "/var/lib")
Name = Annotated[str, Meta(min_length=1, max_length=1024)]
_SHORTEST, _LONGEST = 60.0, 14 * 86_400.0


class FilesSettings(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where agents look."""

    paths: Annotated[list[Name], Meta(max_length=100)] = field(default_factory=lambda: list(USUAL))
    """Absolute directories, files or globs of them. What an agent's own configuration does not allow is left out there."""
    agents: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=50)] = field(default_factory=list)
    """Labels (``role=web``) that an agent must have, all of them; ``*`` in a value stands for anything. None: every agent."""
    excludes: Annotated[list[Name], Meta(max_length=200)] = field(default_factory=list)
    """Globs that are passed over: of whole paths where there is a slash in them, else of names."""
    max_depth: Annotated[int, Meta(ge=0, le=64)] = 16
    """Directories below a path."""
    max_size: Annotated[int, Meta(ge=1024, le=16_777_216)] = 4_194_304
    """Bytes; larger files are passed over."""
    max_files: Annotated[int, Meta(ge=1, le=5_000_000)] = 500_000
    """Files on one host; a scan that finds more there is not whole."""
    wait: str = "24h"
    """How long a scan waits for an agent that says nothing. It then ends without it; what was seen there stays as it was."""


class Files:
    """The kind. Nothing is read here: the server gives the parts to agents (:mod:`handclasp.discovery.filescans`)."""

    name = "files"
    summary = "files of hosts, read by their agents: PEM, DER, PKCS#12, JKS, kubeconfigs, trust stores; the scope names agents"
    privilege = (
        "None on the server. On each host the agent reads what its user may read, and of that only what its own agent.yaml allows "
        "(discover: allow, deny, off); the packaged unit runs it without privileges. Give its user access by group or ACL to what it is "
        "to see. Of private keys it tells that they are there, who may read them, and whose they are; no byte of one leaves the host."
    )
    Settings: type[Struct] = FilesSettings
    runs: Runs = "agents"

    def check(self, settings: FilesSettings, scope: Scope) -> None:  # noqa: ARG002  (any scope does)
        """Raise ``bad_setting`` for paths that are not absolute or never looked at, labels that are none, and times that make no sense."""
        if not settings.paths:
            raise HandclaspError(Kind.BAD_SETTING, "files: paths is empty", hint="give a directory, such as /etc")
        for path in settings.paths:
            if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
                raise HandclaspError(Kind.BAD_SETTING, f"files: {path!r} is not an absolute path")
            if any(path == one or path.startswith(one + "/") for one in NEVER):
                raise HandclaspError(Kind.BAD_SETTING, f"files: {path} is never looked at")
        for label in settings.agents:
            name, equals, _ = label.partition("=")
            if not name or not equals:
                raise HandclaspError(Kind.BAD_SETTING, f"files: {label!r} is not a label", hint="write it as K=V")
        if not _SHORTEST <= parse_duration(settings.wait) <= _LONGEST:
            raise HandclaspError(Kind.BAD_SETTING, "files: wait is between 1m and 14d")

    async def plan(self, settings: FilesSettings, scope: Scope, tools: Tools) -> AsyncIterator[Part]:  # noqa: ARG002
        """Raise: the agents' parts are planned where the agents are known."""
        raise HandclaspError(Kind.BAD_SETTING, "only agents can read files", hint="leave runs as it is")
        yield Part()  # never reached: it makes this what the contract wants, a generator

    async def read(self, settings: FilesSettings, part: Part, place: str, tools: Tools) -> AsyncIterator[Reading]:  # noqa: ARG002
        """Raise: nobody but an agent reads files."""
        raise HandclaspError(Kind.BAD_SETTING, "only agents can read files", hint="leave runs as it is")
        yield  # as above


FILES = Files()


def concerns(settings: FilesSettings, scope: Scope, identity: str, labels: Mapping[str, Any]) -> bool:
    """Tell whether an agent is one of those that are to look."""
    if not scope.admits(host_of(identity)):
        return False
    wanted = (label.partition("=") for label in settings.agents)
    return all(isinstance(have := labels.get(key), str) and fnmatch.fnmatchcase(have, value) for key, _, value in wanted)


def order_of(settings: FilesSettings, scan: str, source: str) -> FileScan:
    """Return what an agent is told of a scan."""
    return FileScan(
        scan=scan,
        source=source,
        paths=settings.paths,
        excludes=settings.excludes,
        max_depth=settings.max_depth,
        max_size=settings.max_size,
        max_files=settings.max_files,
    )
